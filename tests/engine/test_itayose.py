"""The eight worked books of market-rules 3.4, all their sub-cases, on the pure functions.

Each book is as printed there (``tests/books.py``); ``test_itayose_market.py`` runs the same books through a market.
"""

from __future__ import annotations

import pytest

from engine.matching.itayose import (
    PRICE_RULES,
    PRICE_TIME,
    SIMULTANEOUS_RR,
    Equilibrium,
    Rotation,
    allocate,
    equilibrium,
    pair,
)
from engine.tables import TICK_TABLES, TickTable
from tests.books import BOOKS, WorkedBook

ONE = TickTable(TICK_TABLES["one"])
NONE = Equilibrium(0, 0, 0)


def price_of(
    bids: dict[int, int],
    asks: dict[int, int],
    *,
    market_buy: int = 0,
    market_sell: int = 0,
    lower: int = 0,
    upper: int = 0,
    reference: int = 0,
    ticks: TickTable = ONE,
    rule: str = "jpx_ose",
    must_fill: bool = False,
) -> Equilibrium:
    """``equilibrium`` of price to quantity per side."""
    buys = sorted(bids.items(), reverse=True)
    sells = sorted(asks.items())
    return equilibrium(
        [price for price, _ in buys],
        [quantity for _, quantity in buys],
        [price for price, _ in sells],
        [quantity for _, quantity in sells],
        market_buy,
        market_sell,
        ticks,
        lower,
        upper,
        reference,
        rule,
        must_fill,
    )


def fills_of(orders: list[tuple[int, int]], volume: int, *, buy: bool) -> dict[int, int]:
    """Limit (0: market) to what is left of it, after ``volume`` went to this side by price and time."""
    queue = sorted(orders, key=lambda order: (order[0] != 0, -order[0] if buy else order[0]))
    fills = allocate(volume, [quantity for _, quantity in queue])
    return {price: quantity - fill for (price, quantity), fill in zip(queue, fills, strict=True) if quantity > fill}


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_worked_book_gives_the_printed_price_volume_and_surplus(book: WorkedBook) -> None:
    got = price_of(
        {price: quantity for price, quantity in book.buys if price},
        {price: quantity for price, quantity in book.sells if price},
        market_buy=sum(quantity for price, quantity in book.buys if not price),
        market_sell=sum(quantity for price, quantity in book.sells if not price),
        upper=book.upper,
        reference=book.reference,
        must_fill=book.must_fill,
    )
    assert got == Equilibrium(book.price, book.volume, book.surplus)


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_worked_book_leaves_the_printed_orders(book: WorkedBook) -> None:
    assert fills_of(book.buys, book.volume, buy=True) == book.buys_left
    assert fills_of(book.sells, book.volume, buy=False) == book.sells_left


@pytest.mark.parametrize("rule", PRICE_RULES)
@pytest.mark.parametrize("book", [book for book in BOOKS if book.name in ("1", "2", "3a", "3b")], ids=lambda b: b.name)
def test_books_decided_by_volume_surplus_and_pressure_have_one_price_under_every_rule(
    book: WorkedBook, rule: str
) -> None:
    got = price_of(
        {price: quantity for price, quantity in book.buys if price},
        {price: quantity for price, quantity in book.sells if price},
        market_buy=sum(quantity for price, quantity in book.buys if not price),
        market_sell=sum(quantity for price, quantity in book.sells if not price),
        reference=book.reference,
        rule=rule,
    )
    assert got == Equilibrium(book.price, book.volume, book.surplus)


# --- book 8: allocation ----------------------------------------------------------------------------------------------

A, B, C, D = 0, 1, 2, 3


def test_book_8_members_take_turns_by_size_and_later_fills_resume_the_turn() -> None:
    rotation = Rotation([A, B, C, D], [1_500, 500, 300, 200], lot=100)
    assert rotation.take(300) == [100, 100, 100, 0]
    assert rotation.take(300) == [100, 100, 0, 100]
    assert rotation.take(200) == [0, 0, 100, 100]


def test_book_8_by_price_and_time_the_first_comer_gets_everything_first() -> None:
    assert allocate(1_500, [1_500, 500, 300, 200], PRICE_TIME) == [1_500, 0, 0, 0]
    assert allocate(1_600, [1_500, 500, 300, 200], PRICE_TIME) == [1_500, 100, 0, 0]


