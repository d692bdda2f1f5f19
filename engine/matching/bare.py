"""Books with nothing around them: no identities, phases or events. For measuring, and for research on books alone.

Matching is that of the engine: order table, book, and the rules of ``continuous.py``. Orders are limit orders, prices
above 0, symbols are named by their index. Nothing is checked.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import read_i64_le
from librt.vecs import vec
from mypy_extensions import i64

from engine.matching.book import (
    GONE,
    LEVEL,
    OPEN,
    ROW_OFFSET,
    ROW_SHIFT,
    STATE,
    Book,
    Fills,
    OrderTable,
    pack_terms,
)
from engine.matching.continuous import take, withdraw
from engine.memory import zeros

_RECORD: Final = 24
_32_BITS: Final = 0xFFFFFFFF


@final
class BareMarket:
    """One table, one book per symbol, and the fills in order.

    Callers name orders by numbers of their own, up to ``largest``; ``orders`` has the table's number of each, 0 for
    none yet. Memory is taken at once for as many fills as are ``expected``; more cost a pause.
    """

    def __init__(self, table: OrderTable, books: list[Book], largest: i64, expected: i64 = 64) -> None:
        self.table: Final = table
        self.books: Final = books
        self.fills: Final = Fills(expected)
        self.orders: Final = zeros(largest + 1, largest + 1)
        self._terms: Final = vec[i64]([pack_terms(side, 0, 0, i, 0) for i in range(len(books)) for side in (0, 1)])

    def submit(
        self, operation: i64, side: i64, flags: i64, symbol: i64, price: i64, quantity: i64, number: i64
    ) -> None:
        """One command, in the fields of a record: see ``run``."""
        if operation:
            self.cancel(number)
        else:
            self.new(side, flags, symbol, price, quantity, number)

    def new(self, side: i64, flags: i64, symbol: i64, price: i64, quantity: i64, number: i64) -> None:
        """An order trades; what is left rests unless bit 0 of ``flags``, immediate or cancel, is set."""
        order = self.table.append_row(self._terms[symbol << 1 | side], price, quantity, 0)
        self.orders[number] = order
        book = self.books[symbol]
        take(self.table, book, order, price, self.fills, -1, None)
        row = (order << ROW_SHIFT) + ROW_OFFSET
        if self.table.rows[row + OPEN]:
            if flags & 1:
                self.table.rows[row + LEVEL] = GONE
            else:
                book.add(order)

    def cancel(self, number: i64) -> None:
        """Take an order off its book; one that is filled, gone or has never been stays as it is."""
        order = self.orders[number]
        rows = self.table.rows
        row = (order << ROW_SHIFT) + ROW_OFFSET
        if rows[row + OPEN] > 0 and rows[row + LEVEL] & STATE < GONE:
            withdraw(self.table, self.books[self.table.instrument(order)], order)

    def run(self, records: bytes) -> None:
        """Carry out many commands in one call.

        A record is 24 bytes, little-endian: operation u8 (0 new, 1 cancel), side u8, flags u16 (bit 0: immediate),
        symbol u32, price i32, quantity u32, number u64.
        """
        at: i64 = 0
        end: i64 = len(records)
        while at < end:
            first = read_i64_le(records, at)
            number = read_i64_le(records, at + 16)
            if first & 255:
                self.cancel(number)
            else:
                second = read_i64_le(records, at + 8)
                price = second & _32_BITS
                quantity = second >> 32 & _32_BITS
                self.new(first >> 8 & 255, first >> 16 & 1, first >> 32 & _32_BITS, price, quantity, number)
            at += _RECORD
