"""Each way in which ledger and outbox can differ, brought about and named. And ``dojima ledger``, which shows it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.ledger import ledger as ledger_command
from gateway.settlement import EMBEDDED, YEN, Report, Settlement
from gateway.settlement.adapter import LedgerEvent, State
from gateway.settlement.memory import MemoryLedger
from gateway.settlement.reconcile import BreakClass
from gateway.settlement.relay import LEDGER_FILE, OUTBOX_FILE
from tests.settlement.world import SETTLE_DATE, T0, TRADE_DATE, Clock, day, instruction, listed, traded

TOKEN = "KDX-2107"
ID = f"DOJIMA-{TRADE_DATE}-1-1"


class Tampered(MemoryLedger):
    """A ledger whose events can be made to say something else."""

    def tamper(self, **changes: object) -> None:
        for place, event in enumerate(self._events):
            if event.ins_id == ID:
                self._events[place] = msgspec.structs.replace(event, **changes)

    def forget(self) -> None:
        self._events = [event for event in self._events if event.ins_id != ID]

    def repeat(self, **changes: object) -> None:
        event = next(event for event in self._events if event.ins_id == ID)
        self._events.append(msgspec.structs.replace(event, **changes))


@pytest.fixture
async def ledger() -> Tampered:
    return Tampered(Clock())


@pytest.fixture
async def settlement(tmp_path: Path, ledger: Tampered) -> AsyncIterator[Settlement]:
    settlement = await Settlement.open(tmp_path, market="DOJIMA", clock=Clock(), adapters={EMBEDDED: ledger})
    await history(settlement)
    yield settlement
    await settlement.close()


async def history(settlement: Settlement) -> None:
    await settlement.fund("alpha/[bold]", TOKEN, 100, "units")
    await settlement.fund("bravo", YEN, 10_000, "yen")
    for sequence, events in enumerate([[listed(ledger="ibet")], [day()], [traded(sell_account="[bold]")]], start=1):
        settlement.take(sequence, T0, events)
    await settlement.advance(SETTLE_DATE)


def named(report: Report) -> set[tuple[str, str]]:
    return {(each.kind.value, each.subject) for each in report.breaks}


async def test_what_agrees_has_no_break(settlement: Settlement) -> None:
    report = await settlement.reconcile()
    assert report.agrees
    assert report.breaks == []
    (one,) = report.ledgers
    assert (one.instructions, one.settled, one.events, one.openings) == (1, 1, 3, 2)


async def test_settled_here_and_not_there_is_missing(settlement: Settlement, ledger: Tampered) -> None:
    ledger.forget()
    report = await settlement.reconcile()
    assert named(report) == {("missing", ID)}
    assert report.breaks[0].since == T0
    assert not report.agrees


async def test_settled_here_on_a_ledger_that_begins_anew_is_missing(tmp_path: Path, settlement: Settlement) -> None:
    await settlement.close()
    anew = await Settlement.open(tmp_path, market="DOJIMA", clock=Clock(), adapters={EMBEDDED: MemoryLedger(Clock())})
    try:
        assert ("missing", ID) in named(await anew.reconcile())
    finally:
        await anew.close()


async def test_there_and_unknown_here_is_unknown(settlement: Settlement, ledger: Tampered) -> None:
    await ledger.submit(instruction("somebody-elses", seller="alpha/[bold]", quantity=1, cash=1))
    report = await settlement.reconcile()
    assert ("unknown", "somebody-elses") in named(report)
    assert ("amount", f"bravo {TOKEN}") in named(report)
    assert not report.agrees


async def test_done_twice_is_a_duplicate_and_told_twice_is_not(settlement: Settlement, ledger: Tampered) -> None:
    ledger.repeat()
    assert (await settlement.reconcile()).breaks == []
    ledger.repeat(ledger_ref="another")
    assert named(await settlement.reconcile()) == {("duplicate", ID)}


@pytest.mark.parametrize(
    "changes", [{"quantity": 11}, {"cash": 1}, {"seller": "carol"}, {"buyer": "carol"}, {"asset": "X"}, {"hash": "0"}]
)
async def test_other_amounts_or_accounts_are_named(
    settlement: Settlement, ledger: Tampered, changes: dict[str, object]
) -> None:
    ledger.tamper(**changes)
    report = await settlement.reconcile()
    assert named(report) == {("amount", ID)}
    assert str(next(iter(changes.values()))) in report.breaks[0].text


async def test_a_balance_that_the_instructions_do_not_explain_is_named(
    settlement: Settlement, ledger: Tampered
) -> None:
    ledger._height += 1
    ledger._post("alpha/[bold]", TOKEN, 0, -5)
    ledger._post("carol", TOKEN, 0, 5)
    assert named(await settlement.reconcile()) == {("amount", f"alpha/[bold] {TOKEN}"), ("amount", f"carol {TOKEN}")}


async def test_units_out_of_nowhere_break_the_supply(settlement: Settlement, ledger: Tampered) -> None:
    ledger._post("carol", TOKEN, 0, 5)
    report = await settlement.reconcile()
    assert named(report) == {("amount", f"carol {TOKEN}"), ("amount", TOKEN), ("amount", "books")}


async def test_a_ledger_that_is_ahead_is_timing_and_no_reason_for_alarm(tmp_path: Path) -> None:
    memory = MemoryLedger(Clock())
    settlement = await Settlement.open(tmp_path, market="DOJIMA", clock=Clock(), adapters={EMBEDDED: memory})
    await settlement.fund("alpha", TOKEN, 100, "units")
    await settlement.fund("bravo", YEN, 10_000, "yen")
    for sequence, events in enumerate([[listed()], [day()], [traded()]], start=1):
        settlement.take(sequence, T0, events)
    await settlement.flush()
    (entry,) = await settlement._outbox.entries()
    await memory.submit(entry.instruction)  # its answer has not been read yet
    report = await settlement.reconcile()
    assert named(report) == {("timing", ID)}
    assert report.agrees
    await settlement.advance(SETTLE_DATE)
    assert (await settlement.reconcile()).breaks == []
    await settlement.close()


async def test_what_the_ledger_does_during_the_reconciliation_is_no_break(settlement: Settlement) -> None:
    class Moving(MemoryLedger):
        """Settles one more just after its height was asked for, and the exchange hears of it at once."""

        async def events(self, cursor: str) -> tuple[list[LedgerEvent], str]:
            found = await super().events(cursor)
            if not cursor:
                busy.take(4, T0, [traded(2)])
                await busy.settle()
            return found

    moving = Moving(Clock())
    directory = Path(settlement._outbox._database.path).parent / "busy"
    busy = await Settlement.open(directory, market="DOJIMA", clock=Clock(), adapters={EMBEDDED: moving})
    await busy.fund("alpha", TOKEN, 100, "units")
    await busy.fund("bravo", YEN, 10_000, "yen")
    for sequence, events in enumerate([[listed()], [day(SETTLE_DATE)], [traded()]], start=1):
        busy.take(sequence, T0, events)
    await busy.settle()
    report = await busy.reconcile()
    assert report.breaks == []
    assert report.ledgers[0].settled == 1
    assert (await busy.summary()).count(State.SETTLED) == 2
    await busy.close()


async def test_settled_instructions_on_a_ledger_that_is_gone_are_a_break(tmp_path: Path) -> None:
    clock = Clock()
    ledgers = {EMBEDDED: MemoryLedger(clock), "ibet": MemoryLedger(clock)}
    settlement = await Settlement.open(tmp_path, market="DOJIMA", clock=clock, adapters=ledgers)
    for each in ledgers:
        await settlement.fund("alpha", TOKEN, 100, "units", ledger=each)
        await settlement.fund("bravo", YEN, 10_000, "yen", ledger=each)
    for sequence, events in enumerate([[listed(ledger="ibet")], [day()], [traded()]], start=1):
        settlement.take(sequence, T0, events)
    await settlement.advance(SETTLE_DATE)
    assert (await settlement.summary()).states == {"ibet": {State.SETTLED: 1}}
    assert (await settlement.reconcile()).breaks == []
    await settlement.close()
    del ledgers["ibet"]
    again = await Settlement.open(tmp_path, market="DOJIMA", clock=clock, adapters=ledgers)
    report = await again.reconcile()
    assert named(report) == {(BreakClass.MISSING, "ibet")}
    await again.close()


# --- dojima ledger ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Path]:
    """An exchange directory whose files are open for writing, as while the exchange runs."""
    settlement = await Settlement.open(tmp_path, market="DOJIMA", clock=Clock())
    await history(settlement)
    yield tmp_path
    await settlement.close()


def run(*arguments: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(ledger_command)
    result = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def run_beside(*arguments: object) -> tuple[int, str]:
    """The command has an event loop of its own, so it runs in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run, *arguments).result()


