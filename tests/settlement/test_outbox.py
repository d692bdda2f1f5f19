"""The outbox and its relay: what is sent, when, how often, and what survives a crash at any point."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from engine.events import Accepted
from engine.types import OrderType, Side, TimeInForce
from gateway.settlement import EMBEDDED, YEN, Options, OutboxFault, Settlement
from gateway.settlement.adapter import (
    ConfigError,
    Conflict,
    IllegalMove,
    Kind,
    LedgerAdapter,
    LedgerError,
    NotFound,
    OutcomeUnknown,
    Rejected,
    Retryable,
    State,
    Unsupported,
    check_move,
)
from gateway.settlement.database import Database, WrongFile
from gateway.settlement.memory import MemoryLedger
from gateway.settlement.reconcile import BreakClass
from gateway.settlement.relay import LEDGER_FILE, OUTBOX_FILE, cut_off_ns
from gateway.settlement.sqlite import SqliteLedger
from tests.settlement.faulty import Crash, FaultyLedger, StrictLedger
from tests.settlement.world import NEXT_DATE, SETTLE_DATE, TRADE_DATE, Clock, busted, day, instruction, listed, traded

TOKEN = "KDX-2107"
Log = Sequence[Sequence[object]]

LISTED: Log = [[listed()], [day()]]


def ins_id(trade_id: int) -> str:
    return f"DOJIMA-{TRADE_DATE}-{trade_id}-1"


async def opened(
    directory: Path, ledger: LedgerAdapter | None = None, clock: Clock | None = None, options: Options | None = None
) -> Settlement:
    adapters = {EMBEDDED: ledger} if ledger else {}
    return await Settlement.open(directory, market="DOJIMA", clock=clock or Clock(), adapters=adapters, options=options)


def take_all(settlement: Settlement, log: Log, first: int = 1) -> None:
    for sequence, events in enumerate(log, start=first):
        settlement.take(sequence, sequence, events)


async def fund(ledger: Settlement, units: int = 1_000, yen: int = 1_000_000) -> None:
    await ledger.fund("alpha", TOKEN, units, "units")
    await ledger.fund("bravo", YEN, yen, "yen")


async def state(settlement: Settlement, trade_id: int = 1) -> State:
    return (await settlement.find(ins_id(trade_id)))[0].state


async def moves(settlement: Settlement, trade_id: int = 1) -> list[State]:
    return [move.after for move in (await settlement.find(ins_id(trade_id)))[1]]


async def reached(settlement: Settlement, cursor: int, wanted: State) -> bool:
    return settlement.cursor >= cursor and await state(settlement) is wanted


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another task brings about; the test run's own time limit is the end of patience."""
    while not await holds():  # noqa: ASYNC110 - what is waited for is in a file and sets no event
        await asyncio.sleep(0.005)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> FaultyLedger:
    return FaultyLedger(MemoryLedger(clock))


@pytest.fixture
async def settlement(tmp_path: Path, ledger: FaultyLedger, clock: Clock) -> AsyncIterator[Settlement]:
    settlement = await opened(tmp_path, ledger, clock)
    yield settlement
    await settlement.close()


def raising(error: LedgerError, at: str, times: int = 10**9) -> Callable[[str], None]:
    left = times

    def point(name: str) -> None:
        nonlocal left
        if name == at and left:
            left -= 1
            raise error

    return point


# --- the ordinary way ------------------------------------------------------------------------------------------------


async def test_a_trade_settles_on_its_settlement_date_and_not_before(settlement: Settlement) -> None:
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.flush()
    await settlement.settle()
    assert await state(settlement) is State.NEW
    await settlement.advance(SETTLE_DATE - 1)
    assert await state(settlement) is State.NEW
    await settlement.advance(SETTLE_DATE)
    assert await moves(settlement) == [State.PRECHECKED, State.SUBMITTED, State.SETTLED]
    report = await settlement.reconcile()
    assert report.agrees
    assert report.breaks == []


async def test_a_day_started_in_the_log_is_a_settlement_day(settlement: Settlement) -> None:
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded()], [day(SETTLE_DATE)]])
    await settlement.settle()
    assert await state(settlement) is State.SETTLED


async def test_a_trade_of_a_market_without_days_settles_as_soon_as_there_is_one(settlement: Settlement) -> None:
    await fund(settlement)
    take_all(settlement, [[listed()], [traded(trade_date=0, settlement_date=0)]])
    await settlement.settle()
    assert (await settlement.summary()).count(State.NEW) == 1
    await settlement.advance(TRADE_DATE)
    assert (await settlement.summary()).count(State.SETTLED) == 1