def test_book_8_does_not_depend_on_the_order_of_entry_except_between_equals() -> None:
    rotation = Rotation([D, C, B, A], [200, 300, 500, 1_500], lot=100)
    assert rotation.take(300) == [0, 100, 100, 100]
    equals = Rotation([B, A], [200, 200], lot=100)
    assert equals.take(100) == [100, 0]


def test_a_member_s_orders_are_summed_and_its_earliest_order_is_filled_first() -> None:
    rotation = Rotation([A, B, A, B], [100, 300, 400, 100], lot=100)
    assert rotation.take(500) == [100, 200, 200, 0]  # A 500 and B 400: A B A B A
    assert rotation.take(200) == [0, 100, 100, 0]  # B A
    assert rotation.take(1_000) == [0, 0, 100, 100]  # no more than is open


def test_a_member_with_nothing_left_drops_out_of_the_rounds() -> None:
    rotation = Rotation([A, B], [1_000, 100], lot=100)
    assert rotation.take(800) == [700, 100]
    assert rotation.take(300) == [300, 0]
    assert rotation.take(100) == [0, 0]


def test_an_odd_rest_smaller_than_a_lot_is_one_turn() -> None:
    rotation = Rotation([A, B], [250, 250], lot=100)
    assert rotation.take(450) == [250, 200]


def test_a_turn_is_a_lot_or_what_is_left_of_the_participant_or_of_the_volume() -> None:
    assert Rotation([A], [1_000], lot=100).take(50) == [50]
    assert Rotation([A, B], [250, 350], lot=100).take(580) == [250, 330]
    assert Rotation([A, B], [50, 350], lot=100).take(400) == [50, 350]
    assert Rotation([A, B], [101, 300], lot=100).take(401) == [101, 300]
    assert Rotation([A, B], [0, 300], lot=100).take(200) == [0, 200]


def test_fills_are_whole_numbers() -> None:
    fills = Rotation([A, B], [250, 1_000], lot=100).take(900)
    assert fills == [250, 650]
    assert {type(fill) for fill in fills} == {int}


def test_a_later_rotation_of_the_group_goes_on_where_the_last_one_stopped() -> None:
    first = Rotation([A, B, C, D], [1_500, 500, 300, 200], lot=100)
    assert first.turns == [A, B, C, D]
    first.take(300)
    assert first.turns == [D, A, B, C]
    second = Rotation([A, B, C, D], [1_400, 400, 200, 200], lot=100, turns=first.turns)
    assert second.take(300) == [100, 100, 0, 100]
    assert second.turns == [C, D, A, B]
    assert Rotation([A, B, C, D], [1_300, 300, 200, 100], 100, second.turns).take(200) == [0, 0, 100, 100]
    assert Rotation([A, B], [100, 100], 100, [B, A]).turns == [B, A]


def test_who_has_left_a_group_has_no_turn_and_who_has_joined_it_comes_last() -> None:
    rotation = Rotation([A, B, C], [100, 300, 900], lot=100, turns=[D, A])
    assert rotation.turns == [A, C, B]
    assert rotation.take(100) == [100, 0, 0]
    assert rotation.turns == [C, B]


def test_turns_resume_by_the_place_of_their_group_and_are_kept_of_the_one_that_is_cut() -> None:
    def allocated(volume: int, turns: dict[int, list[int]]) -> list[int]:
        members = [A, B, A, B, A, B]
        return allocate(volume, [2] * 6, SIMULTANEOUS_RR, members, group_sizes=[2, 2, 2], turns=turns)

    turns = {0: [B, A], 1: [B, A]}
    assert allocated(5, turns) == [2, 2, 0, 1, 0, 0]
    assert turns == {1: [A, B]}
    turns = {1: [B, A]}
    assert allocated(1, turns) == [1, 0, 0, 0, 0, 0]
    assert turns == {0: [B, A]}
    assert allocated(4, turns) == [2, 2, 0, 0, 0, 0]
    assert turns == {}


def test_a_rotation_needs_a_lot() -> None:
    with pytest.raises(ValueError, match="Expected a lot above 0, got 0"):
        Rotation([A], [1], lot=0)


def test_round_robin_touches_only_the_group_that_cannot_be_filled_whole() -> None:
    # Market orders of A and B; at 1,001 C; at 1,000 the members of book 8 with 300 left for them.
    fills = allocate(
        900,
        [200, 100, 300, 1_500, 500, 300, 200, 900],
        SIMULTANEOUS_RR,
        participants=[A, B, C, A, B, C, D, A],
        group_sizes=[2, 1, 4, 1],
        lot=100,
    )
    assert fills == [200, 100, 300, 100, 100, 100, 0, 0]


