"""Between book and arithmetic: what is frozen, who fills, who meets whom, and that no wrong plan passes."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest
from librt.vecs import extend, vec
from mypy_extensions import i64

from engine import BACKEND
from engine.faults import InvariantBroken
from engine.matching.auction import (
    PAIR,
    Cut,
    Frozen,
    Plan,
    Simultaneous,
    Totals,
    _peak_by_peak,
    _side_by_side,
    fills,
    freeze,
    matches,
    pair_apart,
    price,
    price_frozen,
    remainder_first,
    verify,
)
from engine.matching.book import BUY, GONE, SELL, OrderTable, ReferenceBook, pack_terms
from engine.matching.itayose import JPX_OSE, PRICE_TIME, SIMULTANEOUS_RR, Equilibrium
from engine.tables import TickTable

ONE = TickTable([(0, 1)])
INSTRUMENT = 3
#: Compiled code cannot be patched.
patches = pytest.mark.skipif(BACKEND == "compiled", reason="compiled code cannot be patched")


def book_of(*orders: tuple[int, int, int], table: OrderTable | None = None) -> tuple[OrderTable, ReferenceBook]:
    """A book of (side, price, quantity), numbered from 1; participant and priority of each are its number."""
    table = table or OrderTable()
    book = ReferenceBook(table)
    for number, (side, limit, quantity) in enumerate(orders, 1):
        book.add(table.append(pack_terms(side, 0, 0, INSTRUMENT, number), limit, quantity, number))
    return table, book


def frozen(*levels: tuple[int, dict[int, int]]) -> Frozen:
    """(price, what of each order takes part), best first; the market orders' level may be left out."""
    result = Frozen()
    if not levels or levels[0][0] != 0:
        levels = ((0, {}), *levels)
    for limit, amounts in levels:
        result.prices.append(limit)
        result.queues.append(vec[i64](amounts))
        result.amounts.append(vec[i64](amounts.values()))
    return result


def cells(*pairs: tuple[int, int, int]) -> vec[i64]:
    """Pairs of (buy, sell, quantity) as a plan has them."""
    return vec[i64]([number for pair in pairs for number in pair])


def pairs_of(found: vec[i64]) -> list[tuple[int, int, int]]:
    assert len(found) % PAIR == 0
    return [(found[at], found[at + 1], found[at + 2]) for at in range(0, len(found), PAIR)]


def levels(side: Frozen) -> list[tuple[int, dict[int, int]]]:
    assert len(side.prices) == len(side.queues) == len(side.amounts)
    return [
        (limit, dict(zip(queue, amounts, strict=True)))
        for limit, queue, amounts in zip(side.prices, side.queues, side.amounts, strict=True)
    ]


# --- pricing a book as it stands -------------------------------------------------------------------------------------


def test_a_book_is_priced_with_what_it_shows_and_what_it_hides() -> None:
    _, book = book_of((BUY, 101, 5), (BUY, 99, 3), (SELL, 99, 4), (SELL, 100, 4), (BUY, 0, 2), (SELL, 0, 1))

    def priced(*hidden: tuple[int, int, int], lower: int = 0, upper: int = 0) -> Equilibrium:
        return price(book, ONE, lower, upper, 100, JPX_OSE, False, list(hidden))

    assert priced() == Equilibrium(100, 7, -2)
    assert priced((BUY, 101, 10)) == Equilibrium(101, 9, 8)
    assert priced((BUY, 101, 1), (BUY, 101, 1)) == Equilibrium(100, 9, 0)
    assert priced((SELL, 99, 10)) == Equilibrium(99, 10, -5)
    assert priced((SELL, 100, 2), (SELL, 100, 2)) == Equilibrium(100, 7, -6)
    assert priced(lower=101) == Equilibrium(101, 7, -2)
    assert priced(upper=99) == Equilibrium(99, 5, 5)
    assert price(book, ONE, 0, 0, 100, JPX_OSE, True, []) == Equilibrium(100, 7, -2)


def test_market_orders_of_a_book_that_cannot_all_fill_leave_it_without_a_price_where_they_must() -> None:
    _, book = book_of((BUY, 0, 5), (SELL, 100, 4))
    assert price(book, ONE, 0, 0, 100, JPX_OSE, False, []) == Equilibrium(101, 4, 1)
    assert price(book, ONE, 0, 0, 100, JPX_OSE, True, []) == Equilibrium(0, 0, 0)


def test_a_frozen_book_has_the_price_of_the_book() -> None:
    table, book = book_of((BUY, 101, 5), (BUY, 99, 3), (SELL, 99, 4), (SELL, 100, 4), (BUY, 0, 2), (SELL, 0, 1))
    bids, asks = (freeze(table, book, side, INSTRUMENT, {}) for side in (BUY, SELL))

    def priced(lower: int = 0, upper: int = 0, reference: int = 0, must_fill: bool = False) -> Equilibrium:
        ours = price_frozen(bids, asks, ONE, lower, upper, reference, JPX_OSE, must_fill)
        assert ours == price(book, ONE, lower, upper, reference, JPX_OSE, must_fill, [])
        return ours

    assert priced() == Equilibrium(100, 7, -2)
    assert priced(lower=101) == Equilibrium(101, 7, -2)
    assert priced(upper=99) == Equilibrium(99, 5, 5)
    assert price_frozen(bids, asks, ONE, 0, 0, 0, "xetra", False).price == 100
    with pytest.raises(ValueError, match="Expected a price rule"):
        price_frozen(bids, asks, ONE, 0, 0, 0, "bourse", False)


def test_a_frozen_book_is_priced_near_its_reference_and_only_if_all_market_orders_fill_where_they_must() -> None:
    bids, asks = frozen((110, {1: 8})), frozen((100, {2: 8}))
    assert [price_frozen(bids, asks, ONE, 0, 0, near, JPX_OSE, False).price for near in (103, 107)] == [103, 107]
    bids = frozen((0, {1: 9}))
    assert price_frozen(bids, asks, ONE, 0, 0, 0, JPX_OSE, False) == Equilibrium(101, 8, 1)
    assert price_frozen(bids, asks, ONE, 0, 0, 0, JPX_OSE, True) == Equilibrium(0, 0, 0)


