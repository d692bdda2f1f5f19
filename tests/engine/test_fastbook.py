"""The fast book is the reference book: after every step both give the same answers to every question."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from benchmarks import generate
from engine.faults import InvariantBroken
from engine.matching import fastbook
from engine.matching.bare import BareMarket
from engine.matching.book import (
    BUY,
    GONE,
    LEVEL,
    ROW_OFFSET,
    ROW_SHIFT,
    SELL,
    WAITING,
    Book,
    OrderTable,
    ReferenceBook,
    pack_terms,
)
from engine.matching.fastbook import FastBook
from engine.memory import spread
from engine.types import PRICE_MAX

#: step between prices, how many of them
GRIDS = [(1, 40), (1, 3_000), (1, 200_000), (10, 3_000), (5_000, 200)]


class Pair:
    """Both books, each with a table of its own, and the same orders in them."""

    def __init__(self, step: int = 1) -> None:
        self.tables = (OrderTable(), OrderTable())
        self.books: tuple[Book, Book] = (FastBook(self.tables[0]), ReferenceBook(self.tables[1]))
        for book in self.books:
            book.set_step(step)
        self.live: list[int] = []

    def add(self, side: int, price: int, quantity: int) -> int:
        order = 0
        for table, book in zip(self.tables, self.books, strict=True):
            order = table.append(pack_terms(side, 0, 0, 3, 4), price, quantity)
            book.add(order)
        self.live.append(order)
        return order

    def remove(self, order: int) -> None:
        for table, book in zip(self.tables, self.books, strict=True):
            book.remove(order)
            table.state[order] = GONE
        self.live.remove(order)

    def fill(self, order: int, quantity: int) -> None:
        for book in self.books:
            book.fill(order, quantity)
        left = {table.open[order] for table in self.tables}
        assert len(left) == 1
        if left == {0}:
            self.live.remove(order)

    def compare(self) -> None:
        fast, reference = self.books
        for side in (BUY, SELL):
            assert fast.best(side) == reference.best(side)
            assert fast.first(side) == reference.first(side)

    def compare_all(self, draw: random.Random) -> None:
        fast, reference = self.books
        for side in (BUY, SELL):
            found: list[tuple[list[int], list[int]]] = [([], []), ([], [])]
            for book, (prices, quantities) in zip(self.books, found, strict=True):
                book.check()
                book.levels(side, prices, quantities)
            assert found[0] == found[1]
            prices = found[0][0]
            assert fast.orders(self.tables[0], side) == reference.orders(self.tables[1], side)
            for book in self.books:
                assert [book.worse(side, price) for price in prices] == [*prices[1:], 0][: len(prices)]
            for price in [0, 1, PRICE_MAX, *prices[:5]]:
                assert fast.head(side, price) == reference.head(side, price)
                assert fast.level_quantity(side, price) == reference.level_quantity(side, price)
            for limit in (0, draw.choice(prices) if prices else 7, draw.randrange(1, 300)):
                wanted = draw.randrange(1, 1_000)
                assert fast.available(side, limit, wanted) == reference.available(side, limit, wanted)


@pytest.mark.parametrize("seed", range(15))
def test_both_books_answer_the_same_after_every_step(seed: int) -> None:
    draw = random.Random(seed)
    step, count = GRIDS[seed % len(GRIDS)]
    pair = Pair(step)
    for number in range(1_000):
        what = draw.random()
        if what < 0.5 or not pair.live:
            price = draw.randrange(1, count) * step
            if draw.random() < 0.05:
                price = 0
            elif draw.random() < 0.01:  # an order from before a change of ticks, or from far away
                price = draw.choice([draw.randrange(1, count), 1, PRICE_MAX, PRICE_MAX // 2 + 1])
            pair.add(draw.getrandbits(1), price, draw.randrange(1, 100))
        elif what < 0.75:
            pair.remove(draw.choice(pair.live))
        else:
            order = pair.books[1].first(draw.getrandbits(1)) or draw.choice(pair.live)
            pair.fill(order, draw.randrange(1, pair.tables[1].open[order] + 1))
        pair.compare()
        if number % 20 == 0:
            pair.compare_all(draw)
        if number % 250 == 249:
            step = draw.choice([1, 2, 10, 50])
            for book in pair.books:
                book.set_step(step)
    pair.compare_all(draw)


def test_prices_that_are_no_multiple_of_the_step_are_taken() -> None:
    pair = Pair(1_000)
    for price in (5_000, 7_000, 7_500, 7_501, 1):
        pair.add(BUY, price, 10)
        pair.compare_all(random.Random(0))


def test_a_book_with_very_many_pages_keeps_them_in_order() -> None:
    pair = Pair()
    draw = random.Random(7)
    for _ in range(5_000):
        pair.add(draw.getrandbits(1), draw.randrange(1, 10**7), 1)
    pair.compare_all(draw)
    for order in draw.sample(pair.live, 4_900):
        pair.remove(order)
        pair.compare()
    pair.compare_all(draw)


@pytest.mark.parametrize("column", ["open", "price", "next", "previous", "terms", "state"])
@pytest.mark.parametrize("kind", [FastBook, ReferenceBook])
def test_check_notices_a_row_that_contradicts_its_book(kind: type[Book], column: str) -> None:
    table = OrderTable()
    book = kind(table)
    for _ in range(3):
        book.add(table.append(pack_terms(SELL, 0, 0, 0, 0), 100, 5))
    book.check()

    getattr(table, column)[2] += 1

    with pytest.raises(InvariantBroken):
        book.check()


# --- pages -----------------------------------------------------------------------------------------------------------


def own(book: FastBook, page: int, what: int) -> int:
    """What is the page's own, such as its key."""
    return book._levels[(page << fastbook._PAGE_SHIFT) + what]


