"""Every trade ever made, four integers each, so that one can still be named when it turns out to have been an error.

A trade is found by its number, like an order by its own: nothing is hashed, no object stays behind, and who traded at
which terms is read from the two orders. Rows are written once and never change, so the digest hashes them in blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from typing import Final, final

from librt.vecs import append, vec
from mypy_extensions import i64

from engine.identities import encode

_WIDTH: Final = 4
#: Trades in a block. Part of the digest's definition.
BLOCK: Final = 4096
_BLOCK_INTEGERS: Final = BLOCK * _WIDTH


@final
class Tape:
    """The trades by number, dense from 1."""

    def __init__(self) -> None:
        self._last = vec[i64]()  #: rows of the last block
        self._full: Final[list[vec[i64]]] = []
        self._dates: Final[list[int]] = []  #: trading days, YYYYMMDD
        self._firsts: Final[list[int]] = []  #: number of the first trade that could be of that day
        #: Digests of full blocks, by number: a cache, no part of the state.
        self._digests: Final[list[bytes]] = []

    def start_day(self, date: int, first: int) -> None:
        """Trades from number ``first`` on are of ``date``."""
        self._dates.append(date)
        self._firsts.append(first)

    def append(self, buy: i64, sell: i64, price: i64, quantity: i64) -> None:
        """The next trade, between two orders by their numbers."""
        rows = self._last
        if len(rows) == _BLOCK_INTEGERS:
            self._full.append(rows)
            rows = vec[i64]()
        rows = append(rows, buy)
        rows = append(rows, sell)
        rows = append(rows, price)
        self._last = append(rows, quantity)

    def trade(self, number: int) -> tuple[int, int, int, int]:
        """Buy order, sell order, price, quantity of a trade that was made."""
        block, place = divmod(number - 1, BLOCK)
        rows = self._full[block] if block < len(self._full) else self._last
        at = place * _WIDTH
        return int(rows[at]), int(rows[at + 1]), int(rows[at + 2]), int(rows[at + 3])

    def date(self, number: int) -> int:
        """The trading day of a trade, YYYYMMDD; 0: before the first."""
        day = bisect_right(self._firsts, number)
        return self._dates[day - 1] if day else 0

    def count(self) -> int:
        """How many there are."""
        return len(self._full) * BLOCK + len(self._last) // _WIDTH

    def digests(self) -> list[bytes]:
        """Over all of it, block by block; what can no longer change is hashed once."""
        for block in range(len(self._digests), len(self._full)):
            self._digests.append(_digest(self._full[block]))
        return [*self._digests, _digest(self._last), encode([self._dates, self._firsts])]


def _digest(rows: vec[i64]) -> bytes:
    return blake2b(encode([int(each) for each in rows]), digest_size=32).digest()
