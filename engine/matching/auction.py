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
    book: Book,
    ticks: TickTable,
    lower: int,
    upper: int,
    reference: int,
    rule: str,
    all_market_must_fill: bool,
    hidden: list[tuple[int, int, int]],
) -> Equilibrium:
    """What an auction of ``book`` as it stands gives. Limits and reference are 0 where there are none.

    ``hidden`` are quantities that take part without being shown, as (side, price, quantity).
    """
    bid_prices: list[int] = []
    bid_quantities: list[int] = []
    ask_prices: list[int] = []
    ask_quantities: list[int] = []
    book.levels(BUY, bid_prices, bid_quantities)
    book.levels(SELL, ask_prices, ask_quantities)
    if hidden:
        bids = {level: i for i, level in enumerate(bid_prices)}
        asks = {level: i for i, level in enumerate(ask_prices)}
        for side, level, quantity in hidden:
            if side == BUY:
                bid_quantities[bids[level]] += quantity
            else:
                ask_quantities[asks[level]] += quantity
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


def fills(
    table: OrderTable,
    book: Book,
    side: int,
    volume: int,
    allocation: str,
    lot: int,
    orders: list[int],
    peaks: dict[int, tuple[int, int]],
) -> list[int]:
    """Fills of one side, parallel to ``orders``, which is filled with the orders that ``volume`` can reach.

    ``peaks`` are orders that trade peak by peak, each of which is the last of its price: by number what the first peak
    has and what each further one has. Such an order may stand in ``orders`` several times. The book is not touched.
    """
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
        open_quantities = [table.open[order] for order in group]
        if peaks:
            group, open_quantities = _peak_by_peak(group, open_quantities, peaks)
        orders.extend(group)
        quantities.extend(open_quantities)
        if allocation == SIMULTANEOUS_RR:
            participants.extend([table.participant(order) for order in group])
            group_sizes.append(len(group))
        reached += book.level_quantity(side, level)
    if allocation == SIMULTANEOUS_RR:
        return allocate(volume, quantities, SIMULTANEOUS_RR, participants, group_sizes, lot)
    return allocate(volume, quantities)


def _peak_by_peak(
    group: list[int], quantities: list[int], peaks: dict[int, tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """The queue of one price in the order in which its peaks would trade."""
    left = dict(zip(group, quantities, strict=True))
    orders: list[int] = []
    shares: list[int] = []
    first = True
    while group:
        behind: list[int] = []
        for order in group:
            share = left[order]
            if order in peaks:
                share = min(share, peaks[order][0 if first else 1])
            orders.append(order)
            shares.append(share)
            left[order] -= share
            if left[order]:
                behind.append(order)
        group = behind
        first = False
    return orders, shares


def matches(
    buys: list[int], buy_fills: list[int], sells: list[int], sell_fills: list[int], groups: dict[int, int] | None
) -> list[Match]:
    """Who trades how much with whom. No two orders of one group in ``groups`` are paired; see ``pair_apart``."""
    pairs = pair(buy_fills, sell_fills)
    if groups:
        for i, j, _ in pairs:
            group = groups.get(buys[i], -1)
            if group >= 0 and group == groups.get(sells[j], -1):
                pairs = pair_apart(
                    buy_fills,
                    [groups.get(order, -1) for order in buys],
                    sell_fills,
                    [groups.get(order, -1) for order in sells],
                )
                break
    return [Match(buys[i], sells[j], quantity) for i, j, quantity in pairs]


def pair_apart(
    buy_fills: list[int], buy_groups: list[int], sell_fills: list[int], sell_groups: list[int]
) -> list[tuple[int, int, int]]:
    """Trades as of ``pair``, but none within a group (-1: of no group).

    Possible exactly when no group has more fills on both sides together than volume trades; else ``ValueError``. Buys
    are served in priority order. Each gets the earliest sell that is not of its own group, unless some group has just
    as much left as volume: then every pair needs one of its orders, and it gets that group's earliest sell.
    """
    buy_left = list(buy_fills)
    sell_left = list(sell_fills)
    volume = sum(buy_left)
    totals: dict[int, int] = {}
    queues: dict[int, list[int]] = {}  # sells of each group, earliest last
    for fills_of, groups in ((buy_left, buy_groups), (sell_left, sell_groups)):
        for i in range(len(fills_of)):
            if groups[i] >= 0:
                totals[groups[i]] = totals.get(groups[i], 0) + fills_of[i]
    for j in range(len(sell_left) - 1, -1, -1):
        if sell_left[j]:
            queues.setdefault(sell_groups[j], []).append(j)
    if volume != sum(sell_left) or max(totals.values(), default=0) > volume:
        raise ValueError(f"Expected equal fills that can be paired across groups, got {totals} of {volume}")
    trades: list[tuple[int, int, int]] = []
    for i in range(len(buy_left)):
        mine = buy_groups[i]
        while buy_left[i]:
            slack = volume
            tight = -1
            for group, total in totals.items():
                if group != mine and volume - total < slack:
                    slack = volume - total
                    tight = group
            if slack == 0:
                j = queues[tight][-1]
                slack = volume
                for group, total in totals.items():
                    if group not in (mine, tight) and volume - total < slack:
                        slack = volume - total
            else:
                j = min([queue[-1] for group, queue in queues.items() if queue and (group != mine or group < 0)])
                # The sell's own group may become as tight as it likes: this pair uses it up.
                slack = volume
                for group, total in totals.items():
                    if group not in (mine, sell_groups[j]) and volume - total < slack:
                        slack = volume - total
            quantity = min(buy_left[i], sell_left[j], slack)
            trades.append((i, j, quantity))
            buy_left[i] -= quantity
            sell_left[j] -= quantity
            volume -= quantity
            for group in (mine, sell_groups[j]):
                if group >= 0:
                    totals[group] -= quantity
            if sell_left[j] == 0:
                queues[sell_groups[j]].pop()
    return trades
