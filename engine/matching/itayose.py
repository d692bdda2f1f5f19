"""Itayose: one price for a whole book, and who trades at it. Pure functions over a frozen book.

The price is found in one walk over the limits. Write D(p) for demand (market buys, and buys at or above p), S(p) for
supply (market sells, and sells at or below p). D only falls and S only rises with the price, and both change at limits
only. So between two neighbouring limits every price is as good as every other, and the walk weighs *stretches* of
prices with one D and one S instead of single ticks: a gap of a million yen costs what a gap of one tick costs, a book
of n limits costs n steps, nothing is sorted.

Steps 0 to 6 are those of market-rules 3.2, and this is why they are as they are:

* *One tick outside the limits* belongs to the candidates, as JPX writes it. It matters when market orders are the
  surplus: nobody's limit stands there, yet it is the price at which that side's pressure shows.
* *Largest volume, then smallest surplus.* V = min(D, S) rises while D > S and falls afterwards, so the prices kept are
  one unbroken run, and the walk may stop as soon as V falls.
* *Surplus on both sides* can only be +m below and -m above one change of sign. Before the reference price chooses, the
  run is narrowed to the two prices at that change. Elsewhere in the run an order with a better limit than the price
  would be left unfilled: a buyer at 101 while others trade at 100.
* *All market orders must fill* is asked last. V is largest where most market volume fills: if the winner fails, so
  does every other price.

Without a reference price the middle of the run is taken, rounded down to a tick, since it favours neither side
(market-rules are silent; an assumption).

Allocation: the side with the smaller total fills whole. The other is filled in priority order, market orders first,
then better prices, and only the group that cannot be filled whole needs a rule. ``PRICE_TIME`` fills it earliest first.
``SIMULTANEOUS_RR`` treats the orders collected for an itayose as entered at one moment: participants take turns, one
round lot each, the largest first, so that nobody gains by being fast in the first millisecond of the collection period.

Prices are whole price units, 0 is none. Quantities are whole token units.
"""

from __future__ import annotations

from typing import Final

from librt.vecs import append, vec
from mypy_extensions import i64

from engine.tables import TickTable

#: Price rules. All take the largest volume, then the smallest surplus; they differ in the candidates and in what
#: decides among equals. ``JPX_OSE`` is the five published itayose conditions and the default of every profile.
JPX_OSE: Final = "jpx_ose"
ASX: Final = "asx"
XETRA: Final = "xetra"
EURONEXT: Final = "euronext"
BNB: Final = "bnb"
MIDPOINT: Final = "midpoint"
PRICE_RULES: Final = (JPX_OSE, ASX, XETRA, EURONEXT, BNB, MIDPOINT)

#: Allocation rules (market-rules 3.3).
PRICE_TIME: Final = "PRICE_TIME"
SIMULTANEOUS_RR: Final = "SIMULTANEOUS_RR"
ALLOCATION_RULES: Final = (PRICE_TIME, SIMULTANEOUS_RR)

#: Above every price; stays within a machine word.
_NO_LIMIT: Final = 2**60


class Equilibrium:
    """The result of an auction's pricing.

    ``price`` is 0 when there is none, and then the rest is 0 too. ``volume`` is what trades on each side, ``surplus``
    is D - S at the price: above 0 buyers are left over, below 0 sellers. ``sharing`` is "" where market orders and
    better limits come first, as they always do but at the edge of the closing range: there all who can trade at the
    price are one group, which shares by this allocation rule (market-rules 6).
    """

    __slots__ = ("price", "sharing", "surplus", "volume")

    def __init__(self, price: int, volume: int, surplus: int, sharing: str = "") -> None:
        self.price: Final[int] = price
        self.volume: Final[int] = volume
        self.surplus: Final[int] = surplus
        self.sharing: Final[str] = sharing

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Equilibrium):
            return NotImplemented
        return self.price == other.price and self.volume == other.volume and self.surplus == other.surplus

    def __hash__(self) -> int:
        return hash((self.price, self.volume, self.surplus))

    def __repr__(self) -> str:
        return f"Equilibrium(price={self.price}, volume={self.volume}, surplus={self.surplus})"


