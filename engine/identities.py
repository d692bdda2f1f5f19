"""Who asked for what, under which id, and what became of it: remembered for the life of the log.

Every id that a member ever used is kept with the outcome of what was asked, so that asking again is harmless. Of an
accepted order or cancel that is one integer: what was asked and what was answered is in the order's row. Any other
answer is kept as it was given, with what was asked.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from typing import Any, Final

import msgspec
from librt.vecs import append, extend, pop, vec
from mypy_extensions import i64

from engine.commands import MemberCommand
from engine.events import Event
from engine.matching.book import GONE, LEVEL, OPEN, ROW_OFFSET, ROW_SHIFT, STATE, OrderTable
from engine.names import EVENT, WAITING_ORDER, Name, Names, Outcomes

#: What became of requests is hashed by blocks of this many.
BLOCK: Final = 4096
#: Answers that are kept as events are hashed by blocks of this many. Part of the digest's definition.
KEPT_BLOCK: Final = 256

#: Orders in a block of a member's, and older blocks that are looked through with each that is full: so many that no
#: more than about half of what is kept has ended.
_ROOM: Final = 64
_TURNS: Final = 2


class Member:
    """One firm, known from its first well-formed command on.

    It keeps the numbers of its open orders, so that a mass cancel walks its own orders and nobody else's. One that
    ends is not looked for: it stays until the list is walked, or until its block has its turn, for with each block
    that is full some of the older ones are looked through. So an order costs 8 bytes and one append here, an end
    nothing, and no single order pays for many.
    """

    def __init__(self, index: int, name: str) -> None:
        self.index: Final = index
        self.name: Final = name
        #: Whether its orders have to pass the kill switch or risk limits (``engine/protection.py``).
        self.guards: bool = False
        self._last = vec[i64]()  #: its newest orders
        self._full: list[vec[i64]] = []  #: those before, in their order
        self._kept: int = 0  #: how many these are
        self._next: int = 0  #: which of the blocks has its turn

    def enter(self, table: OrderTable, order: i64) -> None:
        """Take note of its newest order."""
        if len(self._last) == _ROOM:
            self._full.append(self._last)
            self._kept += _ROOM
            self._last = vec[i64]()
            for _ in range(_TURNS):
                self._look_through(table)
        self._last = append(self._last, order)

    def _look_through(self, table: OrderTable) -> None:
        """Forget the orders of one block that have ended; what is left joins the block before where there is room."""
        if self._next >= len(self._full):
            self._next = 0
        at = self._next
        block = self._full[at]
        left = _open_of(block, table)
        self._kept -= len(block) - len(left)
        if at and len(self._full[at - 1]) + len(left) <= _ROOM:
            self._full[at - 1] = extend(self._full[at - 1], left)
            del self._full[at]
        else:
            self._full[at] = left
            self._next = at + 1

    def may_have(self, orders: int) -> bool:
        """Whether it could have so many open orders: without a look at each, so some may have ended."""
        return self.most_open() >= orders

    def most_open(self) -> int:
        """No less than its open orders, as ``may_have``, and what a walk over these takes."""
        return self._kept + len(self._last)

    def open_orders(self, table: OrderTable) -> list[int]:
        """The numbers of its open orders, oldest first."""
        found: list[int] = []
        packed: list[vec[i64]] = []
        last = vec[i64]()
        for block in [*self._full, self._last]:
            left = _open_of(block, table)
            found.extend([int(order) for order in left])
            if len(last) + len(left) <= _ROOM:
                last = extend(last, left)
            else:
                packed.append(last)
                last = left
        self._full = packed
        self._last = last
        self._kept = len(found) - len(last)
        return found


def _open_of(orders: vec[i64], table: OrderTable) -> vec[i64]:
    """Those that are still open."""
    left = vec[i64]()
    rows = table.rows  # by row instead of by column: this is part of what each order costs
    for order in orders:
        row = (order << ROW_SHIFT) + ROW_OFFSET
        if rows[row + OPEN] > 0 and rows[row + LEVEL] & STATE < GONE:
            left = append(left, order)
    return left


encode = msgspec.msgpack.Encoder().encode


def spell(command: MemberCommand) -> bytes:
    """All fields of a command: two commands under one id are the same when these are.

    Values far beyond the wire's bounds, which only a caller of the library can send, have no encoding; they are spelled
    out instead, to be refused like any other.
    """
    try:
        return encode(command)
    except (OverflowError, ValueError):
        values = [getattr(command, field) for field in command.__struct_fields__]
        spelled = [format(value, "x") if isinstance(value, int) else ascii(value) for value in values]
        return " ".join([type(command).__name__, *spelled]).encode()


class Identities:
    """The members, and for each id they used what was asked and answered."""

    def __init__(self, orders: Names) -> None:
        """``orders`` has the client_order_id of each order by its number."""
        self.members: Final[list[Member]] = []
        self.by_name: Final[dict[str, Member]] = {}
        self._ids: Final = Outcomes(orders)
        # For the digest alone: what became of the latest requests in their order. None of it changes once another
        # block has begun, so a block that is full is hashed there and then.
        self._outcomes = vec[i64]()
        self._outcomes_hash: Final = blake2b(digest_size=32)
        self._kept: Final[list[Event]] = []
        self._contents: Final[list[bytes]] = []  #: what was asked, for each of the kept
        self._kept_hash: Final = blake2b(digest_size=32)
        self._kept_hashed: int = 0  #: how many of the kept are in it

    def add(self, name: str) -> Member:
        """A member that was not known so far."""
        member = Member(len(self.members), name)
        self.members.append(member)
        self.by_name[name] = member
        return member

    def kept(self, index: int) -> Event:
        """An answer that was kept as it was given."""
        return self._kept[index]

    def content(self, index: int) -> bytes:
        """What was asked where an answer was kept, as ``spell`` has it."""
        return self._contents[index]

    def remember(self, member: Member, request_id: Name, kind: i64, index: i64) -> None:
        """Remember what became of a new id: the kind, and with it an order's number or an answer's place."""
        self._ids.put(member.index, request_id, kind, index)
        if len(self._outcomes) == BLOCK:
            self._outcomes_hash.update(self._outcomes)
            self._outcomes = vec[i64]()
        self._outcomes = append(self._outcomes, index << 2 | kind)

    def keep(self, member: Member, request_id: Name, command: MemberCommand, event: Event) -> None:
        """Remember ``event`` itself as the outcome of the command."""
        self.remember(member, request_id, EVENT, len(self._kept))
        if len(self._kept) == self._kept_hashed + KEPT_BLOCK:
            self._kept_hash.update(self._kept_block())
            self._kept_hashed += KEPT_BLOCK
        self._kept.append(event)
        self._contents.append(spell(command))

    def forget(self, member: Member, request_id: Name) -> None:
        """Take back what was remembered last, under ``request_id``."""
        outcome = self._ids.forget(member.index, request_id)
        if outcome != self._outcomes[len(self._outcomes) - 1]:
            raise AssertionError(f"Expected what became of the last request, got {outcome}")
        self._outcomes, _ = pop(self._outcomes)
        if outcome & 3 == EVENT:
            self._kept.pop()
            self._contents.pop()

    def outcome(self, member: Member, request_id: Name) -> i64:
        """What became of an id, the index above two bits of the kind; -1: it is new."""
        return self._ids.get(member.index, request_id)

    def find(self, member: Member, client_order_id: Name) -> i64:
        """The number of a member's order; 0: it has none of that id."""
        outcome = self._ids.get(member.index, client_order_id)
        return outcome >> 2 if outcome >= 0 and outcome & 3 <= WAITING_ORDER else 0

    def _kept_block(self) -> bytes:
        """The answers that are kept as events, and what was asked, of the block that has begun."""
        start = self._kept_hashed
        return encode([self._kept[start:], self._contents[start:]])

    def digest(self) -> bytes:
        """Over all of it. Costs a look at the last blocks, and at the members.

        An order's id and member are in its row, a kept answer has its member; a cancel's member is that of its order.
        """
        digest = self._outcomes_hash.copy()
        digest.update(self._outcomes)
        digest.update(self._ids.requests.ids.digest())
        kept = self._kept_hash.copy()
        kept.update(self._kept_block())
        digest.update(kept.digest())
        digest.update(encode([member.name for member in self.members]))
        return digest.digest()


def newest(entries: dict[Any, Any], most: int) -> list[tuple[Any, Any]]:
    """The entries of a dictionary, for a digest: by key, or the latest ``most`` of more than that.

    A dictionary remembers in which order its keys came, which the commands alone decide.
    """
    if len(entries) <= most:
        return sorted(entries.items())
    return list(islice(reversed(entries.items()), most))
