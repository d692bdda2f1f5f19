"""Who asked for what, under which id, and what became of it: remembered for the life of the log.

Every id that a member ever used is kept with the outcome of what was asked, so that asking again is harmless. Of an
accepted order or cancel that is one integer: what was asked and what was answered is in the order's row. Any other
answer is kept as it was given, with what was asked.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec
from librt.vecs import append, pop, vec
from mypy_extensions import i64

from engine.commands import MemberCommand
from engine.events import Event
from engine.matching.book import GONE, LEVEL, OPEN, ROW_OFFSET, ROW_SHIFT, STATE, OrderTable, Texts

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
        self.outcomes: Final[dict[str, int]] = {}  #: what became of each client_order_id or request_id it used
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


class Identities:
    """The members, and for each id they used what was asked and answered."""

    def __init__(self) -> None:
        self.members: Final[list[Member]] = []
        self.by_name: Final[dict[str, Member]] = {}
        # What became of all requests in their order, for the digest; and the ids of those that have no row.
        self._outcomes = vec[i64]()
        self._requests: Final = Texts()
        self._requests_count: int = 1  # with the text before the first, which is none
        self._kept: Final[list[Event]] = []
        self._contents: Final[list[bytes]] = []  #: what was asked, for each of the kept
        # Digests of blocks that can no longer change, by number: a cache, no part of the state.
        self._outcomes_digests: Final[dict[int, bytes]] = {}
        self._requests_digests: Final[dict[int, bytes]] = {}
        self._kept_digests: Final[dict[int, bytes]] = {}

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

    def remember(self, member: Member, request_id: str, kind: int, index: int) -> None:
        """Remember what became of a new id: one of the kinds above, and the order's number or the answer's place."""
        outcome = index << 2 | kind
        member.outcomes[request_id] = outcome
        self._outcomes = append(self._outcomes, outcome)
        if kind > WAITING_ORDER:
            self._requests.append(request_id)
            self._requests_count += 1

    def keep(self, member: Member, request_id: str, command: MemberCommand, event: Event) -> None:
        """Remember ``event`` itself as the outcome of the command."""
        self.remember(member, request_id, EVENT, len(self._kept))
        self._kept.append(event)
        self._contents.append(spell(command))

    def forget(self, member: Member, request_id: str) -> None:
        """Take back what was remembered last, under ``request_id``."""
        outcome = member.outcomes.pop(request_id)
        if outcome != self._outcomes[len(self._outcomes) - 1]:
            raise AssertionError(f"Expected what became of the last request, got {outcome}")
        self._outcomes, _ = pop(self._outcomes)
        if outcome & 3 > WAITING_ORDER:
            self._requests.forget()
            self._requests_count -= 1
        if outcome & 3 == EVENT:
            self._kept.pop()
            self._contents.pop()

    def find(self, member: Member, client_order_id: str) -> int:
        """The number of a member's order; 0: it has none of that id."""
        outcome = member.outcomes.get(client_order_id, -1)
        return outcome >> 2 if outcome >= 0 and outcome & 3 <= WAITING_ORDER else 0

    def digests(self) -> list[bytes]:
        """Over all of it, block by block; what can no longer change is hashed once.

        An order's id and member are in its row, a kept answer has its member; a cancel's member is that of its order.
        """
        digests = [self._outcomes_digest(block) for block in range(len(self._outcomes) // BLOCK + 1)]
        digests.extend([self._requests_digest(block) for block in range(self._requests_count // BLOCK + 1)])
        digests.extend([self._kept_digest(block) for block in range(len(self._kept) // BLOCK + 1)])
        digests.append(encode([member.name for member in self.members]))
        return digests

    def _outcomes_digest(self, block: int) -> bytes:
        """Over one block of what became of requests, which never changes."""
        known = self._outcomes_digests.get(block)
        if known is not None:
            return known
        end = min((block + 1) * BLOCK, len(self._outcomes))
        outcomes = self._outcomes[block * BLOCK : end]
        result = blake2b(outcomes, digest_size=32).digest()
        if len(outcomes) == BLOCK:
            self._outcomes_digests[block] = result
        return result

    def _requests_digest(self, block: int) -> bytes:
        """Over one block of the ids of requests."""
        known = self._requests_digests.get(block)
        if known is not None:
            return known
        end = min((block + 1) * BLOCK, self._requests_count)
        requests = [self._requests[i] for i in range(block * BLOCK, end)]
        result = blake2b(encode(requests), digest_size=32).digest()
        if len(requests) == BLOCK:
            self._requests_digests[block] = result
        return result

    def _kept_digest(self, block: int) -> bytes:
        """Over one block of the answers that are kept as events, and what was asked."""
        known = self._kept_digests.get(block)
        if known is not None:
            return known
        start, end = block * BLOCK, (block + 1) * BLOCK
        result = blake2b(encode([self._kept[start:end], self._contents[start:end]]), digest_size=32).digest()
        if end <= len(self._kept):
            self._kept_digests[block] = result
        return result
