"""The ledger in memory: the model the others are compared with, and the ledger of tests and simulations.

Written for the eye: one dictionary of balances, one list of what happened, no transaction needed because no method
waits half way. It forgets everything when the process ends, so the service never settles on it.

``staged=True`` makes it a ledger of the other sort, where units and money are linked by an agent instead of moving
together (ibet for Fin, DCJPY): units are held at submit, the buyer affirms, somebody reports the money, units move.
There is no money on such a ledger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from gateway.settlement.adapter import (
    ISSUANCE,
    Caps,
    Conflict,
    Cursor,
    Health,
    Instruction,
    Kind,
    LedgerError,
    LedgerEvent,
    NotFound,
    Position,
    Reason,
    Receipt,
    Refused,
    Rejected,
    Short,
    State,
    Unsupported,
)
from gateway.settlement.instructions import AMOUNT_MAX, check, money_asset

BATCH_MAX: Final = 1_000
AVAILABLE, HELD = 0, 1


class _Hold(msgspec.Struct):
    content: tuple[str, str, int, int]  #: account, asset, quantity, expires
    receipt: Receipt


class MemoryLedger:
    def __init__(self, clock: Callable[[], int] = lambda: 0, *, staged: bool = False) -> None:
        self._clock = clock
        self._staged = staged
        self._height = 0
        self._balances: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._postings: list[tuple[int, str, str, int, int]] = []  #: height, account, asset, drawer, amount
        self._instructions: dict[str, tuple[Instruction, Receipt]] = {}
        self._holds: dict[str, _Hold] = {}
        self._events: list[LedgerEvent] = []

    # --- LedgerAdapter -----------------------------------------------------------------------------------------------

    async def capabilities(self) -> Caps:
        return Caps(
            atomic_dvp=not self._staged,
            holds=True,
            partial=False,
            batch_max=BATCH_MAX,
            needs_affirmation=self._staged,
            needs_approval=False,
            finality=0,
            native_idempotency=True,
        )

    async def health(self) -> Health:
        return Health(height=self._height)

    async def precheck(self, ins: Instruction) -> list[Reason]:
        try:
            check(ins)
        except Rejected as refused:
            return [refused.reason]
        return [short.reason for short in self._shortages(ins)]

    async def hold(self, hold_id: str, account: str, asset: str, quantity: int, expires: int) -> Receipt:
        if type(quantity) is not int or not 0 < quantity <= AMOUNT_MAX:
            raise Rejected(Reason.BAD_AMOUNT, f"Expected a quantity as int from 1 to {AMOUNT_MAX}, got {quantity!r}")
        self._expire()
        content = (account, asset, quantity, expires)
        hold = self._holds.get(hold_id)
        if hold is None:
            if account == ISSUANCE:
                raise Rejected(Reason.NOT_AUTHORISED, f"{ISSUANCE} is for opening balances only")
            if self._balances[account, asset, AVAILABLE] < quantity:
                money = asset.startswith("@")
                raise Short(Reason.INSUFFICIENT_CASH if money else Reason.INSUFFICIENT_SECURITIES)
            self._height += 1
            self._post(account, asset, AVAILABLE, -quantity)
            self._post(account, asset, HELD, quantity)
            hold = self._holds[hold_id] = _Hold(content, self._receipt(hold_id, State.HELD))
        elif hold.content != content:
            raise Conflict(f"Hold {hold_id} is on the ledger with another content")
        return hold.receipt

    async def release(self, hold_id: str) -> Receipt:
        self._expire()
        if hold_id not in self._holds:
            raise NotFound(hold_id)
        if self._holds[hold_id].receipt.state is State.HELD:
            self._end_hold(hold_id, State.CANCELLED)
        return self._holds[hold_id].receipt

    async def submit(self, ins: Instruction) -> Receipt:
        self._expire()
        return self._submit(ins)

    async def submit_batch(self, instructions: Sequence[Instruction], atomic: bool) -> list[Receipt | LedgerError]:
        if len(instructions) > BATCH_MAX:
            raise Unsupported(f"Expected at most {BATCH_MAX} instructions, got {len(instructions)}")
        self._expire()
        before = (
            (self._height, self._balances.copy(), len(self._postings), self._instructions.copy(), len(self._events))
            if atomic
            else None
        )
        answers: list[Receipt | LedgerError] = []
        for ins in instructions:
            try:
                answers.append(self._submit(ins))
            except (Refused, Conflict) as refused:
                if before:
                    self._height, self._balances, postings, self._instructions, events = before
                    del self._postings[postings:], self._events[events:]
                    raise
                answers.append(refused)
        return answers

    async def affirm(self, ins_id: str, role: str) -> Receipt:
        if not self._staged:
            raise Unsupported("This ledger needs no affirmation")
        ins, receipt = self._known(ins_id)
        if role != "buyer":
            raise Rejected(Reason.NOT_AUTHORISED, f"Expected the buyer, got {role}")
        if receipt.state is State.HELD:
            self._height += 1
            return self._set(ins, State.AFFIRMED)
        if receipt.state in (State.AFFIRMED, State.SETTLED):
            return receipt
        raise Rejected(Reason.WRONG_STATE, f"{ins_id} is {receipt.state}")

    async def cash_confirmed(self, ins_id: str, reference: str) -> Receipt:
        if not self._staged:
            raise Unsupported("This ledger has the money leg itself")
        ins, receipt = self._known(ins_id)
        if receipt.state is State.SETTLED:
            return receipt
        if receipt.state is not State.AFFIRMED:
            raise Rejected(Reason.WRONG_STATE, f"{ins_id} is {receipt.state}")
        self._height += 1
        self._set(ins, State.CASH_CONFIRMED)
        self._height += 1
        self._post(ins.seller, ins.asset, HELD, -ins.quantity)
        self._post(ins.buyer, ins.asset, AVAILABLE, ins.quantity)
        return self._set(ins, State.SETTLED, reference)

    async def cancel(self, ins_id: str, reason: str) -> Receipt:
        ins, receipt = self._known(ins_id)
        if receipt.state in (State.HELD, State.AFFIRMED):
            self._height += 1
            self._post(ins.seller, ins.asset, HELD, -ins.quantity)
            self._post(ins.seller, ins.asset, AVAILABLE, ins.quantity)
            return self._set(ins, State.CANCELLED if receipt.state is State.HELD else State.ABORTED, reason)
        if receipt.state in (State.CANCELLED, State.ABORTED):
            return receipt
        raise Rejected(Reason.WRONG_STATE, f"{ins_id} is {receipt.state}")

    async def status(self, ins_id: str) -> Receipt:
        return self._known(ins_id)[1]

    async def events(self, cursor: Cursor) -> tuple[list[LedgerEvent], Cursor]:
        after = int(cursor or 0)
        return self._events[after : after + 2_000], str(min(len(self._events), after + 2_000))

    async def positions(self, asset: str, at: int | None = None) -> Iterable[Position]:
        drawers: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for height, account, of, drawer, amount in self._postings:
            if of == asset and (at is None or height <= at):
                drawers[account][drawer] += amount
        return [
            Position(account=account, asset=asset, available=available, held=held)
            for account, (available, held) in sorted(drawers.items())
        ]

    # --- what only this ledger has -----------------------------------------------------------------------------------

    async def assets(self) -> list[str]:
        return sorted({asset for _, _, asset, _, _ in self._postings})

    async def audit(self) -> list[str]:
        """Adds up all postings and compares; one balance below nought, or one asset not in balance, is a line."""
        summed: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        supply: defaultdict[str, int] = defaultdict(int)
        for _, account, asset, drawer, amount in self._postings:
            summed[account, asset, drawer] += amount
            supply[asset] += amount
        wrong = [f"{asset} sums to {amount}" for asset, amount in sorted(supply.items()) if amount]
        for key in sorted(summed.keys() | self._balances.keys()):
            if summed[key] != self._balances[key]:
                wrong.append(f"balance of {key} is {self._balances[key]}, its postings sum to {summed[key]}")
            if summed[key] < 0 and key[0] != ISSUANCE:
                wrong.append(f"balance of {key} is below nought: {summed[key]}")
        return wrong

    async def close(self) -> None:
        """Nothing is open."""

    # --- inside ------------------------------------------------------------------------------------------------------

    def _known(self, ins_id: str) -> tuple[Instruction, Receipt]:
        if ins_id not in self._instructions:
            raise NotFound(ins_id)
        return self._instructions[ins_id]

    def _submit(self, ins: Instruction) -> Receipt:
        check(ins)
        known = self._instructions.get(ins.id)
        if known:
            if known[0].hash != ins.hash:
                raise Conflict(f"{ins.id} is on the ledger with another content")
            return known[1]
        for short in self._shortages(ins):
            raise short
        money = money_asset(ins.currency)
        gains = [(ins.buyer, ins.asset, ins.quantity), (ins.seller, money, ins.cash)]
        for account, asset, amount in gains:
            if self._balances[account, asset, AVAILABLE] + amount > AMOUNT_MAX:
                raise Rejected(Reason.BAD_AMOUNT, f"The balance of {account} in {asset} would pass {AMOUNT_MAX}")
        if ins.kind is Kind.OPENING and self._balances[ISSUANCE, ins.asset, AVAILABLE] - ins.quantity < -AMOUNT_MAX:
            raise Rejected(Reason.BAD_AMOUNT, f"The issue of {ins.asset} would pass {AMOUNT_MAX}")
        self._height += 1
        if self._staged and ins.kind is not Kind.OPENING:
            self._post(ins.seller, ins.asset, AVAILABLE, -ins.quantity)
            self._post(ins.seller, ins.asset, HELD, ins.quantity)
            return self._set(ins, State.HELD)
        if ins.quantity:
            self._post(ins.seller, ins.asset, AVAILABLE, -ins.quantity)
            self._post(ins.buyer, ins.asset, AVAILABLE, ins.quantity)
        if ins.cash:
            self._post(ins.buyer, money, AVAILABLE, -ins.cash)
            self._post(ins.seller, money, AVAILABLE, ins.cash)
        return self._set(ins, State.SETTLED)

    def _shortages(self, ins: Instruction) -> list[Short]:
        short = []
        if ins.kind is not Kind.OPENING and self._balances[ins.seller, ins.asset, AVAILABLE] < ins.quantity:
            short.append(Short(Reason.INSUFFICIENT_SECURITIES, ins.seller))
        if not self._staged and self._balances[ins.buyer, money_asset(ins.currency), AVAILABLE] < ins.cash:
            short.append(Short(Reason.INSUFFICIENT_CASH, ins.buyer))
        return short

    def _set(self, ins: Instruction, state: State, reason: str = "") -> Receipt:
        receipt = self._receipt(ins.id, state, reason)
        self._instructions[ins.id] = (ins, receipt)
        self._events.append(
            LedgerEvent(
                ins_id=ins.id,
                state=state,
                kind=ins.kind,
                hash=ins.hash,
                seller=ins.seller,
                buyer=ins.buyer,
                asset=ins.asset,
                quantity=ins.quantity,
                cash=0 if self._staged else ins.cash,
                currency=ins.currency,
                height=receipt.height,
                ledger_ref=receipt.ledger_ref,
                at=receipt.at,
            )
        )
        return receipt

    def _receipt(self, ins_id: str, state: State, reason: str = "") -> Receipt:
        return Receipt(
            ins_id=ins_id,
            state=state,
            ledger_ref=str(self._height),
            height=self._height,
            reason=reason,
            at=self._clock(),
        )

    def _post(self, account: str, asset: str, drawer: int, amount: int) -> None:
        self._balances[account, asset, drawer] += amount
        self._postings.append((self._height, account, asset, drawer, amount))

    def _expire(self) -> None:
        now = self._clock()
        for hold_id, hold in sorted(self._holds.items(), key=lambda item: (item[1].content[3], item[0])):
            if hold.receipt.state is State.HELD and 0 < hold.content[3] <= now:
                self._end_hold(hold_id, State.EXPIRED)

    def _end_hold(self, hold_id: str, state: State) -> None:
        account, asset, quantity, _ = self._holds[hold_id].content
        self._height += 1
        self._post(account, asset, HELD, -quantity)
        self._post(account, asset, AVAILABLE, quantity)
        self._holds[hold_id].receipt = self._receipt(hold_id, state)
