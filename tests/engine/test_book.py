"""The order table and what every book answers: exact answers, exact refusals, whatever book is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from librt.vecs import vec
from mypy_extensions import i64

from engine import BACKEND
from engine.faults import InvariantBroken
from engine.matching import book as module
from engine.matching.bare import BareMarket
from engine.matching.book import (
    BUY,
    FILL,
    GONE,
    GONE_WAITING,
    IN_BOOK,
    INDEX_MAX,
    LEVEL,
    ROW_OFFSET,
    ROW_SHIFT,
    SELL,
    WAITING,
    Book,
    Fills,
    OrderTable,
    ReferenceBook,
    Texts,
    pack_terms,
)
from engine.matching.fastbook import FastBook
from engine.memory import zeros
from engine.names import Names, name_of

BOOKS = pytest.mark.parametrize("kind", [FastBook, ReferenceBook])
#: Compiled code cannot be patched.
patches = pytest.mark.skipif(BACKEND == "compiled", reason="compiled code cannot be patched")
SIDES = pytest.mark.parametrize("side", [BUY, SELL])


# --- memory ----------------------------------------------------------------------------------------------------------


@patches
def test_a_table_reserves_room_for_sixteen_million_orders_and_takes_memory_for_those_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    def small(length: int, reserved: int) -> vec[int]:
        asked.append((length, reserved))
        return zeros(length, length)

    monkeypatch.setattr(module, "zeros", small)
    OrderTable()
    OrderTable(10)
    monkeypatch.setattr(module, "_ROWS_RESERVED", 5)
    OrderTable(10)
    OrderTable(4)
    OrderTable(3)

    assert asked == [
        (257 * 8 + 3, 2**24 * 8 + 3),
        (11 * 8 + 3, 2**24 * 8 + 3),
        (11 * 8 + 3, 11 * 8 + 3),
        (5 * 8 + 3, 5 * 8 + 3),
        (4 * 8 + 3, 5 * 8 + 3),
    ]


def test_a_table_grows_by_blocks_and_no_sooner_than_it_must() -> None:
    table = OrderTable(2)
    sizes = []
    for _ in range(67):
        table.append(0, 1, 1)
        sizes.append(len(table.rows))
    assert sizes == [27] * 2 + [27 + 512] * 64 + [27 + 1024]
    assert sum(table.rows) == 67 * 3  # price, open and whole quantity of each, and nothing else


def test_fills_take_memory_for_those_expected_and_then_for_twice_as_many() -> None:
    fills = Fills(3)
    assert (len(fills.cells), fills.count) == (12, 0)
    fills.cells[11] = 7

    assert len(fills.grow()) == 24

    assert fills.cells[11] == 7
    assert len(fills.cells) == 24
    assert len(Fills().cells) == 64 * FILL


# --- the table -------------------------------------------------------------------------------------------------------


def test_terms_hold_what_never_changes_each_in_its_place() -> None:
    table = OrderTable()
    for terms in (
        (0, 0, 0, 0, 0),
        (1, 7, 15, INDEX_MAX, INDEX_MAX),
        (1, 0, 5, 0, 9),
        (0, 3, 0, 12, 0),
        (1, 2, 9, 1, 5),
    ):
        order = table.append(pack_terms(*terms), 100, 5)
        assert (
            table.side(order),
            table.order_type(order),
            table.validity(order),
            table.instrument(order),
            table.participant(order),
        ) == terms
    assert pack_terms(1, 2, 3, 4, 5) == 1 | 2 << 1 | 3 << 4 | 4 << 8 | 5 << 32


def test_orders_are_numbered_from_one_and_every_column_is_their_own() -> None:
    table = OrderTable()
    assert table.count == 0
    for n in (1, 2, 3):
        assert table.append(10 * n, 100 * n, 5 * n, 7 * n, name_of(f"id-{n}"), f"account-{n}") == n
        assert table.count == n
    for n in (1, 2, 3):
        assert (table.terms[n], table.price[n], table.quantity[n], table.open[n]) == (10 * n, 100 * n, 5 * n, 5 * n)
        assert (table.priority[n], table.client_order_id[n], table.account[n]) == (7 * n, f"id-{n}", f"account-{n}")
        assert (table.state[n], table.next[n], table.previous[n]) == (IN_BOOK, 0, 0)
    order = table.append(1, 2, 3)
    assert (table.priority[order], table.client_order_id[order], table.account[order]) == (0, "", "")
    table.price[2], table.next[2], table.previous[2] = 8, 9, 10
    assert list(table.rows[2 * 8 + 3 : 3 * 8 + 3]) == [8, 10, 9, 10, 20, 0, 10, 14]
    assert table.append_row(1, 2, 3, 4) == 5
    assert table.priority[5] == 4


def test_the_state_of_an_order_leaves_alone_what_the_book_noted() -> None:
    table = OrderTable()
    order = table.append(0, 100, 5)
    at = (order << ROW_SHIFT) + ROW_OFFSET + LEVEL
    table.rows[at] = 21 << 2 | WAITING
    assert table.state[order] == WAITING
    for state in (GONE, GONE_WAITING, IN_BOOK, WAITING):
        table.state[order] = state
        assert (table.state[order], table.rows[at]) == (state, 21 << 2 | state)


def test_an_order_is_open_while_it_has_something_open_and_is_not_gone() -> None:
    table = OrderTable()
    order = table.append(0, 100, 1)
    answers = []
    for state in (IN_BOOK, WAITING, GONE, GONE_WAITING):
        table.state[order] = state
        answers.append(table.is_open(order))
    assert answers == [True, True, False, False]
    table.state[order] = IN_BOOK
    table.open[order] = 0
    assert not table.is_open(order)


def test_an_order_that_is_taken_back_never_was() -> None:
    table = OrderTable(4)
    untouched = list(table.rows)
    table.append(10, 100, 5, 7, name_of("a"), "x")
    first = list(table.rows)
    for _ in range(2):
        order = table.append(11, 101, 6, 8, name_of("b"), "y")
        table.next[order] = table.previous[order] = 1
        table.state[order] = GONE

        table.forget()

        assert (table.count, list(table.rows)) == (1, first)
    assert table.append(11, 101, 6, 8, name_of("c"), "z") == 2
    assert (table.client_order_id[2], table.account[2], table.client_order_id[1]) == ("c", "z", "a")
    table.forget()
    table.forget()
    assert (table.count, list(table.rows)) == (0, untouched)


def test_texts_are_kept_in_blocks_each_under_its_number() -> None:
    table = OrderTable()
    count = 3 * 4096 + 5
    for n in range(1, count + 1):
        table.append(0, 1, 1, 0, name_of(f"id-{n}"), f"{n % 7}")
    for n in (1, 4095, 4096, 4097, 8191, 8192, 8193, count):
        assert (table.client_order_id[n], table.account[n]) == (f"id-{n}", f"{n % 7}")
    assert table.client_order_id[0] == table.account[0] == ""
    assert [len(block) for block in table.account._full] == [4096, 4096, 4096]


def test_an_order_that_begins_a_block_of_texts_can_be_taken_back() -> None:
    table = OrderTable()
    for n in range(1, 4097):
        table.append(0, 1, 1, 0, name_of(f"id-{n}"))
    table.forget()
    assert table.append(0, 1, 1, 0, name_of("another")) == 4096
    assert (table.client_order_id[4095], table.client_order_id[4096]) == ("id-4095", "another")


def some_orders() -> OrderTable:
    """Open, waiting, filled, cancelled, and cancelled while waiting; with links that belong to a book."""
    table = OrderTable()
    for n in range(1, 6):
        table.append(pack_terms(n & 1, 0, 0, 3, n), 100 + n, 10 + n, 20 + n, name_of(f"id-{n}"), f"account-{n}")
        table.next[n], table.previous[n] = n + 1, n - 1
        table.rows[(n << ROW_SHIFT) + ROW_OFFSET + LEVEL] = 9 << 2
    table.state[2] = WAITING
    table.open[3] = 0
    table.state[4] = GONE
    table.state[5] = GONE_WAITING
    return table


def test_columns_tell_all_of_a_range_of_orders() -> None:
    numbers, texts = some_orders().columns(2, 5)
    assert numbers == [
        [102, 103, 104],
        [12, 0, 14],
        [12, 13, 14],
        [pack_terms(n & 1, 0, 0, 3, n) for n in (2, 3, 4)],
        [WAITING, IN_BOOK, GONE],
        [22, 23, 24],
    ]
    assert texts == [["id-2", "id-3", "id-4"], ["account-2", "account-3", "account-4"]]


def test_a_digest_reads_rows_without_what_belongs_to_a_book() -> None:
    table = some_orders()
    before = list(table.rows)
    terms = [pack_terms(n & 1, 0, 0, 3, n) for n in range(6)]

    found = list(table.contents(1, 6))

    assert [found[at : at + 8] for at in range(0, len(found), 8)] == [
        [101, 11, 0, 0, terms[1], IN_BOOK, 11, 21],
        [102, 12, 0, 0, terms[2], WAITING, 12, 22],
        [103, 0, 0, 0, terms[3], IN_BOOK, 13, 23],
        [104, 14, 0, 0, terms[4], GONE, 14, 24],
        [105, 15, 0, 0, terms[5], GONE_WAITING, 15, 25],
    ]
    assert list(table.contents(4, 5)) == [104, 14, 0, 0, terms[4], GONE, 14, 24]
    assert list(table.contents(3, 3)) == []
    assert list(table.rows) == before  # a copy, and nothing else


def test_a_column_and_a_text_are_told_of_many_orders_together() -> None:
    table = OrderTable()
    for n in range(1, 9_001):
        table.append(n % 2, 100 + n, 5, 7 * n, name_of(f"order-{n}"), f"account-{n % 3}")
    orders = [9_000, 1, 4_095, 4_096, 4_097, 1, 1, 8_191, 8_192]

    asked = vec[i64](orders)

    assert list(table.price.of(asked)) == [100 + n for n in orders]
    assert list(table.priority.of(asked)) == [7 * n for n in orders]
    assert table.client_order_id.of(asked) == [f"order-{n}" for n in orders]
    assert table.account.of(asked) == [f"account-{n % 3}" for n in orders]
    assert list(asked) == orders
    assert list(table.price.of(vec[i64]())) == table.account.of(vec[i64]()) == []


@pytest.mark.parametrize("kind", [Texts, Names])
def test_the_digest_of_texts_sees_each_of_them_in_whatever_block(kind: type[Texts | Names]) -> None:
    def digest(changed: int) -> bytes:
        texts: Any = kind()
        for n in range(1, 10_000):
            text = "another" if n == changed else f"text-{n}"
            texts.append(name_of(text) if kind is Names else text)
            if n % 1_000 == 0:
                texts.digest()  # asking changes nothing
        return texts.digest()

    changed = [1, 4095, 4096, 4097, 8191, 8192, 9_999, 10_000]

    assert len({digest(n) for n in changed}) == len(changed)
    assert digest(1) == digest(1)
    assert len(digest(1)) == 32


def test_the_next_order_of_a_queue_must_name_the_one_before_it() -> None:
    table = OrderTable()
    for _ in range(3):
        table.append(0, 100, 5)
    table.next[1], table.previous[2] = 2, 1
    assert [table.behind(order) for order in (1, 2)] == [2, 0]
    table.next[3] = 2
    with pytest.raises(InvariantBroken, match=r"^Order 2 does not name 3 as the one before it$"):
        table.behind(3)


# --- books -----------------------------------------------------------------------------------------------------------


def book_of(kind: type[Book], *orders: tuple[int, int, int]) -> tuple[OrderTable, Book]:
    """A book of (side, price, quantity), numbered from 1."""
    table = OrderTable()
    book = kind(table)
    for side, price, quantity in orders:
        book.add(table.append(pack_terms(side, 0, 0, 3, 4), price, quantity))
    book.check()
    return table, book


def ladder(book: Book, side: int) -> list[tuple[int, int]]:
    prices: list[int] = []
    quantities: list[int] = []
    book.levels(side, prices, quantities)
    return list(zip(prices, quantities, strict=True))


@BOOKS
@SIDES
def test_an_empty_book_has_nothing_to_tell(kind: type[Book], side: int) -> None:
    table, book = book_of(kind)
    assert (book.best(side), book.first(side), book.head(side, 0), book.head(side, 100)) == (0, 0, 0, 0)
    assert (book.level_quantity(side, 0), book.level_quantity(side, 100)) == (0, 0)
    assert (ladder(book, side), book.orders(table, side), book.available(side, 0, 5)) == ([], [], 0)


@BOOKS
@SIDES
def test_a_book_tells_prices_best_first_and_orders_in_time(kind: type[Book], side: int) -> None:
    best, middle, worst = (103, 102, 100) if side == BUY else (100, 101, 103)
    table, book = book_of(
        kind,
        (side, middle, 1),
        (side, worst, 2),
        (side, best, 4),
        (side, middle, 8),
        (side, 0, 16),
        (side, middle, 32),
        (1 - side, 1 if side else 999, 64),
        (side, 0, 128),
    )
    assert (book.best(side), book.first(side)) == (best, 3)
    assert ladder(book, side) == [(best, 4), (middle, 41), (worst, 2)]
    assert [book.worse(side, price) for price in (best, middle, worst)] == [middle, worst, 0]
    assert [book.head(side, price) for price in (0, best, middle, worst, 999)] == [5, 3, 1, 2, 0]
    assert [book.level_quantity(side, price) for price in (0, best, middle, worst, 999)] == [144, 4, 41, 2, 0]
    assert book.queue(table, side, middle) == [1, 4, 6]
    assert book.orders(table, side) == [5, 8, 3, 1, 4, 6, 2]
    assert [book.orders(table, side, most) for most in (0, 1, 3)] == [[], [5], [5, 8, 3]]

    for order in (4, 1, 6):
        book.remove(order)
        book.check()
    assert ladder(book, side) == [(best, 4), (worst, 2)]
    book.remove(3)
    assert (book.best(side), book.first(side), book.orders(table, side)) == (worst, 2, [5, 8, 2])
    book.remove(5)
    assert (book.head(side, 0), book.level_quantity(side, 0)) == (8, 128)
    for order in (8, 2):
        book.remove(order)
    assert (book.best(side), book.first(side), book.orders(table, side)) == (0, 0, [])
    assert [table.open[order] for order in range(1, 9)] == [1, 2, 4, 8, 16, 32, 64, 128]
    book.check()


@BOOKS
@SIDES
def test_a_better_price_becomes_the_best_and_a_worse_one_does_not(kind: type[Book], side: int) -> None:
    _, book = book_of(kind)
    seen = []
    table = book._table  # type: ignore[attr-defined]
    for price in (100, 101, 99, 102, 98, 100):
        book.add(table.append(pack_terms(side, 0, 0, 3, 4), price, 5))
        seen.append((book.best(side), table.price[book.first(side)]))
    bests = [100, 101, 101, 102, 102, 102] if side == BUY else [100, 100, 99, 99, 98, 98]
    assert seen == [(price, price) for price in bests]


@BOOKS
@SIDES
def test_a_fill_takes_off_and_only_what_is_filled_leaves(kind: type[Book], side: int) -> None:
    table, book = book_of(kind, (side, 100, 5), (side, 100, 7), (side, 100, 9))
    book.fill(2, 3)
    assert (table.open[2], book.level_quantity(side, 100), book.queue(table, side, 100)) == (4, 18, [1, 2, 3])
    book.fill(2, 4)
    assert (table.open[2], book.level_quantity(side, 100), book.queue(table, side, 100)) == (0, 14, [1, 3])
    book.fill(1, 4)
    assert (table.open[1], book.first(side)) == (1, 1)
    book.fill(1, 1)
    assert (book.first(side), book.level_quantity(side, 100)) == (3, 9)
    book.check()


@BOOKS
@SIDES
def test_fills_are_made_from_the_one_on_that_is_named(kind: type[Book], side: int) -> None:
    far = 99 if side == BUY else 101
    table, book = book_of(kind, (side, 100, 5), (side, 100, 7), (side, far, 9))
    fills = Fills()
    for at, cell in enumerate([7, 7, 7, 7, 1, 4, 100, 5, 2, 4, 100, 7, 3, 4, far, 2]):
        fills.cells[at] = cell
    fills.count = 4 * FILL

    book.consume(side, fills, FILL)

    assert [table.open[order] for order in (1, 2, 3)] == [0, 0, 7]
    assert ladder(book, side) == [(far, 7)]
    book.check()


@BOOKS
@SIDES
def test_what_is_available_is_counted_up_to_a_limit_and_no_further_than_wanted(kind: type[Book], side: int) -> None:
    step = -1 if side == BUY else 1
    prices = [100, 100 + step, 100 + 40 * step]
    _, book = book_of(kind, *[(side, price, 2**n) for n, price in enumerate(prices)], (side, 0, 64))
    assert [book.available(side, price, 100) for price in prices] == [1, 3, 7]
    assert book.available(side, 100 - step, 100) == 0
    assert book.available(side, 100 + 2 * step, 100) == 3
    assert [book.available(side, 0, wanted) for wanted in (0, 1, 2, 3, 4, 7, 8)] == [0, 1, 3, 3, 7, 7, 7]


#: What a check says when the second row of a queue of three says something else.
NOTICED = {
    "previous": ("previous", 3, "Order 2 does not name 1 as the one before it: {where}"),
    "price": ("price", 99, "Order 2 queues at a side or price that is not its own: {where}"),
    "side": ("terms", None, "Order 2 queues at a side or price that is not its own: {where}"),
    "nothing open": ("open", 0, "Order 2 is queued but not open in the book: {where}"),
    "less than nothing": ("open", -1, "Order 2 is queued but not open in the book: {where}"),
    "gone": ("state", GONE, "Order 2 is queued but not open in the book: {where}"),
    "waiting": ("state", WAITING, "Order 2 is queued but not open in the book: {where}"),
    "another quantity": ("open", 1, "The queue holds 11, its level says 15: {where}"),
    "too short": ("next", 0, "The queue ends at order 2, its level says 3: {where}"),
    "too long": ("next", 4, "Order 4 does not name 2 as the one before it: {where}"),
}


@BOOKS
@SIDES
@pytest.mark.parametrize("price", [0, 1, 100])
@pytest.mark.parametrize(("column", "value", "says"), NOTICED.values(), ids=NOTICED)
def test_a_check_says_which_row_contradicts_the_book(
    kind: type[Book], side: int, price: int, column: str, value: int | None, says: str
) -> None:
    table, book = book_of(kind, (side, price, 5), (side, price, 5), (side, price, 5), (1 - side, 200, 1))
    if value is None:
        value = pack_terms(1 - side, 0, 0, 3, 4)
    getattr(table, column)[2] = value

    with pytest.raises(InvariantBroken) as caught:
        book.check()

    assert str(caught.value) == says.format(where=f"side {side}, price {price}")


@SIDES
def test_a_check_of_the_reference_book_looks_at_its_levels(side: int) -> None:
    def broken(change: Callable[[ReferenceBook], None]) -> str:
        table = OrderTable()
        book = ReferenceBook(table)
        for price in (100, 101):
            book.add(table.append(pack_terms(side, 0, 0, 3, 4), price, 5))
        book.check()
        change(book)
        with pytest.raises(InvariantBroken) as caught:
            book.check()
        return str(caught.value)

    best = 101 if side == BUY else 100

    def levels(book: ReferenceBook) -> dict[int, module.Level]:
        return book._asks if side else book._bids

    def another_best(book: ReferenceBook) -> None:
        level = levels(book)[201 - best]
        book._best_bid, book._best_ask = (level, None) if side == BUY else (None, level)

    def no_head(book: ReferenceBook) -> None:
        levels(book)[best].head = 0

    def another_price(book: ReferenceBook) -> None:
        levels(book)[best].price = 99

    def below_zero(book: ReferenceBook) -> None:
        levels(book)[best].price = -1

    where = f"side {side}, price"
    assert broken(another_best) == f"Side {side}: the best level at hand is not the first of the ladder"
    assert broken(no_head) == f"An empty level stands in the book: {where} {best}"
    assert broken(another_price) == f"A level stands under a price that is not its own: {where} 99"
    assert broken(below_zero) == f"A level stands under a price that is not its own: {where} -1"


# --- books with nothing around them ----------------------------------------------------------------------------------


def test_a_bare_market_takes_commands_one_by_one_and_many_at_once() -> None:
    commands = [
        # operation, side, flags, symbol, price, quantity, number
        (0, SELL, 0, 1, 100, 5, 7),
        (0, SELL, 0, 0, 100, 5, 8),
        (0, BUY, 0, 1, 101, 3, 9),  # trades at 100
        (0, BUY, 1, 1, 100, 4, 10),  # trades 2, the rest does not stay
        (0, BUY, 0, 1, 2**31 - 1, 2**31, 11),
        (0, SELL, 3, 1, 1, 2**31 + 5, 12),  # immediate, whatever the other bits say
        (0, BUY, 2, 0, 99, 1, 13),  # stays
        (1, 0, 0, 0, 0, 0, 8),
        (1, 0, 0, 0, 0, 0, 8),  # gone already
        (1, 0, 0, 0, 0, 0, 9),  # filled already
        (1, 0, 0, 0, 0, 0, 6),  # never was
        (1, 0, 0, 0, 0, 0, 10),  # never rested
        (2, 1, 1, 1, 1, 1, 13),
    ]
    markets = []
    for kind in (FastBook, ReferenceBook):
        table = OrderTable()
        markets.append(BareMarket(table, [kind(table), kind(table)], 13, 1))
    one, many = markets
    for command in commands:
        one.submit(*command)
    many.run(b"".join(record(*command) for command in commands))

    for market in markets:
        fills = market.fills
        assert [tuple(fills.cells[at : at + FILL]) for at in range(0, fills.count, FILL)] == [
            (1, 3, 100, 3),
            (1, 4, 100, 2),
            (5, 6, 2**31 - 1, 2**31),
        ]
        table = market.table
        assert list(market.orders) == [0] * 7 + [1, 2, 3, 4, 5, 6, 7]
        assert [table.state[order] for order in range(1, 8)] == [IN_BOOK, GONE, IN_BOOK, GONE, IN_BOOK, GONE, GONE]
        assert [table.open[order] for order in range(1, 8)] == [0, 5, 0, 2, 0, 5, 1]
        assert [(table.side(order), table.instrument(order)) for order in (1, 2, 3, 7)] == [
            (1, 1),
            (1, 0),
            (0, 1),
            (0, 0),
        ]
        assert [table.priority[order] for order in range(1, 8)] == [0] * 7
        assert {
            (table.order_type(order), table.validity(order), table.participant(order)) for order in range(1, 8)
        } == {(0, 0, 0)}
        assert [book.best(side) for book in market.books for side in (BUY, SELL)] == [0, 0, 0, 0]


def record(operation: int, side: int, flags: int, symbol: int, price: int, quantity: int, number: int) -> bytes:
    """A record of ``BareMarket.run``."""
    fields = [(operation, 1), (side, 1), (flags, 2), (symbol, 4), (price, 4), (quantity, 4), (number, 8)]
    return b"".join(value.to_bytes(size, "little") for value, size in fields)


def test_a_bare_market_takes_memory_for_the_fills_and_numbers_expected() -> None:
    table = OrderTable()
    market = BareMarket(table, [ReferenceBook(table)], 5, 3)
    assert (len(market.fills.cells), len(market.orders)) == (3 * FILL, 6)
    market.run(b"")
    assert table.count == 0
    assert len(BareMarket(table, [], 0).fills.cells) == 64 * FILL
