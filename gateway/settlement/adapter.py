"""What the exchange asks of a ledger, and the words both use: instruction, state, receipt, error.

Two sentences govern everything here: no instruction takes effect twice, and none is called settled before the ledger
says so. Hence every method of a ledger is safe to repeat, an instruction is known by an id and a hash that follow from
the trade alone, and an answer that did not arrive is a state of its own (``UNKNOWN``) that only a question can leave.

Quantities are whole token units and amounts whole yen, both ``int``.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, Protocol

from msgspec import Struct

#: The asset under which a ledger keeps money. Instrument codes and participants never contain ``@``.
YEN: Final = "@JPY"
#: The account from which everything on a ledger once came; the only one that goes below zero, so that every asset sums
#: to nought over all accounts.
ISSUANCE: Final = "@issuance"


class State(StrEnum):
    """Where an instruction stands. The way leads forward; only FAILED_TODAY and UNKNOWN lead back."""

    NEW = "NEW"  #: committed with the trade
    PRECHECKED = "PRECHECKED"  #: the advisory checks were made
    SUBMITTED = "SUBMITTED"  #: handed to the ledger; written down before the first byte goes out
    HELD = "HELD"  #: the seller's units are blocked on the ledger
    AFFIRMED = "AFFIRMED"  #: the buyer confirmed
    CASH_CONFIRMED = "CASH_CONFIRMED"  #: bank or cash ledger reported the money leg
    PENDING_APPROVAL = "PENDING_APPROVAL"  #: issuer or transfer agent decides, here or there, on their own clock
    UNKNOWN = "UNKNOWN"  #: sent, no answer: query, never resend
    PARTIAL = "PARTIAL"  #: a parent whose parts settle one by one
    FAILED_TODAY = "FAILED_TODAY"  #: missed the cut-off; tried again on the next business day
    SETTLED = "SETTLED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    ABORTED = "ABORTED"
    EXPIRED = "EXPIRED"


_S = State
#: The states an instruction may take next. UNKNOWN leads to whatever the ledger shows, or to PRECHECKED when the ledger
#: proves that it never had it.
NEXT: Final[dict[State, frozenset[State]]] = {
    _S.NEW: frozenset({_S.PRECHECKED, _S.CANCELLED, _S.REJECTED}),
    _S.PRECHECKED: frozenset({_S.SUBMITTED, _S.PENDING_APPROVAL, _S.CANCELLED, _S.EXPIRED, _S.FAILED_TODAY}),
    _S.SUBMITTED: frozenset(
        {
            _S.HELD,
            _S.PENDING_APPROVAL,
            _S.PARTIAL,
            _S.SETTLED,
            _S.REJECTED,
            _S.CANCELLED,
            _S.FAILED_TODAY,
            _S.UNKNOWN,
        }
    ),
    _S.HELD: frozenset(
        {_S.AFFIRMED, _S.CASH_CONFIRMED, _S.SETTLED, _S.CANCELLED, _S.EXPIRED, _S.FAILED_TODAY, _S.UNKNOWN}
    ),
    _S.AFFIRMED: frozenset({_S.CASH_CONFIRMED, _S.ABORTED, _S.FAILED_TODAY, _S.UNKNOWN}),
    _S.CASH_CONFIRMED: frozenset({_S.SETTLED, _S.UNKNOWN, _S.FAILED_TODAY, _S.ABORTED}),
    _S.PENDING_APPROVAL: frozenset(
        {_S.PRECHECKED, _S.HELD, _S.SETTLED, _S.CANCELLED, _S.REJECTED, _S.EXPIRED, _S.FAILED_TODAY}
    ),
    _S.UNKNOWN: frozenset(set(State) - {_S.NEW, _S.UNKNOWN, _S.FAILED_TODAY}),
    _S.PARTIAL: frozenset({_S.SETTLED, _S.FAILED_TODAY}),
    _S.FAILED_TODAY: frozenset({_S.SUBMITTED, _S.PENDING_APPROVAL, _S.CANCELLED}),
    _S.SETTLED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.REJECTED: frozenset(),
    _S.ABORTED: frozenset(),
    _S.EXPIRED: frozenset(),
}
#: States without a way out.
ENDS: Final = frozenset(state for state, after in NEXT.items() if not after)
#: States that a ledger's own later state implies, so that a step nobody saw may be filled in.
_IMPLIED: Final = frozenset({_S.PRECHECKED, _S.SUBMITTED, _S.HELD, _S.AFFIRMED, _S.CASH_CONFIRMED})


class IllegalMove(ValueError):
    """A state that cannot follow the present one: ledger and outbox no longer speak of the same thing."""


def check_move(before: State, after: State) -> None:
    """Raises IllegalMove unless ``after`` may follow ``before`` at once."""
    if after not in NEXT[before]:
        allowed = ", ".join(sorted(NEXT[before])) or "nothing, it is an end"
        raise IllegalMove(f"Expected one of {allowed} after {before}, got {after}")


@functools.cache
def way(before: State, after: State) -> tuple[State, ...]:
    """The moves from ``before`` to ``after``, with the steps between that ``after`` implies; () when they are equal.

    A ledger is asked now and then and may have gone on by several steps since; each is recorded. Raises IllegalMove.
    """
    if before == after:
        return ()
    queue = deque([[before]])
    seen = {before}
    while queue:
        path = queue.popleft()
        for state in sorted(NEXT[path[-1]] - seen):
            if state == after:
                return (*path[1:], state)
            if state in _IMPLIED:
                seen.add(state)
                queue.append([*path, state])
    check_move(before, after)
    raise AssertionError("a legal move has a way of one step")


class Kind(StrEnum):
    """What is exchanged."""

    DVP = "DVP"  #: units against yen, both or neither
    FOP = "FOP"  #: units free of payment
    CASH = "CASH"  #: yen only
    OPENING = "OPENING"  #: units or yen come onto the ledger from ISSUANCE


class Instruction(Struct, frozen=True, kw_only=True):
    """One obligation, as every ledger is told it. ``instructions.py`` makes it and its hash.

    Accounts are opaque ids, never names: neither venue nor ledger may learn who the investor is.
    """

    id: str
    hash: str  #: over everything else in here
    version: int  #: of the trade's legs; an amendment is a cancel and a new version
    trade_ids: tuple[int, ...]
    seller: str  #: account id: gives units, gets yen
    buyer: str  #: account id: gets units, gives yen
    asset: str
    quantity: int
    cash: int  #: whole units of ``currency``
    currency: str = "JPY"
    trade_date: int  #: YYYYMMDD; 0: the market had not started a day
    settle_date: int  #: YYYYMMDD; 0: at once
    kind: Kind = Kind.DVP
    partial_ok: bool = False


class Receipt(Struct, frozen=True, kw_only=True):
    """What a ledger says about one instruction or hold, now."""

    ins_id: str
    state: State
    ledger_ref: str = ""  #: transaction hash, delivery id, journal number: what an auditor looks for on the ledger
    height: int = 0  #: the ledger's own count of what it has done
    reason: str = ""
    at: int = 0  #: nanoseconds since the epoch, by the ledger


class Caps(Struct, frozen=True, kw_only=True):
    """What a ledger offers. The conformance suite holds each of these to be true."""

    atomic_dvp: bool  #: both legs in one step of the ledger; SUBMITTED may be followed by SETTLED
    holds: bool
    partial: bool
    batch_max: int  #: most instructions in one ``submit_batch``
    needs_affirmation: bool  #: the buyer confirms on the ledger
    needs_approval: bool  #: issuer or transfer agent confirms
    finality: int  #: further confirmations after which an end state is final
    native_idempotency: bool  #: the ledger itself keeps ids unique


class Health(Struct, frozen=True, kw_only=True):
    height: int
    lag: int = 0  #: heights the adapter is behind
    chain_id: int = 0
    contracts: dict[str, str] = {}  #: name to address and version


class LedgerEvent(Struct, frozen=True, kw_only=True):
    """Something the ledger did, in its own order. May be told more than once."""

    ins_id: str
    state: State
    kind: Kind
    hash: str
    seller: str
    buyer: str
    asset: str
    quantity: int
    cash: int
    currency: str
    height: int
    ledger_ref: str
    at: int  #: nanoseconds since the epoch, by the ledger


Cursor = str
"""A place in a ledger's events, opaque to all but the ledger; "" is the beginning."""


