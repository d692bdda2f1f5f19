"""An auction on a book: the book is frozen, priced, allocated and paired. What the result does is the core's business.

The arithmetic is in ``itayose.py``, in pure functions over lists; here they meet the queues.
"""

from __future__ import annotations

from typing import Final

from engine.matching.book import BUY, SELL, Book, OrderTable
from engine.matching.itayose import SIMULTANEOUS_RR, Equilibrium, allocate, equilibrium, pair
from engine.tables import TickTable


class Match:
    """One pair of an auction."""

    def __init__(self, buy: int, sell: int, quantity: int) -> None:
        self.buy: Final = buy
        self.sell: Final = sell
        self.quantity: Final = quantity


def price(
    book: Book, ticks: TickTable, lower: int, upper: int, reference: int, rule: str, all_market_must_fill: bool
) -> Equilibrium:
    """What an auction of ``book`` as it stands gives. Limits and reference are 0 where there are none."""
    bid_prices: list[int] = []
    bid_quantities: list[int] = []
    ask_prices: list[int] = []
    ask_quantities: list[int] = []
    book.levels(BUY, bid_prices, bid_quantities)
    book.levels(SELL, ask_prices, ask_quantities)
    return equilibrium(
        bid_prices,
        bid_quantities,
        ask_prices,
        ask_quantities,
        book.level_quantity(BUY, 0),
        book.level_quantity(SELL, 0),
        ticks,
        lower,
        upper,
        reference,
        rule,
        all_market_must_fill,
    )


def matches(table: OrderTable, book: Book, volume: int, allocation: str, lot: int) -> list[Match]:
    """Who trades how much with whom when ``volume`` trades on each side; the book is not touched."""
    buys: list[int] = []
    sells: list[int] = []
    buy_fills = _fills(table, book, BUY, volume, allocation, lot, buys)
    sell_fills = _fills(table, book, SELL, volume, allocation, lot, sells)
    return [Match(buys[i], sells[j], quantity) for i, j, quantity in pair(buy_fills, sell_fills)]


def _fills(
    table: OrderTable, book: Book, side: int, volume: int, allocation: str, lot: int, orders: list[int]
) -> list[int]:
    """Fills of one side, parallel to ``orders``, which is filled with the orders that ``volume`` can reach."""
    prices = [0]
    book.levels(side, prices, [])
    quantities: list[int] = []
    participants: list[int] = []
    group_sizes: list[int] = []
    reached = 0
    for level in prices:
        if reached >= volume:
            break
        group = book.queue(table, side, level)
        orders.extend(group)
        quantities.extend([table.open[order] for order in group])
        if allocation == SIMULTANEOUS_RR:
            participants.extend([table.participant(order) for order in group])
            group_sizes.append(len(group))
        reached += book.level_quantity(side, level)
    if allocation == SIMULTANEOUS_RR:
        return allocate(volume, quantities, SIMULTANEOUS_RR, participants, group_sizes, lot)
    return allocate(volume, quantities)
