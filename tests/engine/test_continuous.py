"""An incoming order trades by a plan that is checked before anything changes, whatever book is loaded."""

from __future__ import annotations

import pytest

from engine.faults import InvariantBroken
from engine.matching.book import BUY, FILL, GONE, SELL, Book, Fills, OrderTable, ReferenceBook, pack_terms
from engine.matching.continuous import take
from engine.matching.fastbook import FastBook

BOOKS = pytest.mark.parametrize("kind", [FastBook, ReferenceBook])
INSTRUMENT = 3


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
    "before less than none": ("next", -2, "A queue leads to order -2, and there are 6"),
}


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

    with pytest.raises(InvariantBroken, match=says):
        take(table, book, order, 200, fills, -1, None)

    assert everything(table, book) == before
    assert fills.count == 0


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
