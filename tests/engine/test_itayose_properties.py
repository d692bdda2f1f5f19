"""What holds for every book: the price by brute force over every tick, conservation, and what a price promises.

The brute force is market-rules 3.2 written down tick by tick, with no idea shared with the engine's walk.
"""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from engine.matching.itayose import (
    PRICE_RULES,
    SIMULTANEOUS_RR,
    Equilibrium,
    Rotation,
    allocate,
    equilibrium,
    pair,
)
from engine.tables import TickTable

#: Every price of a small market is within these; the grids below go a little further.
HIGHEST = 60


class Case(NamedTuple):
    """One frozen book: price to quantity per side, market totals, limits and reference (0: none)."""

    bids: dict[int, int]
    asks: dict[int, int]
    market_buy: int
    market_sell: int
    rows: list[tuple[int, int]]
    lower: int
    upper: int
    reference: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small books on small grids: few quantities, so that ties, balances and surpluses on both sides are common."""
    rows = draw(
        st.sampled_from([[(0, 1)], [(0, 1)], [(0, 5)], [(0, 1), (20, 2)], [(0, 1), (20, 5)], [(0, 5), (20, 1)]])
    )
    ticks = TickTable(rows)
    grid = [p for p in range(1, HIGHEST) if ticks.is_valid(p)]
    middle = draw(st.sampled_from(grid))
    reach = draw(st.sampled_from([6, 15, 60]))
    near = [p for p in grid if abs(p - middle) <= reach]
    side = st.dictionaries(st.sampled_from(near), st.integers(1, 4).map(lambda n: 2 * n), max_size=5)
    none_or = st.sampled_from([0, 0, 0, *near])
    lower, upper = draw(none_or), draw(none_or)
    if lower and upper and lower > upper:
        lower, upper = upper, lower
    market = st.sampled_from([0, 0, 0, 2, 4, 30])
    return Case(draw(side), draw(side), draw(market), draw(market), rows, lower, upper, draw(none_or))


def priced(case: Case, rule: str = "jpx_ose", must_fill: bool = False) -> Equilibrium:
    bids = sorted(case.bids.items(), reverse=True)
    asks = sorted(case.asks.items())
    return equilibrium(
        [p for p, _ in bids],
        [q for _, q in bids],
        [p for p, _ in asks],
        [q for _, q in asks],
        case.market_buy,
        case.market_sell,
        TickTable(case.rows),
        case.lower,
        case.upper,
        case.reference,
        rule,
        must_fill,
    )


def tick(rows: list[tuple[int, int]], price: int, *, below: bool) -> int:
    """The tick above or below ``price``, read from the rows alone."""
    return [t for start, t in rows if (start < price if below else start <= price)][-1]


def demand(case: Case, price: int) -> int:
    return case.market_buy + sum(quantity for limit, quantity in case.bids.items() if limit >= price)


def supply(case: Case, price: int) -> int:
    return case.market_sell + sum(quantity for limit, quantity in case.asks.items() if limit <= price)


def clamp(price: int, low: int, high: int) -> int:
    return min(max(price, low), high)


def brute_force(case: Case, rule: str = "jpx_ose", must_fill: bool = False) -> Equilibrium:
    """Steps 0 to 6 of market-rules 3.2 and the table of published rules, tried on every tick there is."""
    none = Equilibrium(0, 0, 0)
    limits = [*case.bids, *case.asks]
    reference = case.reference
    lowest, highest = case.lower or 1, case.upper or 10 * HIGHEST
    if not (case.bids or case.market_buy) or not (case.asks or case.market_sell):
        return none
    if not limits:
        if not reference:
            return none
        price = clamp(reference, case.lower or reference, case.upper or reference)
    else:
        grid = [p for p in range(1, 2 * HIGHEST) if p % tick(case.rows, p, below=False) == 0]
        first = min(limits) - tick(case.rows, min(limits), below=True)
        last = max(limits) + tick(case.rows, max(limits), below=False)
        if rule == "xetra":
            grid = sorted(set(limits))
        elif rule == "euronext":
            first, last = min([*limits, reference or min(limits)]), max([*limits, reference])
        kept = [p for p in grid if first <= p <= last and lowest <= p <= highest]
        volumes = {p: min(demand(case, p), supply(case, p)) for p in kept}
        if not kept or max(volumes.values()) == 0:
            return none
        kept = [p for p in kept if volumes[p] == max(volumes.values())]
        surplus = {p: demand(case, p) - supply(case, p) for p in kept}
        smallest = min(abs(i) for i in surplus.values())
        kept = [p for p in kept if abs(surplus[p]) == smallest]
        if all(surplus[p] < 0 for p in kept):
            price = kept[0]
            if rule == "bnb" and reference:
                price = min([p for p in kept if 100 * p >= 95 * reference] or [kept[-1]])
        elif all(surplus[p] > 0 for p in kept):
            price = kept[-1]
            if rule == "bnb" and reference:
                price = max([p for p in kept if 100 * p <= 105 * reference] or [kept[0]])
        else:
            if smallest and rule in ("jpx_ose", "asx", "midpoint"):
                kept = [max(p for p in kept if surplus[p] > 0), min(p for p in kept if surplus[p] < 0)]
            if rule == "midpoint" or not reference:
                middle = (kept[0] + kept[-1]) // 2
                reference = max(p for p in range(1, middle + 1) if p % tick(case.rows, p, below=False) == 0)
            # Of two equally near the higher; on a full run of ticks this is the clamp of step 5.
            price = min(kept, key=lambda p: (abs(p - reference), -p))
    volume = min(demand(case, price), supply(case, price))
    if must_fill and volume < max(case.market_buy, case.market_sell):
        return none
    return Equilibrium(price, volume, demand(case, price) - supply(case, price))


@given(case=cases(), must_fill=st.booleans())
@example(Case({103: 10, 101: 4}, {100: 10, 102: 4}, 0, 0, [(0, 1)], 0, 0, 100), False)
def test_price_is_the_one_found_by_trying_every_tick(case: Case, must_fill: bool) -> None:
    assert priced(case, must_fill=must_fill) == brute_force(case, must_fill=must_fill)


@given(case=cases(), rule=st.sampled_from(PRICE_RULES))
def test_every_published_rule_gives_the_price_found_by_trying_every_tick(case: Case, rule: str) -> None:
    assert priced(case, rule) == brute_force(case, rule)


@given(case=cases())
@example(Case({103: 10, 101: 4}, {100: 10, 102: 4}, 0, 0, [(0, 1)], 0, 0, 100))
@example(Case({103: 10, 101: 4}, {100: 10, 102: 4}, 0, 0, [(0, 1)], 0, 0, 105))
def test_where_all_market_orders_fill_every_better_limit_than_the_price_fills_too(case: Case) -> None:
    """Market-rules 3.2: the property that the narrowing of step 5 exists for.

    As in a market, the day's limits leave room for every order in the book.
    """
    limits = [*case.bids, *case.asks]
    if limits:
        case = case._replace(lower=min(case.lower, *limits), upper=case.upper and max(case.upper, *limits))
    got = priced(case)
    if not got.price or got.volume < max(case.market_buy, case.market_sell):
        return
    better_buys = sum(quantity for limit, quantity in case.bids.items() if limit > got.price)
    better_sells = sum(quantity for limit, quantity in case.asks.items() if limit < got.price)
    assert case.market_buy + better_buys <= got.volume
    assert case.market_sell + better_sells <= got.volume


@given(case=cases())
def test_at_the_price_one_side_fills_whole(case: Case) -> None:
    got = priced(case)
    if got.price:
        assert got.volume == min(demand(case, got.price), supply(case, got.price)) > 0
        assert got.surplus == demand(case, got.price) - supply(case, got.price)


@given(case=cases(), must_fill=st.booleans())
def test_the_mirror_image_of_a_book_has_the_mirror_image_of_its_price(case: Case, must_fill: bool) -> None:
    """Neither side is favoured: swap the sides, turn the prices around, and volume stays while the surplus turns."""
    pivot = 100
    case = case._replace(rows=[(0, 1)], reference=case.reference or 30)
    mirrored = Case(
        {pivot - p: q for p, q in case.asks.items()},
        {pivot - p: q for p, q in case.bids.items()},
        case.market_sell,
        case.market_buy,
        case.rows,
        pivot - case.upper if case.upper else 0,
        pivot - case.lower if case.lower else 0,
        pivot - case.reference,
    )
    got, seen = priced(case, must_fill=must_fill), priced(mirrored, must_fill=must_fill)
    assert (got.volume, got.surplus) == (seen.volume, -seen.surplus)
    # Price 0 and below does not exist, so the image of a price at the very edge may have no counterpart.
    if got.price > 1:
        assert seen.price == pivot - got.price


def test_gaps_of_a_million_million_ticks_cost_nothing() -> None:
    """Only limits are visited: this would not end if prices between them were."""
    far = 10**12
    got = equilibrium([2 * far, far], [5, 5], [1, far + 7], [5, 5], 0, 0, TickTable([(0, 1)]), 0, 0, far + 3)
    assert got == Equilibrium(far + 3, 5, 0)


# --- allocation and pairing ------------------------------------------------------------------------------------------


class Group(NamedTuple):
    members: list[int]
    quantities: list[int]


@st.composite
def groups(draw: st.DrawFn, lot: int) -> Group:
    orders = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=8))
    return Group([member for member, _ in orders], [lots * lot for _, lots in orders])


def deal_lot_by_lot(group: Group, volume: int, lot: int) -> list[int]:
    """The rotation as anyone would do it at a table: one lot at a time."""
    totals = {m: sum(q for who, q in zip(*group, strict=True) if who == m) for m in group.members}
    turns = sorted(totals, key=lambda m: (-totals[m], group.members.index(m)))
    left = list(group.quantities)
    while volume and any(left):
        for member in turns:
            for i, who in enumerate(group.members):
                if who == member and left[i] and volume:
                    left[i] -= lot
                    volume -= lot
                    break
    return [q - rest for q, rest in zip(group.quantities, left, strict=True)]


@given(data=st.data(), lot=st.sampled_from([1, 100]), takes=st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_rotation_deals_like_one_lot_at_a_time_however_often_it_is_interrupted(
    data: st.DataObject, lot: int, takes: list[int]
) -> None:
    group = data.draw(groups(lot))
    rotation = Rotation(group.members, group.quantities, lot)
    got = [0] * len(group.quantities)
    for lots in takes:
        got = [a + b for a, b in zip(got, rotation.take(lots * lot), strict=True)]
    assert got == deal_lot_by_lot(group, sum(takes) * lot, lot)


@given(data=st.data(), volume=st.integers(0, 60), simultaneous=st.booleans())
def test_allocation_gives_out_the_volume_and_nobody_more_than_he_asked(
    data: st.DataObject, volume: int, simultaneous: bool
) -> None:
    parts = data.draw(st.lists(groups(1), max_size=4))
    members = [m for part in parts for m in part.members]
    quantities = [q for part in parts for q in part.quantities]
    sizes = [len(part.members) for part in parts]
    if simultaneous:
        fills = allocate(volume, quantities, SIMULTANEOUS_RR, members, sizes)
    else:
        fills = allocate(volume, quantities)
    assert sum(fills) == min(volume, sum(quantities))
    assert all(0 <= fill <= quantity for fill, quantity in zip(fills, quantities, strict=True))
    # A group gets something only when every group before it is filled whole.
    start = 0
    whole = True
    for size in sizes:
        part = slice(start, start + size)
        assert whole or not any(fills[part])
        whole = whole and fills[part] == quantities[part]
        start += size


@given(cut=st.lists(st.integers(0, 5), max_size=12), other=st.lists(st.integers(0, 5), max_size=12))
def test_pairing_conserves_every_fill_and_keeps_priority_on_both_sides(cut: list[int], other: list[int]) -> None:
    total = min(sum(cut), sum(other))
    buys, sells = allocate(total, cut), allocate(total, other)
    cells = list(pair(buys, sells))
    trades = list(zip(cells[::3], cells[1::3], cells[2::3], strict=True))
    for i, fill in enumerate(buys):
        assert sum(quantity for buy, _, quantity in trades if buy == i) == fill
    for i, fill in enumerate(sells):
        assert sum(quantity for _, sell, quantity in trades if sell == i) == fill
    assert all(quantity > 0 for _, _, quantity in trades)
    assert [buy for buy, _, _ in trades] == sorted(buy for buy, _, _ in trades)
    assert [sell for _, sell, _ in trades] == sorted(sell for _, sell, _ in trades)
    assert len({(buy, sell) for buy, sell, _ in trades}) == len(trades)
