"""A book that contradicts itself, and how it is made anew.

Where a plan breaks an invariant, the command that met it changes nothing more, the instrument is set aside, and the
others trade on. (On 18 March 2025 the processing of one stock's orders stopped every stock of the KOSPI
market for seven minutes.) From then on nothing asks its queues, unless they check out: the rows of the order table
say what is open, and ``RebuildInstrument`` makes a new book of them.

A defect of the program meets the same contradiction again in every replay, so the set-aside replays like anything else.
A fault of the machine's memory does not: then record and replay differ at the next digest mark, and the log is right.
"""

from __future__ import annotations

from engine.market import Instrument
from engine.matching.book import GONE, IN_BOOK, Book, OrderTable
from engine.types import PRICE_MAX


def is_sound(book: Book) -> bool:
    """Whether the queues of a book can be trusted."""
    try:
        book.check()
    except Exception:  # in a broken book the check itself may trip over anything; that is an answer too
        return False
    return True


def rows_of(table: OrderTable, instrument: Instrument) -> list[int]:
    """Every open order of an instrument by the table alone, oldest first. Costs a walk over all orders ever."""
    return [
        order
        for order in range(1, table.count + 1)
        if table.instrument(order) == instrument.index and table.is_open(order)
    ]


def queue_of(table: OrderTable, instrument: Instrument, side: int) -> list[int]:
    """One side in matching priority by the table alone: without a limit first, then by price, then by time.

    Of several places that one command gave, the lower order number has the better.
    """
    queue = [
        (table.price[order] if side else -table.price[order], table.priority[order], order)
        for order in rows_of(table, instrument)
        if table.side(order) == side and table.state[order] == IN_BOOK
    ]
    markets = [entry[2] for entry in sorted(queue) if entry[0] == 0]
    return markets + [entry[2] for entry in sorted(queue) if entry[0] != 0]


def doubt(table: OrderTable, instrument: Instrument) -> str:
    """Why no book can be made of the rows of an instrument; "" if one can."""
    for order in range(1, table.count + 1):
        if table.instrument(order) != instrument.index or table.state[order] >= GONE:
            continue
        quantity = table.open[order] + instrument.reserves.get(order, 0)
        if not 0 <= quantity <= table.quantity[order] or table.open[order] < 0:
            return f"order {order} with {quantity} open of {table.quantity[order]}"
        price = table.price[order]
        if quantity and price and not (0 < price <= PRICE_MAX and instrument.ticks.is_valid(price)):
            return f"order {order} at {price}, which is off the grid"
    return ""


def fill_anew(table: OrderTable, instrument: Instrument, book: Book) -> None:
    """Make ``book``, which is empty, the instrument's. Queues that check out keep their order."""
    queues: list[list[int]] = []
    for side in (0, 1):
        queues.append(queue_of(table, instrument, side) if instrument.frozen else instrument.book.orders(table, side))
    book.set_step(instrument.ticks.step(instrument.lower, instrument.upper))
    for queue in queues:
        for order in queue:
            book.add(order)
    instrument.book = book