async def test_what_members_own_is_not_for_every_user_of_the_machine(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        settlement = await opened(tmp_path)
        files = {file.name: os.stat(file.path).st_mode & 0o007 for file in os.scandir(tmp_path)}
        await settlement.close()
    finally:
        os.umask(before)
    assert {LEDGER_FILE, OUTBOX_FILE} < files.keys()  # and what SQLite lays beside them
    assert set(files.values()) == {0}


async def test_a_running_relay_settles_by_itself(settlement: Settlement) -> None:
    await fund(settlement)
    running = asyncio.create_task(settlement.run())
    take_all(settlement, [*LISTED, [traded()], [day(SETTLE_DATE)]])
    await until(lambda: reached(settlement, 4, State.SETTLED))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_token_whose_ledger_is_not_configured_settles_on_the_embedded_one_and_says_so(
    settlement: Settlement, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "gateway.settlement")  # `dojima demo`, run before in this process, quiets it
    await fund(settlement)
    take_all(settlement, [[listed(ledger="progmat")], [traded()]])
    await settlement.advance(SETTLE_DATE)
    summary = await settlement.summary()
    assert summary.states == {EMBEDDED: {State.SETTLED: 1}}
    assert len(summary.notices) == 1
    assert TOKEN in summary.notices[0]
    assert "'progmat'" in summary.notices[0]
    assert caplog.messages == summary.notices


async def test_what_is_on_one_ledger_stays_there_when_another_is_configured_later(tmp_path: Path, clock: Clock) -> None:
    embedded, progmat = MemoryLedger(clock), MemoryLedger(clock)
    first = await Settlement.open(tmp_path, market="DOJIMA", clock=clock, adapters={EMBEDDED: embedded})
    take_all(first, [[listed(ledger="progmat")], [traded()]])
    await first.close()
    again = await Settlement.open(
        tmp_path, market="DOJIMA", clock=clock, adapters={EMBEDDED: embedded, "progmat": progmat}
    )
    await fund(again)
    await again.advance(SETTLE_DATE)
    assert (await again.summary()).states == {EMBEDDED: {State.SETTLED: 1}}
    await again.close()


# --- the cursor ------------------------------------------------------------------------------------------------------


async def test_commands_at_or_below_the_cursor_are_ignored_and_a_hole_is_a_fault(tmp_path: Path) -> None:
    settlement = await opened(tmp_path)
    log = [*LISTED, [traded()]]
    take_all(settlement, log)
    await settlement.flush()
    take_all(settlement, log)
    assert settlement.cursor == 3
    with pytest.raises(OutboxFault, match="Expected sequence 4, got 5"):
        settlement.take(5, 5, [])
    await settlement.close()

    again = await opened(tmp_path)
    assert again.cursor == 3
    take_all(again, [*log, [traded(2)]])
    await again.flush()
    assert (await again.summary()).count(State.NEW) == 2
    again.verify_log(4)
    with pytest.raises(OutboxFault, match="log ends at 3"):
        again.verify_log(3)
    await again.close()


async def test_events_that_are_nobodys_obligation_only_move_the_cursor(settlement: Settlement) -> None:
    accepted = Accepted("a", "c", 1, TOKEN, Side.BUY, 1, 1, OrderType.LIMIT, TimeInForce.DAY, "")
    take_all(settlement, [[accepted], [], [accepted]])
    assert settlement.cursor == 0
    await settlement.flush()
    assert settlement.cursor == 3
    assert (await settlement.summary()).states == {}


async def test_what_is_taken_while_a_flush_runs_is_flushed_by_the_next(settlement: Settlement) -> None:
    take_all(settlement, LISTED)
    flushing = asyncio.create_task(settlement.flush())
    await asyncio.sleep(0)
    take_all(settlement, [[traded(1)], [traded(2)]], first=3)
    await flushing
    assert settlement.cursor == 2
    await settlement.flush()
    assert settlement.cursor == 4
    assert (await settlement.summary()).count(State.NEW) == 2


async def test_a_flush_that_failed_loses_nothing(settlement: Settlement, monkeypatch: pytest.MonkeyPatch) -> None:
    take_all(settlement, [*LISTED, [traded(1)]])

    async def full(self: Database, function: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "write", full)
        with pytest.raises(OSError, match="no space"):
            await settlement.flush()
    take_all(settlement, [[traded(2)]], first=4)
    await settlement.flush()
    assert (await settlement.summary()).count(State.NEW) == 2


async def test_a_trade_in_an_instrument_that_was_never_listed_is_a_fault(settlement: Settlement) -> None:
    settlement.take(1, 1, [traded()])
    with pytest.raises(OutboxFault, match=TOKEN):
        await settlement.flush()
    settlement._buffer.clear()  # the fixture's close would find it again


async def test_an_outbox_of_another_market_or_a_foreign_file_is_refused(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    with pytest.raises(OutboxFault, match="OSAKA"):
        await Settlement.open(tmp_path, market="OSAKA", clock=Clock())
    with pytest.raises(ValueError, match="capital letters"):
        await Settlement.open(tmp_path, market="O/1", clock=Clock())
    (tmp_path / OUTBOX_FILE).rename(tmp_path / "aside")
    (tmp_path / LEDGER_FILE).rename(tmp_path / OUTBOX_FILE)
    with pytest.raises(WrongFile, match="embedded ledger"):
        await opened(tmp_path)


# --- what ledgers answer ---------------------------------------------------------------------------------------------


async def test_short_waits_for_cover_and_fails_at_the_cut_off(settlement: Settlement, clock: Clock) -> None:
    await fund(settlement, units=5)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    entry, _ = await settlement.find(ins_id(1))
    assert (entry.state, entry.reason.split(":")[0]) == (State.SUBMITTED, "INSUFFICIENT_SECURITIES")
    assert await settlement.cut_off() == 1
    assert await settlement.cut_off() == 0
    entry, _ = await settlement.find(ins_id(1))
    assert (entry.state, entry.fails) == (State.FAILED_TODAY, 1)
    assert entry.reason.startswith("INSUFFICIENT_SECURITIES")
    await settlement.fund("alpha", TOKEN, 5, "late")
    clock.advance(3600)
    await settlement.settle()
    assert await state(settlement) is State.FAILED_TODAY, "after the cut-off nothing is sent"
    await settlement.advance(NEXT_DATE)
    assert await moves(settlement) == [
        State.PRECHECKED,
        State.SUBMITTED,
        State.FAILED_TODAY,
        State.SUBMITTED,
        State.SETTLED,
    ]


async def test_short_is_tried_again_after_its_back_off_on_the_same_day(
    settlement: Settlement, ledger: FaultyLedger, clock: Clock
) -> None:
    sent: list[str] = []
    ledger.point = sent.append
    await fund(settlement, units=5)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    await settlement.settle()
    assert sent.count("before submit_batch") == 1
    await settlement.fund("alpha", TOKEN, 5, "late")
    await settlement.settle()
    assert await state(settlement) is State.SUBMITTED
    clock.advance(1)
    await settlement.settle()
    assert await state(settlement) is State.SETTLED
    assert sent.count("before submit_batch") == 2


async def test_one_that_is_short_holds_up_nobody_else(settlement: Settlement) -> None:
    await fund(settlement, units=25)
    take_all(settlement, [*LISTED, [traded(1)], [traded(2, quantity=1000)], [traded(3)]])
    await settlement.advance(SETTLE_DATE)
    assert [await state(settlement, n) for n in (1, 2, 3)] == [State.SETTLED, State.SUBMITTED, State.SETTLED]


async def test_a_fail_is_left_to_the_operator_after_so_many_days(tmp_path: Path, clock: Clock) -> None:
    settlement = await opened(tmp_path, MemoryLedger(clock), clock, Options(recycle_max=2))
    take_all(settlement, [*LISTED, [traded()]])
    for date in range(SETTLE_DATE, SETTLE_DATE + 3):
        await settlement.advance(date)
    assert (await settlement.find(ins_id(1)))[0].fails == 2
    await settlement.advance(SETTLE_DATE + 3)
    await fund(settlement)
    await settlement.advance(SETTLE_DATE + 4)
    assert await state(settlement) is State.FAILED_TODAY
    entry = await settlement.cancel(ins_id(1), "closed out in cash")
    assert (entry.state, entry.reason) == (State.CANCELLED, "closed out in cash")
    await settlement.close()


async def test_days_replayed_from_the_log_without_a_try_are_no_fails(settlement: Settlement) -> None:
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded()], *([day(SETTLE_DATE + n)] for n in range(20))])
    await settlement.settle()
    entry, _ = await settlement.find(ins_id(1))
    assert (entry.state, entry.fails) == (State.SETTLED, 0)