def linked(book: FastBook, side: int) -> list[int]:
    """The pages of a side, best first."""
    pages = []
    page = book._first_sell if side else book._first_buy
    while page:
        assert page not in pages
        pages.append(page)
        page = own(book, page, fastbook._WORSE)
    return pages


def check_pages(book: FastBook) -> None:
    """Raise where links, hash, order and parking place do not tell the same of the pages."""
    all_linked = [*linked(book, BUY), *linked(book, SELL)]
    for side, ordered in ((BUY, book._order_buy), (SELL, book._order_sell)):
        pages = linked(book, side)
        keys = [own(book, page, fastbook._KEY) for page in pages]
        assert keys == list(ordered) == sorted(set(keys))
        assert {key & 1 for key in keys} <= {side}
        assert [own(book, page, fastbook._BETTER) for page in pages] == [0, *pages][: len(pages)]
        assert [book._find(key) for key in keys] == pages
    assert book._live == len(all_linked)
    assert len(book._hash) == 2 * (book._mask + 1)
    assert sum(book._hash[at] != 0 for at in range(0, len(book._hash), 2)) == book._live <= book._mask // 2
    parked = [page for page in book._parked if page]
    assert len(parked) == len(set(parked)) <= 16
    assert set(parked) == {page for page in all_linked if own(book, page, fastbook._IS_PARKED)}
    assert {page for page in all_linked if own(book, page, fastbook._BITS) == 0} <= set(parked)
    spare = []
    page = book._spare
    while page:
        spare.append(page)
        page = own(book, page, fastbook._WORSE)
        assert len(spare) < len(book._levels)
    count = len(book._levels) >> fastbook._PAGE_SHIFT
    assert sorted([*spare, *all_linked]) == list(range(1, count))
    for page in spare:
        assert own(book, page, fastbook._BITS) == own(book, page, fastbook._IS_PARKED) == 0
        start = page << fastbook._PAGE_SHIFT
        assert not any(book._levels[start + i] for i in range(128) if i & 3 != 3)


def filled_book(*orders: tuple[int, int]) -> tuple[OrderTable, FastBook]:
    """A fast book of (side, price), ten units each, numbered from 1."""
    table = OrderTable()
    book = FastBook(table)
    for side, price in orders:
        book.add(table.append(pack_terms(side, 0, 0, 3, 4), price, 10))
    return table, book


