"""One instrument's order book: best price first, first come first served within a price.

Most commands never trade: in the benchmark's flow 42 of 100 are cancels and 46 rest away from the best price. So a
cancel must cost O(1), and the best price must be at hand without a search.

* ``OrderTable`` holds every order of the market in a row of integers found by its number. The engine hands out numbers
  densely from 1, so nothing is hashed, and 0 can mean "none" in every link. No object per order: nothing that the
  collector has to visit. Address space is reserved once and memory comes page by page, so growth copies nothing.
* A queue is a linked list threaded through two of these columns; a cancel unlinks its row in place.
* ``Book`` is the narrow interface, in integers, above which all matching rules are written once. ``ReferenceBook``
  keeps the ladder of live prices in a ``SortedDict`` that is touched only when a level is born or dies.

Orders without a limit queue at price 0, apart from the ladder: they rest only while a call collects.

Always true: no level is empty, a level's quantity is the sum of its orders, and every row in a queue is open.
``check()`` says so in code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import Final, final

import msgspec
from librt.vecs import extend, vec
from mypy_extensions import i64
from sortedcontainers import SortedDict

from engine.faults import InvariantBroken
from engine.memory import zeros
from engine.names import Name, Names

BUY: Final = 0
SELL: Final = 1

# ``OrderTable.terms`` packs what never changes, so that a row stays small: side in bit 0, then type, validity,
# instrument and participant.
_TYPE_SHIFT: Final = 1
_VALIDITY_SHIFT: Final = 4
_INSTRUMENT_SHIFT: Final = 8
PARTICIPANT_SHIFT: Final = 32
#: The bits of ``terms`` that are the same for all orders of one side of one book: side and instrument.
QUEUE_BITS: Final = 0xFFFFFF01
_THREE_BITS: Final = 7
_FOUR_BITS: Final = 15
_TWENTY_FOUR_BITS: Final = 0xFFFFFF
#: Most instruments, and most participants, that ``terms`` can tell apart.
INDEX_MAX: Final = _TWENTY_FOUR_BITS

#: ``OrderTable.state``. A filled order is told by an open quantity of 0; a cancelled one keeps what was open.
IN_BOOK: Final = 0
WAITING: Final = 1  #: outside the book until something happens: an on-close order before its call
GONE: Final = 2  #: cancelled or expired
GONE_WAITING: Final = 3  #: cancelled while it waited


def pack_terms(side: int, order_type: int, validity: int, instrument: int, participant: int) -> int:
    """What never changes about an order, in one integer (see ``OrderTable.terms``)."""
    return (
        side
        | order_type << _TYPE_SHIFT
        | validity << _VALIDITY_SHIFT
        | instrument << _INSTRUMENT_SHIFT
        | participant << PARTICIPANT_SHIFT
    )


# The row of an order, eight integers: a cache line of 64 bytes, found by the order's number.
PRICE: Final = 0
OPEN: Final = 1
NEXT: Final = 2
PREVIOUS: Final = 3
TERMS: Final = 4
LEVEL: Final = 5  #: state in the low two bits, above them what the book wants to know again
QUANTITY: Final = 6
PRIORITY: Final = 7
ROW_SHIFT: Final = 3
#: Rows begin here: behind the headers of allocator and vector, 16 and 24 bytes, each is one cache line.
ROW_OFFSET: Final = 3
_WIDTH: Final = 1 << ROW_SHIFT
STATE: Final = 3

#: Integers of a fill.
FILL: Final = 4

#: More than there ever is of anything.
ALL: Final = 1 << 62

#: Rows that memory is taken for at once, and rows that address space is reserved for: a table that outgrows its space
#: is copied, which is a pause.
_ROWS: Final = 1 << 8
_ROWS_RESERVED: Final = 1 << 24
_BLOCK: Final = 64
_TEXT_SHIFT: Final = 12
_TEXT_MASK: Final = (1 << _TEXT_SHIFT) - 1

_encode: Final = msgspec.msgpack.Encoder().encode


@final
class Column:
    """One integer of every row, by order."""

    def __init__(self, table: OrderTable, offset: i64) -> None:
        self._table: Final = table
        self._offset: Final[i64] = ROW_OFFSET + offset

    def __getitem__(self, order: i64) -> i64:
        return self._table.rows[(order << ROW_SHIFT) + self._offset]

    def __setitem__(self, order: i64, value: i64) -> None:
        self._table.rows[(order << ROW_SHIFT) + self._offset] = value

    def of(self, orders: vec[i64]) -> vec[i64]:
        """It of each of many orders.

        No cache holds the rows of a whole book. Where nothing is done between two of them, memory fetches several at
        once, so who is going to need many asks for them together.
        """
        values = orders[:]
        rows = self._table.rows
        for i in range(len(values)):
            values[i] = rows[(values[i] << ROW_SHIFT) + self._offset]
        return values


@final
class StateColumn:
    """The state of every order: the low two bits of ``LEVEL``."""

    def __init__(self, table: OrderTable) -> None:
        self._table: Final = table

    def __getitem__(self, order: i64) -> i64:
        return self._table.rows[(order << ROW_SHIFT) + (ROW_OFFSET + LEVEL)] & STATE

    def __setitem__(self, order: i64, state: i64) -> None:
        rows = self._table.rows
        at = (order << ROW_SHIFT) + (ROW_OFFSET + LEVEL)
        rows[at] = rows[at] & ~STATE | state


@final
class Texts:
    """One text of every order, in blocks: tuples of texts are nothing that the collector comes back to.

    No text changes once another block has begun, so a block that is full is hashed there and then.
    """

    def __init__(self) -> None:
        self._full: Final[list[tuple[str, ...]]] = []
        self._last: list[str] = [""]
        self._hash: Final = blake2b(digest_size=32)

    def append(self, text: str) -> None:
        """The text of the next order."""
        if len(self._last) > _TEXT_MASK:
            self._hash.update(_encode(self._last))
            self._full.append(tuple(self._last))
            self._last = []
        self._last.append(text)

    def forget(self) -> None:
        """Take back the last ``append``."""
        self._last.pop()

    def digest(self) -> bytes:
        """Over all of them, block by block. Costs a look at the last block."""
        digest = self._hash.copy()
        digest.update(_encode(self._last))
        return digest.digest()

    def __getitem__(self, order: i64) -> str:
        block = order >> _TEXT_SHIFT
        if block < len(self._full):
            return self._full[block][order & _TEXT_MASK]
        return self._last[order & _TEXT_MASK]

    def of(self, orders: vec[i64]) -> list[str]:
        """The text of each of many orders; see ``Column.of``."""
        return [self[order] for order in orders]


@final
class OrderTable:
    """Every order the engine ever accepted, one row each, in columns indexed by ``order_id``. Row 0 is no order.

    Rows are never removed: a late cancel must be told whether its order was filled or had gone. ``rows`` holds them one
    behind the other, so that what reads several columns of an order fetches memory once. ``expected`` is the number of
    orders that memory is taken for at once; more come page by page.
    """

    def __init__(self, expected: i64 = _ROWS) -> None:
        rows: i64 = expected + 1
        reserved: i64 = _ROWS_RESERVED if rows < _ROWS_RESERVED else rows
        self.rows = zeros((rows << ROW_SHIFT) + ROW_OFFSET, (reserved << ROW_SHIFT) + ROW_OFFSET)
        self.count: i64 = 0  #: orders so far, and the number of the last one
        self.price: Final = Column(self, PRICE)  #: limit in price units; 0 without one
        self.open: Final = Column(self, OPEN)  #: still to trade; what was taken off the market when state is GONE
        self.quantity: Final = Column(self, QUANTITY)  #: total, filled part included
        self.terms: Final = Column(self, TERMS)  #: see ``pack_terms``
        self.state: Final = StateColumn(self)
        self.priority: Final = Column(self, PRIORITY)  #: sequence of the command that earned the place in the queue
        self.next: Final = Column(self, NEXT)  #: behind it at the same price; 0: last
        self.previous: Final = Column(self, PREVIOUS)
        self.client_order_id: Final = Names()
        self.account: Final = Texts()
        self._empty_rows: Final = vec[i64]([0] * (_BLOCK * _WIDTH))

    def append(
        self,
        terms: i64,
        price: i64,
        quantity: i64,
        priority: i64 = 0,
        client_order_id: Name | None = None,
        account: str = "",
    ) -> i64:
        """Take in an order, outside any queue, and return its number."""
        self.client_order_id.append(client_order_id)
        self.account.append(account)
        return self.append_row(terms, price, quantity, priority)

    def append_row(self, terms: i64, price: i64, quantity: i64, priority: i64) -> i64:
        """The same in a table of orders that nobody names."""
        order = self.count + 1
        at = (order << ROW_SHIFT) + ROW_OFFSET
        if at + _WIDTH > len(self.rows):
            self.rows = extend(self.rows, self._empty_rows)
        rows = self.rows
        rows[at + PRICE] = price
        rows[at + OPEN] = quantity
        rows[at + TERMS] = terms
        rows[at + QUANTITY] = quantity
        rows[at + PRIORITY] = priority
        self.count = order
        return order

    def forget(self) -> None:
        """Take back the last ``append``: that order never was, and the next one gets its number."""
        at = (self.count << ROW_SHIFT) + ROW_OFFSET
        rows = self.rows
        for i in range(_WIDTH):
            rows[at + i] = 0
        self.client_order_id.forget()
        self.account.forget()
        self.count -= 1

    def behind(self, order: i64) -> i64:
        """The next order of its queue; 0: it is the last.

        Raises ``InvariantBroken`` where the two do not name each other, so no walk runs in a circle.
        """
        following = self.next[order]
        if following and self.previous[following] != order:
            raise InvariantBroken(f"Order {following} does not name {order} as the one before it")
        return following

    def side(self, order: i64) -> i64:
        return self.rows[(order << ROW_SHIFT) + (ROW_OFFSET + TERMS)] & 1

    def order_type(self, order: i64) -> i64:
        return self.rows[(order << ROW_SHIFT) + (ROW_OFFSET + TERMS)] >> _TYPE_SHIFT & _THREE_BITS

    def validity(self, order: i64) -> i64:
        return self.rows[(order << ROW_SHIFT) + (ROW_OFFSET + TERMS)] >> _VALIDITY_SHIFT & _FOUR_BITS

    def instrument(self, order: i64) -> i64:
        return self.rows[(order << ROW_SHIFT) + (ROW_OFFSET + TERMS)] >> _INSTRUMENT_SHIFT & _TWENTY_FOUR_BITS

    def participant(self, order: i64) -> i64:
        return self.rows[(order << ROW_SHIFT) + (ROW_OFFSET + TERMS)] >> PARTICIPANT_SHIFT

    def is_open(self, order: i64) -> bool:
        """In the book or waiting: neither filled nor gone."""
        return self.open[order] > 0 and self.state[order] < GONE

    def columns(self, start: i64, end: i64) -> tuple[list[list[int]], list[list[str]]]:
        """All that is known of the orders from ``start`` up to but not including ``end``, but for their queues."""
        numbers: list[list[int]] = []
        for column in (self.price, self.open, self.quantity, self.terms):
            numbers.append([column[order] for order in range(start, end)])
        numbers.append([self.state[order] for order in range(start, end)])
        numbers.append([self.priority[order] for order in range(start, end)])
        orders = range(start, end)
        ids = self.client_order_id
        accounts = self.account
        return numbers, [[ids[order] for order in orders], [accounts[order] for order in orders]]

    def contents(self, start: i64, end: i64) -> vec[i64]:
        """A copy of the rows from ``start`` up to but not including ``end``, for a digest: eight integers each.

        Without what belongs to a book: the two links are 0, the level is the state.
        """
        rows = self.rows[(start << ROW_SHIFT) + ROW_OFFSET : (end << ROW_SHIFT) + ROW_OFFSET]
        at: i64 = 0
        while at < len(rows):
            rows[at + NEXT] = 0
            rows[at + PREVIOUS] = 0
            rows[at + LEVEL] &= STATE
            at += _WIDTH
        return rows


@final
class Fills:
    """Fills in the order in which they happen, ``FILL`` integers each: resting order, incoming order, price, quantity.

    Whoever owns them empties them by ``count`` and uses them again, so that a trade makes no objects. ``expected`` is
    the number of fills that memory is taken for at once.
    """

    def __init__(self, expected: i64 = 64) -> None:
        self.cells = zeros(FILL * expected, FILL * expected)
        self.count: i64 = 0  #: integers in use

    def grow(self) -> vec[i64]:
        """Make room for twice as many; returns ``cells``."""
        self.cells = extend(self.cells, self.cells)
        return self.cells


class Book(ABC):
    """The queues of one instrument. Sides are 0 (buy) and 1 (sell), prices ints, orders row numbers of the table.

    Price 0 names a side's queue of orders without a limit, which ``first``, ``best`` and ``levels`` leave out. Nothing
    is checked here: callers name orders that are in this book, quantities that are open.
    """

    @abstractmethod
    def add(self, order: i64) -> None:
        """Put an order at the tail of the queue of its side and price."""

    @abstractmethod
    def remove(self, order: i64) -> None:
        """Take an order out of its queue; its row keeps its quantities."""

    @abstractmethod
    def fill(self, order: i64, quantity: i64) -> None:
        """Take ``quantity`` off an order that stays in its place; at nothing left it leaves its queue."""

    @abstractmethod
    def consume(self, side: i64, fills: Fills, start: i64) -> None:
        """Make the ``fills`` from ``start`` on, each of which is of the order of ``side`` that is first by then."""

    @abstractmethod
    def first(self, side: i64) -> i64:
        """The order with a limit that is first to trade; 0: none."""

    @abstractmethod
    def best(self, side: i64) -> i64:
        """The best price; 0: none."""

    @abstractmethod
    def worse(self, side: i64, price: i64) -> i64:
        """The next price behind ``price``, at which there are orders; 0: none."""

    @abstractmethod
    def head(self, side: i64, price: i64) -> i64:
        """The first order of a queue; 0: the queue is empty. The column ``next`` leads on."""

    @abstractmethod
    def level_quantity(self, side: i64, price: i64) -> i64:
        """All that is open at a price."""

    @abstractmethod
    def levels(self, side: i64, prices: list[int], quantities: list[int]) -> None:
        """Append every price and its quantity, best first."""

    @abstractmethod
    def available(self, side: i64, limit: i64, wanted: i64) -> i64:
        """How much of ``side`` stands at ``limit`` or better (0: at any price), counted no further than ``wanted``."""

    @abstractmethod
    def set_step(self, step: i64) -> None:
        """Say that prices are multiples of ``step`` from now on: a hint, for others are taken too."""

    @abstractmethod
    def check(self) -> None:
        """Raise InvariantBroken if anything contradicts the table or itself. Costs O(orders)."""

    def queue(self, table: OrderTable, side: i64, price: i64) -> list[int]:
        """The orders of one queue, earliest first."""
        orders: list[int] = []
        order = self.head(side, price)
        while order:
            orders.append(order)
            order = table.behind(order)
        return orders

    def orders(self, table: OrderTable, side: i64, most: i64 = ALL) -> list[int]:
        """The orders of a side in matching priority: without a limit first, then by price, then by time.

        No more than the first ``most``.
        """
        orders: list[int] = []
        price: i64 = 0
        while True:
            order = self.head(side, price)
            while order:
                if len(orders) >= most:
                    return orders
                orders.append(order)
                order = table.behind(order)
            price = self.worse(side, price) if price else self.best(side)
            if price == 0:
                return orders


class Level:
    """One queue."""

    __slots__ = ("head", "price", "quantity", "tail")

    def __init__(self, price: i64) -> None:
        self.price = price
        self.quantity = 0
        self.head = 0
        self.tail = 0


class ReferenceBook(Book):
    """The book as one would explain it: two sorted ladders of linked queues.

    It is the oracle for a faster book, and the fallback where nothing is compiled. The best level of each side is kept
    at hand, so the ladder is asked only when a level dies.
    """

    def __init__(self, table: OrderTable) -> None:
        self._table: Final = table
        self._price: Final = table.price
        self._open: Final = table.open
        self._terms: Final = table.terms
        self._next: Final = table.next
        self._previous: Final = table.previous
        self._bids: Final[SortedDict[int, Level]] = SortedDict()
        self._asks: Final[SortedDict[int, Level]] = SortedDict()
        self._market: Final[list[Level]] = [Level(0), Level(0)]
        self._best_bid: Level | None = None
        self._best_ask: Level | None = None

    def _level(self, side: i64, price: i64) -> Level | None:
        if price == 0:
            return self._market[side]
        return self._asks.get(price) if side else self._bids.get(price)

    def add(self, order: i64) -> None:
        price = self._price[order]
        side = self._terms[order] & 1
        level = self._level(side, price)
        if level is None:
            level = Level(price)
            if side:
                self._asks[price] = level
                if self._best_ask is None or price < self._best_ask.price:
                    self._best_ask = level
            else:
                self._bids[price] = level
                if self._best_bid is None or price > self._best_bid.price:
                    self._best_bid = level
        tail = level.tail
        self._previous[order] = tail
        self._next[order] = 0
        if tail:
            self._next[tail] = order
        else:
            level.head = order
        level.tail = order
        level.quantity += self._open[order]

    def _unlink(self, order: i64, level: Level) -> None:
        before = self._previous[order]
        behind = self._next[order]
        if before:
            self._next[before] = behind
        else:
            level.head = behind
        if behind:
            self._previous[behind] = before
        else:
            level.tail = before
        if level.head == 0 and level.price:
            self._drop(level, self._terms[order] & 1)

    def _drop(self, level: Level, side: i64) -> None:
        """Forget an emptied level."""
        if side:
            del self._asks[level.price]
            if level is self._best_ask:
                self._best_ask = self._asks.peekitem(0)[1] if self._asks else None
        else:
            del self._bids[level.price]
            if level is self._best_bid:
                self._best_bid = self._bids.peekitem(-1)[1] if self._bids else None

    def remove(self, order: i64) -> None:
        level = self._level(self._terms[order] & 1, self._price[order])
        assert level is not None
        level.quantity -= self._open[order]
        self._unlink(order, level)

    def fill(self, order: i64, quantity: i64) -> None:
        level = self._level(self._terms[order] & 1, self._price[order])
        assert level is not None
        level.quantity -= quantity
        left = self._open[order] - quantity
        self._open[order] = left
        if left == 0:
            self._unlink(order, level)

    def consume(self, side: i64, fills: Fills, start: i64) -> None:
        for at in range(start, fills.count, FILL):
            self.fill(fills.cells[at], fills.cells[at + 3])

    def first(self, side: i64) -> i64:
        level = self._best_ask if side else self._best_bid
        return level.head if level is not None else 0

    def best(self, side: i64) -> i64:
        level = self._best_ask if side else self._best_bid
        return level.price if level is not None else 0

    def worse(self, side: i64, price: i64) -> i64:
        ladder = self._asks if side else self._bids
        place = ladder.bisect_right(price) if side else ladder.bisect_left(price) - 1
        return ladder.keys()[place] if 0 <= place < len(ladder) else 0

    def head(self, side: i64, price: i64) -> i64:
        level = self._level(side, price)
        return level.head if level is not None else 0

    def level_quantity(self, side: i64, price: i64) -> i64:
        level = self._level(side, price)
        return level.quantity if level is not None else 0

    def _ladder(self, side: i64) -> list[Level]:
        """The levels of a side, best first."""
        return list(self._asks.values()) if side else list(reversed(self._bids.values()))

    def levels(self, side: i64, prices: list[int], quantities: list[int]) -> None:
        for level in self._ladder(side):
            prices.append(level.price)
            quantities.append(level.quantity)

    def available(self, side: i64, limit: i64, wanted: i64) -> i64:
        total = 0
        for price in self._asks if side else reversed(self._bids):
            if total >= wanted or (limit and (price > limit if side else price < limit)):
                break
            total += (self._asks if side else self._bids)[price].quantity
        return total

    def set_step(self, step: i64) -> None:
        pass  # a sorted ladder does not ask

    def check(self) -> None:
        for side in (BUY, SELL):
            ladder = self._ladder(side)
            best = self._best_ask if side else self._best_bid
            if best is not (ladder[0] if ladder else None):
                raise InvariantBroken(f"Side {side}: the best level at hand is not the first of the ladder")
            for level in [self._market[side], *ladder]:
                self._check_level(side, level)

    def _check_level(self, side: i64, level: Level) -> None:
        where = f"side {side}, price {level.price}"
        if level.price and level.head == 0:
            raise InvariantBroken(f"An empty level stands in the book: {where}")
        if level.price < 0 or self._level(side, level.price) is not level:
            raise InvariantBroken(f"A level stands under a price that is not its own: {where}")
        total = 0
        before = 0
        order = level.head
        while order:
            if self._previous[order] != before:
                raise InvariantBroken(f"Order {order} does not name {before} as the one before it: {where}")
            if self._price[order] != level.price or self._terms[order] & 1 != side:
                raise InvariantBroken(f"Order {order} queues at a side or price that is not its own: {where}")
            if self._open[order] <= 0 or self._table.state[order] != IN_BOOK:
                raise InvariantBroken(f"Order {order} is queued but not open in the book: {where}")
            total += self._open[order]
            before = order
            order = self._next[order]
        if level.tail != before:
            raise InvariantBroken(f"The queue ends at order {before}, its level says {level.tail}: {where}")
        if level.quantity != total:
            raise InvariantBroken(f"The queue holds {total}, its level says {level.quantity}: {where}")