async def test_a_rejected_instruction_ends_and_says_why(settlement: Settlement, ledger: FaultyLedger) -> None:
    take_all(settlement, [[listed(TOKEN)], [day()], [traded(price=0)]])
    await settlement.advance(SETTLE_DATE)
    entry, _ = await settlement.find(ins_id(1))
    assert entry.state is State.REJECTED
    assert entry.reason.startswith("BAD_AMOUNT")
    with pytest.raises(IllegalMove):
        await settlement.cancel(ins_id(1), "too late")


async def test_a_retryable_error_is_retried_and_nothing_was_asked_meanwhile(
    settlement: Settlement, ledger: FaultyLedger, clock: Clock
) -> None:
    await fund(settlement)
    ledger.point = raising(Retryable("busy"), "before submit_batch", times=2)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    assert (await settlement.find(ins_id(1)))[0].reason == "busy"
    for _ in range(2):
        clock.advance(2)
        await settlement.settle()
    assert await moves(settlement) == [State.PRECHECKED, State.SUBMITTED, State.SETTLED]


async def test_a_clock_that_steps_back_keeps_nothing_waiting(
    settlement: Settlement, ledger: FaultyLedger, clock: Clock
) -> None:
    await fund(settlement)
    ledger.point = raising(Retryable("busy"), "before submit_batch", times=1)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    clock.advance(-7200)
    await settlement.settle()
    assert await state(settlement) is State.SETTLED


@pytest.mark.parametrize("at", ["before submit_batch", "after submit_batch"])
async def test_an_unknown_outcome_is_queried_before_anything_is_sent_again(
    settlement: Settlement, ledger: FaultyLedger, clock: Clock, at: str
) -> None:
    calls: list[str] = []
    fault = raising(OutcomeUnknown("timeout"), at, times=1)

    def point(name: str) -> None:
        calls.append(name)
        fault(name)

    await fund(settlement)
    ledger.point = point
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    clock.advance(60)
    await settlement.settle()
    assert await state(settlement) is State.SETTLED
    asked = [name.split()[1] for name in calls if name.startswith("before") and "health" not in name]
    if at == "after submit_batch":  # it had taken effect: the question is enough
        assert asked == ["submit_batch", "status"]
        assert await moves(settlement) == [State.PRECHECKED, State.SUBMITTED, State.UNKNOWN, State.SETTLED]
    else:
        assert asked == ["submit_batch", "status", "submit_batch"]
        assert (await moves(settlement))[2:5] == [State.UNKNOWN, State.PRECHECKED, State.SUBMITTED]
    assert (await settlement.reconcile()).breaks == []