# --- a frozen side ---------------------------------------------------------------------------------------------------


def test_freezing_reads_market_orders_first_then_every_price_best_first_in_time_order() -> None:
    table, book = book_of((BUY, 99, 1), (BUY, 101, 2), (BUY, 0, 3), (BUY, 101, 4), (SELL, 0, 5), (SELL, 98, 6))

    assert levels(freeze(table, book, BUY, INSTRUMENT, {})) == [(0, {3: 3}), (101, {2: 2, 4: 4}), (99, {1: 1})]
    assert levels(freeze(table, book, SELL, INSTRUMENT, {})) == [(0, {5: 5}), (98, {6: 6})]
    table, book = book_of()
    assert levels(freeze(table, book, SELL, INSTRUMENT, {})) == [(0, {})]


def test_icebergs_are_frozen_with_what_they_hide() -> None:
    table, book = book_of((SELL, 100, 5), (SELL, 100, 6))

    assert levels(freeze(table, book, SELL, INSTRUMENT, {1: 40})) == [(0, {}), (100, {1: 45, 2: 6})]


#: What is wrong with the second order of a queue of three, and what is said of it.
CONTRADICTIONS = {
    "nobody": ("next", -1, "A queue leads to order -1, and there are 4"),
    "one beyond all": ("next", 5, "A queue leads to order 5, and there are 4"),
    "one beyond all memory": ("next", 2**40, "A queue leads to order 1099511627776, and there are 4"),
    "in a circle": ("next", 2, "Order 2 does not name 2 as the one before it"),
    "the last there is": ("next", 4, "Order 4 does not name 2 as the one before it"),
    "another before it": ("previous", 3, "Order 2 does not name 1 as the one before it"),
    "another price": ("price", 99, "Order 2 queues where it does not belong"),
    "another side": ("terms", pack_terms(BUY, 0, 0, INSTRUMENT, 1), "Order 2 queues where it does not belong"),
    "another instrument": ("terms", pack_terms(SELL, 0, 0, 4, 1), "Order 2 queues where it does not belong"),
    "gone": ("state", GONE, "Order 2 is queued with 5 open, which cannot be"),
    "filled": ("open", 0, "Order 2 is queued with 0 open, which cannot be"),
    "less than filled": ("open", -1, "Order 2 is queued with -1 open, which cannot be"),
    "more than it had": ("open", 6, "Order 2 is queued with 6 open, which cannot be"),
    "less than the level": ("open", 4, "The queue holds 14, its level says 15"),
}