class _Kept:
    """The run of prices that are best so far: largest volume, then smallest surplus (steps 2 and 3)."""

    def __init__(self, lower: int, upper: int) -> None:
        self.lower = lower  #: the day's limits, on the grid
        self.upper = upper
        self.volume = 0
        self.imbalance = _NO_LIMIT  #: |D - S|, the same at every kept price
        self.low = 0
        self.high = 0
        self.high_buy = 0  #: highest kept price with a buy surplus; 0: none
        self.low_sell = 0  #: lowest kept price with a sell surplus; 0: none
        self.limits: list[int] = []  #: the kept prices one by one, where a rule knows limits only

    def weigh(self, first: int, last: int, demand: int, supply: int) -> bool:
        """Weigh the valid prices from ``first`` to ``last``, in ascending order of calls. True if they are kept."""
        if first < self.lower:
            first = self.lower
        if last > self.upper:
            last = self.upper
        if first > last:
            return False
        volume = demand if demand < supply else supply
        imbalance = demand - supply if demand > supply else supply - demand
        if volume > self.volume or (volume == self.volume and imbalance < self.imbalance):
            if volume == 0:
                return False
            self.volume = volume
            self.imbalance = imbalance
            self.low = first
            self.high_buy = 0
            self.low_sell = 0
            self.limits = []
        elif volume < self.volume or imbalance > self.imbalance:
            return False
        self.high = last
        if demand > supply:
            self.high_buy = last
        elif demand < supply and self.low_sell == 0:
            self.low_sell = first
        return True


def _search(
    kept: _Kept,
    bid_prices: list[int],
    bid_quantities: list[int],
    ask_prices: list[int],
    ask_quantities: list[int],
    demand: int,
    supply: int,
    ticks: TickTable,
    rule: str,
    reference: int,
) -> None:
    """Walk all limits upwards; ``demand`` and ``supply`` are D and S below the lowest of them."""
    only_limits = rule == XETRA
    bid = len(bid_prices) - 1
    ask = 0
    asks = len(ask_prices)
    before = 0  # the limit passed last; 0: none yet
    while bid >= 0 or ask < asks:
        bid_is_next = ask >= asks or (bid >= 0 and bid_prices[bid] <= ask_prices[ask])
        price = bid_prices[bid] if bid_is_next else ask_prices[ask]

        # The stretch below this limit. D can only fall from here on: once it limits the volume, nothing better follows.
        if demand < kept.volume:
            return
        if not only_limits and supply >= kept.volume:
            if before:
                first = ticks.up(before)
                if first < price:
                    kept.weigh(first, ticks.down(price), demand, supply)
            elif rule == EURONEXT:
                if reference and reference < price:
                    kept.weigh(reference, ticks.down(price), demand, supply)
            else:
                first = ticks.down(price)
                kept.weigh(first, first, demand, supply)

        # The limit itself: sells at it join the supply here, buys at it leave the demand only above it.
        if ask < asks and ask_prices[ask] == price:
            supply += ask_quantities[ask]
            ask += 1
        if supply >= kept.volume and ticks.is_valid(price) and kept.weigh(price, price, demand, supply) and only_limits:
            kept.limits.append(price)
        if bid >= 0 and bid_prices[bid] == price:
            demand -= bid_quantities[bid]
            bid -= 1
        before = price

    if rule == EURONEXT:
        if reference > before:
            kept.weigh(ticks.up(before), reference, demand, supply)
    elif not only_limits:
        first = ticks.up(before)
        kept.weigh(first, first, demand, supply)


def _clamp(price: int, low: int, high: int) -> int:
    if price < low:
        return low
    return high if price > high else price


