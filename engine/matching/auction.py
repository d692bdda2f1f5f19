"""An auction on a book: the book is frozen, priced, allocated and paired, and what comes out is checked.

The arithmetic is in ``itayose.py``, in pure functions over lists; here they meet the queues. Everything in this module
only reads: ``freeze`` takes the queues over, order by order, and price, fills and pairs are all made from that one set
(a cross elsewhere once priced without some orders that it then filled, for years: market-rules 3.2). ``verify`` asks of
the finished plan what must be true of any, in other words than those that made it. Only then does the core change a
book. Whatever does not add up is ``InvariantBroken``, raised while the book is still as it was.
"""

from __future__ import annotations

from typing import Final, final

from librt.vecs import append, extend, pop, vec
from mypy_extensions import i64

from engine.faults import InvariantBroken
from engine.matching.book import (
    BUY,
    IN_BOOK,
    LEVEL,
    NEXT,
    OPEN,
    PREVIOUS,
    PRICE,
    QUANTITY,
    QUEUE_BITS,
    ROW_OFFSET,
    ROW_SHIFT,
    SELL,
    STATE,
    TERMS,
    Book,
    OrderTable,
    pack_terms,
)
from engine.matching.itayose import SIMULTANEOUS_RR, Equilibrium, allocate, equilibrium, pair
from engine.memory import spread, zeros
from engine.tables import TickTable

#: Integers of a pair: buy, sell, quantity.
PAIR: Final = 3
#: Queues that are followed side by side: as many as memory fetches for at once, and no more, so that a cache still has
#: their rows when they are read.
_LANES: Final = 8


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


class Frozen:
    """One side of a book as an auction takes it: each price with its orders, best first, market orders before all.

    ``queues`` are the orders of each price, earliest first; ``amounts``, parallel, what of each takes part.
    """

    def __init__(self) -> None:
        self.prices: Final[list[int]] = []
        self.queues: Final[list[vec[i64]]] = []
        self.amounts: Final[list[vec[i64]]] = []

    def amount(self, price: int, order: int) -> int:
        """What of ``order``, which stands at ``price``, takes part; 0: nothing."""
        place = self.prices.index(price)
        queue = list(self.queues[place])
        return self.amounts[place][queue.index(order)] if order in queue else 0

    def take_off(self, price: int, order: int, quantity: int) -> None:
        """Let ``quantity`` of an order not take part."""
        place = self.prices.index(price)
        i = list(self.queues[place]).index(order)
        left = self.amounts[place][i] - quantity
        if left > 0:
            self.amounts[place][i] = left
        else:
            self.queues[place], _ = pop(self.queues[place], i)
            self.amounts[place], _ = pop(self.amounts[place], i)

    def join(self, side: int, price: int, order: int, amount: int) -> None:
        """Let ``order`` take part, last at ``price``."""
        place = 1 if price else 0
        while price and place < len(self.prices):
            level = self.prices[place]
            if level == price or (level < price if side == BUY else level > price):
                break
            place += 1
        if place == len(self.prices) or self.prices[place] != price:
            self.prices.insert(place, price)
            self.queues.insert(place, vec[i64]())
            self.amounts.insert(place, vec[i64]())
        self.queues[place] = append(self.queues[place], order)
        self.amounts[place] = append(self.amounts[place], amount)

    def let_in(self, side: int, price: int, orders: list[int], amounts: list[int]) -> None:
        """Let ``orders`` take part with ``amounts``, behind all who can trade at ``price``."""
        place = 1
        while place < len(self.prices) and (
            self.prices[place] >= price if side == BUY else self.prices[place] <= price
        ):
            place += 1
        self.prices.insert(place, price)
        self.queues.insert(place, vec[i64](orders))
        self.amounts.insert(place, vec[i64](amounts))

    def whole(self, place: int) -> int:
        """All that takes part of the orders of one price, by its place among ``prices``."""
        total: i64 = 0
        for amount in self.amounts[place]:
            total += amount
        return total

    def reaching(self, side: int, price: int) -> int:
        """All that could trade at ``price`` (0: only what has no limit)."""
        total = self.whole(0)
        for place in range(1, len(self.prices)):
            level = self.prices[place]
            if price == 0 or (level < price if side == BUY else level > price):
                break
            total += self.whole(place)
        return total

    def totals(self, prices: list[int], quantities: list[int]) -> int:
        """Append every price with what takes part there, best first; returns what has no limit."""
        for i in range(1, len(self.prices)):
            if len(self.queues[i]):
                prices.append(self.prices[i])
                quantities.append(self.whole(i))
        return self.whole(0)


