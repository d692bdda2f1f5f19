"""An id is one command for the life of the log: again is harmless, otherwise is refused."""

from __future__ import annotations

import random

import msgspec
import pytest

from engine import (
    BACKEND,
    Accepted,
    AmendOrder,
    Cancelled,
    CancelOrder,
    CancelReason,
    Event,
    MassCancel,
    MassCancelled,
    NewOrder,
    OrderType,
    Phase,
    Reason,
    Rejected,
    SelfTrade,
    Side,
    TimeInForce,
    identities,
)
from engine.commands import MemberCommand
from engine.identities import Member
from engine.matching.book import GONE, OrderTable
from tests.market import CODE, START_DAY, TODAY, every, only, refusal, start, zaraba

BID = NewOrder("a-1", CODE, Side.BUY, 10, 100)


def repeated(events: list[Event]) -> list[Event]:
    return [msgspec.structs.replace(event, repeat=True) for event in events]


def test_the_same_order_again_is_answered_as_a_repeat_without_effect() -> None:
    market = zaraba()
    first = market.run(BID, "alpha")
    before = market.engine.depth(CODE)

    assert market.run(BID, "alpha") == repeated(first)
    assert market.engine.depth(CODE) == before
    assert len(market.engine.open_orders("alpha")) == 1


def test_a_repeat_gives_the_recorded_outcome_whatever_has_happened_since() -> None:
    market = zaraba()
    first = market.run(BID, "alpha")
    market.amend("a-1", 20, 105)
    market.sell(20, 100)

    assert market.run(BID, "alpha") == repeated(first)


def test_a_waiting_order_repeats_as_waiting_after_it_has_joined_the_book() -> None:
    market = start(Phase.PRE_OPEN)
    order = NewOrder("a-1", CODE, Side.BUY, 10, 100, time_in_force=TimeInForce.ON_CLOSE)
    first = market.run(order, "alpha")
    market.phase(*START_DAY[1:5])

    assert market.run(order, "alpha") == repeated(first)
    assert only(first, Accepted).waiting


@pytest.mark.parametrize(
    "request_",
    [
        CancelOrder("r-1", "a-1"),
        AmendOrder("r-1", "a-1", 5),
        AmendOrder("r-1", "a-1", 25, 101),
        AmendOrder("r-1", "a-1", 10, 100),  # refused: no change
        CancelOrder("r-1", "nothing"),  # refused: unknown
        NewOrder("r-1", CODE, Side.BUY, 0, 100),  # refused: no quantity
        NewOrder("r-1", "OTHER", Side.BUY, 1, 100),
        NewOrder("r-1", CODE, Side.BUY, 10**30, 100),
    ],
)
def test_every_request_repeats_its_outcome_refused_or_not(request_: object) -> None:
    market = zaraba()
    market.run(BID, "alpha")
    first = market.run(request_, "alpha")  # type: ignore[arg-type]
    market.sell(1, 100)
    digest = market.engine.depth(CODE), market.engine.open_orders("alpha")

    assert market.run(request_, "alpha") == repeated(first)  # type: ignore[arg-type]
    assert (market.engine.depth(CODE), market.engine.open_orders("alpha")) == digest