def _choose(kept: _Kept, ticks: TickTable, rule: str, reference: int) -> int:
    """Steps 4 and 5: one price of the run."""
    low = kept.low
    high = kept.high
    if kept.imbalance and not kept.low_sell:  # buyers are left over at every price: as high as it goes
        if rule == BNB and reference:
            return _clamp(ticks.floor(reference * 105 // 100), low, high)
        return high
    if kept.imbalance and not kept.high_buy:  # sellers are left over: as low as it goes
        if rule == BNB and reference:
            return _clamp(ticks.ceil((reference * 95 + 99) // 100), low, high)
        return low
    if kept.imbalance and rule in (JPX_OSE, ASX, MIDPOINT):
        low = kept.high_buy
        high = kept.low_sell
    if rule == MIDPOINT or not reference:
        reference = ticks.floor((low + high) // 2)
    if rule != XETRA:
        return _clamp(reference, low, high)
    nearest = kept.limits[0]
    for price in kept.limits:  # ascending, so that of two equally near the higher wins
        if abs(price - reference) <= abs(nearest - reference):
            nearest = price
    return nearest


def equilibrium(
    bid_prices: list[int],
    bid_quantities: list[int],
    ask_prices: list[int],
    ask_quantities: list[int],
    market_buy: int,
    market_sell: int,
    ticks: TickTable,
    lower: int,
    upper: int,
    reference: int,
    rule: str = JPX_OSE,
    all_market_must_fill: bool = False,
) -> Equilibrium:
    """The auction price of a frozen book (market-rules 3.2).

    Levels are aggregated, one entry per price with a quantity above 0, best first: bids descend, asks ascend.
    ``market_buy`` and ``market_sell`` are the totals of orders without a limit. ``lower`` and ``upper`` are the day's
    limits and ``reference`` the reference price, 0 for none; they are rounded to the grid, limits inwards. ``rule`` is
    one of ``PRICE_RULES``; another one raises ``ValueError``. ``all_market_must_fill``: a price at which a market order
    stays unfilled is none. A limit that is not on the grid counts in D and S but cannot be the price.
    """
    if rule not in PRICE_RULES:
        raise ValueError(f"Expected a price rule of {', '.join(PRICE_RULES)}, got {rule!r}")
    demand = market_buy
    for quantity in bid_quantities:
        demand += quantity
    supply = market_sell
    for quantity in ask_quantities:
        supply += quantity
    none = Equilibrium(0, 0, 0)
    if demand == 0 or supply == 0:
        return none

    lower = ticks.ceil(lower) if lower else ticks.up(0)
    upper = ticks.floor(upper) if upper else _NO_LIMIT
    reference = ticks.nearest(reference)
    if not bid_prices and not ask_prices:
        if not reference or lower > upper:
            return none
        price = _clamp(reference, lower, upper)
        volume = min(demand, supply)
        surplus = demand - supply
    else:
        kept = _Kept(lower, upper)
        _search(
            kept, bid_prices, bid_quantities, ask_prices, ask_quantities, demand, market_sell, ticks, rule, reference
        )
        if kept.volume == 0:
            return none
        price = _choose(kept, ticks, rule, reference)
        volume = kept.volume
        surplus = kept.imbalance if price <= kept.high_buy else -kept.imbalance
    if all_market_must_fill and volume < max(market_buy, market_sell):
        return none
    return Equilibrium(price, volume, surplus)


class Rotation:
    """The turns of participants within one group of simultaneous orders (``SIMULTANEOUS_RR``).

    ``participants`` and ``quantities`` describe the group's orders, earliest first: an index or number of the member,
    and the open quantity. Participants take turns by their total, largest first, equal totals by earliest order; a turn
    is one round ``lot``, or what the participant still has. A later ``take`` resumes where the last one stopped, and so
    does a later rotation of the group that is given the ``turns`` of the last one; who is not named there comes behind.
    """

    def __init__(
        self, participants: list[int], quantities: list[int], lot: int, turns: list[int] | None = None
    ) -> None:
        if lot <= 0:
            raise ValueError(f"Expected a lot above 0, got {lot}")
        totals: dict[int, int] = {}  # in order of the earliest order, which the stable sort below keeps
        orders: dict[int, list[int]] = {}
        for i in range(len(participants)):
            who = participants[i]
            totals[who] = totals.get(who, 0) + quantities[i]
            if who in orders:
                orders[who].append(i)
            else:
                orders[who] = [i]
        places = {who: place for place, who in enumerate(turns or [])}
        ranking = sorted([(places.get(who, len(places)), -totals[who], i) for i, who in enumerate(totals)])
        members = list(totals)
        self._lot: Final[int] = lot
        self._open: Final[list[int]] = list(quantities)
        self._members: Final[list[int]] = [members[i] for _, _, i in ranking]
        self._orders: Final[list[list[int]]] = [orders[who] for who in self._members]
        #: What each participant may still get, in order of turns.
        self._left: Final[list[int]] = [-total for _, total, _ in ranking]
        #: Whose turn it is, and who comes after; participants with nothing left drop out at the end of a ``take``.
        self._turns: list[int] = list(range(len(ranking)))

    @property
    def turns(self) -> list[int]:
        """Who may still get something, in order of turns from now on."""
        return [self._members[who] for who in self._turns]

    def take(self, volume: int) -> list[int]:
        """Hand out ``volume`` and return the fill of each order, parallel to ``quantities``; at most what is open."""
        got = [0] * len(self._left)
        turns = self._turns
        while volume > 0 and turns:
            # Whole rounds at once: everybody gets the same number of lots and the turn stays where it is.
            rounds = volume // (self._lot * len(turns))
            for who in turns:
                rounds = min(rounds, self._left[who] // self._lot)
            if rounds:
                for who in turns:
                    got[who] += rounds * self._lot
                    self._left[who] -= rounds * self._lot
                volume -= rounds * self._lot * len(turns)
            else:
                for turn in range(len(turns)):
                    who = turns[turn]
                    share = min(self._lot, self._left[who], volume)
                    got[who] += share
                    self._left[who] -= share
                    volume -= share
                    if volume == 0:
                        turns = turns[turn + 1 :] + turns[: turn + 1]
                        break
            turns = [who for who in turns if self._left[who] > 0]
        self._turns = turns

        fills = [0] * len(self._open)
        for who in range(len(got)):
            share = got[who]
            for i in self._orders[who]:  # inside a participant: earliest first
                if share == 0:
                    break
                fill = min(share, self._open[i])
                self._open[i] -= fill
                fills[i] = fill
                share -= fill
        return fills


def allocate(
    volume: int,
    quantities: list[int],
    rule: str = PRICE_TIME,
    participants: list[int] | None = None,
    group_sizes: list[int] | None = None,
    lot: int = 1,
    turns: dict[int, list[int]] | None = None,
) -> list[int]:
    """Fills of one side, parallel to ``quantities``; they sum to ``volume`` or to all that is open, whichever is less.

    ``quantities`` are the open quantities in priority order: market orders first, then better prices, within a price
    earliest first. ``SIMULTANEOUS_RR`` also needs ``participants`` (a number for each order's member, parallel) and
    ``group_sizes`` (how many orders the market group and each price have, in the same order; they sum to the number of
    orders). Only the first ``n`` orders that can be reached by ``volume`` need to be passed, but the group in which the
    volume ends must be whole. ``turns`` are those of groups that were filled in part before, by the group's place in
    ``group_sizes``; they resume there. Afterwards it has only the group that was filled in part now, and how its turns
    go on. An unknown rule raises ``ValueError``.
    """
    count = len(quantities)
    fills = [0] * count
    left = volume
    if rule == PRICE_TIME:
        for i in range(count):
            if left <= 0:
                break
            fill = min(left, quantities[i])
            fills[i] = fill
            left -= fill
        return fills
    if rule != SIMULTANEOUS_RR:
        raise ValueError(f"Expected an allocation rule of {', '.join(ALLOCATION_RULES)}, got {rule!r}")
    if participants is None or group_sizes is None or len(participants) != count or sum(group_sizes) != count:
        raise ValueError(f"Expected {SIMULTANEOUS_RR} with a participant and a group for each of {count} orders")
    start = 0
    before = dict(turns) if turns is not None else {}
    if turns is not None:
        turns.clear()
    for place, size in enumerate(group_sizes):
        if left <= 0:
            break
        group = quantities[start : start + size]
        total = sum(group)
        if total > left:
            rotation = Rotation(participants[start : start + size], group, lot, before.get(place))
            group = rotation.take(left)
            if turns is not None:
                turns[place] = rotation.turns
            total = left
        fills[start : start + size] = group
        left -= total
        start += size
    return fills


def pair(buy_fills: list[int], sell_fills: list[int]) -> vec[i64]:
    """Trades from the fills of both sides in priority order, three integers each: index of the buy, index of the sell,
    quantity.

    Each side's fills are laid end to end in its own priority order and cut wherever either side changes order. Both
    must have the same sum, else ``ValueError``: one of the two sides was allocated from another set of orders.
    """
    trades = vec[i64]()
    buys = len(buy_fills)
    sells = len(sell_fills)
    buy = 0
    sell = 0
    buy_left = buy_fills[0] if buys else 0
    sell_left = sell_fills[0] if sells else 0
    while True:
        while buy_left == 0 and buy < buys:
            buy += 1
            buy_left = buy_fills[buy] if buy < buys else 0
        while sell_left == 0 and sell < sells:
            sell += 1
            sell_left = sell_fills[sell] if sell < sells else 0
        if buy >= buys or sell >= sells:
            break
        quantity = min(buy_left, sell_left)
        trades = append(append(append(trades, buy), sell), quantity)
        buy_left -= quantity
        sell_left -= quantity
    if buy < buys or sell < sells:
        raise ValueError(f"Expected equal fills on both sides, got {sum(buy_fills)} bought and {sum(sell_fills)} sold")
    return trades
