"""Zaraba: an incoming order trades with what rests, best price first, then earliest, at the resting order's price.

Written once, above the narrow interface of ``Book``; whatever book is loaded, this is the rule. Validation is over when
``take`` is called, and it changes nothing but the book and the two orders of each fill.

Plan, check, commit: all fills of an incoming order are planned before the first is made, by reading the queues that
they come from, and each must be what a fill can be. So a book that contradicts itself is noticed while it is still as
it was.
"""

from __future__ import annotations

from mypy_extensions import i64

from engine.faults import InvariantBroken
from engine.matching.book import (
    FILL,
    GONE,
    IN_BOOK,
    LEVEL,
    NEXT,
    OPEN,
    PARTICIPANT_SHIFT,
    PREVIOUS,
    PRICE,
    QUANTITY,
    QUEUE_BITS,
    ROW_OFFSET,
    ROW_SHIFT,
    STATE,
    TERMS,
    Book,
    Fills,
    OrderTable,
    pack_terms,
)


def withdraw(table: OrderTable, book: Book, order: i64) -> None:
    """Take an order that rests in ``book`` off the market; its row keeps what was open."""
    book.remove(order)
    table.rows[(order << ROW_SHIFT) + (ROW_OFFSET + LEVEL)] = GONE


def take(
    table: OrderTable, book: Book, order: i64, limit: i64, fills: Fills, own: i64, reserves: dict[int, int] | None
) -> i64:
    """Let ``order``, which is in no queue, trade with the other side up to ``limit`` (0: at any price).

    Appends its fills. What is left stays open in the table, and the caller decides whether it rests.

    Returns 0 when there is nothing more to trade. Otherwise it has stopped at a resting order that needs a decision,
    and returns its number: one of participant ``own`` (-1: nobody's) that is the next to trade, or one of ``reserves``
    of which all that it showed has traded. Whoever has decided calls again.

    Raises ``InvariantBroken``, with book, table and fills as they were, where queue and rows do not say the same.
    """
    side = table.rows[(order << ROW_SHIFT) + (ROW_OFFSET + TERMS)] & 1
    best = book.best(side ^ 1)
    if best == 0 or (limit and (best < limit if side else best > limit)):
        return 0  # most orders never trade, and pay for no more than this
    return _trade(table, book, order, limit, fills, own, reserves)


def _trade(
    table: OrderTable, book: Book, order: i64, limit: i64, fills: Fills, own: i64, reserves: dict[int, int] | None
) -> i64:
    """``take``, where the best price is within the limit."""
    # By row instead of by column: one look at the table per command, one line of memory per resting order.
    rows = table.rows
    row = (order << ROW_SHIFT) + ROW_OFFSET
    side = rows[row + TERMS] & 1
    other = side ^ 1
    queue = rows[row + TERMS] & QUEUE_BITS ^ 1  # what the terms of all that stands there have in common
    left = rows[row + OPEN]
    last = table.count
    stopped: i64 = 0
    before: i64 = 0
    price = book.best(other)
    maker = book.first(other)
    cells = fills.cells
    end = fills.count
    while left:
        if maker <= 0 or maker > last:
            raise _broken(table, other, price, maker, before, queue)
        at = (maker << ROW_SHIFT) + ROW_OFFSET
        terms = rows[at + TERMS]
        quantity = rows[at + OPEN]
        if (
            rows[at + PREVIOUS] != before  # also where a queue runs in a circle
            or rows[at + PRICE] != price
            or terms & QUEUE_BITS != queue
            or rows[at + LEVEL] & STATE != IN_BOOK
            or quantity <= 0
            or quantity > rows[at + QUANTITY]
        ):
            raise _broken(table, other, price, maker, before, queue)
        if terms >> PARTICIPANT_SHIFT == own:
            stopped = maker
            break
        if end + FILL > len(cells):
            cells = fills.grow()
        cells[end] = maker
        cells[end + 1] = order
        cells[end + 2] = price
        cells[end + 3] = quantity if quantity < left else left
        end += FILL
        if quantity > left:
            left = 0
            break
        left -= quantity
        if reserves and maker in reserves:
            stopped = maker
            break
        before = maker
        maker = rows[at + NEXT]
        if maker == 0 and left:
            behind = book.worse(other, price)
            if behind == 0 or (limit and (behind < limit if side else behind > limit)):
                break
            if behind >= price if side else behind <= price:
                raise InvariantBroken(f"Price {behind} does not stand behind a better one: side {other}, price {price}")
            price = behind
            before = 0
            maker = book.head(other, price)
    start = fills.count
    if end > start:
        fills.count = end
        rows[row + OPEN] = left
        book.consume(other, fills, start)
    return stopped


def verify(table: OrderTable, side: i64, price: i64, order: i64, before: i64, instrument: i64) -> None:
    """Raise ``InvariantBroken`` unless ``order`` may stand behind ``before`` (0: first) in the queue of a price."""
    if (
        not 0 < order <= table.count
        or table.previous[order] != before
        or table.price[order] != price
        or table.side(order) != side
        or table.instrument(order) != instrument
        or table.state[order] != IN_BOOK
        or not 0 < table.open[order] <= table.quantity[order]
    ):
        raise _broken(table, side, price, order, before, pack_terms(side, 0, 0, instrument, 0))


def _broken(table: OrderTable, side: i64, price: i64, order: i64, before: i64, queue: i64) -> InvariantBroken:
    """What is wrong with a resting order that would be the next to trade."""
    where = f"side {side}, price {price}"
    if not 0 < order <= table.count:
        return InvariantBroken(f"A queue leads to order {order}, and there are {table.count}: {where}")
    if table.previous[order] != before:
        return InvariantBroken(f"Order {order} does not name {before} as the one before it: {where}")
    if table.price[order] != price or table.terms[order] & QUEUE_BITS != queue:
        return InvariantBroken(f"Order {order} queues where it does not belong: {where}")
    if table.state[order] != IN_BOOK:
        return InvariantBroken(f"Order {order} is queued in state {table.state[order]}, not in the book: {where}")
    return InvariantBroken(
        f"Order {order} is queued with {table.open[order]} open of {table.quantity[order]}, which cannot be: {where}"
    )
