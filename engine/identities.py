"""Who asked for what, under which id, and what became of it: remembered for the life of the log.

Every id that a member ever used is kept with a fingerprint of what was asked and with the outcome, so that asking again
is harmless. An accepted order or cancel costs two integers; the answer is rebuilt from the order's row. Any other
answer is kept as it was given, with what was asked.

A fingerprint is a checksum, and a member can compute another command that has the same. So it only rules out: whether
a command *is* what was asked is read from the order's row, or from what was kept.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from zlib import adler32, crc32

import msgspec
from librt.vecs import append, vec
from mypy_extensions import i64

from engine.commands import CancelOrder, MemberCommand, NewOrder
from engine.events import Event
from engine.matching.book import GONE, LEVEL, OPEN, ROW_OFFSET, ROW_SHIFT, STATE, OrderTable

#: The digest hashes rows and records by blocks of this many. Part of its definition: changing it changes every digest.
BLOCK: Final = 4096

# What is remembered about an id: in the low bits what became of it, above them an index.
ORDER: Final = 0  #: an order was accepted: its number
WAITING_ORDER: Final = 1  #: the same, outside the book at first
CANCEL: Final = 2  #: an order was cancelled: its number
EVENT: Final = 3  #: any other answer: its place among the kept events


#: Orders of a member between two looks for those that have ended: at least so many, otherwise in this proportion.
_ROOM: Final = 64
_SLACK: Final = 3


class Member:
    """One firm, known from its first well-formed command on.

    It keeps the numbers of its open orders, so that a mass cancel walks its own orders and nobody else's. One that
    ends is not looked for: it stays until the list is walked, or has grown to three times what was open. So an order
    costs 8 bytes and one append here, an end nothing.
    """

    def __init__(self, index: int, name: str) -> None:
        self.index: Final = index
        self.name: Final = name
        self.records: Final[dict[str, int]] = {}  #: client_order_id or request_id to its record
        #: Whether its orders have to pass the kill switch or risk limits (``engine/protection.py``).
        self.guards: bool = False
        self._orders = vec[i64]()
        self._room: int = _ROOM

    def enter(self, table: OrderTable, order: i64) -> None:
        """Take note of its newest order."""
        if len(self._orders) >= self._room:
            self._sweep(table)
        self._orders = append(self._orders, order)

    def _sweep(self, table: OrderTable) -> None:
        """Forget the orders that have ended."""
        orders = vec[i64]()
        rows = table.rows  # by row instead of by column: this is part of what each order costs
        for order in self._orders:
            row = (order << ROW_SHIFT) + ROW_OFFSET
            if rows[row + OPEN] > 0 and rows[row + LEVEL] & STATE < GONE:
                orders = append(orders, order)
        self._orders = orders
        self._room = max(_ROOM, _SLACK * len(orders))

    def may_have(self, orders: int) -> bool:
        """Whether it could have so many open orders: without a look at each, so some may have ended."""
        return len(self._orders) >= orders

    def open_orders(self, table: OrderTable) -> list[int]:
        """The numbers of its open orders, oldest first."""
        self._sweep(table)
        return [int(order) for order in self._orders]


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


def fingerprint(content: bytes) -> int:
    """63 bits over what ``spell`` gives. Not Python's ``hash``, which differs between runs."""
    return crc32(content) << 31 ^ adler32(content)


class Identities:
    """The members, and for each id they used what was asked and answered."""

    def __init__(self) -> None:
        self.members: Final[list[Member]] = []
        self.by_name: Final[dict[str, Member]] = {}
        self._fingerprints: Final[list[int]] = []
        self._outcomes: Final[list[int]] = []
        self._kept: Final[list[Event]] = []
        self._contents: Final[list[bytes]] = []  #: what was asked, for each of the kept
        # Digests of blocks that can no longer change, by number: a cache, no part of the state.
        self._records_digests: Final[dict[int, bytes]] = {}
        self._kept_digests: Final[dict[int, bytes]] = {}

    def add(self, name: str) -> Member:
        """A member that was not known so far."""
        member = Member(len(self.members), name)
        self.members.append(member)
        self.by_name[name] = member
        return member

    def is_same(self, record: int, command: MemberCommand) -> bool:
        """Whether ``command`` is what was asked under this record; if that was accepted, whether it may be."""
        content = spell(command)
        if self._fingerprints[record] != fingerprint(content):
            return False
        kind = self._outcomes[record] & 3
        if kind == EVENT:
            return self._contents[self._outcomes[record] >> 2] == content
        return isinstance(command, CancelOrder if kind == CANCEL else NewOrder)

    def outcome(self, record: int) -> int:
        """What became of a request: in the low two bits the kind, above them an index."""
        return self._outcomes[record]

    def kept(self, index: int) -> Event:
        """An answer that was kept as it was given."""
        return self._kept[index]

    def remember(self, member: Member, request_id: str, command: MemberCommand, kind: int, index: int) -> None:
        self._remember(member, request_id, spell(command), kind, index)

    def _remember(self, member: Member, request_id: str, content: bytes, kind: int, index: int) -> None:
        member.records[request_id] = len(self._fingerprints)
        self._fingerprints.append(fingerprint(content))
        self._outcomes.append(index << 2 | kind)

    def keep(self, member: Member, request_id: str, command: MemberCommand, event: Event) -> None:
        """Remember ``event`` itself as the outcome of the command."""
        content = spell(command)
        self._remember(member, request_id, content, EVENT, len(self._kept))
        self._kept.append(event)
        self._contents.append(content)

    def forget(self, member: Member, request_id: str) -> None:
        """Take back what was remembered last, under ``request_id``."""
        record = member.records.pop(request_id)
        if record != len(self._outcomes) - 1:
            raise AssertionError(f"Expected the last of {len(self._outcomes)} records, got {record}")
        self._fingerprints.pop()
        if self._outcomes.pop() & 3 == EVENT:
            self._kept.pop()
            self._contents.pop()

    def find(self, member: Member, client_order_id: str) -> int:
        """The number of a member's order; 0: it has none of that id."""
        record = member.records.get(client_order_id, -1)
        if record < 0 or self._outcomes[record] & 3 > WAITING_ORDER:
            return 0
        return self._outcomes[record] >> 2

    def digests(self) -> list[bytes]:
        """Over all of it, block by block; what can no longer change is hashed once.

        The ids need no place of their own: each is in the content of a fingerprint, and its member in the outcome.
        """
        digests = [self._records_digest(block) for block in range(len(self._fingerprints) // BLOCK + 1)]
        digests.extend([self._kept_digest(block) for block in range(len(self._kept) // BLOCK + 1)])
        digests.append(encode([member.name for member in self.members]))
        return digests

    def _records_digest(self, block: int) -> bytes:
        """Over one block of what is remembered of requests; a record never changes."""
        known = self._records_digests.get(block)
        if known is not None:
            return known
        start = block * BLOCK
        end = start + BLOCK
        result = blake2b(encode([self._fingerprints[start:end], self._outcomes[start:end]]), digest_size=32).digest()
        if end <= len(self._fingerprints):
            self._records_digests[block] = result
        return result

    def _kept_digest(self, block: int) -> bytes:
        """Over one block of the answers that are kept as events."""
        known = self._kept_digests.get(block)
        if known is not None:
            return known
        end = (block + 1) * BLOCK
        result = blake2b(encode(self._kept[block * BLOCK : end]), digest_size=32).digest()
        if end <= len(self._kept):
            self._kept_digests[block] = result
        return result
