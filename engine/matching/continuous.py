"""Zaraba: an incoming order trades with what rests, best price first, then earliest, at the resting order's price.

Written once, above the narrow interface of ``Book``; whatever book is loaded, this is the rule. Validation is over when
``take`` is called: it cannot fail, and it changes nothing but the book and the two orders of each fill.
"""

from __future__ import annotations

from engine.matching.book import Book, OrderTable


def take(table: OrderTable, book: Book, order: int, limit: int, fills: list[int]) -> None:
    """Let ``order``, which is in no queue, trade with the other side up to ``limit`` (0: at any price).

    Appends three integers per fill: resting order, price, quantity. What is left stays open in the table, and the
    caller decides whether it rests.
    """
    opens = table.open
    prices = table.price
    buys = table.terms[order] & 1 == 0
    other = 1 if buys else 0
    left = opens[order]
    while left:
        maker = book.first(other)
        if maker == 0:
            break
        price = prices[maker]
        if limit and (price > limit if buys else price < limit):
            break
        quantity = opens[maker]
        if quantity > left:
            quantity = left
        book.fill(maker, quantity)
        left -= quantity
        fills.append(maker)
        fills.append(price)
        fills.append(quantity)
    opens[order] = left
