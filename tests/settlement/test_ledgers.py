"""Every ledger adapter against the one conformance suite, and what is true of single ones."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.settlement.adapter import YEN, LedgerAdapter, OutcomeUnknown, Rejected, Retryable, State
from gateway.settlement.database import CommitUnknown, WrongFile
from gateway.settlement.memory import MemoryLedger
from gateway.settlement.sqlite import SqliteLedger
from tests.settlement import conformance
from tests.settlement.conformance import TOKEN, Bench, Conformance, fund, holdings
from tests.settlement.world import Clock, instruction


class MemoryBench(Bench):
    """The model itself; a restart of the exchange leaves the ledger where it is."""

    def __init__(self, staged: bool) -> None:
        self.clock = Clock()
        self.ledger = MemoryLedger(self.clock, staged=staged)

    async def open(self) -> LedgerAdapter:
        return self.ledger

    async def audit(self, adapter: LedgerAdapter) -> list[str]:
        return await self.ledger.audit()

    async def close(self) -> None:
        await self.ledger.close()


class SqliteBench(Bench):
    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        self.opened: list[SqliteLedger] = []

    async def open(self) -> SqliteLedger:
        self.opened.append(await SqliteLedger.open(self.path, self.clock))
        return self.opened[-1]

    async def audit(self, adapter: LedgerAdapter) -> list[str]:
        assert isinstance(adapter, SqliteLedger)
        return await adapter.audit()

    async def close(self) -> None:
        for ledger in self.opened:
            await ledger.close()


@pytest.fixture(params=["memory", "memory-staged", "sqlite"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    bench: Bench
    if request.param == "sqlite":
        bench = SqliteBench(tmp_path / "ledger.sqlite")
    else:
        bench = MemoryBench(staged=request.param == "memory-staged")
    yield bench
    await bench.close()


class TestConformance(Conformance):
    """Runs what it inherits."""


@pytest.fixture
async def sqlite_bench(tmp_path: Path) -> AsyncIterator[SqliteBench]:
    bench = SqliteBench(tmp_path / "ledger.sqlite")
    yield bench
    await bench.close()


async def test_a_dvp_is_four_entries_that_sum_to_nought(sqlite_bench: SqliteBench) -> None:
    adapter = await sqlite_bench.open()
    await conformance.funded(sqlite_bench)
    receipt = await adapter.submit(instruction())
    with sqlite3.connect(sqlite_bench.path) as file:
        rows = file.execute("SELECT account, asset, amount FROM entries WHERE height = ?", (receipt.height,)).fetchall()
    file.close()
    assert sorted(rows) == [
        ("alpha", "@JPY", 1000),
        ("alpha", TOKEN, -10),
        ("bravo", "@JPY", -1000),
        ("bravo", TOKEN, 10),
    ]


async def test_the_file_itself_refuses_a_balance_below_nought_and_an_id_twice(sqlite_bench: SqliteBench) -> None:
    adapter = await conformance.funded(sqlite_bench)
    await adapter.submit(instruction())
    file = sqlite3.connect(sqlite_bench.path)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        file.execute("UPDATE balances SET amount = -1 WHERE account = 'alpha'")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        file.execute("UPDATE balances SET amount = 1.5 WHERE account = 'alpha'")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        file.execute("INSERT INTO instructions VALUES ('i-1', 'x', 99, '{}')")
    file.close()


async def test_the_audit_names_a_balance_that_was_tampered_with(sqlite_bench: SqliteBench) -> None:
    adapter = await conformance.funded(sqlite_bench)
    assert await sqlite_bench.audit(adapter) == []
    file = sqlite3.connect(sqlite_bench.path, isolation_level=None)
    file.execute("UPDATE balances SET amount = amount + 1 WHERE account = 'alpha'")
    file.execute("INSERT INTO entries VALUES (2, 'carol', 'KDX-2107', 0, 5)")
    file.close()
    wrong = await sqlite_bench.audit(adapter)
    assert any("alpha" in line and "101" in line for line in wrong)
    assert any("line 2" in line and "5" in line for line in wrong)


async def test_a_ledger_that_another_process_is_writing_to_is_retryable_and_nothing_happened(
    sqlite_bench: SqliteBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await conformance.funded(sqlite_bench)
    assert isinstance(adapter, SqliteLedger)
    await adapter._database.read(lambda file: file.execute("PRAGMA busy_timeout = 1").fetchone())
    other = sqlite3.connect(sqlite_bench.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Retryable):
        await adapter.submit(instruction())
    other.execute("ROLLBACK")
    other.close()
    assert (await adapter.submit(instruction())).state is State.SETTLED


async def test_a_commit_that_fails_half_way_leaves_the_outcome_unknown(
    sqlite_bench: SqliteBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await conformance.funded(sqlite_bench)
    assert isinstance(adapter, SqliteLedger)

    async def fails(function: object) -> None:
        raise CommitUnknown("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(adapter._database, "write", fails)
        with pytest.raises(OutcomeUnknown):
            await adapter.submit(instruction())


async def test_a_balance_beyond_63_bits_is_rejected_before_sqlite_would_round_it(bench: Bench) -> None:
    adapter = await bench.open()
    await fund(adapter, "alpha", TOKEN, 2**62)
    with pytest.raises(Rejected):
        await fund(adapter, "alpha", TOKEN, 1, "more")
    with pytest.raises(Rejected):
        await fund(adapter, "bravo", TOKEN, 1)
    assert (await holdings(adapter))["alpha", TOKEN] == (2**62, 2**62)


async def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE something (x)")
    file.close()
    with pytest.raises(WrongFile, match=r"ledger\.sqlite"):
        await SqliteLedger.open(path, Clock())
    with pytest.raises(FileNotFoundError):
        await SqliteLedger.open(tmp_path / "none.sqlite", Clock(), read_only=True)


async def test_two_members_settling_at_once_never_wait_for_the_event_loop(sqlite_bench: SqliteBench) -> None:
    adapter = await sqlite_bench.open()
    await fund(adapter, "alpha", TOKEN, 1_000)
    await fund(adapter, "bravo", YEN, 100_000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await asyncio.gather(*(adapter.submit(instruction(f"i-{n}")) for n in range(50)))
    counter.cancel()
    assert turns > 50, "the loop stood still while the ledger wrote"