def freeze(table: OrderTable, book: Book, side: int, instrument: int, reserves: dict[int, int]) -> Frozen:
    """One side of ``book``, the book of ``instrument``, read order by order; icebergs with what they hide.

    Raises ``InvariantBroken`` where queue, level and row do not say the same.
    """
    frozen = Frozen()
    prices: list[int] = [0]
    quantities: list[int] = [book.level_quantity(side, 0)]
    book.levels(side, prices, quantities)
    count: i64 = table.count
    rows = table.rows
    belongs: i64 = pack_terms(side, 0, 0, instrument, 0)
    for first in range(0, len(prices), _LANES):
        heads = vec[i64]([book.head(side, level) for level in prices[first : first + _LANES]])
        width: i64 = len(heads)
        beside = _side_by_side(rows, count, heads)
        for lane in range(width):
            place = first + lane
            price: i64 = prices[place]
            where = f"side {side}, price {price}"
            better = prices[place - 1] if place > 1 else 0
            if price < 0 or (better and (price >= better if side == BUY else price <= better)):
                raise InvariantBroken(f"A level does not stand behind a better one: {where}")
            queue = vec[i64]()
            amounts = vec[i64]()
            shown: i64 = 0
            before: i64 = 0
            step: i64 = lane
            order: i64 = beside[step]
            while order:
                if order < 0 or order > count:
                    raise InvariantBroken(f"A queue leads to order {order}, and there are {count}: {where}")
                at = (order << ROW_SHIFT) + ROW_OFFSET
                quantity = rows[at + OPEN]
                if rows[at + PREVIOUS] != before:  # also where a queue runs in a circle
                    raise InvariantBroken(f"Order {order} does not name {before} as the one before it: {where}")
                if rows[at + PRICE] != price or rows[at + TERMS] & QUEUE_BITS != belongs:
                    raise InvariantBroken(f"Order {order} queues where it does not belong: {where}")
                if rows[at + LEVEL] & STATE != IN_BOOK or quantity <= 0 or quantity > rows[at + QUANTITY]:
                    raise InvariantBroken(f"Order {order} is queued with {quantity} open, which cannot be: {where}")
                shown += quantity
                queue = append(queue, order)
                amounts = append(amounts, quantity)
                before = order
                step += width
                order = beside[step]
            if shown != quantities[place]:
                raise InvariantBroken(f"The queue holds {shown}, its level says {quantities[place]}: {where}")
            if reserves:
                for i in range(len(queue)):
                    amounts[i] += reserves.get(queue[i], 0)
            frozen.prices.append(price)
            frozen.queues.append(queue)
            frozen.amounts.append(amounts)
    return frozen


def _side_by_side(rows: vec[i64], count: i64, heads: vec[i64]) -> vec[i64]:
    """Queues that begin with ``heads``: the first order of each, then the second of each, and so on; 0 behind the last.

    Who is next stands in an order's row, so a queue that is followed alone waits for memory at each of its orders, and
    that was most of what it took to freeze a book. Side by side, memory fetches a row for each queue at once. Nothing
    is asked here about the orders, but that a queue is not followed beyond one that does not name the one before it.
    """
    width: i64 = len(heads)
    nobody = vec[i64]([0] * int(width))
    found = extend(nobody, heads)  # before the first is nobody
    at = width
    while True:
        found = extend(found, nobody)
        more: i64 = 0
        for _ in range(width):
            order = found[at]
            if order > 0 and order <= count:
                row = (order << ROW_SHIFT) + ROW_OFFSET
                if rows[row + PREVIOUS] == found[at - width]:
                    found[at + width] = rows[row + NEXT]
                    more |= rows[row + NEXT]
            at += 1
        if more == 0:
            return found[width:]


