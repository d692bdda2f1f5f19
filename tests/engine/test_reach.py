"""The machine of ``test_machine.py`` comes to every kind of order that a market offers, in every phase of it.

What there is, the table of ``engine/profiles.py`` says: profile, phase, type, validity, option. A walk with a fixed
seed goes through the machine's own deeds, so engine and plain model answer each command and the counts hold after it;
it prefers what has not been seen yet. In the end each kind was entered in each phase, with the answer that the table
gives, and each that the phase takes has traded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from engine.commands import (
    BustTrade,
    CancelOrder,
    Command,
    Deposit,
    Kill,
    LimitRow,
    ListInstrument,
    MassCancel,
    NewOrder,
    SetLimitTable,
    SetPhase,
    StartDay,
)
from engine.core import Engine
from engine.events import (
    Accepted,
    Amended,
    AuctionUncrossed,
    BalanceChanged,
    Cancelled,
    DisplayChanged,
    Event,
    KillSwitched,
    MassCancelled,
    Rejected,
    TradeBusted,
    Traded,
)
from engine.profiles import (
    ICEBERG,
    MINIMUM,
    NOT_OFFERED,
    POST_ONLY,
    PROFILES,
    REFUSED,
    SELF_TRADE,
    STOPS,
    TRADE,
    WAITS,
    Rules,
    meaning,
)
from engine.types import OrderType, Phase, Reason, SelfTrade, Side, TimeInForce
from tests.engine.conserved import Conserved
from tests.engine.kinds import KINDS, Kind, everything
from tests.engine.test_machine import CALLS, MEMBERS, PRICES, ZARABA, Deed, MarketMachine

#: One kind of order, entered in one phase of a profile.
Place = tuple[str, Phase, Kind]
#: With prevention, an imbalance-only order is passed over where its member stands on the other side too.
ALL: dict[str, int | str] = {"imbalance_only": 1, "break_new": 1, "call_ncp": 1, "self_trade": "none"}
#: What a walk may take. It needs less. The plain model looks at every order there ever was, so lives are short.
LIVES, DAYS_OF_A_LIFE = 12, 4


def offered(profile: str) -> Iterator[Place]:
    """Each kind that the profile offers, in each of its phases."""
    for phase in PROFILES[profile].phases:
        for kind in KINDS[profile]:
            yield profile, phase, kind


def is_taken(place: Place) -> bool:
    profile, phase, kind = place
    return meaning(everything(profile), phase, *kind) not in (NOT_OFFERED, REFUSED)


class Explorer(MarketMachine):
    """The machine, writing down what it has come to. ``entered`` and ``traded`` outlive it."""

    entered: set[Place]
    traded: set[Place]

    def __init__(self) -> None:
        super().__init__()
        self.came: dict[int, Place] = {}  #: by order

    def send(self, command: Command, member: str = "") -> list[Event]:
        book = self.model.books.get(command.instrument) if isinstance(command, NewOrder) else None
        phase, halted = (book.phase, book.suspended) if book is not None else (Phase.CLOSED, False)
        events = super().send(command, member)
        if isinstance(command, NewOrder) and book is not None and not halted:
            self.note(command, (book.listed.profile, phase, kind_of(command)), events[0])
        for event in events:
            if isinstance(event, Traded):
                self.traded |= {self.came[order] for order in (event.buy_order_id, event.sell_order_id)}
        return events

    def note(self, order: NewOrder, place: Place, answer: Event) -> None:
        """Hold the answer against the table."""
        profile, phase, kind = place
        rules = Rules(PROFILES[profile], self.model.books[order.instrument].listed.rules)
        says = meaning(rules, phase, *kind)
        if isinstance(answer, Accepted):
            self.came[answer.order_id] = place
            assert says not in (NOT_OFFERED, REFUSED), (place, answer)
            through = 1 << kind.type & STOPS and rules.phases[phase].matching == TRADE  # its price was there already
            assert answer.waiting == (says == WAITS) or (through and not answer.waiting), (place, answer)
            self.entered.add(place)
        elif isinstance(answer, Rejected) and answer.reason == Reason.WRONG_PHASE:
            assert says == REFUSED, (place, answer)
            self.entered.add(place)
        elif isinstance(answer, Rejected) and answer.reason == Reason.NOT_OFFERED:
            assert says == NOT_OFFERED, (place, answer)

    def missing(self, profile: str) -> list[Place]:
        """What the walk has not come to yet."""
        return [
            place
            for place in offered(profile)
            if place not in self.entered or (is_taken(place) and place not in self.traded)
        ]


def kind_of(order: NewOrder) -> Kind:
    return Kind(
        OrderType(order.order_type),
        TimeInForce(order.time_in_force),
        ICEBERG * (order.display_quantity > 0)
        | POST_ONLY * order.post_only
        | MINIMUM * (order.minimum_quantity > 0)
        | SELF_TRADE * (order.self_trade != SelfTrade.DEFAULT),
    )


def live(machine: Explorer, draw: random.Random) -> None:
    """Some days of a market: in each phase what is missing there, on one side a day, and somebody to trade with."""
    machine.open_the_market(ALL, ALL, {}, 0, "one", "none", 1, 100)
    missing = {code: machine.missing(machine.profile(code)) for code in (CALLS, ZARABA)}
    while machine.days <= DAYS_OF_A_LIFE and any(missing.values()):
        for code in (CALLS, ZARABA):
            side = Side(machine.days % 2)
            here = [place for place in missing[code] if place[1] == machine.model.books[code].phase]
            for place in draw.sample(here, min(len(here), 6)):
                enter(machine, code, place[2], side, draw)
            if missing[code]:  # a book that crosses, with much left over
                oppose(machine, code, side, MEMBERS, draw)
                machine.do(code, Deed("limit", draw.choice(MEMBERS), side, 1, (102, 99)[side], 0))
            missing[code] = machine.missing(machine.profile(code))
            machine.go_on(code, draw.choice([0, 0, 1, 2]))
        if all(book.phase == Phase.CLOSED for book in machine.model.books.values()):
            machine.start_next_day()


def enter(machine: Explorer, code: str, kind: Kind, side: Side, draw: random.Random) -> None:
    """An order of ``kind``, and others before and behind it that would trade with it."""
    kinds = KINDS[machine.profile(code)]
    member, *others = draw.sample(MEMBERS, len(MEMBERS))
    price = (102, 99)[side]
    if kind.option == POST_ONLY:  # behind the others, or it would be refused
        price = (96, 105)[side]
    elif draw.random() < 0.7:
        oppose(machine, code, side, others, draw)
    picks = [kinds.index(kind) + len(kinds) * i for i in range(40)]
    # Mostly a stop that is reached soon.
    soon = [pick for pick in picks if (PRICES[pick // 7 % len(PRICES)] < 100) == (side == Side.BUY)]
    machine.do(code, Deed("kind", member, side, draw.randint(1, 3), price, draw.choice([*soon * 3, *picks])))
    if kind.option == POST_ONLY or draw.random() < 0.5:
        oppose(machine, code, side, others, draw, price)


def oppose(
    machine: Explorer, code: str, side: Side, members: Sequence[str], draw: random.Random, price: int = 0
) -> None:
    """Plain limits that orders on ``side`` can trade with."""
    for member in members:
        price = price or draw.choice([(99, 100), (100, 102)][side])
        machine.do(code, Deed("limit", member, Side(1 - side), draw.randint(2, 5), price, 0))


@pytest.mark.parametrize("pair", [("START", "CONTINUOUS"), ("N_CALLS", "TSE_HYBRID")])
def test_every_kind_of_order_is_entered_in_every_phase_and_trades_where_it_is_taken(pair: tuple[str, str]) -> None:
    walked = type("Walk", (Explorer,), {"entered": set(), "traded": set(), "pairs": [pair]})
    draw = random.Random(1)
    machine = walked()
    for _ in range(LIVES):
        live(machine, draw)
        if not any(machine.missing(profile) for profile in pair):
            break
        machine = walked()

    assert [place for profile in pair for place in machine.missing(profile)] == []


def test_the_table_offers_what_the_walk_is_about() -> None:
    """A table that offered nothing would be walked in no time."""
    types = {profile: {kind.type for _, _, kind in offered(profile)} for profile in PROFILES}
    calls = {OrderType.LIMIT, OrderType.MARKET, OrderType.IMBALANCE_ONLY}

    assert types == {"START": calls, "N_CALLS": calls, "TSE_HYBRID": calls, "CONTINUOUS": set(OrderType)}
    assert {profile: len(KINDS[profile]) for profile in PROFILES} == {
        "START": 9,
        "CONTINUOUS": 74,
        "TSE_HYBRID": 12,
        "N_CALLS": 3,
    }


# --- proof that the counts can fail ----------------------------------------------------------------------------------


def some_days() -> list[tuple[Command, list[Event]]]:
    """What a funded market said: trades, amends, cancels, deposits, a bust, a mass cancel."""
    told: list[tuple[Command, list[Event]]] = []

    class Teller(MarketMachine):
        pairs: ClassVar[list[tuple[str, str]]] = [("START", "CONTINUOUS")]

        def send(self, command: Command, member: str = "") -> list[Event]:
            events = super().send(command, member)
            told.append((command, events))
            return events

    machine = Teller()
    rules = {"funding": "both"}
    machine.open_the_market(rules, rules, {}, 0, "one", "near", 1, 100)
    draw = random.Random(3)
    whats = ["limit"] * 6 + ["iceberg", "amend", "reduce", "cancel"]
    for number in range(120):
        code = draw.choice([CALLS, ZARABA])
        price, pick = draw.choice([99, 100, 101]), draw.randrange(1_000)
        machine.do(code, Deed(draw.choice(whats), draw.choice(MEMBERS), draw.choice(list(Side)), 2, price, pick))
        if number % 20 == 19:
            machine.go_on(CALLS, 0)
    machine.send(BustTrade(1))
    machine.send(Kill("ichi"))
    machine.send(MassCancel("all"), "ni")
    machine.send(Deposit("more", "san", "", 10))
    return told


@pytest.mark.parametrize(
    ("kind", "field", "more"),
    [
        (Accepted, "quantity", 1),
        (Accepted, "price", 1),
        (Accepted, "order_id", 1),
        (Amended, "open_quantity", 1),
        (Amended, "open_before", 1),
        (Cancelled, "quantity", -1),
        (Cancelled, "price", 1),
        (Traded, "quantity", 1),
        (Traded, "price", 50),
        (Traded, "buy_open", 1),
        (Traded, "sell_open", -1),
        (Traded, "trade_id", 1),
        (DisplayChanged, "displayed", 1_000),
        (AuctionUncrossed, "volume", 1),
        (AuctionUncrossed, "trades", -1),
        (MassCancelled, "count", 1),
        (KillSwitched, "count", -1),
        (TradeBusted, "quantity", 1),
        (BalanceChanged, "locked", 1),
        (BalanceChanged, "balance", -1),
    ],
)
def test_the_counts_notice_an_event_that_does_not_add_up(kind: type[Any], field: str, more: int) -> None:
    told = some_days()
    count(told)
    events = [event for _, events in told for event in events]
    spoilt = next(event for event in events if isinstance(event, kind) and not getattr(event, "repeat", False))
    setattr(spoilt, field, getattr(spoilt, field) + more)

    with pytest.raises(AssertionError):
        count(told)


def count(told: list[tuple[Command, list[Event]]]) -> None:
    counts = Conserved()
    for command, events in told:
        counts.tell(command, events)


def test_the_counts_notice_a_lock_that_is_left_behind() -> None:
    engine = Engine()
    counts = Conserved()
    day = [
        SetLimitTable("near", 0, [LimitRow(0, 50)]),
        ListInstrument("A", "CONTINUOUS", 100, limit_table="near", rules={"funding": "both"}),
        Deposit("yen", "ichi", "", 10_000),
        StartDay(20261102),
        SetPhase("A", Phase.CONTINUOUS),
    ]
    orders = [NewOrder("o-1", "A", Side.BUY, 5, 100), CancelOrder("o-2", "o-1")]
    for command, member in [*((each, "") for each in day), *((each, "ichi") for each in orders)]:
        counts.tell(command, engine.apply(command, member))
        counts.hold(engine)

    engine._funding.holding("", "ichi", "").locked = 500

    with pytest.raises(AssertionError):
        counts.hold(engine)
