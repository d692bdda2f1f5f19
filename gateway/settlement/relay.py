"""Carries instructions from the outbox to the ledgers, and the ledgers' word back.

Each ledger has a loop of its own, so that one that does not answer holds up nobody else. One pass of it: ask about what
is UNKNOWN, send what is due, listen to events. Every answer that did not come is UNKNOWN; every pause is a back-off
written in the outbox, by the clock that was handed in.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct

from engine.events import DayStarted, InstrumentListed, TradeBusted, Traded
from gateway.settlement.adapter import (
    Caps,
    ConfigError,
    Instruction,
    LedgerAdapter,
    LedgerError,
    OutcomeUnknown,
    Receipt,
    Retryable,
    State,
    Unsupported,
)
from gateway.settlement.instructions import MARKET_PATTERN, opening
from gateway.settlement.outbox import SECOND, Entry, Move, OnLedger, Outbox, OutboxFault, Taken
from gateway.settlement.reconcile import Report, reconcile
from gateway.settlement.sqlite import SqliteLedger

T = TypeVar("T")
log = logging.getLogger(__name__)

#: The ledger that is always there, and that settles what names a ledger which is not.
EMBEDDED: Final = "embedded"
OUTBOX_FILE: Final = "outbox.sqlite"
LEDGER_FILE: Final = "ledger.sqlite"

_JST: Final = datetime.timezone(datetime.timedelta(hours=9))
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


Gate = Callable[[Instruction], tuple[str, bool]]
"""Why an instruction may not be settled now ("": it may), and whether it needs the issuer's approval. Reads only."""


class Options(Struct, frozen=True, kw_only=True):
    """What the market leaves to configuration: START publishes neither cut-off nor rules for fails."""

    cut_off: datetime.time | None = None  #: in Japan, on the business date; None: when the next business date begins
    recycle_max: int = 5  #: settlement days after which a fail is left to the operator
    answer_seconds: float = 30.0  #: how long a ledger may take to answer before the outcome is UNKNOWN
    poll_seconds: float = 0.5  #: how often to look for work that no call announces
    batch_max: int = 500  #: most instructions in one message to a ledger


class Summary(Struct, frozen=True):
    """Where settlement stands."""

    market: str
    cursor: int
    business_date: int
    day_is_open: bool
    states: dict[str, dict[State, int]]  #: by ledger
    alerts: list[str]  #: instructions that a person must look at
    notices: list[str]  #: instruments that do not settle where they should
    stopped: dict[str, str]  #: ledgers that are not being asked any more, and why

    def count(self, state: State) -> int:
        return sum(states.get(state, 0) for states in self.states.values())