def price_frozen(
    bids: Frozen,
    asks: Frozen,
    ticks: TickTable,
    lower: int,
    upper: int,
    reference: int,
    rule: str,
    all_market_must_fill: bool,
) -> Equilibrium:
    """What an auction of the frozen orders gives."""
    bid_prices: list[int] = []
    bid_quantities: list[int] = []
    ask_prices: list[int] = []
    ask_quantities: list[int] = []
    market_buy = bids.totals(bid_prices, bid_quantities)
    market_sell = asks.totals(ask_prices, ask_quantities)
    return equilibrium(
        bid_prices,
        bid_quantities,
        ask_prices,
        ask_quantities,
        market_buy,
        market_sell,
        ticks,
        lower,
        upper,
        reference,
        rule,
        all_market_must_fill,
    )


class Simultaneous:
    """Which orders of a side are simultaneous, and whose turn it is among them (``engine/turns.py``).

    ``periods`` are by order, 0 or nothing where it has its place in time; ``begun``, by price, the period of its first
    group and the members in the order of their turns.
    """

    def __init__(self, periods: dict[int, int], begun: dict[int, tuple[int, list[int]]]) -> None:
        self.periods: Final = periods
        self.begun: Final = begun
        self.price: int = 0  #: where a group was filled in part
        self.period: int = 0  #: of that group; 0: there is none
        self.turns: list[int] = []  #: how its turns go on


def fills(
    frozen: Frozen,
    table: OrderTable,
    volume: int,
    allocation: str,
    lot: int,
    orders: list[int],
    peaks: dict[int, tuple[int, int]],
    alike: int = 0,
    simultaneous: Simultaneous | None = None,
) -> list[int]:
    """Fills of one side, parallel to ``orders``, which is filled with the orders that ``volume`` can reach.

    ``peaks`` are orders that trade peak by peak, each of which is the last of its price: by number what the first peak
    has and what each further one has. Such an order may stand in ``orders`` several times. ``alike`` is how many of the
    first prices make one group, by time of entry, market orders among them; 0: the usual order. Where members take
    turns they do so among the ``simultaneous`` orders of a price that stand together; not given: among all of it.
    """
    quantities: list[int] = []
    participants: list[int] = []
    group_sizes: list[int] = []
    groups: list[tuple[int, int]] = []  # price and period of each
    turns: dict[int, list[int]] = {}
    reached = 0
    if alike:
        entered: list[tuple[int, int, int]] = []
        for place in range(alike):
            for i, order in enumerate(frozen.queues[place]):
                entered.append((table.priority[order], order, frozen.amounts[place][i]))
        entered.sort()
        orders.extend([order for _, order, _ in entered])
        quantities.extend([amount for _, _, amount in entered])
        participants.extend([table.participant(order) for order in orders])
        group_sizes.append(len(orders))
        reached = sum(quantities)
    for place in range(alike, len(frozen.prices)):
        if reached >= volume:
            break
        group = list(frozen.queues[place])
        amounts = list(frozen.amounts[place])
        reached += sum(amounts)
        if peaks:
            group, amounts = _peak_by_peak(group, amounts, peaks)
        orders.extend(group)
        quantities.extend(amounts)
        if allocation == SIMULTANEOUS_RR:
            participants.extend([table.participant(order) for order in group])
            if simultaneous is None:
                group_sizes.append(len(group))
            else:
                price = frozen.prices[place]
                begun = simultaneous.begun.get(price)
                for size, period in _runs(group, simultaneous.periods):
                    if begun is not None and period == begun[0]:
                        turns[len(groups)] = begun[1]
                    group_sizes.append(size)
                    groups.append((price, period))
    if allocation != SIMULTANEOUS_RR:
        return allocate(volume, quantities)
    result = allocate(volume, quantities, SIMULTANEOUS_RR, participants, group_sizes, lot, turns)
    if simultaneous is not None:
        for cut, members in turns.items():
            simultaneous.price, simultaneous.period = groups[cut]
            simultaneous.turns = members
    return result


def _runs(queue: list[int], periods: dict[int, int]) -> list[tuple[int, int]]:
    """The groups of a queue as (how many orders, their period), neighbours of one period being one."""
    runs: list[tuple[int, int]] = []
    for order in queue:
        period = periods.get(order, 0)
        if runs and period and runs[-1][1] == period:
            runs[-1] = (runs[-1][0] + 1, period)
        else:
            runs.append((1, period))
    return runs