class Position(Struct, frozen=True, kw_only=True):
    """What an account has of an asset; the four parts sum to its balance."""

    account: str
    asset: str
    available: int
    held: int = 0
    pending: int = 0  #: under way, waiting for approval
    custody: int = 0  #: inside a settlement contract

    @property
    def total(self) -> int:
        return self.available + self.held + self.pending + self.custody


class Reason(StrEnum):
    """Why a ledger does not move. The first two may cure themselves."""

    INSUFFICIENT_SECURITIES = "INSUFFICIENT_SECURITIES"
    INSUFFICIENT_CASH = "INSUFFICIENT_CASH"
    NOT_REGISTERED = "NOT_REGISTERED"
    NOT_TRANSFERABLE = "NOT_TRANSFERABLE"
    INACTIVE = "INACTIVE"
    APPROVAL_REQUIRED = "APPROVAL_REQUIRED"
    COMPLIANCE = "COMPLIANCE"
    NOT_AUTHORISED = "NOT_AUTHORISED"
    WRONG_STATE = "WRONG_STATE"
    BAD_AMOUNT = "BAD_AMOUNT"


class LedgerError(Exception):
    """What can go wrong between an instruction and a ledger; each class has one right answer.

    * LedgerError
      + Retryable        network, busy, a race before sending       retry with back-off
      + OutcomeUnknown   no answer after sending                    state UNKNOWN, query
      + Refused
        - Short          securities or cash are lacking             retry until the cut-off, then FAILED_TODAY
        - Rejected       what time cannot cure                      report
      + Conflict         same id, other content                     stop this instruction, alert
      + NotFound         no such id: proof of absence               report
      + Unsupported      the ledger does not offer this             fall back
      + ConfigError      wrong chain, address or version            stop this ledger
    """


