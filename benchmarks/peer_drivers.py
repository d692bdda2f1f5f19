"""One peer, one workload, in the peer's own interpreter: ``python peer_drivers.py NAME FILE.bin RUNS SECONDS``.

``peers.py`` starts this as a script inside the peer's virtual environment, so nothing but the standard library and the
peer may be imported. It prints one JSON object.

Every driver keeps to the same bargain, and ours is measured under the same one:

* The file is decoded before the clock starts, into one tuple per command.
* One Python call of the peer's public interface per command, two where it lacks the operation (IOC is "place, then
  cancel what rests" everywhere but in our own book). Mapping the file's ids to the peer's is inside the timing.
* What the peer returns is kept inside the timing and added up outside.
* Log output of the peer is switched off by its own means.
* The cyclic collector runs before the clock and rests while it does, as in ``benchmarks.workload``: that is to the good
  of books that keep an object per order, which the collector would visit again and again; ours keeps integers.
"""

from __future__ import annotations

import gc
import json
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<BBHIiIQ")
#: Between two looks at the clock. Only a run that outlives its seconds is cut.
CHUNK = 500

#: op (0 new, 1 cancel), side (0 buy, 1 sell), immediate or cancel, symbol, price in ticks, quantity, id
Command = tuple[int, int, bool, int, int, int, int]
#: Applies a stretch of commands.
Apply = Callable[[list[Command]], None]
#: symbol, maker id, taker id, price, quantity: ids of the file
Trade = tuple[int, int, int, int, int]


class Session:
    """A fresh book of one peer: ``apply`` is timed, the rest is asked afterwards."""

    apply: Apply
    #: Trades in order, or None where the peer does not tell them.
    trades: Callable[[], Iterator[Trade]] | None = None
    #: Orders in the book and their quantity, as the peer counts them.
    resting: Callable[[], tuple[int, int]]


def order_matching(symbols: int) -> Session:
    """order-matching: one engine per symbol; ``place`` puts an order into the book, ``match`` takes it out and trades.

    Size and price are floats: exact for the workloads' integers.
    """
    from datetime import datetime

    from loguru import logger
    from order_matching.enums import Side
    from order_matching.matching_engine import MatchingEngine
    from order_matching.order import LimitOrder
    from order_matching.orders import Orders

    logger.disable("order_matching")
    engines = [MatchingEngine(seed=1) for _ in range(symbols)]
    sides = (Side.BUY, Side.SELL)
    # One stamp for all: orders of one level are sorted by it, stably, so that they stay as they came.
    now = datetime(2026, 1, 5)
    kept: list[tuple[int, Any]] = []

    def apply(commands: list[Command]) -> None:
        for op, side, ioc, symbol, price, quantity, number in commands:
            engine = engines[symbol]
            if op == 0:
                name = str(number)
                order = LimitOrder(
                    side=sides[side], price=price, size=quantity, timestamp=now, order_id=name, trader_id="t"
                )
                engine.place(Orders([order]))
                kept.append((symbol, engine.match(now)))
                if ioc and order.size > 0:
                    engine.cancel_order(name)
            else:
                try:  # not contextlib.suppress: it would be two more calls per command
                    engine.cancel_order(str(number))
                except ValueError:  # its answer for an order that is gone
                    continue

    def trades() -> Iterator[Trade]:
        for symbol, executed in kept:
            for trade in executed.trades:
                yield symbol, int(trade.book_order_id), int(trade.incoming_order_id), int(trade.price), int(trade.size)

    def resting() -> tuple[int, int]:
        books = [engine.unprocessed_orders for engine in engines]
        orders = [o for b in books for side in (b.bids, b.offers) for level in side.values() for o in level]
        return len(orders), int(sum(o.size for o in orders))

    session = Session()
    session.apply, session.trades, session.resting = apply, trades, resting
    return session


def lightmatchingengine(symbols: int) -> Session:
    """lightmatchingengine: one engine for all symbols, numbers the orders itself."""
    from lightmatchingengine.lightmatchingengine import LightMatchingEngine, Side

    engine = LightMatchingEngine()
    sides = (Side.BUY, Side.SELL)
    peer_id: dict[int, int] = {}
    kept: list[tuple[int, int, int, list[Any]]] = []

    def apply(commands: list[Command]) -> None:
        for op, side, ioc, symbol, price, quantity, number in commands:
            if op == 0:
                order, trades = engine.add_order(symbol, price, quantity, sides[side])
                if trades:
                    kept.append((symbol, number, order.order_id, trades))
                if not ioc:
                    peer_id[number] = order.order_id
                elif order.leaves_qty > 0:
                    engine.cancel_order(order.order_id, symbol)
            else:
                try:  # not contextlib.suppress: it would be two more calls per command
                    engine.cancel_order(peer_id[number], symbol)
                except AssertionError:  # its answer for a filled order whose level is gone
                    continue

    def trades() -> Iterator[Trade]:
        # It reports one trade for the incoming order per price, then one for each resting order hit.
        own_id = {peer: number for number, peer in peer_id.items()}
        for symbol, taker, taker_peer_id, made in kept:
            for trade in made:
                if trade.order_id != taker_peer_id:
                    yield symbol, own_id[trade.order_id], taker, trade.trade_price, trade.trade_qty

    def resting() -> tuple[int, int]:
        books = engine.order_books.values()
        orders = [o for b in books for side in (b.bids, b.asks) for level in side.values() for o in level]
        return len(orders), sum(o.leaves_qty for o in orders)

    session = Session()
    session.apply, session.trades, session.resting = apply, trades, resting
    return session