def test_market_orders_that_cannot_all_fill_take_turns_too() -> None:
    fills = allocate(200, [400, 300, 500], SIMULTANEOUS_RR, participants=[A, B, C], group_sizes=[2, 1], lot=100)
    assert fills == [100, 100, 0]


def test_a_single_unit_that_is_left_goes_to_the_next_group() -> None:
    assert allocate(3, [2, 5], SIMULTANEOUS_RR, participants=[A, B], group_sizes=[1, 1]) == [2, 1]


def test_a_turn_is_one_unit_unless_another_lot_is_named() -> None:
    assert allocate(2, [3, 3], SIMULTANEOUS_RR, participants=[A, B], group_sizes=[2]) == [1, 1]


def test_allocation_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="Expected an allocation rule of PRICE_TIME, SIMULTANEOUS_RR, got 'PRO_RATA'"):
        allocate(1, [1], "PRO_RATA")
    with pytest.raises(ValueError, match="a participant and a group for each of 2 orders"):
        allocate(1, [1, 1], SIMULTANEOUS_RR, participants=[A], group_sizes=[2])
    with pytest.raises(ValueError, match="a participant and a group for each of 2 orders"):
        allocate(1, [1, 1], SIMULTANEOUS_RR, participants=[A, B], group_sizes=[1])
    with pytest.raises(ValueError, match="a participant and a group for each of 2 orders"):
        allocate(1, [1, 1], SIMULTANEOUS_RR, participants=[A, B])
    with pytest.raises(ValueError, match="a participant and a group for each of 2 orders"):
        allocate(1, [1, 1], SIMULTANEOUS_RR, group_sizes=[2])


# --- pairing ---------------------------------------------------------------------------------------------------------


def triples(buy_fills: list[int], sell_fills: list[int]) -> list[tuple[int, int, int]]:
    """What ``pair`` says, trade by trade."""
    cells = list(pair(buy_fills, sell_fills))
    return list(zip(cells[::3], cells[1::3], cells[2::3], strict=True))


def test_fills_are_paired_in_priority_order_of_both_sides() -> None:
    assert triples([4, 3, 5, 0], [3, 2, 6, 1]) == [(0, 0, 3), (0, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 4), (2, 3, 1)]


def test_orders_without_a_fill_are_stepped_over() -> None:
    assert triples([0, 2, 0, 0, 1], [0, 0, 3]) == [(1, 2, 2), (4, 2, 1)]
    assert triples([], []) == []
    assert triples([0], []) == []


@pytest.mark.parametrize(("buys", "sells"), [([2], [1]), ([1], [2]), ([1], []), ([0], [1])])
def test_pairing_refuses_sides_of_different_totals(buys: list[int], sells: list[int]) -> None:
    with pytest.raises(
        ValueError, match=f"Expected equal fills on both sides, got {sum(buys)} bought and {sum(sells)}"
    ):
        pair(buys, sells)


# --- the corners of the algorithm -----------------------------------------------------------------------------------


def test_a_side_without_any_order_gives_no_price() -> None:
    assert price_of({100: 5}, {}, reference=100) == NONE
    assert price_of({}, {100: 5}, market_sell=5, reference=100) == NONE
    assert price_of({}, {}, reference=100) == NONE


def test_a_book_that_does_not_cross_gives_no_price() -> None:
    assert price_of({100: 5}, {101: 5}, reference=100) == NONE


def test_only_market_orders_and_no_reference_give_no_price() -> None:
    assert price_of({}, {}, market_buy=7, market_sell=4) == NONE


def test_only_market_orders_trade_at_the_reference_within_the_day_s_limits() -> None:
    assert price_of({}, {}, market_buy=7, market_sell=4, reference=100, upper=90) == Equilibrium(90, 4, 3)
    assert price_of({}, {}, market_buy=4, market_sell=7, reference=100, lower=110) == Equilibrium(110, 4, -3)
    assert price_of({}, {}, market_buy=4, market_sell=7, reference=100, lower=98, upper=98) == Equilibrium(98, 4, -3)


def test_market_sells_left_over_push_the_price_one_tick_below_the_lowest_limit() -> None:
    assert price_of({100: 5, 99: 5}, {}, market_sell=20, reference=100) == Equilibrium(98, 10, -10)
    assert price_of({100: 5, 99: 5}, {}, market_sell=20, reference=100, lower=99) == Equilibrium(99, 10, -10)


