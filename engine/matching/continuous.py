"""Zaraba: an incoming order trades with what rests, best price first, then earliest, at the resting order's price.

Written once, above the narrow interface of ``Book``; whatever book is loaded, this is the rule. Validation is over when
``take`` is called: it cannot fail, and it changes nothing but the book and the two orders of each fill.
"""

from __future__ import annotations

from mypy_extensions import i64

from engine.matching.book import (
    GONE,
    OPEN,
    PARTICIPANT_SHIFT,
    ROW_OFFSET,
    ROW_SHIFT,
    TERMS,
    Book,
    OrderTable,
)


def place(table: OrderTable, book: Book, order: i64, rests: bool, fills: list[int]) -> i64:
    """Let ``order``, which is in no queue, trade up to its own limit, and return what is left of it.

    What is left joins its queue if it ``rests`` and has a limit, and is gone otherwise. Fills are those of ``take``.
    """
    limit = table.price[order]
    take(table, book, order, limit, fills)
    left = table.open[order]
    if left:
        if rests and limit:
            book.add(order)
        else:
            table.state[order] = GONE
    return left


def withdraw(table: OrderTable, book: Book, order: i64) -> None:
    """Take an order that rests in ``book`` off the market; its row keeps what was open."""
    book.remove(order)
    table.state[order] = GONE


def take(
    table: OrderTable,
    book: Book,
    order: i64,
    limit: i64,
    fills: list[int],
    own: i64 = -1,
    reserves: dict[int, int] | None = None,
) -> i64:
    """Let ``order``, which is in no queue, trade with the other side up to ``limit`` (0: at any price).

    Appends three integers per fill: resting order, price, quantity. What is left stays open in the table, and the
    caller decides whether it rests.

    Returns 0 when there is nothing more to trade. Otherwise it has stopped at a resting order that needs a decision,
    and returns its number: one of participant ``own`` that is the next to trade, or one of ``reserves`` of which all
    that it showed has traded. Whoever has decided calls again.
    """
    # By row instead of by column: one look at the table per command, one line of memory per resting order.
    rows = table.rows
    row = (order << ROW_SHIFT) + ROW_OFFSET
    buys = rows[row + TERMS] & 1 == 0
    other: i64 = 1 if buys else 0
    left = rows[row + OPEN]
    stopped: i64 = 0
    while left:
        price = book.best(other)
        if price == 0 or (limit and (price > limit if buys else price < limit)):
            break
        maker = book.first(other)
        at = (maker << ROW_SHIFT) + ROW_OFFSET
        if rows[at + TERMS] >> PARTICIPANT_SHIFT == own:
            stopped = maker
            break
        quantity = rows[at + OPEN]
        if quantity > left:
            quantity = left
        book.fill(maker, quantity)
        left -= quantity
        fills.append(maker)
        fills.append(price)
        fills.append(quantity)
        if reserves and rows[at + OPEN] == 0 and maker in reserves:
            stopped = maker
            break
    rows[row + OPEN] = left
    return stopped