async def test_while_the_question_is_not_answered_nothing_is_sent(
    settlement: Settlement, ledger: FaultyLedger, clock: Clock
) -> None:
    calls: list[str] = []

    def point(name: str) -> None:
        calls.append(name)
        if name == "before status" or name == "after submit_batch":
            raise OutcomeUnknown("line is dead")

    await fund(settlement)
    ledger.point = point
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    for _ in range(5):
        clock.advance(100)
        await settlement.settle()
    assert await state(settlement) is State.UNKNOWN
    assert calls.count("before submit_batch") == 1
    assert calls.count("before status") == 6
    assert await settlement.cut_off() == 0, "what is UNKNOWN may have settled in time"
    ledger.point = lambda name: None
    clock.advance(100)
    await settlement.settle()
    assert await state(settlement) is State.SETTLED


async def test_an_unknown_outcome_that_turns_out_absent_after_the_cut_off_has_failed_today(
    settlement: Settlement, ledger: FaultyLedger, clock: Clock
) -> None:
    await fund(settlement)

    def point(name: str) -> None:
        if name in ("before submit_batch", "before status"):
            raise OutcomeUnknown("line is dead")

    ledger.point = point
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    assert await state(settlement) is State.UNKNOWN
    await settlement.cut_off()
    ledger.point = lambda name: None
    clock.advance(100)
    await settlement.settle()
    assert await state(settlement) is State.FAILED_TODAY
    await settlement.advance(NEXT_DATE)
    assert await state(settlement) is State.SETTLED


async def test_no_answer_in_time_is_an_unknown_outcome(tmp_path: Path, clock: Clock) -> None:
    class Slow(FaultyLedger):
        async def submit_batch(self, instructions, atomic):  # type: ignore[no-untyped-def]
            answer = await super().submit_batch(instructions, atomic)
            await asyncio.sleep(3600)
            return answer

    settlement = await opened(tmp_path, Slow(MemoryLedger(clock)), clock, Options(answer_seconds=0.05))
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    assert await moves(settlement) == [State.PRECHECKED, State.SUBMITTED, State.UNKNOWN, State.SETTLED]
    await settlement.close()


async def test_a_conflict_stops_the_instruction_and_alerts(settlement: Settlement, ledger: FaultyLedger) -> None:
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded(1)], [traded(2)]])
    await settlement.flush()
    await ledger.inner.submit(instruction(ins_id(1), quantity=1, cash=1))
    await settlement.advance(SETTLE_DATE)
    summary = await settlement.summary()
    assert [alert.split(":")[0] for alert in summary.alerts] == [ins_id(1)]
    assert "Conflict" in summary.alerts[0]
    assert await state(settlement, 2) is State.SETTLED
    report = await settlement.reconcile()
    assert not report.agrees
    named = {(each.subject, each.kind) for each in report.breaks}
    assert (ins_id(1), BreakClass.AMOUNT) in named
    assert all(subject == ins_id(1) or subject.split()[0] in ("alpha", "bravo") for subject, _ in named)


async def test_a_wrong_ledger_is_stopped_and_the_others_go_on(tmp_path: Path, clock: Clock) -> None:
    wrong = FaultyLedger(MemoryLedger(clock), raising(ConfigError("chain 1, expected 1010032"), "before health"))
    settlement = await Settlement.open(
        tmp_path, market="DOJIMA", clock=clock, adapters={EMBEDDED: MemoryLedger(clock), "ibet": wrong}
    )
    await fund(settlement)
    take_all(settlement, [[listed()], [listed("ICN-1701", "ibet")], [traded(1)], [traded(2, instrument="ICN-1701")]])
    await settlement.advance(SETTLE_DATE)
    assert await state(settlement, 1) is State.SETTLED
    assert await state(settlement, 2) is State.NEW
    assert settlement.stopped == {"ibet": "chain 1, expected 1010032"}
    await settlement.close()


async def test_a_fault_in_an_adapter_leaves_the_outcome_unknown_and_stops_that_ledger(
    tmp_path: Path, clock: Clock
) -> None:
    def point(name: str) -> None:
        if name == "after submit_batch":
            raise KeyError("a bug")

    memory = MemoryLedger(clock)
    settlement = await opened(tmp_path, FaultyLedger(memory, point), clock)
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    assert await state(settlement) is State.UNKNOWN
    assert "a bug" in settlement.stopped[EMBEDDED]
    await settlement.close()
    again = await opened(tmp_path, memory, clock)
    await again.settle()
    assert await state(again) is State.SETTLED
    assert (await again.reconcile()).breaks == []
    await again.close()