async def test_the_command_shows_balances_states_and_verdict_while_the_exchange_runs(directory: Path) -> None:
    code, text = run_beside(directory)
    assert code == 0
    for wanted in ("alpha/[bold]", "9,000", "SETTLED", "agrees", "'ibet'", "2026-11-26"):
        assert wanted in text


async def test_the_command_speaks_json(directory: Path) -> None:
    code, text = run_beside(directory, "--json")
    found = json.loads(text)
    assert code == 0
    assert found["reconciliation"]["agrees"] is True
    assert found["instructions"] == {"embedded": {"SETTLED": 1}}
    assert {(each["account"], each["asset"], each["total"]) for each in found["balances"] if each["total"]} == {
        ("alpha/[bold]", TOKEN, 90),
        ("alpha/[bold]", "JPY", 1000),
        ("bravo", TOKEN, 10),
        ("bravo", "JPY", 9000),
    }


async def test_the_command_shows_one_instruction_with_every_move(directory: Path) -> None:
    code, text = run_beside(directory, "--instruction", ID)
    assert code == 0
    for wanted in (ID, "alpha/[bold]", "PRECHECKED", "SUBMITTED", "SETTLED"):
        assert wanted in text
    code, text = run_beside(directory, "--instruction", ID, "--json")
    assert [move["after"] for move in json.loads(text)["moves"]] == ["PRECHECKED", "SUBMITTED", "SETTLED"]