class Retryable(LedgerError):
    """Nothing was sent. Try again a little later."""


class OutcomeUnknown(LedgerError):
    """It was sent and may or may not have taken effect. Only ``status`` can tell."""


class Refused(LedgerError):
    """The ledger looked at it and declined; nothing moved."""

    def __init__(self, reason: Reason, text: str = "") -> None:
        super().__init__(f"{reason}: {text}" if text else str(reason))
        self.reason = reason
        self.text = text


class Short(Refused):
    """INSUFFICIENT_SECURITIES or INSUFFICIENT_CASH."""


class Rejected(Refused):
    """What time cannot cure."""


class Conflict(LedgerError):
    """The ledger knows this id with another content."""


class NotFound(LedgerError):
    """The ledger has no such id. A proof, not a guess: an adapter that cannot be sure raises OutcomeUnknown."""


class Unsupported(LedgerError):
    """The ledger does not offer this; ``capabilities`` says so beforehand."""


class ConfigError(LedgerError):
    """This is not the ledger that was meant."""


class LedgerAdapter(Protocol):
    """One ledger. Every method is safe to repeat and may raise any LedgerError.

    An adapter whose ledger blocks runs it in one worker thread, so that the event loop never waits and a question asked
    after a timeout is answered after the call that timed out.
    """

    async def capabilities(self) -> Caps: ...

    async def health(self) -> Health: ...

    async def precheck(self, ins: Instruction) -> list[Reason]:
        """What would stand in the way now. Read only and advisory: the check that counts is made by ``submit``."""
        ...

    async def hold(self, hold_id: str, account: str, asset: str, quantity: int, expires: int) -> Receipt:
        """Set units or yen aside until released or ``expires`` (nanoseconds; 0: never). Raises Short, Conflict."""
        ...

    async def release(self, hold_id: str) -> Receipt:
        """Give back what was set aside; harmless when that has happened. Raises NotFound."""
        ...

    async def submit(self, ins: Instruction) -> Receipt:
        """Hand over. Same id and hash: no effect, the present state. Raises Short, Rejected, Conflict."""
        ...

    async def submit_batch(self, instructions: Sequence[Instruction], atomic: bool) -> list[Receipt | LedgerError]:
        """Hand over many, at most ``batch_max``; one answer each, in order.

        Not atomic: what is refused stands in its place as the error of ``submit``, the rest goes through.
        Atomic: all or none, and the first refusal is raised.
        """
        ...

    async def affirm(self, ins_id: str, role: str) -> Receipt:
        """``role`` ("buyer", "seller") confirms. Raises Unsupported where none is needed."""
        ...

    async def cash_confirmed(self, ins_id: str, reference: str) -> Receipt:
        """The money moved, says ``reference``. Raises Unsupported where the ledger has the money leg itself."""
        ...

    async def cancel(self, ins_id: str, reason: str) -> Receipt:
        """Take back what has not settled. Raises Rejected(WRONG_STATE) when it has, NotFound."""
        ...

    async def status(self, ins_id: str) -> Receipt:
        """What the ledger itself says about our id. Raises NotFound as proof of absence."""
        ...

    async def events(self, cursor: Cursor) -> tuple[list[LedgerEvent], Cursor]:
        """What happened after ``cursor``, in order, in portions; an empty list when there is no more for now."""
        ...

    async def positions(self, asset: str, at: int | None = None) -> Iterable[Position]:
        """Who has how much of ``asset``, now or as of height ``at``. Accounts with nothing may be left out."""
        ...