def test_one_tick_outside_the_limits_is_the_tick_of_the_band_on_that_side() -> None:
    tse = TickTable(TICK_TABLES["tse"])
    assert price_of({}, {3_000: 5}, market_buy=20, ticks=tse).price == 3_005
    assert price_of({3_000: 5}, {}, market_sell=20, ticks=tse).price == 2_999


def test_the_lowest_price_is_one_tick_and_never_zero() -> None:
    assert price_of({1: 5}, {}, market_sell=20) == Equilibrium(1, 5, -15)


def test_limits_inside_a_gap_between_two_limits_bound_the_price() -> None:
    assert price_of({200: 8}, {100: 4}, upper=150) == Equilibrium(150, 4, 4)
    assert price_of({200: 4}, {100: 8}, lower=150) == Equilibrium(150, 4, -4)


def test_daily_limits_off_the_grid_round_inwards() -> None:
    five = TickTable([(0, 5)])
    assert price_of({200: 8}, {100: 4}, upper=152, ticks=five) == Equilibrium(150, 4, 4)
    assert price_of({200: 4}, {100: 8}, lower=148, ticks=five) == Equilibrium(150, 4, -4)


def test_a_limit_outside_the_day_s_limits_still_counts_but_cannot_be_the_price() -> None:
    assert price_of({200: 8}, {100: 4}, lower=120, upper=130, reference=125) == Equilibrium(130, 4, 4)
    assert price_of({200: 8}, {100: 4}, lower=300, upper=400) == NONE


def test_a_limit_left_off_the_grid_by_a_new_table_counts_but_cannot_be_the_price() -> None:
    five = TickTable([(0, 5)])
    assert price_of({103: 8}, {98: 4}, ticks=five) == Equilibrium(100, 4, 4)
    assert price_of({103: 4}, {98: 8}, ticks=five) == Equilibrium(100, 4, -4)
    assert price_of({104: 8}, {101: 4}, ticks=five) == NONE


def test_without_a_reference_an_exact_balance_takes_the_middle_rounded_down() -> None:
    assert price_of({103: 8}, {100: 8}) == Equilibrium(101, 8, 0)
    assert price_of({103: 10, 101: 4}, {100: 10, 102: 4}) == Equilibrium(101, 10, 4)
    assert type(price_of({103: 8}, {100: 8}).price) is int


def test_an_unknown_price_rule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Expected a price rule of jpx_ose, asx, .*, got 'bourse'"):
        price_of({1: 1}, {1: 1}, rule="bourse")


# --- where the published rules differ --------------------------------------------------------------------------------

MIXED = ({103: 10, 101: 4}, {100: 10, 102: 4})  # book 5: +4 at 100 and 101, -4 at 102 and 103
BALANCED = ({110: 8}, {100: 8})  # book 4 with a wider range


@pytest.mark.parametrize(
    ("rule", "reference", "price"),
    [
        ("jpx_ose", 104, 104),
        ("asx", 104, 104),
        ("euronext", 104, 104),
        ("bnb", 104, 104),
        ("xetra", 104, 100),  # only limits are prices: 100 and 110
        ("xetra", 105, 110),  # the higher of two equally near
        ("midpoint", 101, 105),
    ],
)
def test_an_exact_balance_goes_to_the_reference_as_each_rule_reads_it(rule: str, reference: int, price: int) -> None:
    assert price_of(*BALANCED, reference=reference, rule=rule) == Equilibrium(price, 8, 0)


@pytest.mark.parametrize(
    ("rule", "reference", "price"),
    [
        ("jpx_ose", 100, 101),
        ("jpx_ose", 105, 102),
        ("asx", 100, 101),
        ("midpoint", 100, 101),
        ("euronext", 100, 100),  # the whole run is open to the reference
        ("euronext", 105, 103),
        ("xetra", 100, 100),
        ("bnb", 103, 103),
    ],
)
def test_a_surplus_on_both_sides_goes_to_the_reference_as_each_rule_reads_it(
    rule: str, reference: int, price: int
) -> None:
    assert price_of(*MIXED, reference=reference, rule=rule) == Equilibrium(price, 10, 4 if price <= 101 else -4)


def test_bnb_stops_pressure_at_five_percent_from_the_reference() -> None:
    assert price_of({220: 12}, {100: 8}, reference=200, rule="bnb") == Equilibrium(210, 8, 4)
    assert price_of({220: 8}, {100: 12}, reference=200, rule="bnb") == Equilibrium(190, 8, -4)
    assert price_of({220: 12}, {100: 8}, reference=20, rule="bnb").price == 100  # never outside the run
    assert price_of({220: 12}, {100: 8}, rule="bnb").price == 220