@pytest.mark.parametrize("seed", range(6))
def test_pages_stay_in_order_whatever_comes_and_goes(seed: int) -> None:
    draw = random.Random(seed)
    step = (1, 10)[seed & 1]
    pair = Pair(step)
    fast = pair.books[0]
    assert isinstance(fast, FastBook)
    spread = (400, 4_000, 10**9)[seed % 3]
    for number in range(400):
        if draw.random() < (0.75 if number < 150 else 0.3) or not pair.live:
            pair.add(draw.getrandbits(1), draw.randrange(1, spread) * step, draw.randrange(1, 9))
        else:
            pair.remove(draw.choice(pair.live))
        pair.compare()
        if number % 8 == 0:
            check_pages(fast)
        if number == 300:
            fast.set_step(2)
            check_pages(fast)
    pair.compare_all(draw)
    check_pages(fast)


@pytest.mark.parametrize("side", [BUY, SELL])
def test_each_of_the_places_of_a_page_is_found_alone_and_behind_another(side: int) -> None:
    best = 959 if side == BUY else 960
    better = 1 if side == BUY else -1
    for n in range(32):
        price = best - better * n
        table, book = filled_book((side, price))
        assert (book.best(side), book.first(side), book.head(side, price)) == (price, 1, 1)
        assert book.worse(side, price) == 0
        book.check()
        for m in range(n):
            book.add(table.append(pack_terms(side, 0, 0, 3, 4), best - better * m, 10))
            assert book.worse(side, best - better * m) == price
            assert book.best(side) == best - better * m
            assert book.available(side, 0, 100) == 20
            book.remove(table.count)
            assert (book.best(side), book.first(side)) == (price, 1)
        check_pages(book)


def test_a_page_holds_32_steps_and_each_side_has_its_own() -> None:
    _, book = filled_book(*[(SELL, price) for price in range(64, 96)])
    assert len(linked(book, SELL)) == 1
    _, book = filled_book((SELL, 63), (SELL, 64), (SELL, 95), (SELL, 96), (BUY, 64))
    assert (len(linked(book, SELL)), len(linked(book, BUY))) == (3, 1)
    assert len(book._levels) == 5 * 128
    check_pages(book)


def test_pages_that_ran_empty_stay_until_sixteen_others_have() -> None:
    table, book = filled_book((SELL, 10**6))
    for n in range(1, 40):
        book.add(table.append(pack_terms(SELL, 0, 0, 3, 4), 32 * n, 10))
        book.remove(table.count)
        check_pages(book)
        keys = [own(book, page, fastbook._KEY) for page in linked(book, SELL)]
        assert keys == [key << 1 | 1 for key in [*range(max(1, n - 15), n + 1), 10**6 >> 5]]
    assert len(book._levels) == 128 * 19  # pages that have gone are used again
    assert book.best(SELL) == 10**6


def test_a_page_that_is_in_use_again_is_not_forgotten_with_those_that_ran_empty() -> None:
    table, book = filled_book((SELL, 32))
    book.remove(1)
    book.add(1)
    for n in range(2, 30):
        book.add(table.append(pack_terms(SELL, 0, 0, 3, 4), 32 * n, 10))
        book.remove(table.count)
    check_pages(book)
    assert (book.best(SELL), book.first(SELL)) == (32, 1)
    book.remove(1)
    check_pages(book)
    assert book.best(SELL) == 0
    assert len(linked(book, SELL)) == 16


def test_the_hash_grows_before_it_is_more_than_half_full() -> None:
    table, book = filled_book()
    sizes = []
    for n in range(1, 130):
        book.add(table.append(pack_terms(n & 1, 0, 0, 3, 4), 32 * n, 10))
        sizes.append(book._mask)
        if n in (31, 32, 63, 64, 127, 128):
            check_pages(book)
    assert sizes == [63] * 31 + [127] * 32 + [255] * 64 + [511] * 2
    assert book._find(1) == book._find(10**9) == 0


def test_pages_seldom_collide_in_the_hash() -> None:
    for stride in (1, 2, 7, 64, 1_000):
        homes = {spread((10_000 + n * stride) << 1 | side) & 255 for n in range(50) for side in (BUY, SELL)}
        assert len(homes) > 70


