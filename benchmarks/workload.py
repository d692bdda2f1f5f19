"""What does one order cost in the real book? Runs a neutral workload through it, one Python call per command.

    python -m benchmarks.workload FILE.bin [--json] [--runs N]

A file is a stream of 24-byte records, little-endian: operation u8 (0 new, 1 cancel), side u8 (0 buy, 1 sell), flags u16
(bit 0: immediate or cancel), symbol u32, price i32 in ticks, quantity u32, id u64. Ids of new orders are unique; a
cancel names an id that may be gone already, which is no error. ``benchmarks.generate`` makes such files and says what
``FILE.json`` holds.

Measured is the zaraba path of the engine as ``Engine.apply`` uses it: the order table, the book, the matching rules of
``engine.matching.continuous``. Each command is one call of ``new`` or ``cancel`` below, and finding the engine's own
number for the file's id is part of it. Not measured: reading the file, identities, phases, events and their encoding.
Trades are noted while the clock runs and added up after it has stopped.

Every run must give the same trades. Where ``FILE.json`` stands beside the file, they are compared with it; a difference
ends the program with status 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.generate import IOC, NEW, RECORD
from engine.matching.book import Book, OrderTable, ReferenceBook, pack_terms
from engine.matching.continuous import place, withdraw

RUNS = 5
#: What a run must reproduce of the workload's own JSON.
CHECKED = ("trades", "volume", "notional", "resting", "checksum", "checksums")

Commands = list[tuple[int, int, int, int, int, int, int]]


class Market:
    """The books of all symbols, addressed by the file's own ids."""

    def __init__(self, symbols: int) -> None:
        self.table = OrderTable()
        self.books: list[Book] = [ReferenceBook(self.table) for _ in range(symbols)]
        self.terms = [[pack_terms(side, 0, 0, symbol, 0) for side in (0, 1)] for symbol in range(symbols)]
        self.orders: dict[int, int] = {}  #: the engine's number by the file's id
        self.fills: list[int] = []  #: resting order, price, quantity; per symbol and command told by ``takers``
        self.takers: list[int] = []  #: incoming order and where its fills begin

    def new(self, symbol: int, side: int, price: int, quantity: int, immediate: int, number: int) -> None:
        table = self.table
        order = table.append(self.terms[symbol][side], price, quantity)
        self.orders[number] = order
        fills = self.fills
        before = len(fills)
        place(table, self.books[symbol], order, not immediate, fills)
        if len(fills) > before:
            self.takers.append(order)
            self.takers.append(before)

    def cancel(self, number: int) -> None:
        order = self.orders.get(number, 0)
        table = self.table
        if table.is_open(order):
            withdraw(table, self.books[table.instrument(order)], order)


def read(path: Path) -> tuple[Commands, int]:
    """All records, and the number of symbols. Raises ``ValueError`` for a file that is not whole records."""
    content = path.read_bytes()
    if len(content) % RECORD.size:
        raise ValueError(f"Expected records of {RECORD.size} bytes, got {len(content)} bytes - in {path}")
    commands = list(RECORD.iter_unpack(content))
    return commands, 1 + max((command[3] for command in commands), default=0)


def run(commands: Commands, symbols: int) -> tuple[int, Market]:
    """Run all commands once: nanoseconds, and the market as they left it."""
    market = Market(symbols)
    new = market.new
    cancel = market.cancel
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter_ns()
        for operation, side, flags, symbol, price, quantity, number in commands:
            if operation == NEW:
                new(symbol, side, price, quantity, flags & IOC, number)
            else:
                cancel(number)
        elapsed = time.perf_counter_ns() - start
    finally:
        gc.enable()
    return elapsed, market


def outcome(market: Market) -> dict[str, Any]:
    """What the trades and the book come to, in the words of the workload's own JSON."""
    table = market.table
    symbols = len(market.books)
    numbers = {order: number for number, order in market.orders.items()}
    checksums = [0] * symbols
    trades = volume = notional = 0
    fills = market.fills
    takers = [*market.takers, 0, len(fills)]
    for i in range(0, len(market.takers), 2):
        taker, begin, end = takers[i], takers[i + 1], takers[i + 3]
        symbol = table.instrument(taker)
        checksum = checksums[symbol]
        for fill in range(begin, end, 3):
            maker, price, quantity = fills[fill : fill + 3]
            checksum = checksum * 1000003 + numbers[maker] * 31 + numbers[taker] * 17 + price * 7 + quantity
            checksum %= 2**64
            trades += 1
            volume += quantity
            notional += price * quantity
        checksums[symbol] = checksum
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


def measure(path: Path, runs: int = RUNS) -> dict[str, Any]:
    """At least ``runs`` runs of a file, as one JSON object. Raises ``ValueError`` where two runs differ."""
    commands, symbols = read(path)
    ns: list[float] = []
    found: dict[str, Any] = {}
    for _ in range(runs):
        elapsed, market = run(commands, symbols)
        ns.append(elapsed / max(len(commands), 1))
        result = outcome(market)
        if found and result != found:
            raise ValueError(f"Expected every run to give the same trades, got {found} and {result} - in {path}")
        found = result
    return {
        "workload": path.stem,
        "ops": len(commands),
        "symbols": symbols,
        "runs": runs,
        "ns_best": round(min(ns), 1),
        "ns_median": round(statistics.median(ns), 1),
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
    for column in ("ns per command, best", "median", "trades", "volume", "notional", "resting", "checked"):
        table.add_column(column, justify="right")
    cells = (f"{result[name]:,}" for name in ("ns_best", "ns_median", "trades", "volume", "notional", "resting"))
    table.add_row(*cells, verdict)
    console = Console()
    console.print(table)
    console.print(f"{result['runs']} runs, one Python call per command, {result['backend']} book, {path}", style="dim")
    console.print(machine.banner(), style="dim")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workload", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="a workload, NAME.bin")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"at least {RUNS}")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.runs < RUNS:
        parser.error(f"expected at least {RUNS} runs, got {options.runs} - at --runs")
    try:
        result = measure(options.file, options.runs)
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
    sys.exit(main())