async def test_a_silent_ledger_holds_up_no_other(tmp_path: Path, clock: Clock) -> None:
    class Silent(FaultyLedger):
        async def health(self):  # type: ignore[no-untyped-def]
            await asyncio.Event().wait()

    settlement = await Settlement.open(
        tmp_path,
        market="DOJIMA",
        clock=clock,
        adapters={EMBEDDED: MemoryLedger(clock), "silent": Silent(MemoryLedger(clock))},
    )
    await fund(settlement)
    take_all(settlement, [[listed()], [listed("ICN-1701", "silent")], [traded(1)], [traded(2, instrument="ICN-1701")]])
    running = asyncio.create_task(settlement.run())
    settlement.take(5, 5, [day(SETTLE_DATE)])
    await until(lambda: reached(settlement, 5, State.SETTLED))
    assert await state(settlement, 2) is State.NEW
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await settlement.close()


# --- a ledger that waits for others ----------------------------------------------------------------------------------


async def test_a_staged_ledger_is_followed_through_its_own_events(tmp_path: Path, clock: Clock) -> None:
    memory = MemoryLedger(clock, staged=True)
    settlement = await opened(tmp_path, memory, clock)
    await settlement.fund("alpha", TOKEN, 100, "units")
    take_all(settlement, [*LISTED, [traded(1)], [traded(2)], [traded(3)]])
    await settlement.advance(SETTLE_DATE)
    assert await state(settlement) is State.HELD
    await memory.affirm(ins_id(1), "buyer")  # elsewhere: the exchange only hears of it
    await settlement.settle()
    assert await state(settlement) is State.AFFIRMED
    await settlement.cash_confirmed(ins_id(1), "bank-1")
    assert await moves(settlement) == [
        State.PRECHECKED,
        State.SUBMITTED,
        State.HELD,
        State.AFFIRMED,
        State.CASH_CONFIRMED,
        State.SETTLED,
    ]
    await settlement.affirm(ins_id(2), "buyer")
    await settlement.cancel(ins_id(2), "buyer defaults")
    assert await state(settlement, 2) is State.ABORTED
    assert await settlement.cut_off() == 1
    assert await state(settlement, 3) is State.FAILED_TODAY
    await memory.affirm(ins_id(3), "buyer")
    await memory.cash_confirmed(ins_id(3), "bank-3")  # late, but the ledger's word counts
    await settlement.settle()
    assert await state(settlement, 3) is State.SETTLED
    with pytest.raises(Rejected):
        await settlement.cancel(ins_id(3), "never reverse what has settled")
    report = await settlement.reconcile()
    assert report.breaks == []
    await settlement.close()


async def test_events_told_twice_change_nothing(tmp_path: Path, clock: Clock) -> None:
    class Forgetful(FaultyLedger):
        told = 0

        async def events(self, cursor: str):  # type: ignore[no-untyped-def]
            self.told += 1
            events, _ = await self.inner.events("")
            return events, str(self.told // 2)

    memory = MemoryLedger(clock, staged=True)
    settlement = await opened(tmp_path, Forgetful(memory), clock)
    await settlement.fund("alpha", TOKEN, 100, "units")
    take_all(settlement, [*LISTED, [traded(1)]])
    settling = asyncio.create_task(settlement.advance(SETTLE_DATE))
    for _ in range(30):
        await asyncio.sleep(0.002)
    settling.cancel()
    await memory.affirm(ins_id(1), "buyer")
    settling = asyncio.create_task(settlement.settle())
    await until(lambda: reached(settlement, 3, State.AFFIRMED))
    settling.cancel()
    assert await moves(settlement) == [State.PRECHECKED, State.SUBMITTED, State.HELD, State.AFFIRMED]
    assert (await settlement.summary()).alerts == []
    await settlement.close()


# --- busted trades ---------------------------------------------------------------------------------------------------


async def back(settlement: Settlement, trade_id: int = 1) -> State:
    """The state of what reverses a trade."""
    return (await settlement.find(f"DOJIMA-{TRADE_DATE}-{trade_id}-2"))[0].state


async def balances(ledger: LedgerAdapter) -> dict[tuple[str, str], int]:
    return {(p.account, asset): p.total for asset in (TOKEN, YEN) for p in await ledger.positions(asset) if p.total}


async def test_a_busted_trade_that_was_not_sent_never_is(settlement: Settlement, ledger: FaultyLedger) -> None:
    await fund(settlement)
    before = await balances(ledger)
    take_all(settlement, [*LISTED, [traded()], [busted(traded())]])
    await settlement.advance(SETTLE_DATE)
    assert (await state(settlement), await back(settlement)) == (State.CANCELLED, State.CANCELLED)
    assert await balances(ledger) == before
    assert (await settlement.reconcile()).breaks == []


async def test_a_busted_trade_that_has_settled_is_reversed(settlement: Settlement, ledger: FaultyLedger) -> None:
    await fund(settlement)
    before = await balances(ledger)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    assert await balances(ledger) != before
    take_all(settlement, [[busted(traded())]], first=4)
    await settlement.settle()
    assert (await state(settlement), await back(settlement)) == (State.SETTLED, State.SETTLED)
    assert await balances(ledger) == before
    assert (await settlement.reconcile()).breaks == []


async def test_a_reversal_of_what_was_spent_waits_for_cover(settlement: Settlement) -> None:
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded()], [traded(2, seller="bravo", buyer="alpha", quantity=10)]])
    await settlement.advance(SETTLE_DATE)
    take_all(settlement, [[busted(traded())]], first=5)
    await settlement.settle()
    entry, _ = await settlement.find(f"DOJIMA-{TRADE_DATE}-1-2")
    assert (entry.state, entry.reason.split(":")[0]) == (State.SUBMITTED, "INSUFFICIENT_SECURITIES")