class Cut:
    """What self-trade prevention does before an auction: who would have met whom, and what is taken off which order."""

    def __init__(self, price: int, quantity: int, newest: int, other: int) -> None:
        self.price: Final = price
        self.quantity: Final = quantity  #: more than could be paired with others
        self.newest: Final = newest
        self.other: Final = other
        self.taken: Final[list[tuple[int, int]]] = []  #: (order, quantity)


class Plan:
    """All that one auction is going to do. ``verify`` says whether it may.

    ``widths`` and ``closes`` are those of its phase (``PhaseRules``).
    """

    def __init__(self, bids: Frozen, asks: Frozen, widths: int, closes: bool) -> None:
        self.bids: Final = bids
        self.asks: Final = asks
        self.widths: Final = widths
        self.closes: Final = closes
        self.result: Equilibrium = Equilibrium(0, 0, 0)
        self.leaving: list[int] = []  #: orders that may not take part, in the order in which they leave
        self.icebergs: list[int] = []
        self.cuts: Final[list[Cut]] = []
        #: The pairs, ``PAIR`` integers each, in the order in which they are told. No objects: there are hundreds of
        #: thousands of them.
        self.matches: vec[i64] = vec[i64]()
        self.turned: dict[int, bool] = {}  #: funari orders, which take part without their limit
        #: Groups filled in part, whose members take turns: side, price, period, and how they go on.
        self.turns: list[tuple[int, int, int, list[int]]] = []
        self.added: list[tuple[int, int]] = []  #: imbalance-only orders that take part, and how much of each


def verify(
    plan: Plan,
    table: OrderTable,
    ticks: TickTable,
    lower: int,
    upper: int,
    all_market_must_fill: bool,
    groups: dict[int, int] | None,
) -> None:
    """Raise ``InvariantBroken`` unless the plan is one that any reader of market-rules 3 would let pass.

    The price is on the grid and within limits; supply and demand there give the volume and the surplus; the pairs give
    the volume on both sides; nobody trades more than takes part of his order, beyond his limit, or with his own group;
    and nobody with a better claim than the price is left on the side that fills whole.
    """
    price = plan.result.price
    volume = plan.result.volume
    if not price:
        if len(plan.matches) or volume:
            raise InvariantBroken(f"An auction without a price has {len(plan.matches) // PAIR} trades of {volume}")
        return
    if not ticks.is_valid(price) or (lower and price < lower) or (upper and price > upper):
        raise InvariantBroken(f"Expected an auction price on the grid from {lower} to {upper}, got {price}")
    matches = plan.matches
    total: i64 = 0
    for at in range(0, len(matches), PAIR):
        buy = matches[at]
        sell = matches[at + 1]
        quantity = matches[at + 2]
        if quantity <= 0:
            raise InvariantBroken(f"Orders {buy} and {sell} are to trade {quantity}")
        if groups and _of_one_group(groups, buy, sell):
            raise InvariantBroken(f"Orders {buy} and {sell} of one group are to trade")
        total += quantity
    if total != volume:
        raise InvariantBroken(f"Expected trades of {volume}, the auction's volume, got {total}")
    alike = plan.result.sharing != ""
    demand = _claims(plan.bids, BUY, price, Totals(matches, BUY), alike)
    supply = _claims(plan.asks, SELL, price, Totals(matches, SELL), alike)
    if min(demand, supply) != volume or demand - supply != plan.result.surplus:
        text = f"Expected volume {volume} and surplus {plan.result.surplus} at {price}"
        raise InvariantBroken(f"{text}, got demand {demand} and supply {supply}")
    if all_market_must_fill:
        for frozen in (plan.bids, plan.asks):
            if frozen.whole(0) > volume:
                raise InvariantBroken(f"Market orders are left at {price}, and there all of them must fill")


def _of_one_group(groups: dict[int, int], buy: int, sell: int) -> bool:
    group = groups.get(buy, -1)
    return group >= 0 and group == groups.get(sell, -1)