def pyorderbook(symbols: int) -> Session:
    """pyorderbook: one book for all symbols; names orders by UUID, prices are decimals."""
    import logging

    from pyorderbook import Book, Order, Side

    logging.getLogger("pyorderbook").setLevel(logging.CRITICAL)
    book = Book()
    sides = (Side.BID, Side.ASK)
    names = [f"S{i}" for i in range(symbols)]
    orders: dict[int, Any] = {}
    kept: list[tuple[int, int, Any]] = []

    def apply(commands: list[Command]) -> None:
        for op, side, ioc, symbol, price, quantity, number in commands:
            if op == 0:
                order = Order(sides[side], names[symbol], price, quantity)
                blotter = book.match(order)
                if blotter.trades:
                    kept.append((symbol, number, blotter))
                if not ioc:
                    orders[number] = order
                elif order.quantity:
                    book.cancel(order)
            else:
                try:  # not contextlib.suppress: it would be two more calls per command
                    book.cancel(orders[number])
                except KeyError:  # its answer for an order that is gone
                    continue

    def trades() -> Iterator[Trade]:
        own_id = {order.id: number for number, order in orders.items()}
        for symbol, taker, blotter in kept:
            for trade in blotter.trades:
                yield symbol, own_id[trade.standing_order_id], taker, int(trade.fill_price), trade.fill_quantity

    def resting() -> tuple[int, int]:
        return len(book.order_map), sum(order.quantity for order in book.order_map.values())

    session = Session()
    session.apply, session.trades, session.resting = apply, trades, resting
    return session


def limit_order_book(symbols: int) -> Session:
    """limit-order-book: C++ behind ctypes, one book per symbol; does not say what traded.

    ``cancel`` of an order that is gone ends the process, so every cancel asks ``has`` first.
    """
    from limit_order_book import LimitOrderBook

    books = [LimitOrderBook() for _ in range(symbols)]

    def apply(commands: list[Command]) -> None:
        for op, side, ioc, symbol, price, quantity, number in commands:
            book = books[symbol]
            if op == 0:
                if side == 0:
                    book.limit_buy(number, quantity, price)
                else:
                    book.limit_sell(number, quantity, price)
                if ioc and book.has(number):
                    book.cancel(number)
            elif book.has(number):
                book.cancel(number)

    def resting() -> tuple[int, int]:
        return sum(book.count() for book in books), sum(book.volume() for book in books)

    session = Session()
    session.apply, session.resting = apply, resting
    return session


DRIVERS: dict[str, Callable[[int], Session]] = {
    "order-matching": order_matching,
    "lightmatchingengine": lightmatchingengine,
    "pyorderbook": pyorderbook,
    "limit-order-book": limit_order_book,
}


def load(path: Path) -> list[Command]:
    return [
        (op, side, bool(flags & 1), symbol, price, quantity, number)
        for op, side, flags, symbol, price, quantity, number in RECORD.iter_unpack(path.read_bytes())
    ]


def timed(apply: Apply, chunks: list[list[Command]], seconds: float) -> tuple[int, int]:
    """Nanoseconds and the number of commands done in them; stops at the first chunk past ``seconds``."""
    done = 0
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter_ns()
        end = start + int(seconds * 1e9)
        now = start
        for chunk in chunks:
            apply(chunk)
            done += len(chunk)
            now = time.perf_counter_ns()
            if now > end:
                break
    finally:
        gc.enable()
    return now - start, done


def facts(session: Session, symbols: int) -> dict[str, Any]:
    """What the book did, in the words of the workload's JSON; None where the peer does not tell."""
    count, quantity = session.resting()
    answer: dict[str, Any] = {
        "trades": None,
        "volume": None,
        "notional": None,
        "checksums": None,
        "resting": count,
        "resting_quantity": quantity,
    }
    if session.trades is not None:
        trades = volume = notional = 0
        checksums = [0] * symbols
        for symbol, maker, taker, price, traded in session.trades():
            trades += 1
            volume += traded
            notional += traded * price
            checksums[symbol] = (checksums[symbol] * 1000003 + maker * 31 + taker * 17 + price * 7 + traded) % 2**64
        answer.update(trades=trades, volume=volume, notional=notional, checksums=checksums)
    return answer


def main() -> None:
    name, file, runs, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    commands = load(file)
    symbols = max(command[3] for command in commands) + 1
    chunks = [commands[i : i + CHUNK] for i in range(0, len(commands), CHUNK)]
    per_command: list[float] = []
    left = seconds
    while len(per_command) < runs and left > 0:
        session = DRIVERS[name](symbols)
        elapsed, done = timed(session.apply, chunks, left)
        left -= elapsed / 1e9
        if done == len(commands) or not per_command:  # a later run that was cut says less than those before it
            per_command.append(elapsed / done)
            result = facts(session, symbols)
            result["done"] = done
    result.update(ns_best=min(per_command), ns_median=statistics.median(per_command), runs=len(per_command))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