async def test_a_trade_busted_while_it_is_out_is_reversed_only_if_it_turns_out_to_have_settled(
    tmp_path: Path, clock: Clock
) -> None:
    for after, wanted in (("before submit_batch", State.CANCELLED), ("after submit_batch", State.SETTLED)):
        directory = tmp_path / wanted
        directory.mkdir()
        faulty = FaultyLedger(StrictLedger(clock))
        settlement = await opened(directory, faulty, clock)
        await fund(settlement)
        before = await balances(faulty)
        take_all(settlement, [*LISTED, [traded()]])
        faulty.point = raising(OutcomeUnknown("timeout"), after)
        asked = raising(OutcomeUnknown("timeout"), "before status")
        faulty.point = lambda name, sent=faulty.point, asked=asked: (sent(name), asked(name))  # type: ignore[assignment, misc]
        await settlement.advance(SETTLE_DATE)
        assert await state(settlement) is State.UNKNOWN
        take_all(settlement, [[busted(traded())]], first=4)
        faulty.point = raising(OutcomeUnknown("timeout"), "before status")
        clock.advance(100)
        await asyncio.wait_for(settlement.settle(), 20)
        assert (await state(settlement), await back(settlement)) == (State.UNKNOWN, State.NEW)
        faulty.point = lambda name: None
        clock.advance(100)
        await settlement.settle()
        assert (await state(settlement), await back(settlement)) == (wanted, wanted)
        assert await balances(faulty) == before
        await settlement.close()


async def test_what_a_staged_ledger_works_on_is_let_settle_and_reversed_or_ends_with_its_cancel(
    tmp_path: Path, clock: Clock
) -> None:
    memory = MemoryLedger(clock, staged=True)
    settlement = await opened(tmp_path, memory, clock)
    await settlement.fund("alpha", TOKEN, 100, "units")
    take_all(settlement, [*LISTED, [traded(1)], [traded(2)]])
    await settlement.advance(SETTLE_DATE)
    take_all(settlement, [[busted(traded(1)), busted(traded(2))]], first=5)
    await settlement.settle()
    assert [await state(settlement, n) for n in (1, 2)] == [State.HELD, State.HELD]
    assert [await back(settlement, n) for n in (1, 2)] == [State.NEW, State.NEW]
    await settlement.affirm(ins_id(1), "buyer")
    await settlement.cash_confirmed(ins_id(1), "bank-1")
    await memory.cancel(ins_id(2), "taken back")
    await settlement.settle()
    assert [await state(settlement, n) for n in (1, 2)] == [State.SETTLED, State.CANCELLED]
    assert [await back(settlement, n) for n in (1, 2)] == [State.HELD, State.CANCELLED]
    await settlement.close()


async def test_a_trade_busted_between_the_choice_and_the_sending_stays_here(
    settlement: Settlement, ledger: FaultyLedger
) -> None:
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.flush()
    outbox = settlement._outbox
    await outbox.start_day(SETTLE_DATE, 0)
    due = await outbox.due(EMBEDDED, 0, 10, 5)
    take_all(settlement, [[busted(traded())]], first=4)
    await settlement.flush()
    assert await outbox.sending(due, [""], 0) == []
    await settlement.settle()
    assert await state(settlement) is State.CANCELLED


async def test_an_outbox_derived_anew_reverses_once_what_a_former_one_settled(tmp_path: Path, clock: Clock) -> None:
    ledger = StrictLedger(clock)
    log = [*LISTED, [traded()], [busted(traded())], [day(SETTLE_DATE)]]
    settlement = await opened(tmp_path, ledger, clock)
    await fund(settlement)
    before = await balances(ledger)
    take_all(settlement, log[:3])
    await settlement.advance(SETTLE_DATE)
    take_all(settlement, log[3:], first=4)
    await settlement.settle()
    assert await balances(ledger) == before
    await settlement.close()

    (tmp_path / OUTBOX_FILE).unlink()
    forgiving = MemoryLedger(clock)
    forgiving.__dict__ = ledger.__dict__
    settlement = await opened(tmp_path, forgiving, clock)
    take_all(settlement, log)
    await settlement.settle()
    assert (await state(settlement), await back(settlement)) == (State.SETTLED, State.SETTLED)
    assert await balances(ledger) == before
    assert (await settlement.reconcile()).breaks == []
    await settlement.close()


async def test_the_bust_of_a_trade_that_left_nothing_is_a_fault(settlement: Settlement) -> None:
    take_all(settlement, [*LISTED, [busted(traded(7))]])
    with pytest.raises(OutboxFault, match="Trade 7, busted at sequence 3"):
        await settlement.flush()
    settlement._buffer.clear()


