"""A market's life from a seed, for comparing one engine with another: most commands succeed, many do not, some twice.

Books of all four market models live in it, with what protects, restricts and funds them, and operators who ask.

    python -m tests.engine.invent SEED COMMANDS

runs it through whichever engine is loaded and prints, as JSON, which one that is and what everything came to: a hash
of the log, in which marks carry the digests of events and state. Two engines that agree print the same log.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import engine
from engine import (
    AmendOrder,
    Approval,
    ApproveTransfer,
    BustTrade,
    CancelOrder,
    Command,
    Deposit,
    Disconnected,
    Engine,
    Kill,
    LimitRow,
    ListInstrument,
    MassCancel,
    NewOrder,
    OperatorConfirm,
    OperatorDecline,
    OperatorRequest,
    OrderType,
    PermitMember,
    Phase,
    RebuildInstrument,
    RenewQuote,
    Restore,
    ResumeInstrument,
    SelfTrade,
    SetCalendar,
    SetEligibility,
    SetHolder,
    SetLimitTable,
    SetPhase,
    SetQuoteTable,
    SetReferencePrice,
    SetRiskLimits,
    SetTickTable,
    SetTokenStatus,
    SetWindow,
    Side,
    StartDay,
    SuspendInstrument,
    TickRow,
    TimeInForce,
    WindowKind,
    Withdraw,
)
from engine.log import LOG_NAME, Header, Log, MemoryStorage, encode_commands
from engine.log.digest import DigestChain
from engine.profiles import AUCTION, N_CALLS, START, TSE_HYBRID, PhaseRules, Profile
from engine.profiles import CONTINUOUS as ZARABA
from tests.engine.kinds import KINDS, terms

CALLS, CONTINUOUS, COARSE, FUNDED = "CALLS", "ZARABA", "COARSE", "FUNDED"
HYBRID, MANY = "HYBRID", "MANY"
PROFILES: dict[str, Profile] = {
    CALLS: START,
    CONTINUOUS: ZARABA,
    COARSE: ZARABA,
    FUNDED: ZARABA,
    HYBRID: TSE_HYBRID,
    MANY: N_CALLS,
}
#: From one command to the next: a special quote stands for some fifty of them.
STEP_NS = 40_000_000
START_NS = 1_795_478_400_000_000_000
MEMBERS = ["ichi", "ni", "san", "shi"]
#: What makes an order odd, up to what only a caller of the library can send.
ODD: list[dict[str, Any]] = [
    {"instrument": "NONE"},
    {"instrument": "no code\n"},
    {"quantity": 0},
    {"quantity": -1},
    {"quantity": 2**40},
    {"quantity": 2**40 + 1},
    {"quantity": 2**200},
    {"price": 0},
    {"price": -(2**70)},
    {"price": 2**48, "quantity": 2**13},
    {"price": 2**48 - 5, "quantity": 2**15},
    {"price": 2**63},
    {"account": "a" * 33},
    {"account": "\N{SNOWMAN}"},
    {"client_order_id": ""},
    {"client_order_id": "x" * 37},
    {"client_order_id": "two words"},
    {"order_type": OrderType.MARKET},
    {"order_type": OrderType.MARKET, "price": 0},
    {"order_type": OrderType.MARKET_TO_LIMIT, "price": 0},
    {"order_type": OrderType.STOP, "price": 0, "stop_price": 101},
    {"order_type": OrderType.STOP_LIMIT, "stop_price": 99},
    {"time_in_force": TimeInForce.GTD, "expire_date": 20261130},
    {"time_in_force": TimeInForce.FUNARI},
    {"display_quantity": 10},
    {"minimum_quantity": 10},
    {"post_only": True},
    {"self_trade": SelfTrade.CANCEL_NEWEST},
    {"self_trade": SelfTrade.DECREMENT},
]


class Life:
    """Draws commands. What it remembers is only what it has sent, so that it does not depend on the answers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ids = 0
        self.orders: list[tuple[str, str]] = []
        self.sent: list[tuple[Command, str]] = []
        self.asked = "q-0"  #: by an operator, last
        self.undo: list[Command] = []  #: of what keeps members from trading

    def new_id(self) -> str:
        self.ids += 1
        return f"o-{self.ids}"

    def opening(self) -> Iterator[tuple[Command, str]]:
        yield SetCalendar(20261101, 20271231, [20261103, 20261123]), ""
        yield SetTickTable("steps", 0, [TickRow(0, 1), TickRow(100, 5)]), ""
        yield SetTickTable("tens", 0, [TickRow(0, 10)]), ""
        yield SetLimitTable("near", 0, [LimitRow(100, 40), LimitRow(0, 80)]), ""
        yield SetQuoteTable("narrow", 0, [LimitRow(100, 2), LimitRow(0, 5)]), ""
        more: dict[str, int | str] = {"imbalance_only": 1, "break_new": 1}
        yield ListInstrument(CALLS, "START", 100, tick_table="steps", limit_table="near", rules=more), ""
        yield ListInstrument(CONTINUOUS, profile="CONTINUOUS", reference_price=100, settlement_days=1), ""
        rules: dict[str, int | str] = {"volatility_band": 2_000, "reopen_call_seconds": 300, "halt_resting": "purge"}
        yield ListInstrument(COARSE, "CONTINUOUS", lot=10, tick_table="tens", units_outstanding=500, rules=rules), ""
        listed = ListInstrument(FUNDED, "CONTINUOUS", 100, limit_table="near", rules={"funding": "both"})
        yield listed, ""
        rules = {"quote_width_table": "narrow", "special_quote_seconds": 2, "sequential_quote_seconds": 1}
        rules.update(imbalance_only=1, sequential_opposite="at_once", funding="units", reopen_call_seconds=1)
        yield ListInstrument(HYBRID, "TSE_HYBRID", 100, limit_table="near", rules=rules), ""
        yield ListInstrument(MANY, "N_CALLS", rules={**more, "call_ncp": 1, "allocation": "SIMULTANEOUS_RR"}), ""
        for member in MEMBERS:
            for account in ("", "alpha", "beta"):
                yield Deposit(self.new_id(), member, account, 100_000), ""
                yield Deposit(self.new_id(), member, account, 1_000, FUNDED), ""
                yield Deposit(self.new_id(), member, account, 10_000, HYBRID), ""

    def day(self, date: int, commands: int) -> Iterator[tuple[Command, str]]:
        """One trading day of about so many commands, from closed books to closed books."""
        yield StartDay(date), ""
        phases = dict.fromkeys(PROFILES, Phase.CLOSED)
        for step in range(commands):
            if step % max(commands // 12, 1) == 0:
                while self.undo and self.random.random() < 0.7:
                    yield self.undo.pop(), ""
                for code, profile in PROFILES.items():
                    if code == HYBRID and self.random.random() < 0.25:  # from a call that a halt has brought
                        yield SetPhase(code, Phase.CALL_AUCTION), ""
                        yield SetPhase(code, Phase.CONTINUOUS), ""
                    held = True
                    while held:  # an auction is an instant: mostly the next phase follows at once
                        phases[code] = self.next_phase(profile, phases[code], last=step * 13 > commands * 11)
                        yield SetPhase(code, phases[code], START_NS * 2 if code == CALLS else 0), ""
                        held = profile.phases[phases[code]].matching == AUCTION and self.random.random() < 0.9
                if phases[HYBRID] == Phase.CONTINUOUS:
                    yield from self.run()
            yield self.deed()
        for code, profile in PROFILES.items():
            while phases[code] != Phase.CLOSED:
                phases[code] = self.next_phase(profile, phases[code], last=True)
                yield SetPhase(code, phases[code]), ""
        for phase in (Phase.OPENING_AUCTION, Phase.CALL, Phase.CALL_AUCTION, Phase.CLOSED):  # wherever it may be
            yield SetPhase(HYBRID, phase), ""

    def next_phase(self, profile: Profile, phase: Phase, *, last: bool) -> Phase:
        rules: PhaseRules = profile.phases[phase]
        following = list(rules.following)
        if last and Phase.CLOSED in following:
            return Phase.CLOSED
        if last and Phase.CALL in following and len(following) > 1:
            following.remove(Phase.CALL)
        if not last and Phase.CLOSED in following and len(following) > 1:
            following.remove(Phase.CLOSED)
        return self.random.choice(following)

    def run(self) -> Iterator[tuple[Command, str]]:
        """Rungs close to one another, and one order through all of them: further than a quote lets it go."""
        side = self.random.choice(list(Side))
        away = 1 if side == Side.BUY else -1
        for rung in range(1, 9):
            yield NewOrder(self.new_id(), HYBRID, Side(1 - side), 2, 98 + 2 * rung * away), MEMBERS[0]
        yield NewOrder(self.new_id(), HYBRID, side, 40, 100 + 20 * away), MEMBERS[1]

    def deed(self) -> tuple[Command, str]:
        draw = self.random
        member = draw.choice(MEMBERS)
        what = draw.random()
        command: Command
        if what < 0.03:
            command, member = self.of_the_exchange(), draw.choice(["", "", "", "ichi"])
        elif what < 0.04:
            command, member = RenewQuote(HYBRID), ""
        elif what < 0.065 and self.sent:
            command, member = draw.choice(self.sent[-500:])
            return command, member
        elif what < 0.30 and self.orders:
            owner, order = draw.choice(self.orders[-200:])
            if draw.random() < 0.95:
                member = owner
            if draw.random() < 0.7:
                command = CancelOrder(self.new_id(), order)
            else:
                quantity = draw.choice([0, 0, 10, 20, 50, 7, 2**41])
                command = AmendOrder(self.new_id(), order, quantity, draw.choice([0, 0, 0, 90, 95, 100, 105, 103]))
        elif what < 0.32:
            code = draw.choice(["", CALLS, CONTINUOUS, COARSE, HYBRID, MANY, "NONE"])
            side = draw.choice([None, Side.BUY, Side.SELL])
            low, high = draw.choice([(0, 0), (0, 0), (95, 105), (100, 0), (0, 90), (100, 90), (2**49, 0)])
            command = MassCancel(self.new_id(), code, side, low, high, draw.choice(["", "", "alpha"]))
        else:
            command = self.order()
            self.orders.append((member, command.client_order_id))
        self.sent.append((command, member))
        return command, member

    def order(self) -> NewOrder:
        draw = self.random
        code = draw.choice([CALLS, CONTINUOUS, CONTINUOUS, COARSE, FUNDED, HYBRID, HYBRID, MANY])
        # Mostly around 100; now and then far away, and high where the ticks of the day are finer than the level's.
        price = draw.choice([90, 95, 99, 100, 100, 101, 105, 110, 130]) + draw.choice([0, 0, 0, 5, 10, -5])
        if code == HYBRID:  # close enough to trade, and now and then through all of it
            price = 100 + draw.choice([*range(-9, 10), *range(-9, 10), -15, 15])
        elif draw.random() < 0.05:
            price = draw.choice([20, 60, 140, 180, 1_000, 10**6, 2**40, 2**44 + 10])
        usual = [TimeInForce.DAY, TimeInForce.GTC if PROFILES[code] is ZARABA else TimeInForce.DAY]
        validity = draw.choice(list(TimeInForce) if draw.random() < 0.2 else usual)
        made = {
            "client_order_id": self.new_id(),
            "instrument": code,
            "side": draw.choice(list(Side)),
            "quantity": draw.choice([10, 20, 30, 50, 100]) if code == COARSE else draw.randrange(1, 100),
            "price": price,
            "time_in_force": TimeInForce.DAY if draw.random() < 0.5 else validity,
            "account": draw.choice(["", "", "alpha", "beta"]),
        }
        what = draw.random()
        if what < 0.08:
            made.update(draw.choice(ODD))
        elif what < 0.25:
            lot = 10 if code == COARSE else 1
            stop_price = draw.choice([90, 100, 110])
            mode = draw.choice(list(SelfTrade))
            made.update(terms(draw.choice(KINDS[PROFILES[code].name]), stop_price, 20261126, 2 * lot, lot, mode))
        return NewOrder(**made)

    def of_the_exchange(self) -> Command:
        draw = self.random
        code = draw.choice(list(PROFILES))
        wish = draw.choice([Kill("san", MANY), Restore("san", MANY), BustTrade(draw.randrange(1, 20))])
        asked = self.asked
        self.asked = f"q-{draw.randrange(1, 30)}"
        choices: list[Command] = [
            SuspendInstrument(code),
            ResumeInstrument(code),
            SetReferencePrice(code, draw.choice([90, 100, 110, 2**60])),
            SetTickTable(draw.choice(["steps", "tens"]), 0, [TickRow(0, draw.choice([1, 5, 10]))]),
            SetPhase(code, draw.choice(list(Phase))),
            StartDay(20261124),
            ListInstrument(code),
            Kill(MEMBERS[-1], COARSE),
            Kill("", COARSE),
            Restore(MEMBERS[-1], COARSE),
            Restore("", COARSE),
            Kill(MEMBERS[-1], HYBRID),
            Restore(MEMBERS[-1], HYBRID),
            OperatorRequest("ops-a", self.asked, wish, draw.choice([0, 10**10])),
            *[OperatorRequest("ops-a", self.asked, wish, 10**11)] * 3,
            OperatorConfirm(draw.choice(["ops-a", "ops-b", "ops-b"]), self.new_id(), "ops-a", asked),
            OperatorConfirm("ops-b", self.new_id(), "ops-a", asked),
            OperatorDecline("ops-b", self.new_id(), "ops-a", asked),
            ApproveTransfer(draw.randrange(1, 40), self.new_id(), draw.random() < 0.8),
            SetEligibility(MANY, approval=draw.choice([Approval.NONE, Approval.MARK, Approval.MARK])),
            PermitMember(MEMBERS[-1], HYBRID, draw.random() < 0.7),
            SetWindow(HYBRID, WindowKind.DISTRIBUTION, 20261125, draw.choice([0, 20261125]), draw.random() < 0.5),
            SetRiskLimits("", COARSE, share_alert=500),
            SetQuoteTable("narrow", 0, [LimitRow(0, draw.choice([2, 4]))]),
            Disconnected(draw.choice(MEMBERS)),
            Deposit(self.new_id(), draw.choice(MEMBERS), "", draw.choice([0, 1_000]), draw.choice(["", FUNDED, CALLS])),
            Withdraw(self.new_id(), draw.choice(MEMBERS), "", draw.choice([1, 50_000]), draw.choice(["", FUNDED])),
            PermitMember(MEMBERS[-1], FUNDED, draw.random() < 0.7),
            SetTokenStatus(FUNDED, paused=draw.random() < 0.3),
            SetHolder(FUNDED, draw.choice(MEMBERS), "alpha", jurisdiction="JP", lock_up=draw.choice([0, 100])),
            SetEligibility(FUNDED, jurisdictions=draw.choice([[], ["JP"]]), holding_max=draw.choice([0, 1_100])),
            SetWindow(FUNDED, WindowKind.RECORD_DATE, 20261126, 20261126, purge=draw.random() < 0.5),
            RebuildInstrument(FUNDED),
            BustTrade(draw.choice([1, 2, 3, 50, 10**20])),
            SetRiskLimits(
                draw.choice(["", MEMBERS[-1]]),
                draw.choice([COARSE, code]),
                quantity_max=draw.choice([0, 0, 90]),
                value_max=draw.choice([0, 0, 10**6]),
                share_alert=draw.choice([0, 500]),
                collar=draw.choice([0, 0, 9_000]),
                open_orders_max=draw.choice([0, 0, 40]),
                messages_max=draw.choice([0, 0, 3]),
                interval_ms=draw.choice([1, 1_000]),
            ),
        ]
        chosen = draw.choice(choices)
        if not isinstance(chosen, OperatorRequest):
            self.asked = asked
        if isinstance(chosen, SuspendInstrument):
            self.undo.append(ResumeInstrument(chosen.instrument))
        elif isinstance(chosen, Kill):
            self.undo.append(Restore(chosen.participant, chosen.instrument))
        elif isinstance(chosen, SetTokenStatus):
            self.undo.append(SetTokenStatus(chosen.instrument))
        elif isinstance(chosen, PermitMember):
            self.undo.append(PermitMember(chosen.participant, chosen.instrument))
        return chosen


def life(seed: int, commands: int) -> Iterator[tuple[Command, str]]:
    """About so many commands over four days, with the member that sends each; "" is the exchange."""
    made = Life(seed)
    yield from made.opening()
    for date in (20261124, 20261125, 20261126, 20261127):
        yield from made.day(date, commands // 4)


def outcome(seed: int, commands: int, **choices: str) -> dict[str, Any]:
    """What a life comes to in an engine made with these choices. The log holds all that has an encoding."""
    market = Engine(**choices)
    events = DigestChain()
    kinds: dict[str, int] = {}
    storage = MemoryStorage()
    with Log.open(storage, Header("0")) as log:
        for number, (command, member) in enumerate(life(seed, commands)):
            stamp = START_NS + number * STEP_NS
            with suppress(OverflowError, UnicodeError):
                log.write([(stamp, member, encode_commands([command]))])
            answer = market.apply(command, member, stamp)
            events.update(market.sequence, stamp, answer)
            for event in answer:
                kinds[type(event).__name__] = kinds.get(type(event).__name__, 0) + 1
            if number % 250 == 0:
                market.check()
                log.write_mark(log.sequence, events.mark(), market.mark_digest())
        market.check()
        log.write_mark(log.sequence, events.mark(), market.mark_digest())
    content = storage.files[LOG_NAME]
    return {"log": blake2b(content, digest_size=16).hexdigest(), "size": len(content), "events": kinds}


if __name__ == "__main__":
    print(json.dumps({"backend": engine.BACKEND, **outcome(int(sys.argv[1]), int(sys.argv[2]))}))
