"""A ledger that fails on demand, before or after the effect, and the end of the process as an exception."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from gateway.settlement.adapter import (
    Caps,
    Cursor,
    Health,
    Instruction,
    Kind,
    LedgerAdapter,
    LedgerError,
    LedgerEvent,
    Position,
    Reason,
    Receipt,
)
from gateway.settlement.memory import MemoryLedger

T = TypeVar("T")


class Crash(BaseException):
    """The process ends here. Not an Exception, so that nothing on the way can handle it."""


class StrictLedger(MemoryLedger):
    """Not forgiving: a relay that sends what this ledger has already has not asked first, and is found out."""

    def _submit(self, ins: Instruction) -> Receipt:
        if ins.kind is not Kind.OPENING and ins.id in self._instructions:
            raise AssertionError(f"{ins.id} was sent again without asking")
        return super()._submit(ins)


class FaultyLedger:
    """Calls ``point(name)`` before and after each call to the ledger behind it; ``point`` may raise."""

    def __init__(self, inner: LedgerAdapter, point: Callable[[str], None] = lambda name: None) -> None:
        self.inner = inner
        self.point = point

    async def _call(self, name: str, call: Coroutine[Any, Any, T]) -> T:
        try:
            self.point(f"before {name}")
            answer = await call
        finally:
            call.close()
        self.point(f"after {name}")
        return answer

    async def capabilities(self) -> Caps:
        return await self.inner.capabilities()

    async def health(self) -> Health:
        return await self._call("health", self.inner.health())

    async def precheck(self, ins: Instruction) -> list[Reason]:
        return await self._call("precheck", self.inner.precheck(ins))

    async def hold(self, hold_id: str, account: str, asset: str, quantity: int, expires: int) -> Receipt:
        return await self._call("hold", self.inner.hold(hold_id, account, asset, quantity, expires))

    async def release(self, hold_id: str) -> Receipt:
        return await self._call("release", self.inner.release(hold_id))

    async def submit(self, ins: Instruction) -> Receipt:
        return await self._call("submit", self.inner.submit(ins))

    async def submit_batch(self, instructions: Sequence[Instruction], atomic: bool) -> list[Receipt | LedgerError]:
        return await self._call("submit_batch", self.inner.submit_batch(instructions, atomic))

    async def affirm(self, ins_id: str, role: str) -> Receipt:
        return await self._call("affirm", self.inner.affirm(ins_id, role))

    async def cash_confirmed(self, ins_id: str, reference: str) -> Receipt:
        return await self._call("cash_confirmed", self.inner.cash_confirmed(ins_id, reference))

    async def cancel(self, ins_id: str, reason: str) -> Receipt:
        return await self._call("cancel", self.inner.cancel(ins_id, reason))

    async def status(self, ins_id: str) -> Receipt:
        return await self._call("status", self.inner.status(ins_id))

    async def events(self, cursor: Cursor) -> tuple[list[LedgerEvent], Cursor]:
        return await self._call("events", self.inner.events(cursor))

    async def positions(self, asset: str, at: int | None = None) -> Iterable[Position]:
        return await self.inner.positions(asset, at)