async def test_the_outbox_of_an_earlier_build_takes_busts_too(tmp_path: Path, clock: Clock) -> None:
    settlement = await opened(tmp_path, clock=clock)
    await settlement.close()
    with contextlib.closing(sqlite3.connect(tmp_path / OUTBOX_FILE)) as file:
        file.execute("DROP TABLE busts")
        file.commit()
    settlement = await opened(tmp_path, clock=clock)
    take_all(settlement, [*LISTED, [traded()], [busted(traded())]])
    await settlement.advance(SETTLE_DATE)
    assert await state(settlement) is State.CANCELLED
    await settlement.close()


# --- operators -------------------------------------------------------------------------------------------------------


async def test_what_was_never_sent_is_cancelled_here_and_never_sent(settlement: Settlement) -> None:
    await fund(settlement)
    take_all(settlement, [*LISTED, [traded(1)], [traded(2)]])
    await settlement.flush()
    await settlement.cancel(ins_id(1), "bust")
    await settlement.advance(SETTLE_DATE)
    assert [await state(settlement, n) for n in (1, 2)] == [State.CANCELLED, State.SETTLED]
    with pytest.raises(Rejected):
        await settlement.cancel(ins_id(2), "bust")
    with pytest.raises(NotFound):
        await settlement.cancel("DOJIMA-20261124-9-1", "bust")


async def test_funding_is_idempotent_by_reference_and_conserves_supply(settlement: Settlement) -> None:
    openings = [(f"m{n}", asset, 10, f"m{n}-{asset}") for n in range(700) for asset in (TOKEN, YEN)]
    first = await settlement.fund_all(openings)
    assert await settlement.fund_all(openings) == first
    with pytest.raises(Conflict):
        await settlement.fund("m1", TOKEN, 11, f"m1-{TOKEN}")
    with pytest.raises(Unsupported, match="embedded"):
        await settlement.fund("m1", TOKEN, 11, "x", ledger="ibet")
    report = await settlement.reconcile()
    assert report.breaks == []
    assert report.ledgers[0].openings == 1400


async def test_the_cut_off_time_is_that_of_japan(tmp_path: Path, clock: Clock) -> None:
    at = datetime.time(15, 30)
    assert cut_off_ns(20261126, at) == 1_795_674_600 * 10**9
    settlement = await opened(tmp_path, MemoryLedger(clock), clock, Options(cut_off=at, poll_seconds=0.01))
    take_all(settlement, [*LISTED, [traded()]])
    await settlement.advance(SETTLE_DATE)
    clock.now = cut_off_ns(SETTLE_DATE, at) - 1
    running = asyncio.create_task(settlement.run())
    await asyncio.sleep(0.05)
    assert (await settlement.summary()).day_is_open
    clock.now += 1
    await until(lambda: reached(settlement, 3, State.FAILED_TODAY))
    assert await state(settlement) is State.FAILED_TODAY
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await settlement.close()


# --- crashes ---------------------------------------------------------------------------------------------------------

#: A small history with everything in it: two days, a short sale that is covered later, a re-read instrument.
HISTORY: Log = [
    [listed()],
    [day(TRADE_DATE)],
    [traded(1)],
    [traded(2, quantity=3), traded(3, seller="bravo", buyer="alpha", quantity=5)],
    [],
    [traded(4, quantity=995)],  # more than alpha has until it is funded again
    [day(SETTLE_DATE)],
    [day(NEXT_DATE)],
]


async def live(settlement: Settlement, clock: Clock) -> None:
    """One life of the exchange: replay the log from the beginning, go on to its end, settle."""
    await fund(settlement, units=1_000, yen=10_000_000)
    for sequence, events in enumerate(HISTORY, start=1):
        if sequence == len(HISTORY):
            await settlement.fund("alpha", TOKEN, 500, "cover")
        settlement.take(sequence, sequence, events)
        if sequence % 2 == 0 or sequence >= 6:
            await settlement.flush()
            clock.advance(100)
            await settlement.settle()
    settlement.verify_log(len(HISTORY))


async def crash_and_recover(directory: Path, at: int | None) -> int:
    """Live with a crash at the at-th point, then without; returns how many points a life has."""
    clock, points = Clock(), 0
    memory = StrictLedger(clock)

    def point(name: str) -> None:
        nonlocal points
        points += 1
        if points == at:
            raise Crash(name)

    write = Database.write

    async def crashing_write(self: Database, function):  # type: ignore[no-untyped-def]
        point("before commit")
        answer = await write(self, function)
        point("after commit")
        return answer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Database, "write", crashing_write)
        settlement: Settlement | None = None
        try:
            settlement = await opened(directory, FaultyLedger(memory, point), clock)
            await live(settlement, clock)
        except Crash:
            assert at is not None
        else:
            assert at is None or points < at
        if settlement:
            await settlement._outbox.close()  # the files close as they do when a process dies: nothing is flushed

    again = await opened(directory, memory, clock)
    await live(again, clock)
    for _ in range(3):
        clock.advance(100)
        await again.settle()
    await check_all_settled_exactly_once(again, memory)
    await again.close()
    return points