@pytest.mark.parametrize(("column", "value", "says"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_book_that_contradicts_itself_is_not_frozen(column: str, value: int, says: str) -> None:
    table, book = book_of((SELL, 100, 5), (SELL, 100, 5), (SELL, 100, 5), (BUY, 99, 5))
    getattr(table, column)[2] = value

    with pytest.raises(InvariantBroken, match=f"^{says}: side 1, price 100$"):
        freeze(table, book, SELL, INSTRUMENT, {})

    assert levels(freeze(table, book, BUY, INSTRUMENT, {})) == [(0, {}), (99, {4: 5})]


def test_an_order_of_one_unit_is_frozen() -> None:
    table, book = book_of((SELL, 100, 1), (SELL, 0, 1), (SELL, 1, 1))
    assert levels(freeze(table, book, SELL, INSTRUMENT, {})) == [(0, {2: 1}), (1, {3: 1}), (100, {1: 1})]


@pytest.mark.parametrize("side", [BUY, SELL])
def test_a_book_of_many_prices_is_frozen_queue_by_queue(side: int) -> None:
    draw = random.Random(side)
    orders = [(side, draw.choice([0, 100, 101, 200]), draw.randrange(1, 9)) for _ in range(300)]
    orders += [(side, 100 + draw.randrange(20), draw.randrange(1, 9)) for _ in range(300)]
    table, book = book_of(*orders)
    for order in range(1, 600, 7):
        book.remove(order)
        book.add(order)

    made = freeze(table, book, side, INSTRUMENT, {})

    assert len(made.prices) == 22
    assert made.prices[1:] == sorted(made.prices[1:], reverse=side == BUY)
    for limit, queue in levels(made):
        assert list(queue) == book.queue(table, side, limit)
        assert queue == {order: table.open[order] for order in queue}


@pytest.mark.parametrize("price", range(100, 120))
def test_a_contradiction_is_told_at_whatever_price_it_stands(price: int) -> None:
    table, book = book_of(*[(SELL, 100 + n % 20, 5) for n in range(100)])
    second = book.queue(table, SELL, price)[1]
    table.previous[second] = 0
    with pytest.raises(InvariantBroken, match=f"^Order {second} does not name {second - 20} as the one before it: "):
        freeze(table, book, SELL, INSTRUMENT, {})
    table.previous[second] = second - 20
    table.next[second] = -7
    with pytest.raises(InvariantBroken, match=f"^A queue leads to order -7, and there are 100: side 1, price {price}$"):
        freeze(table, book, SELL, INSTRUMENT, {})
    table.next[second] = 0
    with pytest.raises(InvariantBroken, match=f"^The queue holds 10, its level says 25: side 1, price {price}$"):
        freeze(table, book, SELL, INSTRUMENT, {})


def test_queues_are_followed_side_by_side_as_far_as_each_order_names_the_one_before_it() -> None:
    table, _ = book_of(*[(SELL, price, 5) for price in (100, 101, 100, 101, 100, 103, 101, 101)])

    def steps(*heads: int, count: int = 8) -> list[list[int]]:
        found = list(_side_by_side(table.rows, count, vec[i64](heads)))
        rows = [found[at : at + len(heads)] for at in range(0, len(found), len(heads))]
        return rows[: rows.index([0] * len(heads)) + 1]

    assert steps(1, 2, 6, 0) == [[1, 2, 6, 0], [3, 4, 0, 0], [5, 7, 0, 0], [0, 8, 0, 0], [0, 0, 0, 0]]
    assert steps(2) == [[2], [4], [7], [8], [0]]
    assert steps(0) == [[0]]
    assert steps(2, count=7) == [[2], [4], [7], [8], [0]]
    assert steps(3, 4) == [[3, 4], [0, 0]]
    table.next[7] = 1
    assert steps(2, 1) == [[2, 1], [4, 3], [7, 5], [1, 0], [0, 0]]
    table.next[7] = 4
    assert steps(2) == [[2], [4], [7], [4], [0]]
    for nobody in (-1, 9, 2**40):
        table.next[7] = nobody
        assert steps(2) == [[2], [4], [7], [nobody], [0]]


@patches
@pytest.mark.parametrize(
    ("side", "ladder", "wrong"),
    [
        (BUY, [100, 101], 101),
        (BUY, [100, 100], 100),
        (SELL, [101, 100], 100),
        (SELL, [101, 101], 101),
        (SELL, [-1], -1),
        (BUY, [100, 99, 100], 100),
        (SELL, [99, 101, 100], 100),
    ],
)
def test_prices_that_do_not_get_worse_are_not_frozen(side: int, ladder: list[int], wrong: int) -> None:
    table, book = book_of(*[(side, limit, 5) for limit in sorted(set(ladder))])

    def out_of_order(_: int, prices: list[int], quantities: list[int]) -> None:
        prices.extend(ladder)
        quantities.extend([5] * len(ladder))

    book.levels = out_of_order  # type: ignore[method-assign]

    with pytest.raises(
        InvariantBroken, match=f"A level does not stand behind a better one: side {side}, price {wrong}$"
    ):
        freeze(table, book, side, INSTRUMENT, {})


def test_what_takes_part_of_an_order_is_known_by_its_price() -> None:
    side = frozen((0, {7: 4}), (100, {1: 5, 2: 6}), (101, {3: 7}))
    assert [side.amount(100, order) for order in (1, 2, 3)] == [5, 6, 0]
    assert (side.amount(101, 3), side.amount(0, 7)) == (7, 4)


def test_what_is_taken_off_an_order_does_not_take_part_and_nothing_left_leaves() -> None:
    side = frozen((100, {1: 5, 2: 6}), (101, {3: 7}))

    side.take_off(100, 2, 5)
    assert levels(side) == [(0, {}), (100, {1: 5, 2: 1}), (101, {3: 7})]
    side.take_off(100, 1, 5)
    side.take_off(101, 3, 8)
    assert levels(side) == [(0, {}), (100, {2: 1}), (101, {})]
    side.take_off(100, 2, 1)
    assert levels(side) == [(0, {}), (100, {}), (101, {})]


@pytest.mark.parametrize(("side", "ladder"), [(BUY, [0, 103, 101, 99]), (SELL, [0, 99, 101, 103])])
def test_an_order_joins_last_at_its_price(side: int, ladder: list[int]) -> None:
    for limit in (0, 98, 99, 100, 101, 103, 104):
        ours = frozen(*[(level, {level + 1: 5}) for level in ladder])

        ours.join(side, limit, 7, 2)

        prices = sorted({*ladder[1:], *([limit] if limit else [])}, reverse=side == BUY)
        assert levels(ours) == [
            (level, ({level + 1: 5} if level in ladder else {}) | ({7: 2} if level == limit else {}))
            for level in [0, *prices]
        ]


@pytest.mark.parametrize(("side", "ladder"), [(BUY, [103, 101]), (SELL, [101, 103])])
def test_orders_are_let_in_behind_all_who_can_trade_at_a_price(side: int, ladder: list[int]) -> None:
    for limit in (100, 101, 102, 103, 104):
        ours = frozen(*[(level, {level: 5}) for level in ladder])

        ours.let_in(side, limit, [7, 8], [2, 3])

        better = [level for level in ladder if (level >= limit if side == BUY else level <= limit)]
        expected = [(level, {level: 5}) for level in better]
        expected += [(limit, {7: 2, 8: 3})]
        expected += [(level, {level: 5}) for level in ladder[len(better) :]]
        assert levels(ours) == [(0, {}), *expected]


def test_what_reaches_a_price_has_no_limit_or_a_limit_as_good() -> None:
    bids = frozen((0, {1: 1}), (103, {2: 2, 3: 4}), (101, {4: 8}))
    assert [bids.reaching(BUY, limit) for limit in (0, 104, 103, 102, 101, 100)] == [1, 1, 7, 7, 15, 15]
    asks = frozen((0, {1: 1}), (101, {2: 2, 3: 4}), (103, {4: 8}))
    assert [asks.reaching(SELL, limit) for limit in (0, 100, 101, 102, 103, 104)] == [1, 1, 7, 7, 15, 15]


def test_totals_leave_out_what_has_no_limit_and_prices_at_which_nobody_is_left() -> None:
    prices: list[int] = []
    quantities: list[int] = []
    side = frozen((0, {1: 1, 5: 2}), (103, {}), (101, {2: 2, 3: 4}), (100, {4: 9}))
    assert side.totals(prices, quantities) == 3
    assert (prices, quantities) == ([101, 100], [6, 9])


# --- fills -----------------------------------------------------------------------------------------------------------


def filled(side: Frozen, volume: int, rule: str = PRICE_TIME, alike: int = 0, lot: int = 1, **peaks: tuple[int, int]):
    """(order, fill) for the orders that volume can reach, all of them of a table in which each has its own member."""
    table, _ = book_of(*[(BUY, 1, 1)] * 9)
    orders: list[int] = []
    by_order = {int(name[1:]): sizes for name, sizes in peaks.items()}
    got = fills(side, table, volume, rule, lot, orders, by_order, alike)
    return list(zip(orders, got, strict=True))


def test_fills_reach_as_far_as_the_volume_and_no_further() -> None:
    side = frozen((0, {1: 3}), (101, {2: 4, 3: 5}), (100, {4: 6}))
    assert filled(side, 3) == [(1, 3)]
    assert filled(side, 4) == [(1, 3), (2, 1), (3, 0)]
    assert filled(side, 12) == [(1, 3), (2, 4), (3, 5)]
    assert filled(side, 13) == [(1, 3), (2, 4), (3, 5), (4, 1)]


def test_orders_are_no_one_group_unless_that_is_said() -> None:
    table, _ = book_of((BUY, 1, 1))
    orders: list[int] = []
    assert fills(frozen((101, {1: 4})), table, 3, PRICE_TIME, 1, orders, {}) == [3]
    assert orders == [1]


def test_fills_in_turns_are_by_participant_within_a_price() -> None:
    side = frozen((0, {1: 3}), (101, {2: 4, 3: 5}), (100, {4: 6}))
    assert filled(side, 8, SIMULTANEOUS_RR) == [(1, 3), (2, 2), (3, 3)]
    assert filled(side, 7, SIMULTANEOUS_RR, lot=3) == [(1, 3), (2, 1), (3, 3)]
    assert filled(side, 14, SIMULTANEOUS_RR) == [(1, 3), (2, 4), (3, 5), (4, 2)]


def test_members_take_turns_among_neighbours_of_one_period_from_where_they_stopped() -> None:
    side = frozen((101, {1: 2}), (100, {2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 2, 8: 2}))
    periods = {1: 5, 2: 5, 3: 5, 4: 0, 6: 9, 7: 9, 8: 5}
    table, _ = book_of(*[(BUY, 1, 1)] * 9)

    def shared(volume: int, begun: dict[int, tuple[int, list[int]]]) -> tuple[list[int], Simultaneous]:
        simultaneous = Simultaneous(periods, begun)
        got = fills(side, table, volume, SIMULTANEOUS_RR, 1, [], {}, simultaneous=simultaneous)
        return got, simultaneous

    got, cut = shared(4, {})
    assert got == [2, 1, 1, 0, 0, 0, 0, 0]
    assert (cut.price, cut.period, cut.turns) == (100, 5, [2, 3])
    assert shared(3, {})[1].turns == [3, 2]
    assert shared(3, {100: (5, [3, 2])})[0] == [2, 0, 1, 0, 0, 0, 0, 0]
    assert shared(3, {100: (9, [3, 2])})[0] == [2, 1, 0, 0, 0, 0, 0, 0]
    assert shared(3, {101: (5, [3, 2])})[0] == [2, 1, 0, 0, 0, 0, 0, 0]
    got, cut = shared(9, {})
    assert got == [2, 2, 2, 2, 1, 0, 0, 0]
    assert (cut.price, cut.period, cut.turns) == (100, 0, [5])
    got, cut = shared(11, {100: (9, [7, 6])})
    assert got == [2, 2, 2, 2, 2, 0, 1, 0]
    assert (cut.price, cut.period, cut.turns) == (100, 9, [6, 7])
    got, cut = shared(10, {})
    assert got == [2, 2, 2, 2, 2, 0, 0, 0]
    assert (cut.price, cut.period, cut.turns) == (0, 0, [])


def test_fills_of_one_group_are_by_time_of_entry_whatever_the_limit() -> None:
    side = frozen((0, {5: 3}), (101, {2: 4, 6: 5}), (100, {1: 6}), (99, {4: 9}))
    assert filled(side, 12, alike=3) == [(1, 6), (2, 4), (5, 2), (6, 0)]
    assert filled(side, 12, SIMULTANEOUS_RR, alike=3) == [(1, 3), (2, 3), (5, 3), (6, 3)]
    assert filled(side, 4, SIMULTANEOUS_RR, alike=3, lot=3) == [(1, 3), (2, 0), (5, 0), (6, 1)]


def test_what_reaches_beyond_one_group_fills_in_the_usual_order_behind_it() -> None:
    side = frozen((0, {5: 3}), (101, {2: 4, 6: 5}), (100, {1: 6}), (99, {4: 9}))
    assert filled(side, 20, alike=3) == [(1, 6), (2, 4), (5, 3), (6, 5), (4, 2)]


def test_a_market_order_that_came_late_to_the_book_stands_behind_the_others_unless_all_are_alike() -> None:
    table, _ = book_of(*[(BUY, 0, 3)] * 2)
    side = frozen((0, {2: 3, 1: 3}))  # at the close a funari order comes to the market orders with its time of entry
    orders: list[int] = []
    assert fills(side, table, 4, PRICE_TIME, 1, orders, {}) == [3, 1]
    assert orders == [2, 1]
    assert filled(side, 4, alike=1) == [(1, 3), (2, 1)]


def test_icebergs_fill_peak_by_peak() -> None:
    side = frozen((101, {1: 10, 2: 4}), (100, {3: 6}))
    assert filled(side, 14, o1=(3, 5)) == [(1, 3), (2, 4), (1, 5), (1, 2)]
    assert filled(side, 8, o1=(3, 5)) == [(1, 3), (2, 4), (1, 1), (1, 0)]


def test_the_first_peak_of_an_order_may_be_smaller_or_larger_than_its_others() -> None:
    assert _peak_by_peak([1, 2, 3], [10, 4, 7], {1: (3, 5), 3: (6, 1)}) == (
        [1, 2, 3, 1, 3, 1],
        [3, 4, 6, 5, 1, 2],
    )
    assert _peak_by_peak([1], [7], {1: (3, 2)}) == ([1, 1, 1], [3, 2, 2])
    assert _peak_by_peak([], [], {}) == ([], [])


def test_a_queue_with_more_orders_than_quantities_has_no_peaks() -> None:
    with pytest.raises(ValueError, match="zip"):
        _peak_by_peak([1, 2], [5], {})


# --- pairs -----------------------------------------------------------------------------------------------------------


def met(buys: dict[int, int], sells: dict[int, int], groups: dict[int, int] | None) -> list[tuple[int, int, int]]:
    return pairs_of(matches(list(buys), list(buys.values()), list(sells), list(sells.values()), groups))


def test_without_groups_priority_decides_who_meets_whom() -> None:
    expected = [(1, 3, 4), (1, 4, 1), (2, 4, 2)]
    assert met({1: 5, 2: 2}, {3: 4, 4: 3}, None) == expected
    assert met({1: 5, 2: 2}, {3: 4, 4: 3}, {}) == expected
    assert met({1: 5, 2: 2}, {3: 4, 4: 3}, {8: 1}) == expected
    assert met({1: 5, 2: 2}, {3: 4, 4: 3}, {1: 0, 3: 1}) == expected


@pytest.mark.parametrize("group", [0, 1, 2])
def test_two_orders_of_one_group_do_not_meet(group: int) -> None:
    assert met({1: 4, 2: 4}, {3: 4, 4: 4}, {1: group, 3: group}) == [(1, 4, 4), (2, 3, 4)]
    assert met({1: 4, 2: 4}, {3: 4, 4: 4}, {2: group, 4: group}) == [(1, 4, 4), (2, 3, 4)]
    assert met({1: 2, 2: 2, 5: 1}, {3: 2, 4: 2, 6: 1}, {1: group, 3: group}) == [(1, 4, 2), (2, 3, 2), (5, 6, 1)]


def test_orders_of_no_group_may_meet_each_other_also_where_others_may_not() -> None:
    for group in (0, 1):
        assert met({1: 5, 2: 5}, {3: 5, 4: 5}, {1: group, 3: 1 - group}) == [(1, 3, 5), (2, 4, 5)]
        assert met({5: 1, 1: 2, 2: 2}, {6: 1, 3: 2, 4: 2}, {1: group, 3: group}) == [(5, 6, 1), (1, 4, 2), (2, 3, 2)]


def unit_by_unit(buys: list[tuple[int, int]], sells: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
    """What ``pair_apart`` says of itself, for sides of (quantity, group), one unit at a time; None: impossible."""
    left = [i for i, (quantity, _) in enumerate(buys) for _ in range(quantity)]
    units = [j for j, (quantity, _) in enumerate(sells) for _ in range(quantity)]
    if len(left) != len(units):
        return None

    def totals() -> dict[int, int]:
        all_of = [buys[i][1] for i in left] + [sells[j][1] for j in units]
        return {group: all_of.count(group) for group in all_of if group >= 0}

    if max(totals().values(), default=0) > len(left):
        return None
    pairs = []
    while left:
        mine = buys[left[0]][1]
        tight = [group for group, total in totals().items() if total == len(left) and group != mine]
        if tight:
            j = next(j for j in units if sells[j][1] == tight[0])
        else:
            j = next(j for j in units if sells[j][1] != mine or mine < 0)
        pairs.append((left.pop(0), j))
        units.remove(j)
    return pairs


def sides(most: int, groups: list[int], length: int) -> list[list[tuple[int, int]]]:
    orders = [(quantity, group) for quantity in range(1, most + 1) for group in groups]
    return [list(side) for n in range(1, length + 1) for side in itertools.product(orders, repeat=n)]


@pytest.mark.parametrize(
    ("buy_sides", "sell_sides"),
    [
        (sides(3, [-1, 0, 1], 2), sides(3, [-1, 0, 1], 2)),
        (sides(2, [0, 1, 2], 2), sides(1, [0, 1, 2], 4)),
        (sides(1, [0, 1, 2], 4), sides(2, [0, 1, 2], 2)),
    ],
)
def test_pairs_across_groups_are_those_that_one_unit_at_a_time_would_make(
    buy_sides: list[list[tuple[int, int]]], sell_sides: list[list[tuple[int, int]]]
) -> None:
    for buys, sells in itertools.product(buy_sides, sell_sides):
        expected = unit_by_unit(buys, sells)
        arguments = [q for q, _ in buys], [g for _, g in buys], [q for q, _ in sells], [g for _, g in sells]
        if expected is None:
            with pytest.raises(ValueError, match="Expected equal fills that can be paired across groups"):
                pair_apart(*arguments)
        else:
            pairs = pair_apart(*arguments)
            assert [(i, j) for i, j, quantity in pairs for _ in range(quantity)] == expected, (buys, sells)


def test_pairs_across_groups_are_as_large_as_they_may_be() -> None:
    assert pair_apart([5, 5], [0, 1], [5, 5], [1, 0]) == [(0, 0, 5), (1, 1, 5)]
    assert pair_apart([6], [-1], [2, 4], [0, -1]) == [(0, 0, 2), (0, 1, 4)]
    # The first buy meets the first sell until group 0 has as much left as there is; from then on all meet group 0.
    assert pair_apart([6, 4], [-1, -1], [6, 4], [1, 0]) == [(0, 0, 6), (1, 1, 4)]
    assert pair_apart([6, 4], [-1, 0], [6, 4], [1, 0]) == [(0, 0, 2), (0, 1, 4), (1, 0, 4)]


def test_orders_without_a_fill_or_a_group_hinder_no_pair() -> None:
    assert pair_apart([0, 3], [0, 0], [0, 3], [0, 1]) == [(1, 1, 3)]
    assert pair_apart([3], [-1], [3], [-1]) == [(0, 0, 3)]
    assert pair_apart([], [], [], []) == []


def test_what_cannot_be_paired_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"^Expected equal fills that can be paired across groups, got \{0: 4\} of 3$"):
        pair_apart([3], [-1], [4], [0])
    with pytest.raises(ValueError, match=r"across groups, got \{0: 6\} of 3$"):
        pair_apart([3], [0], [3], [0])
    with pytest.raises(ValueError, match=r"across groups, got \{\} of 3$"):
        pair_apart([3], [-1], [2], [-1])


# --- what a plan must be ---------------------------------------------------------------------------------------------


def plan_of(
    bids: Frozen, asks: Frozen, result: tuple[int, int, int], *pairs: tuple[int, int, int], sharing: str = ""
) -> Plan:
    plan = Plan(bids, asks, 0, False)
    plan.result = Equilibrium(*result, sharing)
    plan.matches = cells(*pairs)
    return plan


def good_plan() -> Plan:
    """Market buy 1, buys 2 and 3 at 102, buy 4 at 100; sells 5 and 6 at 99, sell 7 at 101, at a price of 100."""
    bids = frozen((0, {1: 5}), (102, {2: 3, 3: 4}), (100, {4: 6}), (98, {8: 9}))
    asks = frozen((0, {9: 1}), (99, {5: 7, 6: 7}), (101, {7: 9}))
    pairs = [(1, 9, 1), (1, 5, 4), (2, 5, 3), (3, 6, 4), (4, 6, 3)]
    return plan_of(bids, asks, (100, 15, 3), *pairs)


def check(
    plan: Plan, lower: int = 0, upper: int = 0, must_fill: bool = False, groups: dict[int, int] | None = None
) -> None:
    verify(plan, OrderTable(), TickTable([(0, 2)]), lower, upper, must_fill, groups)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("more", [0, 1])
def test_what_an_order_trades_is_added_up_wherever_its_pairs_stand(side: int, more: int) -> None:
    """Order 1 meets 3 and 4 with order 2 between them, or at the end, and has 4 of its own."""
    for last in (False, True):
        pairs = [(1, 3, 2), (2, 3, 5), (1, 4, 2 + more), (2, 4, 5 - more)]
        if last:
            pairs[2:] = pairs[:1:-1]
        one, other = frozen((100, {1: 4, 2: 10})), frozen((100, {3: 7, 4: 7}))
        if side:
            one, other, pairs = other, one, [(sell, buy, quantity) for buy, sell, quantity in pairs]
        plan = plan_of(one, other, (100, 14, 0), *pairs)
        if more:
            with pytest.raises(InvariantBroken, match=r"^Order 1 is to trade 5, it has 4$"):
                check(plan)
        else:
            check(plan)


def test_totals_are_those_of_each_order_however_many_there_are() -> None:
    draw = random.Random(3)
    for count in (0, 1, 2, 3, 4, 5, 1_000):
        pairs = [
            (draw.randrange(1, 2 * count), draw.randrange(1, count + 1), draw.randrange(1, 9)) for _ in range(count)
        ]
        pairs += pairs[: count // 2]
        for side in (BUY, SELL):
            totals = Totals(cells(*pairs), side)
            expected = Counter[int]()
            for pair in pairs:
                expected[pair[side]] += pair[2]
            assert totals.count == len(expected)
            assert [totals.of(order) for order in range(1, 2 * count + 2)] == [
                expected[order] for order in range(1, 2 * count + 2)
            ]


def test_totals_are_at_most_half_full() -> None:
    for count, size in ((0, 2), (1, 2), (2, 4), (3, 8), (4, 8), (5, 16), (8, 16), (9, 32), (1_000, 2_048)):
        pairs = [(order, 2_000, 1) for order in range(1, count + 1) for _ in range(2)]
        sides = Totals(cells(*pairs), BUY), Totals(cells(*[(sell, buy, one) for buy, sell, one in pairs]), SELL)
        assert [(side.count, len(side._cells)) for side in sides] == [(count, 2 * size)] * 2


def test_a_plan_that_is_right_passes() -> None:
    check(good_plan())
    check(good_plan(), lower=100, upper=100, must_fill=True, groups={1: 0, 2: 0, 6: 1, 7: 0})
    check(plan_of(frozen(), frozen(), (0, 0, 0)), lower=90, upper=110, must_fill=True)


def with_result(*result: int) -> Callable[[Plan], None]:
    def spoil(plan: Plan) -> None:
        plan.result = Equilibrium(*result)

    return spoil


def with_pairs(*pairs: tuple[int, int, int]) -> Callable[[Plan], None]:
    def spoil(plan: Plan) -> None:
        plan.matches = cells(*pairs)

    return spoil


def and_pair(*pair: int) -> Callable[[Plan], None]:
    def spoil(plan: Plan) -> None:
        plan.matches = extend(plan.matches, pair)

    return spoil


SPOILT = {
    "trades without a price": (with_result(0, 0, 0), "An auction without a price has 5 trades of 0"),
    "volume without a price": (
        lambda plan: (with_result(0, 15, 0)(plan), with_pairs()(plan)),
        "An auction without a price has 0 trades of 15",
    ),
    "off the grid": (with_result(101, 15, 3), "Expected an auction price on the grid from 90 to 110, got 101"),
    "below the limits": (with_result(88, 15, 3), "Expected an auction price on the grid from 90 to 110, got 88"),
    "above the limits": (with_result(112, 15, 3), "Expected an auction price on the grid from 90 to 110, got 112"),
    "nothing to trade": (
        and_pair(4, 6, 0),
        "Orders 4 and 6 are to trade 0",
    ),
    "less than nothing to trade": (
        and_pair(4, 6, -1),
        "Orders 4 and 6 are to trade -1",
    ),
    "too little": (
        with_pairs((1, 9, 1), (1, 5, 4), (2, 5, 3), (3, 6, 4), (4, 6, 2)),
        "Expected trades of 15, the auction's volume, got 14",
    ),
    "too much": (
        with_pairs((1, 9, 1), (1, 5, 4), (2, 5, 3), (3, 6, 4), (4, 6, 4)),
        "Expected trades of 15, the auction's volume, got 16",
    ),
    "another price": (
        with_result(102, 15, 3),
        "1 orders are to trade at 102, which they did not ask for",
    ),
    "another surplus": (
        with_result(100, 15, 2),
        "Expected volume 15 and surplus 2 at 100, got demand 18 and supply 15$",
    ),
    "another volume": (
        lambda plan: (
            with_result(100, 14, 3)(plan),
            with_pairs((1, 9, 1), (1, 5, 4), (2, 5, 3), (3, 6, 4), (4, 6, 2))(plan),
        ),
        "Expected volume 14 and surplus 3 at 100, got demand 18 and supply 15$",
    ),
    "more than an order has": (
        with_pairs((1, 9, 1), (1, 5, 4), (2, 5, 4), (3, 6, 3), (4, 6, 3)),
        "Order 2 is to trade 4, it has 3",
    ),
    "more than an order has, in two trades": (
        with_pairs((1, 9, 1), (1, 5, 4), (2, 5, 2), (3, 6, 2), (4, 6, 2), (2, 6, 2), (3, 5, 1), (4, 6, 1)),
        "Order 2 is to trade 4, it has 3",
    ),
    "more than a sell has": (
        with_pairs((1, 9, 1), (1, 5, 4), (2, 5, 3), (3, 5, 4), (4, 6, 3)),
        "Order 5 is to trade 11, it has 7",
    ),
    "a buyer passed over": (
        with_pairs((1, 9, 1), (1, 5, 4), (2, 5, 3), (3, 6, 3), (4, 6, 4)),
        "Orders at 100 are to trade before others of side 0 with a better claim",
    ),
    "a market order passed over": (
        with_pairs((1, 9, 1), (1, 5, 3), (2, 5, 3), (3, 6, 4), (4, 6, 3), (4, 5, 1)),
        "Orders at 102 are to trade before others of side 0 with a better claim",
    ),
    "a limit that is not reached": (
        with_pairs((1, 9, 1), (1, 5, 4), (2, 5, 3), (3, 6, 4), (8, 6, 3)),
        "1 orders are to trade at 100, which they did not ask for",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT)
def test_a_plan_that_is_wrong_is_told_what_is_wrong(spoil: Callable[[Plan], object], says: str) -> None:
    plan = good_plan()
    spoil(plan)

    with pytest.raises(InvariantBroken, match=f"^{says}"):
        check(plan, 90, 110)


def test_a_seller_with_a_better_claim_is_not_passed_over() -> None:
    bids, asks = frozen((100, {1: 5})), frozen((0, {2: 1}), (99, {3: 3, 4: 2}), (100, {5: 9}))
    check(plan_of(bids, asks, (100, 5, -10), (1, 2, 1), (1, 3, 3), (1, 4, 1)))
    with pytest.raises(
        InvariantBroken, match=r"^Orders at 99 are to trade before others of side 1 with a better claim"
    ):
        check(plan_of(bids, asks, (100, 5, -10), (1, 3, 3), (1, 4, 2)))
    with pytest.raises(InvariantBroken, match=r"^Orders at 100 are to trade before others of side 1"):
        check(plan_of(bids, asks, (100, 5, -10), (1, 2, 1), (1, 3, 3), (1, 5, 1)))
    # Nobody of the middle price trades, and yet it is they who are passed over.
    with pytest.raises(InvariantBroken, match=r"^Orders at 100 are to trade before others of side 1"):
        check(plan_of(bids, asks, (100, 5, -10), (1, 2, 1), (1, 5, 4)))


def test_a_better_claim_counts_nothing_where_all_who_can_trade_are_alike() -> None:
    bids, asks = frozen((100, {1: 5})), frozen((99, {3: 5}), (100, {5: 9}))
    check(plan_of(bids, asks, (100, 5, -9), (1, 5, 5), sharing=PRICE_TIME))
    with pytest.raises(InvariantBroken, match="better claim"):
        check(plan_of(bids, asks, (100, 5, -9), (1, 5, 5)))
    bids, asks = frozen((101, {3: 5}), (100, {5: 9})), frozen((100, {1: 5}))
    check(plan_of(bids, asks, (100, 5, 9), (5, 1, 5), sharing=PRICE_TIME))
    with pytest.raises(InvariantBroken, match="better claim"):
        check(plan_of(bids, asks, (100, 5, 9), (5, 1, 5)))


def test_orders_that_did_not_ask_are_counted() -> None:
    bids, asks = frozen((100, {1: 5})), frozen((100, {2: 5}), (102, {3: 5, 4: 5}))
    with pytest.raises(InvariantBroken, match=r"^2 orders are to trade at 100, which they did not ask for$"):
        check(plan_of(bids, asks, (100, 5, 0), (1, 3, 2), (1, 4, 3)))
    with pytest.raises(InvariantBroken, match=r"^1 orders are to trade at 100, which they did not ask for$"):
        check(plan_of(bids, asks, (100, 5, 0), (9, 2, 5)))


@pytest.mark.parametrize("group", [0, 1])
def test_a_plan_that_pairs_a_group_with_itself_does_not_pass(group: int) -> None:
    with pytest.raises(InvariantBroken, match=r"^Orders 3 and 6 of one group are to trade$"):
        check(good_plan(), groups={3: group, 6: group})
    check(good_plan(), groups={3: group, 6: 1 - group})
    check(good_plan(), groups={7: group, 8: group})
    check(good_plan(), groups={3: group})
    check(good_plan(), groups={6: group})


@pytest.mark.parametrize("side", [BUY, SELL])
def test_a_plan_that_leaves_market_orders_does_not_pass_where_all_must_fill(side: int) -> None:
    market, limited = frozen((0, {1: 2, 2: 3})), frozen((100, {3: 4}))
    bids, asks = (market, limited) if side == BUY else (limited, market)
    pairs = [(1, 3, 2), (2, 3, 2)] if side == BUY else [(3, 1, 2), (3, 2, 2)]
    plan = plan_of(bids, asks, (100, 4, 1 if side == BUY else -1), *pairs)
    check(plan)
    exactly = frozen((100, {3: 5}))
    pairs = [(1, 3, 2), (2, 3, 3)] if side == BUY else [(3, 1, 2), (3, 2, 3)]
    check(
        plan_of(market if side == BUY else exactly, exactly if side == BUY else market, (100, 5, 0), *pairs), 0, 0, True
    )

    with pytest.raises(InvariantBroken, match=r"^Market orders are left at 100, and there all of them must fill$"):
        check(plan, must_fill=True)


# --- what a plan holds -----------------------------------------------------------------------------------------------


def told(plan: Plan, table: OrderTable) -> list[tuple[int, int, int]]:
    ours = pairs_of(remainder_first(plan, table))
    assert sorted(ours) == sorted(pairs_of(plan.matches))
    return ours


def test_fills_are_told_from_the_price_with_a_remainder_then_buys_upwards_then_sells_downwards() -> None:
    orders = [(BUY, 0, 5), (BUY, 102, 3), (BUY, 102, 4), (BUY, 100, 6), (SELL, 99, 7), (SELL, 98, 6), (SELL, 0, 2)]
    table, _ = book_of(*orders)
    bids = frozen((0, {1: 5}), (102, {2: 3, 3: 4}), (100, {4: 6}))
    asks = frozen((0, {7: 2}), (98, {6: 6}), (99, {5: 7}))
    pairs = [(1, 7, 2), (1, 6, 3), (2, 6, 3), (3, 5, 4), (4, 5, 3)]
    plan = plan_of(bids, asks, (100, 15, 3), *pairs)
    assert told(plan, table) == [(4, 5, 3), (3, 5, 4), (2, 6, 3), (1, 6, 3), (1, 7, 2)]

    plan.result = Equilibrium(100, 15, -3)  # the sellers have the remainder: none of them is cut
    assert told(plan, table) == [(4, 5, 3), (3, 5, 4), (2, 6, 3), (1, 6, 3), (1, 7, 2)]
    plan.asks.amounts[1][0] = 7
    assert told(plan, table) == [(2, 6, 3), (1, 6, 3), (4, 5, 3), (3, 5, 4), (1, 7, 2)]
    plan.result = Equilibrium(100, 15, 0)
    assert told(plan, table) == [(4, 5, 3), (3, 5, 4), (2, 6, 3), (1, 6, 3), (1, 7, 2)]
    plan.result = Equilibrium(100, 15, 1)
    bids.amounts[0][0] = 6  # of market orders too, where not all must fill
    assert told(plan, table) == [(4, 5, 3), (1, 6, 3), (1, 7, 2), (3, 5, 4), (2, 6, 3)]
    bids.amounts[2][0] = 3
    assert told(plan, table) == [(1, 6, 3), (1, 7, 2), (4, 5, 3), (3, 5, 4), (2, 6, 3)]


def test_pairs_of_the_same_limits_are_told_in_priority_order_and_a_funari_order_has_none() -> None:
    table, _ = book_of((BUY, 100, 5), (BUY, 100, 5), (SELL, 100, 5), (SELL, 99, 5))
    bids, asks = frozen((100, {2: 5, 1: 5})), frozen((99, {4: 5}), (100, {3: 5}))
    pairs = [(2, 4, 2), (1, 4, 3), (2, 3, 3), (1, 3, 2)]
    plan = plan_of(bids, asks, (100, 10, 0), *pairs)
    assert told(plan, table) == [(2, 3, 3), (1, 3, 2), (2, 4, 2), (1, 4, 3)]
    plan.turned[2] = True
    assert told(plan, table) == [(1, 3, 2), (1, 4, 3), (2, 3, 3), (2, 4, 2)]
    plan.turned[3] = True
    assert told(plan, table) == [(1, 4, 3), (1, 3, 2), (2, 4, 2), (2, 3, 3)]
    plan.result = Equilibrium(100, 10, 1)
    bids.amounts[0] = vec[i64]([6, 5])
    assert told(plan, table) == [(1, 4, 3), (1, 3, 2), (2, 4, 2), (2, 3, 3)]


def test_an_order_without_a_fill_is_part_of_the_remainder_and_a_funari_sell_comes_with_those_without_limit() -> None:
    table, _ = book_of((BUY, 100, 2), (BUY, 100, 1), (BUY, 101, 6), (SELL, 0, 4), (SELL, 99, 4))
    bids, asks = frozen((101, {3: 6}), (100, {1: 2, 2: 1})), frozen((0, {4: 4, 5: 4}))
    plan = plan_of(bids, asks, (100, 8, 1), (3, 4, 4), (3, 5, 2), (1, 5, 2))
    plan.turned[5] = True
    assert told(plan, table) == [(1, 5, 2), (3, 4, 4), (3, 5, 2)]

    table, _ = book_of((BUY, 105, 2), (BUY, 101, 2), (SELL, 99, 2), (SELL, 100, 2), (SELL, 100, 1))
    bids, asks = frozen((105, {1: 2}), (101, {2: 2})), frozen((99, {3: 2}), (100, {4: 2, 5: 1}))
    assert told(plan_of(bids, asks, (100, 4, -1), (1, 4, 2), (2, 3, 2)), table) == [(1, 4, 2), (2, 3, 2)]


def test_a_plan_begins_with_nothing_to_do() -> None:
    bids, asks = frozen(), frozen()
    plan = Plan(bids, asks, 4, True)
    assert (plan.bids, plan.asks, plan.widths, plan.closes) == (bids, asks, 4, True)
    assert plan.result == Equilibrium(0, 0, 0)
    assert plan.result.sharing == ""
    assert [plan.leaving, plan.icebergs, plan.cuts, list(plan.matches), plan.added] == [[], [], [], [], []]
    assert plan.turned == {}
    assert plan.turns == []


def test_a_cut_names_price_quantity_and_both_orders() -> None:
    cut = Cut(100, 5, 7, 3)
    assert (cut.price, cut.quantity, cut.newest, cut.other, cut.taken) == (100, 5, 7, 3, [])