@final
class Totals:
    """What each order of a side is to trade.

    A hash table in integers: a dictionary would make objects of hundreds of thousands of them.
    """

    def __init__(self, matches: vec[i64], side: i64) -> None:
        runs = 0  # no fewer than there are orders, and mostly as many: the pairs of one follow one another
        last: i64 = 0
        for at in range(0, len(matches), PAIR):
            if matches[at + side] != last:
                last = matches[at + side]
                runs += 1
        size: i64 = 2
        while size < 2 * runs:  # never more than half full, so no search is long
            size *= 2
        self._mask: Final[i64] = size - 1
        cells = zeros(2 * size, 2 * size)
        self._cells: Final = cells  #: order (0: nothing), what it is to trade
        self.count: i64 = 0  #: orders
        for at in range(0, len(matches), PAIR):
            cell = self._cell(matches[at + side])
            if cells[cell] == 0:
                cells[cell] = matches[at + side]
                self.count += 1
            cells[cell + 1] += matches[at + 2]

    def _cell(self, order: i64) -> i64:
        """Where an order is, or would be."""
        cells = self._cells
        place = spread(order) & self._mask
        while cells[place << 1] != order and cells[place << 1]:
            place = (place + 1) & self._mask
        return place << 1

    def of(self, order: i64) -> i64:
        """0: it does not trade."""
        return self._cells[self._cell(order) + 1]


def _claims(frozen: Frozen, side: int, price: int, traded: Totals, alike: bool) -> int:
    """All that could trade at ``price``. What trades is among it, within each order, and better prices come first.

    The last is not asked where all who can trade are ``alike``.
    """
    total: i64 = 0
    found: i64 = 0
    short = False
    for place in range(len(frozen.prices)):
        level = frozen.prices[place]
        if level and (level < price if side == BUY else level > price):
            break
        queue = frozen.queues[place]
        amounts = frozen.amounts[place]
        filled: i64 = 0
        whole: i64 = 0
        for i in range(len(queue)):
            whole += amounts[i]
            quantity = traded.of(queue[i])
            if quantity:
                found += 1
                filled += quantity
                if quantity > amounts[i]:
                    raise InvariantBroken(f"Order {queue[i]} is to trade {quantity}, it has {amounts[i]}")
        if filled and short and not alike:
            raise InvariantBroken(f"Orders at {level} are to trade before others of side {side} with a better claim")
        short = short or filled < whole
        total += whole
    if found != traded.count:
        raise InvariantBroken(f"{traded.count - found} orders are to trade at {price}, which they did not ask for")
    return total


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
) -> vec[i64]:
    """Who trades how much with whom, as ``Plan.matches`` has it.

    No two orders of one group in ``groups`` are paired; see ``pair_apart``.
    """
    pairs = pair(buy_fills, sell_fills)
    if groups:
        for at in range(0, len(pairs), PAIR):
            if _of_one_group(groups, buys[pairs[at]], sells[pairs[at + 1]]):
                pairs = vec[i64]()
                for apart in pair_apart(
                    buy_fills,
                    [groups.get(order, -1) for order in buys],
                    sell_fills,
                    [groups.get(order, -1) for order in sells],
                ):
                    pairs = extend(pairs, apart)
                break
    for at in range(0, len(pairs), PAIR):
        pairs[at] = buys[pairs[at]]
        pairs[at + 1] = sells[pairs[at + 1]]
    return pairs


def remainder_first(plan: Plan, table: OrderTable) -> vec[i64]:
    """The pairs of a plan in the order in which the feed of the Tokyo Stock Exchange tells of them (market-rules 6).

    First come those of the price, on the side of the surplus, that is filled in part; then all others by their buys,
    from the lowest limit to those without, and under each limit by their sells, from the highest to those without.
    """
    matches = plan.matches
    cut: set[int] = set()
    if plan.result.surplus:
        side = BUY if plan.result.surplus > 0 else SELL
        frozen = plan.bids if side == BUY else plan.asks
        traded = Totals(matches, side)
        for place in range(len(frozen.prices)):
            filled = sum([traded.of(order) for order in frozen.queues[place]])
            if filled < frozen.whole(place):
                cut.update(frozen.queues[place])
    ranked: list[tuple[bool, bool, int, int, int]] = []
    for at in range(0, len(matches), PAIR):
        buyer: int = matches[at]
        seller: int = matches[at + 1]
        buy: int = 0 if buyer in plan.turned else table.price[buyer]
        sell: int = 0 if seller in plan.turned else table.price[seller]
        ranked.append((buyer not in cut and seller not in cut, buy == 0, buy, -sell, at))
    ranked.sort()
    told = vec[i64]()
    for entry in ranked:
        told = extend(told, matches[entry[4] : entry[4] + PAIR])
    return told


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
                # Half of all that is left is this group's, and this buy is not: no third group can get too large.
                slack = volume
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