async def test_the_command_ends_with_1_on_a_break_and_names_it(directory: Path) -> None:
    file = sqlite3.connect(directory / LEDGER_FILE, isolation_level=None)
    file.execute("UPDATE balances SET amount = amount + 1 WHERE account = 'bravo' AND asset = 'KDX-2107'")
    file.close()
    code, text = run_beside(directory)
    assert code == 1
    assert "does not agree" in text
    assert "bravo" in text
    code, text = run_beside(directory, "--json")
    assert code == 1
    assert json.loads(text)["reconciliation"]["agrees"] is False


async def test_a_hash_that_is_not_its_content_s_is_a_break(directory: Path) -> None:
    file = sqlite3.connect(directory / LEDGER_FILE, isolation_level=None)
    file.execute("UPDATE instructions SET hash = 'other' WHERE id = ?", (ID,))
    file.close()
    code, text = run_beside(directory, "--json")
    assert code == 1
    assert "has the hash other" in text


async def test_the_command_ends_with_2_where_there_is_nothing_to_read(directory: Path, tmp_path: Path) -> None:
    code, text = run_beside(tmp_path / "elsewhere")
    assert code == 2
    assert OUTBOX_FILE in text
    code, text = run_beside(directory, "--instruction", "nonsense")
    assert code == 2
    assert "nonsense" in text


@pytest.mark.parametrize(
    ("table", "column"), [("instructions", "state"), ("instructions", "on_ledger"), ("moves", "after")]
)
async def test_the_command_names_a_state_it_does_not_know(directory: Path, table: str, column: str) -> None:
    file = sqlite3.connect(directory / OUTBOX_FILE, isolation_level=None)
    file.execute(f"UPDATE {table} SET {column} = 77")
    file.close()
    which = ["--instruction", ID] if table == "moves" else []
    code, text = run_beside(directory, *which)
    assert code == 2
    expected = "0, 1, 2 as OnLedger, got 77" if column == "on_ledger" else "EXPIRED as State, got '77'"
    assert f"{expected} - in the outbox" in text


async def test_the_command_changes_nothing(directory: Path) -> None:
    def files() -> list[bytes]:
        return [(directory / name).read_bytes() for name in (OUTBOX_FILE, LEDGER_FILE)]

    before = files()
    run_beside(directory)
    assert files() == before