async def check_all_settled_exactly_once(settlement: Settlement, ledger: MemoryLedger | SqliteLedger) -> None:
    report = await settlement.reconcile()
    assert report.breaks == []
    assert (await settlement.summary()).states == {EMBEDDED: {State.SETTLED: 4}}
    for trade_id in range(1, 5):
        _, made = await settlement.find(ins_id(trade_id))
        present = State.NEW
        for move in made:
            assert move.before is present
            check_move(move.before, move.after)
            present = move.after
        assert present is State.SETTLED
    events, _ = await ledger.events("")
    assert sorted(event.ins_id for event in events if event.kind is Kind.DVP) == [ins_id(n) for n in range(1, 5)]
    owned = {position.account: position.total for position in await ledger.positions(TOKEN)}
    assert owned == {"@issuance": -1_500, "alpha": 1_500 - 10 - 3 + 5 - 995, "bravo": 10 + 3 - 5 + 995}


async def test_a_crash_at_any_point_settles_everything_exactly_once(tmp_path: Path) -> None:
    points = await crash_and_recover(tmp_path / "whole", None)
    assert points > 25
    for at in range(1, points + 1):
        await crash_and_recover(tmp_path / str(at), at)


async def test_two_crashes_in_a_row_settle_everything_exactly_once(tmp_path: Path) -> None:
    random_ = random.Random(2)
    for round_ in range(15):
        clock = Clock()
        memory = StrictLedger(clock)
        directory = tmp_path / str(round_)
        for _ in range(3):
            left = random_.randint(1, 60)

            def point(name: str) -> None:
                nonlocal left
                left -= 1
                if not left:
                    raise Crash(name)

            settlement = await opened(directory, FaultyLedger(memory, point), clock)
            with contextlib.suppress(Crash):
                await live(settlement, clock)
            await settlement._outbox.close()
        again = await opened(directory, memory, clock)
        await live(again, clock)
        clock.advance(100)
        await again.settle()
        await check_all_settled_exactly_once(again, memory)
        await again.close()


async def test_a_lost_outbox_is_derived_again_from_the_log_and_moves_nothing(tmp_path: Path) -> None:
    clock = Clock()
    settlement = await opened(tmp_path, clock=clock)
    await live(settlement, clock)
    before = await settlement.reconcile()
    await settlement.close()
    for file in (tmp_path).glob(f"{OUTBOX_FILE}*"):  # noqa: ASYNC240 - a test waits for nobody
        file.unlink()
    again = await opened(tmp_path, clock=clock)
    await live(again, clock)
    after = await again.reconcile()
    assert (await again.summary()).states == {EMBEDDED: {State.SETTLED: 4}}
    assert after.breaks == []
    assert after.ledgers == before.ledgers
    await again.close()


CHILD = """
import asyncio, sys, time
from pathlib import Path
from gateway.settlement import YEN, Options, Settlement
from tests.settlement.world import SETTLE_DATE, day, listed, traded

async def main(directory, count):
    settlement = await Settlement.open(
        Path(directory), market="DOJIMA", clock=time.time_ns, options=Options(batch_max=7)
    )
    await settlement.fund("alpha", "KDX-2107", 10 * count, "units")
    await settlement.fund("bravo", YEN, 1000 * count, "yen")
    print("up", flush=True)
    log = [[listed()], [day()], *([traded(n)] for n in range(1, count + 1)), [day(SETTLE_DATE)]]
    for sequence, events in enumerate(log, start=1):
        settlement.take(sequence, sequence, events)
        if sequence % 50 == 0:
            await settlement.flush()
    await settlement.settle()
    print("done", flush=True)
    await settlement.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def kill_until_done(directory: Path, count: int, seed: int, delay: float) -> int:
    random_, kills = random.Random(seed), 0
    while True:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(directory), str(count)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert child.stdout
        try:
            assert child.stdout.readline() == b"up\n"
            try:
                child.wait(random_.uniform(0, delay))
                assert child.stdout.read() == b"done\n"
                return kills
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                kills += 1
                delay *= 1.3  # so that one life is long enough in the end
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


async def check_killed(directory: Path, count: int) -> None:
    settlement = await opened(directory)
    await settlement.settle()
    report = await settlement.reconcile()
    assert report.breaks == []
    assert (await settlement.summary()).states == {EMBEDDED: {State.SETTLED: count}}
    assert report.ledgers[0].events == count + 2
    assert {(each.account, each.asset): each.total for each in report.ledgers[0].positions if each.total} == {
        ("bravo", TOKEN): 10 * count,
        ("alpha", YEN): 1000 * count,
    }
    await settlement.close()


async def test_a_killed_process_settles_everything_exactly_once_after_its_restart(tmp_path: Path) -> None:
    kills = kill_until_done(tmp_path, 400, seed=1, delay=0.08)
    assert kills > 0
    await check_killed(tmp_path, 400)


@pytest.mark.slow
async def test_many_killed_processes_settle_everything_exactly_once(tmp_path: Path) -> None:
    kills = 0
    for seed in range(6):
        directory = tmp_path / str(seed)
        kills += kill_until_done(directory, 1500, seed, delay=0.05)
        await check_killed(directory, 1500)
    assert kills > 6
