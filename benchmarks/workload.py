"""What does one order cost in the real book? Runs a neutral workload through it.

    python -m benchmarks.workload FILE.bin [--mode call|record|bulk] [--book fast|reference] [--json] [--runs N]

A file is a stream of 24-byte records, little-endian: operation u8 (0 new, 1 cancel), side u8 (0 buy, 1 sell), flags u16
(bit 0: immediate or cancel), symbol u32, price i32 in ticks, quantity u32, id u64. Ids of new orders are unique; a
cancel names an id that may be gone already, which is no error. ``benchmarks.generate`` makes such files and says what
``FILE.json`` holds.

Measured is the zaraba path of the engine as ``Engine.apply`` uses it: the order table, the book, the matching rules of
``engine.matching.continuous``. In mode ``call`` each command is one call from Python, with the seven integers of its
record, to ``BareMarket.submit``; in mode ``record`` it is one call with the 24 bytes; in mode ``bulk`` one call takes
the bytes of all. Finding the engine's own number for the file's id is part of it, in each. Not measured: reading the
file, memory for the rows and the fills of as many orders as there are commands, identities, phases, events and their
encoding. Trades are noted while the clock runs and added up after it has stopped. Ids that are sparse are made dense
before it starts. Beside the time that passed stands the processor's time: on a machine that has other work to do, it
says more.

Every run must give the same trades. Where ``FILE.json`` stands beside the file, they are compared with it; a difference
ends the program with status 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.generate import RECORD
from engine.core import BOOKS, DEFAULT_BOOK, FAST
from engine.matching.bare import BareMarket
from engine.matching.book import FILL, Book, OrderTable, ReferenceBook
from engine.matching.fastbook import FastBook

RUNS = 5
CALL, EACH, BULK = "call", "record", "bulk"
#: What a run must reproduce of the workload's own JSON.
CHECKED = ("trades", "volume", "notional", "resting", "checksum", "checksums")

Commands = list[tuple[int, int, int, int, int, int, int]]


class Workload:
    """The records of a file, with dense ids. ``ids`` maps them back where the file's own are sparse."""

    def __init__(self, path: Path) -> None:
        """Raises ``ValueError`` for a file that is not whole records."""
        self.content = path.read_bytes()
        if len(self.content) % RECORD.size:
            raise ValueError(f"Expected records of {RECORD.size} bytes, got {len(self.content)} bytes - in {path}")
        self.commands: Commands = list(RECORD.iter_unpack(self.content))
        self.symbols = 1 + max((command[3] for command in self.commands), default=0)
        self.ids: list[int] = []
        if max((command[6] for command in self.commands), default=0) > 2 * len(self.commands):
            self.ids = list(dict.fromkeys(command[6] for command in self.commands))
            dense = {number: place for place, number in enumerate(self.ids)}
            self.commands = [(*command[:6], dense[command[6]]) for command in self.commands]
            self.content = b"".join(RECORD.pack(*command) for command in self.commands)
        self.largest = max((command[6] for command in self.commands), default=0)
        size = RECORD.size
        self.records = [self.content[at : at + size] for at in range(0, len(self.content), size)]


def market(symbols: int, largest: int = 0, *, book: str = DEFAULT_BOOK, expected: int = 0) -> BareMarket:
    """A bare market for a file whose largest id is ``largest``, with memory for ``expected`` orders and fills."""
    table = OrderTable(expected)
    books: list[Book] = [FastBook(table) if book == FAST else ReferenceBook(table) for _ in range(symbols)]
    return BareMarket(table, books, largest, max(expected, 1))


def each_call(work: Workload, market: BareMarket) -> None:
    submit = market.submit
    for command in work.commands:
        submit(*command)


def each_record(work: Workload, market: BareMarket) -> None:
    run = market.run
    for record in work.records:
        run(record)


def at_once(work: Workload, market: BareMarket) -> None:
    market.run(work.content)


MODES: dict[str, Callable[[Workload, BareMarket], None]] = {CALL: each_call, EACH: each_record, BULK: at_once}


def timed(mode: str, work: Workload, market: BareMarket) -> tuple[int, int]:
    """All commands of a file: nanoseconds that passed, and nanoseconds of the processor."""
    run = MODES[mode]
    gc.collect()
    gc.disable()
    try:
        processor = time.thread_time_ns()
        start = time.perf_counter_ns()
        run(work, market)
        elapsed = time.perf_counter_ns() - start
        return elapsed, time.thread_time_ns() - processor
    finally:
        gc.enable()