def test_a_mass_cancel_repeats_its_count_and_cancels_nothing_more() -> None:
    market = zaraba()
    market.run(BID, "alpha")
    assert only(market.run(MassCancel("m-1"), "alpha"), MassCancelled).count == 1
    market.buy(10, 100, id="a-2")

    assert market.run(MassCancel("m-1"), "alpha") == [MassCancelled("alpha", "m-1", 1, repeat=True)]
    assert len(market.engine.open_orders("alpha")) == 1


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(BID, quantity=11),
        msgspec.structs.replace(BID, price=101),
        msgspec.structs.replace(BID, side=Side.SELL),
        msgspec.structs.replace(BID, account="x"),
        msgspec.structs.replace(BID, time_in_force=TimeInForce.GTC),
        msgspec.structs.replace(BID, instrument="OTHER"),
        CancelOrder("a-1", "a-1"),
        AmendOrder("a-1", "a-1", 5),
        MassCancel("a-1"),
    ],
)
def test_an_id_used_again_for_anything_else_is_refused_as_a_duplicate(other: object) -> None:
    market = zaraba()
    market.run(BID, "alpha")

    assert refusal(market.run(other, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID  # type: ignore[arg-type]
    assert market.engine.depth(CODE) == ([(100, 10)], [])
    assert not refusal(market.run(other, "alpha")).repeat  # type: ignore[arg-type]


def test_the_id_of_a_refused_order_is_used_up() -> None:
    market = zaraba()
    market.run(msgspec.structs.replace(BID, quantity=0), "alpha")

    assert refusal(market.run(BID, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID


def test_the_id_of_a_request_is_no_order() -> None:
    market = zaraba()
    market.run(BID, "alpha")
    market.run(CancelOrder("r-1", "a-1"), "alpha")

    assert refusal(market.run(CancelOrder("r-2", "r-1"), "alpha")).reason == Reason.UNKNOWN_ORDER


def test_each_member_has_ids_of_its_own() -> None:
    market = zaraba()

    assert only(market.run(BID, "alpha"), Accepted).order_id == 1
    assert only(market.run(BID, "beta"), Accepted).order_id == 2


def test_ids_are_remembered_over_days() -> None:
    market = start(Phase.PRE_OPEN)
    first = market.run(BID, "alpha")
    market.phase(*START_DAY[1:])

    assert market.run(BID, "alpha") == repeated(first)
    late = market.run(CancelOrder("r-1", "a-1"), "alpha")
    assert refusal(late).reason == Reason.ORDER_GONE


@pytest.mark.parametrize("participant", ["", "Alpha", "a" * 17, "a b", "a\n", "ä", "\ud800"])
def test_a_malformed_participant_is_refused(participant: str) -> None:
    market = zaraba()

    event = refusal(market.run(BID, participant))

    assert (event.reason, event.participant, event.client_order_id) == (Reason.BAD_IDENTITY, "", "a-1")
    assert market.engine.participants() == []


@pytest.mark.parametrize("name", ["", "a" * 37, "a b", "a\n", "ä", "\ud800"])
def test_a_malformed_id_is_refused_and_not_echoed(name: str) -> None:
    market = zaraba()

    for command in (msgspec.structs.replace(BID, client_order_id=name), CancelOrder(name, "a"), MassCancel(name)):
        event = refusal(market.run(command, "alpha"))
        assert (event.reason, event.client_order_id) == (Reason.BAD_IDENTITY, "")
        msgspec.msgpack.encode(event)


def test_a_malformed_account_is_refused() -> None:
    market = zaraba()

    assert refusal(market.buy(1, 100, account="a b")).reason == Reason.BAD_IDENTITY
    assert isinstance(market.buy(1, 100, account="x" * 32)[0], Accepted)


def test_a_cancelled_order_s_request_repeats_with_what_was_cancelled() -> None:
    market = zaraba()
    market.run(BID, "alpha")
    market.sell(4, 100)
    market.run(CancelOrder("r-1", "a-1"), "alpha")

    assert market.run(CancelOrder("r-1", "a-1"), "alpha") == [
        Cancelled("alpha", "a-1", 1, CODE, Side.BUY, 100, 6, CancelReason.MEMBER, "r-1", repeat=True)
    ]
    assert not every(market.run(BID, "alpha"), Rejected)


def test_a_cancel_under_the_id_of_an_order_is_a_duplicate_and_stops_nobody() -> None:
    market = zaraba()
    market.run(BID, "alpha")
    forged = CancelOrder("a-1", "KLJMNJJEDFNKIOLGLGFJMOKQQIFMPLORSJGO")

    assert refusal(market.run(forged, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID


PLAIN = NewOrder("a-1", CODE, Side.BUY, 10, 100, account="x")
RICH = NewOrder("a-1", CODE, Side.BUY, 10, 100, time_in_force=TimeInForce.GTD, display_quantity=5, expire_date=TODAY)
STOP = NewOrder("a-1", CODE, Side.BUY, 10, 0, OrderType.STOP, stop_price=200)


@pytest.mark.parametrize("order", [PLAIN, RICH, STOP], ids=["plain", "rich", "stop"])
@pytest.mark.parametrize(
    "change",
    [
        {"instrument": "OTHER"},
        {"side": Side.SELL},
        {"quantity": 11},
        {"price": 101},
        {"order_type": OrderType.MARKET_TO_LIMIT},
        {"time_in_force": TimeInForce.GTC},
        {"account": "y"},
        {"display_quantity": 2},
        {"stop_price": 201},
        {"minimum_quantity": 1},
        {"post_only": True},
        {"self_trade": SelfTrade.NONE},
        {"expire_date": 20261125},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("changed", [False, True], ids=["as-accepted", "amended"])
def test_an_order_that_differs_in_anything_is_a_duplicate(
    order: NewOrder, change: dict[str, object], changed: bool
) -> None:
    market = zaraba()
    first = market.run(order, "alpha")
    if changed:
        # To just what the forged one says, where an amend can say it: the row alone would confirm it.
        market.amend("a-1", 11, 101 if order.price else 0)
    forged = msgspec.structs.replace(order, **change)

    assert refusal(market.run(forged, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID
    assert market.run(order, "alpha")[0] == repeated(first[:1])[0]


def test_an_order_that_the_market_has_changed_repeats_and_its_present_state_does_not() -> None:
    market = zaraba()
    market.sell(4, 100)
    asked = NewOrder("a-1", CODE, Side.BUY, 10, 0, OrderType.MARKET_TO_LIMIT, self_trade=SelfTrade.DECREMENT)
    first = market.run(asked, "alpha")
    market.sell(2, 100, member="alpha", self_trade=SelfTrade.DECREMENT)
    row = market.engine.order(2)
    assert (row.quantity, row.price) == (8, 100)

    for change in ({"price": 100}, {"quantity": 8}, {"price": 100, "quantity": 8}):
        forged = msgspec.structs.replace(asked, **change)
        assert refusal(market.run(forged, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID
    assert market.run(asked, "alpha")[0] == repeated(first[:1])[0]


@pytest.mark.parametrize(
    ("asked", "forged"),
    [
        (CancelOrder("r-1", "a-1"), CancelOrder("r-1", "a-2")),
        (CancelOrder("r-1", "a-9"), CancelOrder("r-1", "a-8")),
        (AmendOrder("r-1", "a-1", 8), AmendOrder("r-1", "a-1", 7)),
        (AmendOrder("r-1", "a-1", 10), AmendOrder("r-1", "a-1", 10, 100)),
        (MassCancel("r-1"), MassCancel("r-1", CODE)),
        (NewOrder("r-1", CODE, Side.BUY, 0, 100), NewOrder("r-1", CODE, Side.BUY, 0, 101)),
        (NewOrder("r-1", CODE, Side.BUY, 10**30, 100), NewOrder("r-1", CODE, Side.BUY, 10**31, 100)),
    ],
)
def test_a_request_that_differs_in_anything_is_a_duplicate(asked: MemberCommand, forged: MemberCommand) -> None:
    market = zaraba()
    market.run(BID, "alpha")
    market.buy(10, 100, id="a-2")
    first = market.run(asked, "alpha")

    assert refusal(market.run(forged, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID
    assert market.run(asked, "alpha") == repeated(first[-1:])


def test_a_member_knows_its_open_orders_whatever_ended_and_whenever_it_was_asked() -> None:
    draw = random.Random(5)
    table, members, asked = OrderTable(), [Member(0, "a"), Member(1, "b")], [0, 0]
    right: list[list[int]] = [[], []]
    for n in range(20_000):
        who = draw.randrange(2)
        order = table.append(0, 1, 1)
        members[who].enter(table, order)
        right[who].append(order)
        while right[who] and draw.random() < (0.55 if n % 4_000 < 2_000 else 0.3):
            gone = right[who].pop(draw.randrange(len(right[who])))
            table.state[gone] = GONE
        assert len(right[who]) <= members[who].most_open() <= max(2 * len(right[who]), 3_000) + 300
        assert members[who].may_have(len(right[who]))
        if n % 1_501 == 0 or n == 19_999:
            assert members[who].open_orders(table) == right[who]
            assert members[who].most_open() == len(right[who])
            asked[who] += 1
    assert min(asked) > 3


def test_of_many_ended_orders_a_member_keeps_few() -> None:
    table, member = OrderTable(), Member(0, "a")
    stays = []
    for n in range(100_000):
        order = table.append(0, 1, 1)
        member.enter(table, order)
        if n % 1_000 == 0:
            stays.append(order)
        else:
            table.state[order] = GONE
    assert member.most_open() <= 512
    assert member.open_orders(table) == stays


@pytest.mark.skipif(BACKEND == "compiled", reason="compiled code cannot be patched")
def test_no_order_pays_for_a_walk_over_its_members_others(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    if BACKEND != "compiled":
        honest = identities._open_of
        monkeypatch.setattr(
            identities, "_open_of", lambda block, table: looked.append(len(block)) or honest(block, table)
        )
    table, member = OrderTable(), Member(0, "a")
    most = 0
    for _ in range(20_000):
        looked.clear()
        member.enter(table, table.append(0, 1, 1))
        most = max(most, sum(looked))
    assert 0 < most <= 128
    assert member.most_open() == 20_000


def test_a_member_that_is_asked_after_each_order_keeps_no_more_blocks() -> None:
    table, member = OrderTable(), Member(0, "a")
    for n in range(2_000):
        member.enter(table, table.append(0, 1, 1))
        if n % 10 == 0:
            member.open_orders(table)
    assert len(member._full) < 2 * 2_000 // 64
    assert member.open_orders(table) == list(range(1, 2_001))