def test_a_key_that_leaves_the_hash_leaves_those_that_collide_with_it_findable() -> None:
    draw = random.Random(5)
    for _ in range(40):
        _, book = filled_book()
        keys = [key for key in range(2_000) if spread(key) & 63 in (62, 63, 0)][:12]
        draw.shuffle(keys)
        for page, key in enumerate(keys, 1):
            book._enter(key, page)
        pages = {key: page for page, key in enumerate(keys, 1)}
        while pages:
            gone = draw.choice(list(pages))
            book._leave(gone)
            del pages[gone]
            assert book._find(gone) == 0
            assert all(book._find(key) == page for key, page in pages.items())
        assert not any(book._hash[at] for at in range(0, 128, 2))


def test_a_new_step_takes_every_order_along_and_what_the_rows_say_of_them() -> None:
    table, book = filled_book((SELL, 100), (SELL, 110), (SELL, 100), (BUY, 90), (BUY, 0), (SELL, 0), (BUY, 60))
    table.state[3] = WAITING  # not that it could; but it is not the book's to change
    before = {side: book.orders(table, side) for side in (BUY, SELL)}
    for step, expected in ((10, 10), (10, 10), (20, 10), (7, 1), (5, 5), (1, 1)):
        book.set_step(step)
        assert book._step == expected
        assert {side: book.orders(table, side) for side in (BUY, SELL)} == before
        assert [book.best(side) for side in (BUY, SELL)] == [90, 100]
        assert [book.first(side) for side in (BUY, SELL)] == [4, 1]
        assert [book.level_quantity(SELL, price) for price in (0, 100, 110, 105)] == [10, 20, 10, 0]
        assert [table.state[order] for order in (1, 2, 3)] == [0, 0, WAITING]
        for order in (1, 2, 4):
            level = table.rows[(order << ROW_SHIFT) + ROW_OFFSET + LEVEL]
            assert book._price(level >> 2) == table.price[order]
        check_pages(book)
    table.state[3] = 0
    book.check()
    for order in range(1, 8):
        book.remove(order)
    book.check()


def test_a_new_step_forgets_the_pages_that_ran_empty() -> None:
    table, book = filled_book((SELL, 100), (SELL, 1_000))
    book.remove(2)
    assert len(linked(book, SELL)) == 2
    book.set_step(50)
    check_pages(book)
    assert (len(linked(book, SELL)), list(book._parked)) == (1, [0] * 16)
    assert (book.head(SELL, 1_000), book.head(SELL, 100), book.head(SELL, 101)) == (0, 1, 0)
    book.add(table.append(pack_terms(SELL, 0, 0, 3, 4), 75, 10))  # no multiple of 50
    assert (book._step, book.best(SELL), book.worse(SELL, 75)) == (25, 75, 100)
    check_pages(book)
    book.check()


def wrong(change: Callable[[FastBook, OrderTable], None]) -> str:
    """What a check says of a sound book after ``change``. Bids at 100 and 40, asks at 200 and 300, each two orders."""
    prices = [(side, price) for side, price in ((BUY, 100), (BUY, 40), (SELL, 200), (SELL, 300)) for _ in range(2)]
    table, book = filled_book(*prices)
    book.check()
    change(book, table)
    with pytest.raises(InvariantBroken) as caught:
        book.check()
    return str(caught.value)


def test_a_check_finds_an_order_of_which_the_first_page_says_nothing() -> None:
    def hide(book: FastBook, _: OrderTable) -> None:
        empty = next(level for level in range(32, 64) if book._levels[level << 2] == 0)
        book._levels[empty << 2] = 1

    assert "its page does not say so" in wrong(hide)


@pytest.mark.parametrize(("side", "best", "top"), [(BUY, "_best_buy", "_top_buy"), (SELL, "_best_sell", "_top_sell")])
def test_a_check_looks_at_what_is_at_hand(side: int, best: str, top: str) -> None:
    other = 40 if side == BUY else 300
    for value in (0, other):
        assert wrong(lambda book, _: setattr(book, best, value)) == (  # noqa: B023 - called at once
            f"Side {side}: the best price at hand is not the first of the ladder"
        )
    says = f"Side {side}: the first order at hand is not the first of the best level"
    assert wrong(lambda book, _: setattr(book, top, 0)) == says
    assert wrong(lambda book, _: setattr(book, top, book._level(side, other))) == says
    _, book = filled_book()
    setattr(book, best, 5)
    with pytest.raises(InvariantBroken, match="the best price at hand"):
        book.check()


