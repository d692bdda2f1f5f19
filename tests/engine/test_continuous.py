"""An incoming order trades by a plan that is checked before anything changes, whatever book is loaded."""

from __future__ import annotations

import pytest

from engine import BACKEND
from engine.faults import InvariantBroken
from engine.matching.book import (
    BUY,
    FILL,
    GONE,
    LEVEL,
    ROW_OFFSET,
    ROW_SHIFT,
    SELL,
    Book,
    Fills,
    OrderTable,
    ReferenceBook,
    pack_terms,
)
from engine.matching.continuous import take, verify, withdraw
from engine.matching.fastbook import FastBook

BOOKS = pytest.mark.parametrize("kind", [FastBook, ReferenceBook])
INSTRUMENT = 3
#: Compiled code cannot be patched.
patches = pytest.mark.skipif(BACKEND == "compiled", reason="compiled code cannot be patched")


def add(table: OrderTable, book: Book, side: int, price: int, quantity: int, participant: int = 1) -> int:
    order = table.append(pack_terms(side, 0, 0, INSTRUMENT, participant), price, quantity)
    book.add(order)
    return order


def incoming(table: OrderTable, side: int, price: int, quantity: int) -> int:
    return table.append(pack_terms(side, 0, 0, INSTRUMENT, 2), price, quantity)


def made(fills: Fills) -> list[tuple[int, ...]]:
    return [tuple(fills.cells[at : at + FILL]) for at in range(0, fills.count, FILL)]


def everything(table: OrderTable, book: Book) -> object:
    """All that a fill could have changed."""
    levels: list[list[int]] = []
    for side in (BUY, SELL):
        prices: list[int] = []
        quantities: list[int] = []
        book.levels(side, prices, quantities)
        levels += [prices, quantities, [book.best(side), book.first(side)], [book.head(side, p) for p in prices]]
    return list(table.rows), table.count, levels


@BOOKS
@pytest.mark.parametrize("side", [BUY, SELL])
def test_an_order_takes_the_best_price_first_and_then_the_earliest(kind: type[Book], side: int) -> None:
    table = OrderTable()
    book = kind(table)
    worse = 1 if side == BUY else -1
    far = add(table, book, 1 - side, 100 + 50 * worse, 5)
    second = add(table, book, 1 - side, 100 + worse, 5)
    first = add(table, book, 1 - side, 100, 5)
    behind = add(table, book, 1 - side, 100, 7)
    beyond = add(table, book, 1 - side, 100 + 51 * worse, 5)
    fills = Fills(1)
    order = incoming(table, side, 100 + 50 * worse, 20)

    assert take(table, book, order, table.price[order], fills, -1, None) == 0

    assert made(fills) == [
        (first, order, 100, 5),
        (behind, order, 100, 7),
        (second, order, 100 + worse, 5),
        (far, order, 100 + 50 * worse, 3),
    ]
    assert [table.open[number] for number in (order, far, beyond)] == [0, 2, 5]
    book.check()


@BOOKS
@pytest.mark.parametrize("side", [BUY, SELL])
def test_an_order_trades_up_to_its_limit_and_no_further(kind: type[Book], side: int) -> None:
    worse = 1 if side == BUY else -1
    for limit, reached in ((99, 0), (100, 1), (101, 2), (102, 2), (103, 3), (104, 3)):
        table = OrderTable()
        book = kind(table)
        makers = [add(table, book, 1 - side, 100 + n * worse, 5) for n in (0, 1, 3)]
        order = incoming(table, side, 100 + (limit - 100) * worse, 100)
        fills = Fills()

        assert take(table, book, order, table.price[order], fills, -1, None) == 0

        assert [fill[0] for fill in made(fills)] == makers[:reached]
        assert table.open[order] == 100 - 5 * reached


@BOOKS
@pytest.mark.parametrize("side", [BUY, SELL])
def test_an_order_finds_nobody_in_an_empty_book_and_anybody_at_the_lowest_price(kind: type[Book], side: int) -> None:
    for limit in (0, 1):
        table = OrderTable()
        book = kind(table)
        fills = Fills()
        order = incoming(table, side, limit, 5)
        assert take(table, book, order, limit, fills, -1, None) == 0
        assert (fills.count, table.open[order]) == (0, 5)
        maker = add(table, book, 1 - side, 1, 3)
        assert take(table, book, order, limit, fills, -1, None) == 0
        assert made(fills) == [(maker, order, 1, 3)]
        assert table.open[order] == 2


