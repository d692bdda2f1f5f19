"""The fast book is the reference book: after every step both give the same answers to every question."""

from __future__ import annotations

import random

import pytest

from benchmarks import generate
from engine.faults import InvariantBroken
from engine.matching.bare import BareMarket
from engine.matching.book import BUY, GONE, SELL, Book, OrderTable, ReferenceBook, pack_terms
from engine.matching.fastbook import FastBook
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
