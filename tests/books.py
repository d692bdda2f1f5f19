"""The worked books of market-rules 3.4 as data, for the pure functions and for the market. Tick 1, wide limits."""

from __future__ import annotations

from typing import NamedTuple


class WorkedBook(NamedTuple):
    """Orders are (limit, quantity), limit 0 for a market order; what is left maps the limit to the open quantity."""

    name: str
    buys: list[tuple[int, int]]
    sells: list[tuple[int, int]]
    reference: int
    price: int
    volume: int
    surplus: int
    buys_left: dict[int, int]
    sells_left: dict[int, int]
    upper: int = 0
    must_fill: bool = False


_BOOK_3A = ([(103, 12)], [(100, 8)])
_BOOK_3B = ([(103, 8)], [(100, 12)])
_BOOK_4 = ([(103, 8)], [(100, 8)])
_BOOK_5 = ([(103, 10), (101, 4)], [(100, 10), (102, 4)])
_BOOK_6 = ([(0, 20)], [(100, 5), (101, 5)])
_BOOK_7 = ([(0, 7)], [(0, 4)])

BOOKS = [
    WorkedBook(
        "1",
        [(0, 4), (502, 3), (501, 5), (500, 6), (499, 8)],
        [(0, 3), (499, 2), (500, 6), (501, 4), (502, 7)],
        reference=500,
        price=501,
        volume=12,
        surplus=-3,
        buys_left={500: 6, 499: 8},
        sells_left={501: 3, 502: 7},
    ),
    WorkedBook(
        "2",
        [(102, 10), (100, 5)],
        [(99, 10), (101, 4), (102, 3)],
        reference=100,
        price=101,
        volume=10,
        surplus=-4,
        buys_left={100: 5},
        sells_left={101: 4, 102: 3},
    ),
    WorkedBook("3a", *_BOOK_3A, 101, price=103, volume=8, surplus=4, buys_left={103: 4}, sells_left={}),
    WorkedBook("3b", *_BOOK_3B, 101, price=100, volume=8, surplus=-4, buys_left={}, sells_left={100: 4}),
    WorkedBook("4, reference inside", *_BOOK_4, 101, price=101, volume=8, surplus=0, buys_left={}, sells_left={}),
    WorkedBook("4, reference below", *_BOOK_4, 98, price=100, volume=8, surplus=0, buys_left={}, sells_left={}),
    WorkedBook("4, reference above", *_BOOK_4, 105, price=103, volume=8, surplus=0, buys_left={}, sells_left={}),
    WorkedBook(
        "5, reference below", *_BOOK_5, 100, price=101, volume=10, surplus=4, buys_left={101: 4}, sells_left={102: 4}
    ),
    WorkedBook(
        "5, reference above", *_BOOK_5, 105, price=102, volume=10, surplus=-4, buys_left={101: 4}, sells_left={102: 4}
    ),
    WorkedBook(
        "6a",
        *_BOOK_6,
        100,
        price=0,
        volume=0,
        surplus=0,
        buys_left={0: 20},
        sells_left={100: 5, 101: 5},
        must_fill=True,
    ),
    WorkedBook("6b", *_BOOK_6, 100, price=102, volume=10, surplus=10, buys_left={0: 10}, sells_left={}),
    WorkedBook("6c", *_BOOK_6, 100, price=101, volume=10, surplus=10, buys_left={0: 10}, sells_left={}, upper=101),
    WorkedBook("7", *_BOOK_7, 100, price=100, volume=4, surplus=3, buys_left={0: 3}, sells_left={}),
    WorkedBook(
        "7, all must fill",
        *_BOOK_7,
        100,
        price=0,
        volume=0,
        surplus=0,
        buys_left={0: 7},
        sells_left={0: 4},
        must_fill=True,
    ),
]
