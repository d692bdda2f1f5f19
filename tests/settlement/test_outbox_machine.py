"""Invented histories: trades, days, funding, faults and crashes in any order, compared with two sentences.

No instruction takes effect twice, and none is called settled before the ledger says so.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.events import Traded
from gateway.settlement import EMBEDDED, YEN, Settlement
from gateway.settlement.adapter import Kind, LedgerError, OutcomeUnknown, Retryable, State, check_move
from tests.settlement.faulty import Crash, FaultyLedger, StrictLedger
from tests.settlement.world import TRADE_DATE, Clock, busted, day, listed, traded

TOKEN = "KDX-2107"
MEMBERS = ["alpha", "bravo", "carol"]
FAULTS = ["retryable", "unknown", "crash"]
POINTS = ["before submit_batch", "after submit_batch", "before status", "after status"]


class OutboxMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.memory = StrictLedger(self.clock)
        self.faults: list[tuple[str, str]] = []
        self.log: list[list[object]] = [[listed()], [day(TRADE_DATE)]]
        self.date = TRADE_DATE
        self.trades = 0
        self.busted: set[int] = set()
        self.funded = 0
        self.settlement: Settlement | None = None
        self.start()

    def start(self) -> None:
        async def start() -> Settlement:
            return await Settlement.open(
                Path(self.directory.name),
                market="DOJIMA",
                clock=self.clock,
                adapters={EMBEDDED: FaultyLedger(self.memory, self.point)},
            )

        self.settlement = self.runner.run(start())
        for sequence, events in enumerate(self.log, start=1):
            self.settlement.take(sequence, sequence, events)

    def point(self, name: str) -> None:
        for place, (at, fault) in enumerate(self.faults):
            if at == name:
                del self.faults[place]
                if fault == "crash":
                    raise Crash
                # Before the sending an honest adapter says Retryable, after it only OutcomeUnknown.
                retryable = fault == "retryable" and name.startswith("before")
                error: LedgerError = Retryable("busy") if retryable else OutcomeUnknown("timeout")
                raise error

    def crash(self) -> None:
        async def die(settlement: Settlement) -> None:
            await settlement._outbox.close()  # nothing is flushed

        assert self.settlement
        self.runner.run(die(self.settlement))
        self.start()

    def do(self, what: str) -> None:
        async def run(settlement: Settlement) -> bool:
            # A crash is looked at inside: the runner would take it for the end of the test.
            try:
                await getattr(settlement, what)()
            except Crash:
                return True
            return False

        assert self.settlement
        if self.runner.run(run(self.settlement)):
            self.crash()

    def append(self, events: list[object]) -> None:
        assert self.settlement
        self.log.append(events)
        self.settlement.take(len(self.log), len(self.log), events)

    @rule(
        sides=st.permutations(MEMBERS),
        quantity=st.integers(1, 60),
        price=st.integers(1, 40),
        account=st.sampled_from(["", "f-1"]),
        days=st.integers(0, 2),
    )
    def trade(self, sides: list[str], quantity: int, price: int, account: str, days: int) -> None:
        self.trades += 1
        self.append(
            [
                traded(
                    self.trades,
                    seller=sides[0],
                    buyer=sides[1],
                    quantity=quantity,
                    price=price,
                    buy_account=account,
                    trade_date=self.date,
                    settlement_date=self.date + days,
                )
            ]
        )

    @rule(which=st.integers(0, 20))
    def bust(self, which: int) -> None:
        trades = [event for events in self.log for event in events if isinstance(event, Traded)]
        standing = [trade for trade in trades if trade.trade_id not in self.busted]
        if standing:
            trade = standing[which % len(standing)]
            self.busted.add(trade.trade_id)
            self.append([busted(trade)])

    @rule()
    def next_day(self) -> None:
        self.date += 1
        self.append([day(self.date)])

    @rule(account=st.sampled_from([*MEMBERS, "alpha/f-1"]), units=st.integers(1, 100), yen=st.integers(1, 3_000))
    def fund(self, account: str, units: int, yen: int) -> None:
        assert self.settlement
        self.funded += 1
        self.runner.run(self.settlement.fund(account, TOKEN, units, f"u{self.funded}"))
        self.runner.run(self.settlement.fund(account, YEN, yen, f"y{self.funded}"))

    @rule(at=st.sampled_from(POINTS), fault=st.sampled_from(FAULTS))
    def lay_a_fault(self, at: str, fault: str) -> None:
        self.faults.append((at, fault))

    @rule()
    def flush(self) -> None:
        self.do("flush")

    @rule()
    def settle(self) -> None:
        self.do("settle")

    @rule()
    def cut_off(self) -> None:
        self.do("cut_off")

    @rule()
    def power_cut(self) -> None:
        self.crash()

    @rule(seconds=st.sampled_from([1, 3, 100, -50]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def nothing_takes_effect_twice_and_nothing_is_settled_but_by_the_ledger(self) -> None:
        assert self.settlement

        async def look(settlement: Settlement) -> None:
            told, _ = await self.memory.events("")
            done = [event.ins_id for event in told if event.kind is Kind.DVP and event.state is State.SETTLED]
            assert len(done) == len(set(done))
            entries = {entry.id: entry for entry in await settlement._outbox.entries()}
            assert set(done) <= set(entries)
            for entry in entries.values():
                if entry.state is State.SETTLED:
                    assert entry.id in done
                elif entry.id in done:
                    assert entry.on_ledger == 1, f"{entry.id} has settled and is {entry.state}, not in doubt"
                _, moves = await settlement.find(entry.id)
                present = State.NEW
                for move in moves:
                    assert move.before is present
                    check_move(move.before, move.after)
                    present = move.after
                assert present is entry.state
            assert await self.memory.audit() == []
            assert (await settlement._outbox.alerts()) == []

        self.runner.run(look(self.settlement))

    def teardown(self) -> None:
        if getattr(self, "settlement", None) is None:
            return
        # With the faults gone, the ledger in funds and time for every back-off, all that was traded settles, and what
        # was busted has settled there and back or not at all.
        self.faults.clear()
        for member in [*MEMBERS, "alpha/f-1", "bravo/f-1", "carol/f-1"]:
            self.fund(member, 10**6, 10**9)
        self.date += 5
        self.append([day(self.date)])
        for _ in range(3):
            self.clock.advance(100)
            self.settle()
        assert self.settlement

        async def end(settlement: Settlement) -> None:
            entries = {entry.id: entry for entry in await settlement._outbox.entries()}
            for ins_id, entry in entries.items():
                number = entry.instruction.trade_ids[0]
                if number not in self.busted:
                    assert entry.state is State.SETTLED
                else:
                    assert entry.state in (State.SETTLED, State.CANCELLED)
                    assert entries[f"{ins_id[:-1]}2"].state is entries[f"{ins_id[:-1]}1"].state
            assert len(entries) == self.trades + len(self.busted)
            report = await settlement.reconcile()
            assert report.breaks == []
            await settlement.close()

        self.runner.run(end(self.settlement))
        self.runner.close()
        self.directory.cleanup()


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