def outcome(market: BareMarket, ids: list[int]) -> dict[str, Any]:
    """What the trades and the book come to, in the words of the workload's own JSON."""
    table = market.table
    symbols = len(market.books)
    numbers = {order: ids[number] if ids else number for number, order in enumerate(market.orders)}
    checksums = [0] * symbols
    trades = volume = notional = 0
    cells = market.fills.cells
    for at in range(0, market.fills.count, FILL):
        maker, taker, price, quantity = cells[at : at + FILL]
        symbol = table.instrument(taker)
        checksum = checksums[symbol] * 1000003 + numbers[maker] * 31 + numbers[taker] * 17 + price * 7 + quantity
        checksums[symbol] = checksum % 2**64
        trades += 1
        volume += quantity
        notional += price * quantity
    resting = 0
    for book in market.books:
        book.check()
        resting += sum(len(book.orders(table, side)) for side in (0, 1))
    return {
        "trades": trades,
        "volume": volume,
        "notional": notional,
        "resting": resting,
        "checksum": checksums[0] if symbols == 1 else None,
        "checksums": checksums,
    }


def measure(path: Path, runs: int = RUNS, mode: str = CALL, book: str = DEFAULT_BOOK) -> dict[str, Any]:
    """At least ``runs`` runs of a file, as one JSON object. Raises ``ValueError`` where two runs differ."""
    work = Workload(path)
    ns: list[float] = []
    processor: list[float] = []
    found: dict[str, Any] = {}
    for _ in range(runs):
        fresh = market(work.symbols, work.largest, book=book, expected=len(work.commands))
        elapsed, spent = timed(mode, work, fresh)
        ns.append(elapsed / max(len(work.commands), 1))
        processor.append(spent / max(len(work.commands), 1))
        result = outcome(fresh, work.ids)
        if found and result != found:
            raise ValueError(f"Expected every run to give the same trades, got {found} and {result} - in {path}")
        found = result
    return {
        "workload": path.stem,
        "ops": len(work.commands),
        "symbols": work.symbols,
        "runs": runs,
        "mode": mode,
        "book": book,
        "ns_best": round(min(ns), 1),
        "ns_median": round(statistics.median(ns), 1),
        "processor_ns_best": round(min(processor), 1),
        "processor_ns_median": round(statistics.median(processor), 1),
        **found,
        "backend": machine.backend(),
    }


def differences(result: dict[str, Any], path: Path) -> list[str]:
    """Where a result is not what the JSON beside the workload expects; nothing where there is no such file."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return []
    expected = json.loads(beside.read_text(encoding="utf-8"))
    return [
        f"Expected {name} {expected[name]}, got {result[name]} - in {beside}"
        for name in CHECKED
        if name in expected and expected[name] != result[name]
    ]


def show(result: dict[str, Any], path: Path, verdict: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['workload']}: {result['ops']:,} commands, {result['symbols']} symbol(s)")
    for column in ("ns per command, best", "median", "of the processor", "median", "trades", "resting", "checked"):
        table.add_column(column, justify="right")
    names = ("ns_best", "ns_median", "processor_ns_best", "processor_ns_median", "trades", "resting")
    cells = (f"{result[name]:,}" for name in names)
    table.add_row(*cells, verdict)
    console = Console()
    console.print(table)
    how = {CALL: "one call per command", EACH: "one call per record of bytes", BULK: "one call for all"}[result["mode"]]
    console.print(f"{result['runs']} runs, {how}, {result['book']} book, {result['backend']}, {path}", style="dim")
    console.print(machine.banner(), style="dim")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workload", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="a workload, NAME.bin")
    parser.add_argument("--mode", choices=list(MODES), default=CALL, help="what one call takes")
    parser.add_argument("--book", choices=BOOKS, default=DEFAULT_BOOK)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"at least {RUNS}")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.runs < RUNS:
        parser.error(f"expected at least {RUNS} runs, got {options.runs} - at --runs")
    try:
        result = measure(options.file, options.runs, options.mode, options.book)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    wrong = differences(result, options.file)
    if options.json:
        print(json.dumps(result))
    else:
        checked = options.file.with_suffix(".json").exists()
        show(result, options.file, "WRONG" if wrong else "right" if checked else "nothing to compare with")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    # Whoever reads the output may go before its end (``| head``): then this ends too, without a word.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