def test_bnb_reckons_in_whole_prices() -> None:
    result = price_of({220: 12}, {100: 8}, reference=201, rule="bnb")
    assert (result, type(result.price)) == (Equilibrium(211, 8, 4), int)
    result = price_of({220: 8}, {100: 12}, reference=199, rule="bnb")
    assert (result, type(result.price)) == (Equilibrium(190, 8, -4), int)


def test_euronext_lets_market_orders_pull_the_price_out_to_the_reference() -> None:
    assert price_of({}, {100: 5}, market_buy=20, reference=130, rule="euronext") == Equilibrium(130, 5, 15)
    assert price_of({100: 5}, {}, market_sell=20, reference=70, rule="euronext") == Equilibrium(70, 5, -15)
    assert price_of({}, {100: 5}, market_buy=20, reference=90, rule="euronext") == Equilibrium(100, 5, 15)


def test_euronext_without_a_reference_stays_within_the_limits_in_the_book() -> None:
    assert price_of({100: 5}, {}, market_sell=20, rule="euronext") == Equilibrium(100, 5, -15)
    assert price_of({}, {100: 5}, market_buy=20, rule="euronext") == Equilibrium(100, 5, 15)


def test_xetra_looks_only_at_limits_that_are_valid_and_as_good_as_any() -> None:
    assert price_of({110: 8}, {100: 8}, reference=100, lower=105, rule="xetra") == Equilibrium(110, 8, 0)
    assert price_of({110: 8}, {100: 8}, reference=110, upper=105, rule="xetra") == Equilibrium(100, 8, 0)
    assert price_of({110: 8}, {90: 8, 105: 4}, reference=110, rule="xetra") == Equilibrium(90, 8, 0)
    five = TickTable([(0, 5)])  # 103 is from before a change of ticks
    assert price_of({110: 8, 103: 4}, {90: 8}, reference=103, ticks=five, rule="xetra") == Equilibrium(110, 8, 0)


def test_xetra_does_not_see_that_a_price_between_two_limits_would_leave_nobody() -> None:
    book = ({100: 4, 110: 8}, {90: 8, 105: 4})
    assert price_of(*book, reference=104, rule="xetra") == Equilibrium(105, 8, -4)
    assert price_of(*book, reference=104) == Equilibrium(104, 8, 0)


def test_xetra_takes_the_only_limit_there_is() -> None:
    assert price_of({100: 8}, {100: 8}, reference=103, rule="xetra") == Equilibrium(100, 8, 0)


def test_market_orders_may_be_left_and_the_rule_is_jpx_s_unless_something_else_is_said() -> None:
    assert equilibrium([], [], [100], [4], 5, 0, ONE, 0, 0, 0) == Equilibrium(101, 4, 1)
    assert equilibrium([110], [8], [100], [8], 0, 0, ONE, 0, 0, 104) == Equilibrium(104, 8, 0)


def test_a_single_unit_has_a_price() -> None:
    assert price_of({100: 1}, {100: 1}) == Equilibrium(100, 1, 0)


def test_xetra_never_leaves_the_limits_in_the_book() -> None:
    assert price_of({}, {100: 5, 101: 5}, market_buy=20, reference=130, rule="xetra") == Equilibrium(101, 10, 10)


# --- results are values ----------------------------------------------------------------------------------------------


def test_results_are_equal_when_price_volume_and_surplus_are() -> None:
    result = Equilibrium(100, 5, -2)
    assert result == Equilibrium(100, 5, -2)
    assert result != Equilibrium(101, 5, -2)
    assert result != Equilibrium(100, 6, -2)
    assert result != Equilibrium(100, 5, 2)
    assert result != Equilibrium(101, 6, -2)
    assert result != (100, 5, -2)
    assert len({result, Equilibrium(100, 5, -2), Equilibrium(100, 5, 2), Equilibrium(100, 6, -2), NONE}) == 4
    assert hash(result) == hash(Equilibrium(100, 5, -2)) != hash(NONE)
    assert repr(result) == "Equilibrium(price=100, volume=5, surplus=-2)"


def test_a_result_is_shared_in_no_special_way_unless_that_is_said() -> None:
    assert Equilibrium(100, 5, -2).sharing == ""
    assert Equilibrium(100, 5, -2, PRICE_TIME).sharing == PRICE_TIME
