"""Every trade ever made, four integers each, so that one can still be named when it turns out to have been an error.

A trade is found by its number, like an order by its own: nothing is hashed, no object stays behind, and who traded at
which terms is read from the two orders. Rows are written once and never change, so a block that is full is hashed there
and then.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from typing import Final, final

from librt.vecs import extend, vec
from mypy_extensions import i64

from engine.identities import encode

_WIDTH: Final = 4
#: Trades in a block. Part of the digest's definition.
BLOCK: Final = 4096
_BLOCK_INTEGERS: Final = BLOCK * _WIDTH
#: Integers that memory is taken for when a block begins; it doubles until the block is full.
_FIRST: Final = 16 * _WIDTH


@final
class Tape:
    """The trades by number, dense from 1."""

    def __init__(self) -> None:
        self._last = vec[i64]([0] * _FIRST)  #: rows of the last block
        self._end: i64 = 0  #: how many integers of it are in use
        self._full: Final[list[vec[i64]]] = []
        self._dates: Final[list[int]] = []  #: trading days, YYYYMMDD
        self._firsts: Final[list[int]] = []  #: number of the first trade that could be of that day
        self._hash: Final = blake2b(digest_size=32)  #: over the full blocks

    def start_day(self, date: int, first: int) -> None:
        """Trades from number ``first`` on are of ``date``."""
        self._dates.append(date)
        self._firsts.append(first)

    def append(self, buy: i64, sell: i64, price: i64, quantity: i64) -> None:
        """The next trade, between two orders by their numbers."""
        rows = self._last
        at = self._end
        if at == len(rows):
            if at == _BLOCK_INTEGERS:
                self._hash.update(rows)
                self._full.append(rows)
                rows = vec[i64]([0] * _FIRST)
                at = 0
            else:
                rows = extend(rows, rows)
            self._last = rows
        rows[at] = buy
        rows[at + 1] = sell
        rows[at + 2] = price
        rows[at + 3] = quantity
        self._end = at + _WIDTH

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
        return len(self._full) * BLOCK + self._end // _WIDTH

    def digest(self) -> bytes:
        """Over all of it. Costs a look at the last block."""
        digest = self._hash.copy()
        digest.update(self._last[: self._end])
        digest.update(encode([self._dates, self._firsts]))
        return digest.digest()