def test_a_check_looks_at_the_ladder_and_at_each_level() -> None:
    def cell(book: FastBook, side: int, price: int, what: int) -> int:
        return (book._level(side, price) << 2) + what

    def out_of_order(book: FastBook, _: OrderTable) -> None:
        first, second = linked(book, SELL)
        at = (second << fastbook._PAGE_SHIFT) + fastbook._KEY
        book._levels[at] = (own(book, first, fastbook._KEY) >> 1) - 1 << 1 | 1

    def empty(book: FastBook, _: OrderTable) -> None:
        book._levels[cell(book, SELL, 300, 0)] = 0

    def not_found(book: FastBook, _: OrderTable) -> None:
        book._leave(own(book, linked(book, SELL)[1], fastbook._KEY))

    def another_tail(book: FastBook, _: OrderTable) -> None:
        book._levels[cell(book, SELL, 300, 1)] = 7

    def another_quantity(book: FastBook, _: OrderTable) -> None:
        book._levels[cell(book, SELL, 300, 2)] = 21

    def unseen(book: FastBook, _: OrderTable) -> None:
        book._levels[(linked(book, SELL)[1] << fastbook._PAGE_SHIFT) + fastbook._BITS] = 0

    def another_level(_: FastBook, table: OrderTable) -> None:
        table.rows[(8 << ROW_SHIFT) + ROW_OFFSET + LEVEL] += 4

    where = "side 1, price 300"
    moved = 300 % 32 + (200 // 32 - 1) * 32
    assert wrong(out_of_order) == f"Side 1: the ladder is out of order: [200, {moved}]"
    assert wrong(empty) == f"An empty level stands in the book: {where}"
    assert wrong(not_found) == f"A level stands under a price that is not its own: {where}"
    assert wrong(another_tail) == f"The queue ends at order 8, its level says 7: {where}"
    assert wrong(another_quantity) == f"The queue holds 20, its level says 21: {where}"
    assert wrong(another_level) == f"Order 8 queues at a side or price that is not its own: {where}"
    assert wrong(unseen) == "Level 140 has orders, its page does not say so"


# --- the four workloads ----------------------------------------------------------------------------------------------


def follow(recipe: generate.Recipe, commands: int) -> None:
    """Run a workload through both books, and compare them after every command."""
    stream = generate.stream(recipe, commands, [generate.Plain() for _ in range(recipe.symbols)])
    tables = (OrderTable(), OrderTable())
    kinds = (FastBook, ReferenceBook)
    markets = [
        BareMarket(table, [kind(table) for _ in range(recipe.symbols)], commands)
        for table, kind in zip(tables, kinds, strict=True)
    ]
    fast, reference = markets
    seen = 0
    for command in map(generate.RECORD.unpack, stream):
        for market in markets:
            market.submit(*command)
        symbol, price, number = command[3], command[4], command[6]
        assert fast.orders[number] == reference.orders[number] > 0
        assert fast.fills.count == reference.fills.count
        assert list(fast.fills.cells[seen : fast.fills.count]) == list(reference.fills.cells[seen : fast.fills.count])
        seen = fast.fills.count
        for book_side in (BUY, SELL):
            ours, other = fast.books[symbol], reference.books[symbol]
            assert ours.best(book_side) == other.best(book_side)
            assert ours.first(book_side) == other.first(book_side)
            assert ours.level_quantity(book_side, price) == other.level_quantity(book_side, price)
            assert ours.head(book_side, price) == other.head(book_side, price)
    for symbol in range(recipe.symbols):
        for book_side in (BUY, SELL):
            ours, other = fast.books[symbol], reference.books[symbol]
            ours.check()
            other.check()
            assert ours.orders(tables[0], book_side) == other.orders(tables[1], book_side)


NAMES = ["steady", "deep", "sweep", "multi"]


@pytest.mark.parametrize("name", NAMES)
def test_both_books_agree_after_every_command_of_the_beginning_of_a_workload(name: str) -> None:
    follow(next(recipe for recipe in generate.recipes(5_000) if recipe.name == name), 5_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_both_books_agree_after_every_command_of_a_workload(name: str) -> None:
    follow(next(recipe for recipe in generate.recipes(1_000_000) if recipe.name == name), 1_000_000)