class Settlement:
    """See ``gateway.settlement`` for how the service uses it."""

    def __init__(
        self,
        outbox: Outbox,
        adapters: Mapping[str, LedgerAdapter],
        embedded: SqliteLedger | None,
        clock: Callable[[], int],
        options: Options,
        cursor: int,
    ) -> None:
        self._outbox = outbox
        self._adapters = dict(adapters)
        self._embedded = embedded
        self._clock = clock
        self._options = options
        self._cursor = cursor
        self._taken = cursor
        self._buffer: list[tuple[int, int, list[Taken]]] = []
        self._flushing = asyncio.Lock()
        self._passing = {name: asyncio.Lock() for name in self._adapters}
        self._work = {name: asyncio.Event() for name in self._adapters}
        self._news = asyncio.Event()
        self._caps: dict[str, Caps] = {}
        self._noticed: set[str] = set()
        self._gate: Gate | None = None
        self.stopped: dict[str, str] = {}

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        market: str,
        clock: Callable[[], int],
        adapters: Mapping[str, LedgerAdapter] | None = None,
        options: Options | None = None,
    ) -> Settlement:
        """Open or create the outbox, and the embedded ledger unless ``adapters`` brings one of that name.

        ``market`` becomes part of every instruction id and must never change; ``clock`` gives nanoseconds since the
        epoch. Raises ValueError for a market name that ledgers could not carry, OutboxFault, WrongFile.
        """
        if not MARKET_PATTERN.fullmatch(market):
            raise ValueError(f"Expected a market name of 1 to 12 capital letters and digits, got {market!r}")
        ledgers = dict(adapters or {})
        embedded: SqliteLedger | None = None
        if EMBEDDED not in ledgers:
            embedded = ledgers[EMBEDDED] = await SqliteLedger.open(directory / LEDGER_FILE, clock)
        try:
            outbox = await Outbox.open(directory / OUTBOX_FILE, market, clock())
        except BaseException:
            if embedded:
                await embedded.close()
            raise
        progress = await outbox.progress()
        settlement = cls(outbox, ledgers, embedded, clock, options or Options(), progress.cursor)
        await settlement._notice()
        return settlement

    async def close(self) -> None:
        """Flush and close the files. Cancel ``run`` first."""
        try:
            await self.flush()
        finally:
            await self._outbox.close()
            if self._embedded:
                await self._embedded.close()

    def ask_first(self, gate: Gate) -> None:
        """Let ``gate`` say of each instruction, before each time it goes out, whether it may (market-rules 8)."""
        self._gate = gate

    # --- from the log ------------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> int:
        """The last sequence whose obligations are durable in the outbox."""
        return self._cursor

    def take(self, sequence: int, time_ns: int, events: Iterable[object]) -> None:
        """What one durable command led to. Every sequence once, in order; those up to ``cursor`` are ignored.

        Raises OutboxFault where sequences are missing: an obligation may be among them.
        """
        if sequence <= self._taken:
            return
        if sequence != self._taken + 1:
            raise OutboxFault(f"Expected sequence {self._taken + 1}, got {sequence}")
        self._taken = sequence
        kept = [event for event in events if isinstance(event, Traded | DayStarted | InstrumentListed | TradeBusted)]
        if kept:
            self._buffer.append((sequence, time_ns, kept))
            self._news.set()

    def verify_log(self, last_sequence: int) -> None:
        """Raises OutboxFault when the outbox knows commands that the log does not."""
        if self._cursor > last_sequence:
            raise OutboxFault(
                f"The outbox has taken in {self._cursor} commands, the log ends at {last_sequence}:"
                " the log was cut or belongs to another outbox"
            )

    async def flush(self) -> None:
        """Make durable what was taken. Raises OutboxFault, sqlite3.Error; what was taken is kept for another try."""
        async with self._flushing:
            if self._taken == self._cursor:
                return
            self._news.clear()
            batch, taken = self._buffer, self._taken
            self._buffer = []
            try:
                await self._outbox.take(batch, taken, self._adapters, EMBEDDED)
            except BaseException:
                self._buffer = batch + self._buffer
                raise
            self._cursor = taken
        if batch:
            await self._notice()
            self._wake()

    # --- the day -----------------------------------------------------------------------------------------------------

    async def advance(self, business_date: int) -> None:
        """Begin settlement day ``business_date`` and try all that is due. An earlier date changes nothing."""
        await self.flush()
        await self._outbox.start_day(business_date, self._clock())
        await self.settle()

    async def settle(self) -> None:
        """Try all that is due until nothing more can be done now. What is short or unanswered waits its turn."""
        await self.flush()
        await asyncio.gather(*(self._settle(name) for name in self._adapters))

    async def cut_off(self) -> int:
        """End the settlement day; returns how many instructions missed it."""
        await self.flush()
        return await self._outbox.cut_off(self._clock())

    async def run(self) -> None:
        """Flush and relay for ever. Whatever it raises (an ExceptionGroup) is a fault, and nothing settles after it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_log())
            for name in self._adapters:
                group.create_task(self._follow_ledger(name))

    # --- for people --------------------------------------------------------------------------------------------------

    async def fund(self, account: str, asset: str, quantity: int, reference: str, ledger: str = EMBEDDED) -> Receipt:
        """An opening balance, once per ``reference``: ``quantity`` of an instrument code, or of YEN, for ``account``.

        The same call again does nothing and gives the same receipt. Raises Conflict for a reference used otherwise,
        Rejected for an amount that is none, Unsupported for an unknown ledger or one that issues nothing by itself.
        """
        return await self._adapter(ledger).submit(opening(account, asset, quantity, reference))

    async def fund_all(
        self, openings: Iterable[tuple[str, str, int, str]], ledger: str = EMBEDDED
    ) -> list[Receipt | LedgerError]:
        """Many ``(account, asset, quantity, reference)`` at once; raises the first refusal, and then none of its batch
        of ``batch_max`` took effect."""
        adapter = self._adapter(ledger)
        instructions = [opening(*each) for each in openings]
        size = (await adapter.capabilities()).batch_max
        receipts: list[Receipt | LedgerError] = []
        for start in range(0, len(instructions), size):
            receipts += await adapter.submit_batch(instructions[start : start + size], atomic=True)
        return receipts

    async def approve(self, ins_id: str, reference: str) -> Entry:
        """The issuer approves a transfer, says ``reference``; it is sent with the next pass.

        Raises NotFound, and IllegalMove unless it waits for that here and not on the ledger.
        """
        entry, _ = await self._outbox.find(ins_id)
        async with self._passing[entry.ledger]:
            entry = await self._outbox.decided(entry, True, f"approved: {reference}", self._clock())
        self._work[entry.ledger].set()
        return entry

    async def disapprove(self, ins_id: str, reason: str) -> Entry:
        """The issuer refuses a transfer: REJECTED, which is an end. Raises as ``approve`` does."""
        entry, _ = await self._outbox.find(ins_id)
        async with self._passing[entry.ledger]:
            return await self._outbox.decided(entry, False, f"not approved: {reason}", self._clock())

    async def affirm(self, ins_id: str, role: str) -> Entry:
        """Pass on a confirmation by "buyer" or "seller". Raises NotFound and what the ledger raises."""
        return await self._operate(ins_id, lambda adapter: adapter.affirm(ins_id, role))

    async def cash_confirmed(self, ins_id: str, reference: str) -> Entry:
        """Pass on that the money moved. Raises NotFound and what the ledger raises."""
        return await self._operate(ins_id, lambda adapter: adapter.cash_confirmed(ins_id, reference))

    async def cancel(self, ins_id: str, reason: str) -> Entry:
        """Take an instruction back. Raises Rejected when it has settled, NotFound, Retryable while it is UNKNOWN,
        IllegalMove when it has ended otherwise."""
        entry, _ = await self._outbox.find(ins_id)
        async with self._passing[entry.ledger]:
            entry, _ = await self._outbox.find(ins_id)
            if entry.on_ledger is OnLedger.NO:
                return await self._outbox.cancelled(entry, reason, self._clock())
        return await self._operate(ins_id, lambda adapter: adapter.cancel(ins_id, reason))

    async def find(self, ins_id: str) -> tuple[Entry, list[Move]]:
        """One instruction and its moves. Raises NotFound."""
        return await self._outbox.find(ins_id)

    async def summary(self) -> Summary:
        progress = await self._outbox.progress()
        states: dict[str, dict[State, int]] = {}
        for (ledger, state), count in (await self._outbox.counts()).items():
            states.setdefault(ledger, {})[state] = count
        return Summary(
            market=progress.market,
            cursor=progress.cursor,
            business_date=progress.business_date,
            day_is_open=progress.is_open,
            states=states,
            alerts=[f"{entry.id}: {entry.alert}" for entry in await self._outbox.alerts()],
            notices=await notices(self._outbox),
            stopped=dict(self.stopped),
        )

    async def reconcile(self) -> Report:
        """Compare the outbox with what the ledgers say."""
        await self.flush()
        return await reconcile(self._outbox, self._adapters)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _adapter(self, name: str) -> LedgerAdapter:
        if name not in self._adapters:
            raise Unsupported(f"Expected one of the ledgers {', '.join(sorted(self._adapters))}, got {name!r}")
        return self._adapters[name]

    def _wake(self) -> None:
        for event in self._work.values():
            event.set()

    async def _notice(self) -> None:
        for notice in await notices(self._outbox):
            if notice not in self._noticed:
                self._noticed.add(notice)
                log.warning(notice)

    async def _follow_log(self) -> None:
        while True:
            await _wait(self._news, self._options.poll_seconds)
            if self._buffer:
                await self.flush()
            if self._options.cut_off:
                progress = await self._outbox.progress()
                if progress.is_open and self._clock() >= cut_off_ns(progress.business_date, self._options.cut_off):
                    await self.cut_off()

    async def _follow_ledger(self, name: str) -> None:
        while True:
            self._work[name].clear()
            await self._settle(name)
            await _wait(self._work[name], self._options.poll_seconds)

    async def _settle(self, name: str) -> None:
        while name not in self.stopped and await self._pass(name):
            pass

    async def _pass(self, name: str) -> bool:
        """One look at one ledger; whether it found anything to do. Always ends: what failed waits before it is due."""
        async with self._passing[name]:
            adapter, options = self._adapters[name], self._options
            found = False
            caps = self._caps.get(name)
            if caps is None:
                caps = await self._meet(name, adapter)
                if caps is None:
                    return False
            unknown = await self._outbox.unknown(name, self._clock(), options.batch_max)
            if unknown:
                found = True
                shown = [(entry, await self._ask(name, adapter.status(entry.id))) for entry in unknown]
                await self._outbox.answered(shown, self._clock())
            due = await self._outbox.due(
                name, self._clock(), min(options.batch_max, caps.batch_max), options.recycle_max
            )
            if due and name not in self.stopped:
                found = True
                due = await self._admitted(due)
            if due and name not in self.stopped:
                advice = [await self._advice(name, adapter, caps, entry) for entry in due]
                due = await self._outbox.sending(due, advice, self._clock())
                if due:
                    answers = await self._submit(name, adapter, due)
                    await self._outbox.answered(list(zip(due, answers, strict=True)), self._clock())
            if not caps.atomic_dvp and name not in self.stopped:
                found = await self._listen(name, adapter) or found
            return found

    async def _admitted(self, due: Sequence[Entry]) -> list[Entry]:
        """Those that the market lets go out now; the others wait, each with the reason."""
        if self._gate is None:
            return list(due)
        approved = await self._outbox.approved(due)
        admitted: list[Entry] = []
        held: list[tuple[Entry, str]] = []
        waiting: list[Entry] = []
        for entry in due:
            # What the ledger may have already is not the market's to stop.
            what, needs_approval = self._gate(entry.instruction) if entry.on_ledger is OnLedger.NO else ("", False)
            if what:
                held.append((entry, f"not eligible: {what}"))
            elif needs_approval and entry.number not in approved:
                waiting.append(entry)
            else:
                admitted.append(entry)
        if held or waiting:
            await self._outbox.held_up(held, waiting, self._clock())
        return admitted

    async def _meet(self, name: str, adapter: LedgerAdapter) -> Caps | None:
        """First contact: is it the ledger that was meant, and what can it do?"""
        health = await self._ask(name, adapter.health())
        caps = await self._ask(name, adapter.capabilities())
        for answer in (health, caps):
            if isinstance(answer, LedgerError):
                log.warning("Ledger %s does not answer: %s", name, answer)
                return None
        assert isinstance(caps, Caps)
        self._caps[name] = caps
        return caps

    async def _advice(self, name: str, adapter: LedgerAdapter, caps: Caps, entry: Entry) -> str:
        if caps.atomic_dvp:
            return ""  # such a ledger checks in the same step in which it settles
        reasons = await self._ask(name, adapter.precheck(entry.instruction))
        return str(reasons) if isinstance(reasons, LedgerError) else ", ".join(reasons)

    async def _submit(self, name: str, adapter: LedgerAdapter, due: Sequence[Entry]) -> Sequence[Receipt | LedgerError]:
        answers = await self._ask(name, adapter.submit_batch([entry.instruction for entry in due], atomic=False))
        if isinstance(answers, LedgerError):
            return [answers] * len(due)
        if [entry.id for entry in due] != [
            answer.ins_id if isinstance(answer, Receipt) else entry.id
            for entry, answer in zip(due, answers, strict=False)
        ]:
            self._stop(name, f"The adapter answered {len(answers)} instructions of {len(due)}, or in another order")
            return [OutcomeUnknown("the adapter's answer does not fit")] * len(due)
        return answers

    async def _listen(self, name: str, adapter: LedgerAdapter) -> bool:
        cursor = await self._outbox.ledger_cursor(name)
        answer = await self._ask(name, adapter.events(cursor))
        if isinstance(answer, LedgerError):
            log.warning("Ledger %s does not tell its events: %s", name, answer)
            return False
        events, after = answer
        if after != cursor:
            await self._outbox.heard(name, events, after, self._clock())
        return after != cursor

    async def _operate(self, ins_id: str, call: Callable[[LedgerAdapter], Coroutine[Any, Any, Receipt]]) -> Entry:
        """An operator's or a member's step on the ledger itself; what it answers is taken in like any answer."""
        entry, _ = await self._outbox.find(ins_id)
        async with self._passing[entry.ledger]:
            entry, _ = await self._outbox.find(ins_id)
            if entry.state is State.UNKNOWN:
                raise Retryable(f"It is not known yet what became of {ins_id}; try again when it is")
            answer = await self._ask(entry.ledger, call(self._adapters[entry.ledger]))
            if isinstance(answer, OutcomeUnknown | Receipt):
                (entry,) = await self._outbox.answered([(entry, answer)], self._clock())
        self._work[entry.ledger].set()
        if isinstance(answer, LedgerError):
            raise answer
        return entry

    async def _ask(self, name: str, call: Coroutine[Any, Any, T]) -> T | LedgerError:
        """Whatever a ledger does, as a value. No answer, and a fault of the adapter, leave the outcome unknown."""
        try:
            # Not ``wait_for``: on Python 3.11 it can swallow a cancel that comes together with the answer.
            async with asyncio.timeout(self._options.answer_seconds):
                return await call
        except TimeoutError:
            return OutcomeUnknown(f"no answer within {self._options.answer_seconds} seconds")
        except ConfigError as error:
            self._stop(name, str(error))
            return error
        except LedgerError as error:
            return error
        except Exception as error:
            log.exception("The adapter of ledger %s is at fault", name)
            self._stop(name, f"fault in the adapter: {error!r}")
            return OutcomeUnknown(f"fault in the adapter: {error!r}")

    def _stop(self, name: str, reason: str) -> None:
        """Ask this ledger nothing more until the exchange starts again; the others go on."""
        self.stopped[name] = reason
        log.error("Settlement on ledger %s stops: %s", name, reason)


def cut_off_ns(date: int, at: datetime.time) -> int:
    """Nanoseconds since the epoch of ``at`` in Japan on ``date`` (YYYYMMDD)."""
    moment = datetime.datetime(date // 10000, date // 100 % 100, date % 100, at.hour, at.minute, at.second, tzinfo=_JST)
    return (moment - _EPOCH) // datetime.timedelta(seconds=1) * SECOND


async def notices(outbox: Outbox) -> list[str]:
    """Instruments that do not settle on the ledger they name."""
    return [
        f"{listed.instrument} names ledger {listed.ledger!r}, which is not configured;"
        f" it settles on {listed.settles_on!r}"
        for listed in await outbox.instruments()
        if listed.ledger != listed.settles_on
    ]


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event or for so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
