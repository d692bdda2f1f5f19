"""Four neutral streams of orders, and what a correct book makes of them.

Neutral means: no identities, phases or accounts that one engine has and another lacks; only price, then time, with
cancels that may come too late. Every engine in a comparison reads the same bytes and must report the same trades.

A record has 24 bytes, little-endian: operation u8 (0 new, 1 cancel), side u8 (0 buy, 1 sell), flags u16 (bit 0:
immediate or cancel), symbol u32, price i32, quantity u32, id u64. A new order brings a fresh id, 1, 2, 3 …; a cancel
names the id to cancel, which may be gone already.

``NAME.json`` beside ``NAME.bin`` says what is right: ``ops``, ``symbols``, ``trades``, ``volume``, ``notional``,
``resting`` orders at the end, and per symbol a checksum in which every trade and their order counts:
``h = (h * 1000003 + maker * 31 + taker * 17 + price * 7 + quantity) mod 2**64``, from 0. They come from a plain matcher
on a heap (below) that shares no code with the engine.

    python -m benchmarks.generate DIRECTORY [COMMANDS] [--only NAME]

The same COMMANDS give the same bytes on every machine: seeds are fixed, and ``random.Random`` keeps its sequences.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

RECORD = struct.Struct("<BBHIiIQ")
NEW, CANCEL = 0, 1
BUY, SELL = 0, 1
IOC = 1


@dataclass(frozen=True)
class Recipe:
    """What kind of market a stream comes from. Shares are of all commands, once ``preload`` orders per symbol rest."""

    name: str
    about: str
    seed: int
    symbols: int = 1
    preload: int = 2_000
    cancels: float = 0.42
    takers: float = 0.12
    spread: float = 60  #: mean distance of a resting order from the middle, in ticks
    taker_reach: float = 2  #: mean distance by which a taker crosses the middle, in ticks
    taker_quantity: int = 100


def recipes(commands: int) -> tuple[Recipe, ...]:
    return (
        Recipe("steady", "one quiet market: 42% cancels, 12% takers", seed=1),
        Recipe("deep", "a third of all orders rest before trading begins, spread over hundreds of prices", seed=2,
               preload=commands // 3, spread=800, cancels=0.45, takers=0.05),
        Recipe("sweep", "large takers that clear many prices at once", seed=3,
               cancels=0.25, takers=0.25, taker_reach=8, taker_quantity=2_000),
        Recipe("multi", "64 books in turn, so that none stays in the cache", seed=4, symbols=64, preload=200),
    )  # fmt: skip


@dataclass
class Plain:
    """One symbol's book in the plainest way that is right: a heap of prices, a queue per price, lazy removal."""

    queues: tuple[dict[int, deque[int]], dict[int, deque[int]]] = field(default_factory=lambda: ({}, {}))
    heaps: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))  #: bids negated: best on top
    open: dict[int, int] = field(default_factory=dict)  #: id to quantity still to trade, of every resting order
    trades: int = 0
    volume: int = 0
    notional: int = 0
    checksum: int = 0

    def best(self, side: int) -> int | None:
        heap, queues = self.heaps[side], self.queues[side]
        while heap:
            price = -heap[0] if side == BUY else heap[0]
            queue = queues[price]
            while queue and queue[0] not in self.open:
                queue.popleft()
            if queue:
                return price
            del queues[price]
            heapq.heappop(heap)
        return None

    def new(self, taker: int, side: int, price: int, quantity: int, ioc: bool) -> None:
        while quantity:
            best = self.best(1 - side)
            if best is None or (best > price if side == BUY else best < price):
                break
            maker = self.queues[1 - side][best][0]
            traded = min(quantity, self.open[maker])
            quantity -= traded
            self.open[maker] -= traded
            if not self.open[maker]:
                del self.open[maker]
            self.trades += 1
            self.volume += traded
            self.notional += traded * best
            self.checksum = (self.checksum * 1_000_003 + maker * 31 + taker * 17 + best * 7 + traded) % 2**64
        if quantity and not ioc:
            self.open[taker] = quantity
            if price not in self.queues[side]:
                self.queues[side][price] = deque()
                heapq.heappush(self.heaps[side], -price if side == BUY else price)
            self.queues[side][price].append(taker)

    def cancel(self, order: int) -> None:
        self.open.pop(order, None)


def stream(recipe: Recipe, commands: int, books: list[Plain]) -> Iterator[bytes]:
    """The records, one by one; ``books`` are matched along the way and tell afterwards what is right."""
    draw = random.Random(recipe.seed)
    middles = [10_000.0] * recipe.symbols
    rested: list[list[int]] = [[] for _ in books]  # ids that came to rest; some have traded since
    order = 0
    for number in range(commands):
        symbol = draw.randrange(recipe.symbols) if recipe.symbols > 1 else 0
        middles[symbol] += draw.gauss(0, 0.05)
        middle = int(middles[symbol])
        kind = draw.random()
        trading = number >= recipe.preload * recipe.symbols
        if trading and kind < recipe.cancels and rested[symbol]:
            ids = rested[symbol]
            place = draw.randrange(len(ids))
            ids[place], ids[-1] = ids[-1], ids[place]
            gone = ids.pop()
            books[symbol].cancel(gone)
            yield RECORD.pack(CANCEL, 0, 0, symbol, 0, 0, gone)
            continue
        order += 1
        side = draw.getrandbits(1)
        taker = trading and kind < recipe.cancels + recipe.takers
        distance = 1 + int(draw.expovariate(1 / (recipe.taker_reach if taker else recipe.spread)))
        price = max(1, middle + distance if taker == (side == BUY) else middle - distance)
        quantity = draw.randrange(1, recipe.taker_quantity if taker else 100)
        ioc = taker and draw.random() < 0.5
        books[symbol].new(order, side, price, quantity, ioc)
        if order in books[symbol].open:
            rested[symbol].append(order)
        yield RECORD.pack(NEW, side, IOC if ioc else 0, symbol, price, quantity, order)


def generate(recipe: Recipe, commands: int, directory: Path) -> Path:
    """Write ``NAME.bin`` and ``NAME.json`` into ``directory``; the path of the former."""
    books = [Plain() for _ in range(recipe.symbols)]
    path = directory / f"{recipe.name}.bin"
    path.write_bytes(b"".join(stream(recipe, commands, books)))
    right = {
        "ops": commands,
        "symbols": recipe.symbols,
        "trades": sum(book.trades for book in books),
        "volume": sum(book.volume for book in books),
        "notional": sum(book.notional for book in books),
        "resting": sum(len(book.open) for book in books),
        "checksum": books[0].checksum if recipe.symbols == 1 else None,
        "checksums": [book.checksum for book in books],
    }
    path.with_suffix(".json").write_text(json.dumps(right) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("commands", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--only", choices=[recipe.name for recipe in recipes(0)], action="append")
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    for recipe in recipes(options.commands):
        if not options.only or recipe.name in options.only:
            path = generate(recipe, options.commands, options.directory)
            print(f"{path}: {options.commands:,} commands, {recipe.about}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