@BOOKS
def test_fills_are_added_to_those_before_and_find_room(kind: type[Book]) -> None:
    table = OrderTable()
    book = kind(table)
    makers = [add(table, book, SELL, 100 + n // 7, 1) for n in range(200)]
    fills = Fills(1)

    for _ in range(2):
        order = incoming(table, BUY, 0, 100)
        assert take(table, book, order, 0, fills, -1, None) == 0

    assert [fill[0] for fill in made(fills)] == makers
    assert {fill[3] for fill in made(fills)} == {1}
    book.check()


@BOOKS
def test_it_stops_before_an_own_order_and_behind_an_iceberg_that_has_shown_all(kind: type[Book]) -> None:
    table = OrderTable()
    book = kind(table)
    iceberg = add(table, book, SELL, 100, 5)
    own = add(table, book, SELL, 100, 5, participant=2)
    fills = Fills()
    order = incoming(table, BUY, 100, 20)

    assert take(table, book, order, 100, fills, 2, {iceberg: 40}) == iceberg
    assert take(table, book, order, 100, fills, 2, {iceberg: 40}) == own

    assert made(fills) == [(iceberg, order, 100, 5)]
    assert (table.open[order], table.open[own]) == (15, 5)
    book.check()


@BOOKS
def test_an_iceberg_of_which_the_last_that_is_shown_fills_an_order_needs_a_decision(kind: type[Book]) -> None:
    table = OrderTable()
    book = kind(table)
    iceberg = add(table, book, SELL, 100, 5)
    order = incoming(table, BUY, 100, 5)

    assert take(table, book, order, 100, Fills(), -1, {iceberg: 40}) == iceberg

    assert table.open[order] == 0


#: What is wrong with the third order of a queue of four, and what is said of it.
WRONG = {
    "nothing open": ("open", 0, "Order 3 is queued with 0 open of 5, which cannot be"),
    "less than nothing open": ("open", -1, "Order 3 is queued with -1 open of 5"),
    "more open than there ever was": ("open", 6, "Order 3 is queued with 6 open of 5"),
    "another price": ("price", 101, "Order 3 queues where it does not belong"),
    "the other side": ("terms", pack_terms(BUY, 0, 0, INSTRUMENT, 1), "Order 3 queues where it does not belong"),
    "another instrument": ("terms", pack_terms(SELL, 0, 0, 4, 1), "Order 3 queues where it does not belong"),
    "cancelled": ("state", GONE, "Order 3 is queued in state 2, not in the book"),
    "behind another": ("previous", 1, "Order 3 does not name 2 as the one before it"),
    "before itself": ("next", 3, "Order 3 does not name 3 as the one before it"),
    "before one that has never been": ("next", 99, "A queue leads to order 99, and there are 6"),
    "before one beyond all memory": ("next", 2**40, "A queue leads to order 1099511627776, and there are 6"),
    "before less than none": ("next", -2, "A queue leads to order -2, and there are 6"),
    "before far less than none": ("next", -(2**40), "A queue leads to order -1099511627776, and there are 6"),
    "before the one that comes in": ("next", 6, "Order 6 does not name 3 as the one before it"),
}


@pytest.mark.parametrize(("column", "value", "says"), [case for case in WRONG.values() if case[0] != "next"])
def test_an_order_that_cannot_stand_where_it_stands_is_told(column: str, value: int, says: str) -> None:
    table = OrderTable()
    book = ReferenceBook(table)
    for _ in range(4):
        add(table, book, SELL, 100, 5)
    verify(table, SELL, 100, 1, 0, INSTRUMENT)
    verify(table, SELL, 100, 4, 3, INSTRUMENT)
    verify(table, SELL, 100, 3, 2, INSTRUMENT)
    getattr(table, column)[3] = value

    with pytest.raises(InvariantBroken, match=f"^{says}.*: side 1, price 100$"):
        verify(table, SELL, 100, 3, 2, INSTRUMENT)


def test_an_order_that_there_is_not_stands_nowhere() -> None:
    table = OrderTable()
    book = ReferenceBook(table)
    add(table, book, BUY, 100, 1)
    verify(table, BUY, 100, 1, 0, INSTRUMENT)
    for order in (2, 0, -1, 2**40):
        with pytest.raises(
            InvariantBroken, match=f"^A queue leads to order {order}, and there are 1: side 0, price 100$"
        ):
            verify(table, BUY, 100, order, 0, INSTRUMENT)


@BOOKS
@pytest.mark.parametrize(("column", "value", "says"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("wanted", [100, 16])
def test_a_plan_that_cannot_be_changes_nothing(
    kind: type[Book], column: str, value: int, says: str, wanted: int
) -> None:
    table = OrderTable()
    book = kind(table)
    for _ in range(4):
        add(table, book, SELL, 100, 5)
    add(table, book, SELL, 101, 5)
    fills = Fills()
    order = incoming(table, BUY, 200, wanted)
    getattr(table, column)[3] = value
    before = everything(table, book)

    with pytest.raises(InvariantBroken, match=f"{says}.*: side 1, price 100$"):
        take(table, book, order, 200, fills, -1, None)

    assert everything(table, book) == before
    assert fills.count == 0


@BOOKS
def test_an_order_may_trade_with_one_that_came_after_it(kind: type[Book]) -> None:
    table = OrderTable()
    book = kind(table)
    order = incoming(table, BUY, 100, 5)  # a stop order, say, that had to wait
    maker = add(table, book, SELL, 100, 5)
    fills = Fills()

    assert take(table, book, order, 100, fills, -1, None) == 0

    assert made(fills) == [(maker, order, 100, 5)]


@BOOKS
def test_what_is_wrong_behind_the_last_fill_is_not_looked_at(kind: type[Book]) -> None:
    table = OrderTable()
    book = kind(table)
    for _ in range(3):
        add(table, book, SELL, 100, 5)
    table.open[3] = 0
    fills = Fills()
    order = incoming(table, BUY, 100, 10)

    assert take(table, book, order, 100, fills, -1, None) == 0

    assert [fill[0] for fill in made(fills)] == [1, 2]


@BOOKS
def test_an_own_order_of_any_participant_stops_and_no_other_does(kind: type[Book]) -> None:
    for own in (-1, 0, 1, 2, 7):
        table = OrderTable()
        book = kind(table)
        makers = [add(table, book, SELL, 100, 5, participant) for participant in (0, 1, 2)]
        order = incoming(table, BUY, 100, 20)

        stopped = take(table, book, order, 100, Fills(), own, None)

        assert stopped == (makers[own] if 0 <= own < 3 else 0)


def test_prices_that_do_not_get_worse_are_no_plan() -> None:
    table = OrderTable()
    book = FastBook(table)
    for price in (100, 200):
        add(table, book, SELL, price, 5)
    book._levels[2 * 128 + 11] = 1  # from the second page back to the first
    order = incoming(table, BUY, 200, 20)
    before = list(table.rows)

    with pytest.raises(InvariantBroken, match="Price 100 does not stand behind a better one: side 1, price 200"):
        take(table, book, order, 200, Fills(), -1, None)

    assert list(table.rows) == before
    assert [book.head(SELL, price) for price in (100, 200)] == [1, 2]


@patches
@pytest.mark.parametrize("side", [BUY, SELL])
def test_a_price_behind_itself_is_no_plan(side: int) -> None:
    class Circle(ReferenceBook):
        def worse(self, side: int, price: int) -> int:
            return price

    table = OrderTable()
    book = Circle(table)
    add(table, book, 1 - side, 100, 5)
    order = incoming(table, side, 100, 20)

    with pytest.raises(InvariantBroken, match=f"Price 100 does not stand .*: side {1 - side}, price 100$"):
        take(table, book, order, 100, Fills(), -1, None)


@BOOKS
def test_what_is_wrong_with_the_first_order_is_said_of_it(kind: type[Book]) -> None:
    table = OrderTable()
    book = kind(table)
    add(table, book, BUY, 100, 5)
    table.state[1] = GONE
    order = incoming(table, SELL, 100, 5)

    with pytest.raises(InvariantBroken, match=r"Order 1 is queued in state 2, not in the book: side 0, price 100$"):
        take(table, book, order, 100, Fills(), -1, None)


@patches
def test_a_best_price_without_an_order_is_no_plan() -> None:
    class Empty(ReferenceBook):
        def first(self, side: int) -> int:
            return 0

    table = OrderTable()
    book = Empty(table)
    add(table, book, BUY, 100, 5)
    order = incoming(table, SELL, 100, 5)

    with pytest.raises(InvariantBroken, match=r"A queue leads to order 0, and there are 2: side 0, price 100$"):
        take(table, book, order, 100, Fills(), -1, None)


def test_fills_for_which_there_is_room_take_no_memory() -> None:
    table = OrderTable()
    book = ReferenceBook(table)
    for _ in range(2):
        add(table, book, SELL, 100, 5)
    fills = Fills(2)
    order = incoming(table, BUY, 100, 10)

    take(table, book, order, 100, fills, -1, None)

    assert (fills.count, len(fills.cells)) == (2 * FILL, 2 * FILL)


# --- withdraw --------------------------------------------------------------------------------------------------------


@BOOKS
def test_an_order_that_is_withdrawn_keeps_what_was_open_and_is_gone(kind: type[Book]) -> None:
    table = OrderTable()
    book = kind(table)
    orders = [add(table, book, SELL, 100 + n, 5) for n in range(2)]

    withdraw(table, book, orders[1])

    assert (table.open[orders[1]], table.state[orders[1]]) == (5, GONE)
    assert table.rows[(orders[1] << ROW_SHIFT) + ROW_OFFSET + LEVEL] == GONE  # in no level of the book any more
    assert book.orders(table, SELL) == [orders[0]]
    book.check()
