"""What the exchange owes to ledgers, and how far each piece of it has come.

Instructions are facts of the log; this file keeps what the log cannot know: how far the log was read (the cursor), the
state of each instruction, and every move it made. A step is one transaction, so a crash finds the outbox before a step
or after it. Two marks carry it over a crash while a ledger was being asked:

* the cursor moves in the transaction that stores the instructions of the commands up to it, so none is stored twice
  and none is missed;
* ``on_ledger`` says PERHAPS from before the first byte goes out until the answer is in. Whatever is found so at the
  next start is UNKNOWN, and is asked about before anything is sent again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from enum import Enum, IntEnum
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from engine.events import DayStarted, InstrumentListed, TradeBusted, Traded
from gateway.settlement.adapter import (
    ENDS,
    ConfigError,
    Conflict,
    Cursor,
    IllegalMove,
    Instruction,
    LedgerError,
    LedgerEvent,
    NotFound,
    OutcomeUnknown,
    Receipt,
    Rejected,
    Retryable,
    Short,
    State,
    way,
)
from gateway.settlement.database import Database, WrongFile
from gateway.settlement.instructions import from_trade, reversal

APPLICATION: Final = "dojima settlement outbox 1"
SCHEMA: Final = """
CREATE TABLE progress (
    market TEXT NOT NULL,
    cursor INTEGER NOT NULL,                  -- last sequence of the log that was taken in
    business_date INTEGER NOT NULL,           -- YYYYMMDD; 0: none yet
    cut_off_date INTEGER NOT NULL             -- last business date whose settlement day has ended
);
CREATE TABLE instruments (
    instrument TEXT PRIMARY KEY,
    ledger TEXT NOT NULL,                     -- the ledger that the instrument names
    settles_on TEXT NOT NULL,                 -- the ledger that it settles on
    price_decimals INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE ledgers (
    ledger TEXT PRIMARY KEY,
    cursor TEXT NOT NULL                      -- last place of its events that was taken in
) WITHOUT ROWID;
CREATE TABLE instructions (
    number INTEGER PRIMARY KEY,               -- in the order of the log
    id TEXT NOT NULL UNIQUE,
    sequence INTEGER NOT NULL,                -- of the command it follows from
    ledger TEXT NOT NULL,
    content BLOB NOT NULL,                    -- the instruction as MessagePack
    settle_date INTEGER NOT NULL,
    state TEXT NOT NULL,
    open INTEGER NOT NULL,                    -- 1 until an end is reached
    on_ledger INTEGER NOT NULL,               -- 0 no, 1 perhaps, 2 yes
    reason TEXT NOT NULL,
    alert TEXT NOT NULL,                      -- why a person must look; nothing is sent while there is one
    ledger_ref TEXT NOT NULL,
    height INTEGER NOT NULL,                  -- of the ledger when it last spoke of this
    attempts INTEGER NOT NULL,                -- without success, on this business date
    fails INTEGER NOT NULL,                   -- settlement days it missed
    not_before INTEGER NOT NULL,              -- nanoseconds since the epoch: when to try again
    since INTEGER NOT NULL                    -- nanoseconds since the epoch: when it came into this state
);
CREATE INDEX instructions_due ON instructions (ledger, settle_date, number) WHERE open = 1;
CREATE TABLE moves (
    number INTEGER NOT NULL REFERENCES instructions,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    reason TEXT NOT NULL,
    ledger_ref TEXT NOT NULL,
    at INTEGER NOT NULL,                      -- nanoseconds since the epoch
    business_date INTEGER NOT NULL
);
CREATE INDEX moves_by_instruction ON moves (number);
"""

SECOND: Final = 1_000_000_000
BACK_OFF_FIRST: Final = 1 * SECOND
BACK_OFF_MAX: Final = 64 * SECOND
WAITS_FOR_APPROVAL: Final = "waits for the issuer's approval"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Instruction).decode

#: Instructions whose trade was busted, with what reverses each. Files of before there were any have no such table.
BUSTS: Final = """
CREATE TABLE IF NOT EXISTS busts (
    number INTEGER PRIMARY KEY REFERENCES instructions,
    reversal INTEGER NOT NULL REFERENCES instructions
)
"""

Taken = InstrumentListed | DayStarted | Traded | TradeBusted


class OnLedger(IntEnum):
    NO = 0  #: never sent, or the ledger said that nothing happened
    PERHAPS = 1  #: sent, no answer yet
    YES = 2


class OutboxFault(Exception):
    """The outbox does not fit the log; going on would lose or double an obligation."""


class Entry(Struct, frozen=True):
    """One instruction as the outbox sees it."""

    number: int
    instruction: Instruction
    ledger: str
    state: State
    on_ledger: OnLedger
    reason: str
    alert: str
    ledger_ref: str
    height: int
    attempts: int
    fails: int
    not_before: int
    since: int

    @property
    def id(self) -> str:
        return self.instruction.id


class Move(Struct, frozen=True):
    before: State
    after: State
    reason: str
    ledger_ref: str
    at: int  #: nanoseconds since the epoch
    business_date: int


class Progress(Struct, frozen=True):
    market: str
    cursor: int
    business_date: int
    cut_off_date: int

    @property
    def is_open(self) -> bool:
        """Whether the settlement day runs: a business date is set and its cut-off has not come."""
        return self.business_date > self.cut_off_date


class Listed(Struct, frozen=True):
    instrument: str
    ledger: str
    settles_on: str
    price_decimals: int


class Outbox:
    """``await Outbox.open(path, market)``. Times are nanoseconds since the epoch, given by the caller."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, path: Path, market: str, now: int) -> Outbox:
        """Open or create, and turn what was under way at a crash into UNKNOWN. Raises OutboxFault, WrongFile."""
        database = await Database.open(path, APPLICATION, SCHEMA)
        try:
            await database.write(lambda file: _begin(file, market, now))
        except BaseException:
            await database.close()
            raise
        return cls(database)

    @classmethod
    async def open_read_only(cls, path: Path) -> Outbox:
        """For a look from outside while the exchange runs. Raises FileNotFoundError, WrongFile."""
        return cls(await Database.open(path, APPLICATION, SCHEMA, read_only=True))

    async def close(self) -> None:
        await self._database.close()

    # --- from the log ------------------------------------------------------------------------------------------------

    async def take(
        self, taken: Sequence[tuple[int, int, Sequence[Taken]]], cursor: int, ledgers: Iterable[str], fallback: str
    ) -> None:
        """Store what the commands up to ``cursor`` left: ``taken`` is (sequence, stamp, events of interest), in order.

        An instrument whose ledger is not among ``ledgers`` settles on ``fallback``. Raises OutboxFault.
        """
        known = frozenset(ledgers)
        await self._database.write(lambda file: _take(file, taken, cursor, known, fallback))

    async def start_day(self, date: int, now: int) -> None:
        """The business date becomes ``date``, and the settlement day before it ends. An earlier date does nothing."""
        await self._database.write(lambda file: _start_day(file, date, now))

    async def cut_off(self, now: int) -> int:
        """End the settlement day; returns how many missed it. Doing so twice does no harm."""
        return await self._database.write(lambda file: _cut_off(file, now))

    # --- to the ledgers ----------------------------------------------------------------------------------------------

    async def due(self, ledger: str, now: int, limit: int, recycle_max: int) -> list[Entry]:
        """What may be sent to ``ledger`` now, oldest settlement date first, and within it in the order of the log."""
        return await self._database.read(
            lambda file: (
                _entries(
                    file,
                    "WHERE open = 1 AND ledger = ? AND settle_date <= ? AND on_ledger <> 1 AND alert = ''"
                    " AND (state IN ('NEW', 'PRECHECKED')"
                    " OR (state IN ('SUBMITTED', 'PENDING_APPROVAL') AND on_ledger = 0)"
                    " OR (state = 'FAILED_TODAY' AND fails <= ?))"
                    f" AND {_IS_TIME} AND {_MAY_GO} ORDER BY settle_date, number LIMIT ?",
                    (ledger, progress.business_date, recycle_max, now, now + BACK_OFF_MAX, limit),
                )
                if (progress := _progress(file)).is_open
                else []
            )
        )

    async def unknown(self, ledger: str, now: int, limit: int) -> list[Entry]:
        """What ``ledger`` must be asked about now."""
        return await self._database.read(
            lambda file: _entries(
                file,
                "WHERE open = 1 AND ledger = ? AND state = 'UNKNOWN' AND alert = ''"
                f" AND {_IS_TIME} ORDER BY settle_date, number LIMIT ?",
                (ledger, now, now + BACK_OFF_MAX, limit),
            )
        )

    async def sending(self, entries: Sequence[Entry], reasons: Sequence[str], now: int) -> list[Entry]:
        """Write down that these go out now, each with what the advisory check said. Before the first byte does.

        Returns those that do: none when the cut-off came between ``due`` and this, none whose trade was busted since.
        """

        def sending(file: sqlite3.Connection) -> list[Entry]:
            progress = _progress(file)
            if not progress.is_open:
                return []
            sent = []
            for entry, reason in zip(entries, reasons, strict=True):
                if _entries(file, f"WHERE number = ? AND open = 1 AND {_MAY_GO}", (entry.number,)):
                    present = _entry(file, entry.number)
                    _go(file, progress, present, State.SUBMITTED, now, reason=reason, on_ledger=OnLedger.PERHAPS)
                    sent.append(_entry(file, entry.number))
            return sent

        return await self._database.write(sending)

    async def approved(self, entries: Sequence[Entry]) -> set[int]:
        """The numbers of those that the issuer has approved."""

        def approved(file: sqlite3.Connection) -> set[int]:
            return {
                entry.number
                for entry in entries
                if file.execute(
                    "SELECT 1 FROM moves WHERE number = ? AND before = 'PENDING_APPROVAL' AND after = 'PRECHECKED'",
                    (entry.number,),
                ).fetchone()
            }

        return await self._database.read(approved)

    async def held_up(self, held: Sequence[tuple[Entry, str]], waiting: Sequence[Entry], now: int) -> None:
        """Write down what may not go out now: ``held`` with the reason, to be asked again later; ``waiting`` for the
        issuer's approval.
        """

        def held_up(file: sqlite3.Connection) -> None:
            progress = _progress(file)
            for entry, reason in held:
                present = _entry(file, entry.number)
                after = State.PRECHECKED if present.state is State.NEW else present.state
                _go(file, progress, present, after, now, reason=reason)
                _later(file, present, now)
            for entry in waiting:
                present = _entry(file, entry.number)
                _go(file, progress, present, State.PENDING_APPROVAL, now, reason=WAITS_FOR_APPROVAL)
                _later(file, present, now)

        await self._database.write(held_up)

    async def decided(self, entry: Entry, approved: bool, reason: str, now: int) -> Entry:
        """The issuer has decided about an instruction that waits for it and that no ledger has. Raises IllegalMove."""

        def decided(file: sqlite3.Connection) -> Entry:
            present = _entry(file, entry.number)
            if present.state is not State.PENDING_APPROVAL or present.on_ledger is not OnLedger.NO:
                raise IllegalMove(f"Expected an instruction that waits for approval here, got one {present.state}")
            after = State.PRECHECKED if approved else State.REJECTED
            _go(file, _progress(file), present, after, now, reason=reason)
            file.execute("UPDATE instructions SET attempts = 0, not_before = 0 WHERE number = ?", (entry.number,))
            return _entry(file, entry.number)

        return await self._database.write(decided)

    async def answered(self, answers: Sequence[tuple[Entry, Receipt | LedgerError]], now: int) -> list[Entry]:
        """Take in what ledgers answered to ``sending`` or to a question; returns the entries as they are now."""

        def answered(file: sqlite3.Connection) -> list[Entry]:
            progress = _progress(file)
            for entry, answer in answers:
                _answer(file, progress, _entry(file, entry.number), answer, now)
            _undo(file, progress, now)
            return [_entry(file, entry.number) for entry, _ in answers]

        return await self._database.write(answered)

    async def heard(self, ledger: str, events: Sequence[LedgerEvent], cursor: Cursor, now: int) -> int:
        """Take in a ledger's events and how far they reach; returns how many said something new."""
        return await self._database.write(lambda file: _heard(file, ledger, events, cursor, now))

    async def ledger_cursor(self, ledger: str) -> Cursor:
        return await self._database.read(
            lambda file: (file.execute("SELECT cursor FROM ledgers WHERE ledger = ?", (ledger,)).fetchone() or ("",))[0]
        )

    async def cancelled(self, entry: Entry, reason: str, now: int) -> Entry:
        """An instruction that no ledger has ends here. Raises IllegalMove."""

        def cancelled(file: sqlite3.Connection) -> Entry:
            progress = _progress(file)
            _go(file, progress, entry, State.CANCELLED, now, reason=reason)
            _undo(file, progress, now)
            return _entry(file, entry.number)

        return await self._database.write(cancelled)

    # --- for people --------------------------------------------------------------------------------------------------

    async def progress(self) -> Progress:
        return await self._database.read(_progress)

    async def counts(self) -> dict[tuple[str, State], int]:
        """Instructions by ledger and state."""
        return await self._database.read(
            lambda file: {
                (ledger, _known(State, state)): count
                for ledger, state, count in file.execute(
                    "SELECT ledger, state, count(*) FROM instructions GROUP BY ledger, state ORDER BY ledger, state"
                )
            }
        )

    async def alerts(self) -> list[Entry]:
        return await self._database.read(lambda file: _entries(file, "WHERE open = 1 AND alert <> '' ORDER BY number"))

    async def entries(self, ledger: str | None = None) -> list[Entry]:
        """All instructions, in the order of the log."""
        if ledger is None:
            return await self._database.read(lambda file: _entries(file, "ORDER BY number"))
        return await self._database.read(
            lambda file: _entries(file, "WHERE ledger = ? ORDER BY number", (ledger,)),
        )

    async def ledgers(self) -> list[str]:
        """Every ledger that an instrument settles on."""
        return await self._database.read(
            lambda file: [row[0] for row in file.execute("SELECT DISTINCT settles_on FROM instruments ORDER BY 1")]
        )

    async def instruments(self) -> list[Listed]:
        return await self._database.read(
            lambda file: [
                Listed(*row)
                for row in file.execute(
                    "SELECT instrument, ledger, settles_on, price_decimals FROM instruments ORDER BY instrument"
                )
            ]
        )

    async def find(self, ins_id: str) -> tuple[Entry, list[Move]]:
        """One instruction and all its moves. Raises NotFound."""

        def find(file: sqlite3.Connection) -> tuple[Entry, list[Move]]:
            entries = _entries(file, "WHERE id = ?", (ins_id,))
            if not entries:
                raise NotFound(ins_id)
            moves = file.execute(
                "SELECT before, after, reason, ledger_ref, at, business_date FROM moves WHERE number = ?"
                " ORDER BY rowid",
                (entries[0].number,),
            )
            return entries[0], [
                Move(_known(State, before), _known(State, after), *rest) for before, after, *rest in moves
            ]

        return await self._database.read(find)


#: A clock that stepped back must not keep anything waiting for longer than the longest back-off.
_IS_TIME: Final = "(not_before <= ? OR not_before > ?)"
#: Nothing of a busted trade is sent, and its reversal not before it has settled.
_MAY_GO: Final = (
    "number NOT IN (SELECT number FROM busts) AND number NOT IN (SELECT busts.reversal FROM busts"
    " JOIN instructions AS busted ON busted.number = busts.number WHERE busted.state <> 'SETTLED')"
)
_COLUMNS: Final = (
    "number, content, ledger, state, on_ledger, reason, alert, ledger_ref, height, attempts, fails, not_before, since"
)


_E = TypeVar("_E", bound=Enum)


def back_off(attempts: int) -> int:
    """Nanoseconds to wait after so many attempts without success: 1, 2, 4 … 64 seconds."""
    return min(BACK_OFF_FIRST << min(attempts, 32), BACK_OFF_MAX)


def _known(kind: type[_E], value: object) -> _E:
    """A value of the file as what it means. Raises WrongFile: another version wrote it, or somebody else."""
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(str(each.value) for each in kind)
        raise WrongFile(f"Expected one of {expected} as {kind.__name__}, got {value!r} - in the outbox") from None


def _entries(file: sqlite3.Connection, where: str, values: Sequence[object] = ()) -> list[Entry]:
    return [
        Entry(number, _decode(content), ledger, _known(State, state), _known(OnLedger, on_ledger), *rest)
        for number, content, ledger, state, on_ledger, *rest in file.execute(
            f"SELECT {_COLUMNS} FROM instructions {where}", values
        )
    ]


def _entry(file: sqlite3.Connection, number: int) -> Entry:
    (entry,) = _entries(file, "WHERE number = ?", (number,))
    return entry


def _progress(file: sqlite3.Connection) -> Progress:
    return Progress(*file.execute("SELECT market, cursor, business_date, cut_off_date FROM progress").fetchone())


def _begin(file: sqlite3.Connection, market: str, now: int) -> None:
    file.execute(BUSTS)
    if file.execute("SELECT 1 FROM progress").fetchone() is None:
        file.execute("INSERT INTO progress VALUES (?, 0, 0, 0)", (market,))
    progress = _progress(file)
    if progress.market != market:
        # The market's name is part of every instruction id: under another name all would be sent a second time.
        raise OutboxFault(f"Expected the outbox of market {market}, got that of {progress.market}")
    for entry in _entries(file, "WHERE open = 1 AND on_ledger = 1 AND state <> 'UNKNOWN'"):
        _go(file, progress, entry, State.UNKNOWN, now, reason="stopped before the answer came")


def _take(
    file: sqlite3.Connection,
    taken: Sequence[tuple[int, int, Sequence[Taken]]],
    cursor: int,
    ledgers: frozenset[str],
    fallback: str,
) -> None:
    progress = _progress(file)
    if cursor < progress.cursor or any(sequence <= progress.cursor for sequence, _, _ in taken):
        raise OutboxFault(f"Expected commands after {progress.cursor}, got some before")
    listed: dict[str, tuple[str, int]] = {
        instrument: (settles_on, decimals)
        for instrument, settles_on, decimals in file.execute(
            "SELECT instrument, settles_on, price_decimals FROM instruments"
        )
    }
    rows = []
    for sequence, time_ns, events in taken:
        for event in events:
            if isinstance(event, Traded):
                if event.instrument not in listed:
                    raise OutboxFault(
                        f"Trade {event.trade_id} at sequence {sequence} is in {event.instrument}, which is not listed"
                    )
                ledger, decimals = listed[event.instrument]
                ins = from_trade(progress.market, event, decimals)
                rows.append((ins.id, sequence, ledger, _encode(ins), ins.settle_date, time_ns))
            elif isinstance(event, InstrumentListed):
                settles_on = event.ledger if event.ledger in ledgers else fallback
                listed[event.instrument] = (settles_on, event.price_decimals)
                file.execute(
                    "INSERT OR REPLACE INTO instruments VALUES (?, ?, ?, ?)",
                    (event.instrument, event.ledger, settles_on, event.price_decimals),
                )
            elif isinstance(event, TradeBusted):
                _store(file, rows)
                rows = []
                _bust(file, progress, event, sequence, time_ns)
            else:
                _store(file, rows)  # trades of the day before belong to the day before
                rows = []
                _start_day(file, event.date, time_ns)
    _store(file, rows)
    file.execute("UPDATE progress SET cursor = ?", (cursor,))


def _store(file: sqlite3.Connection, rows: list[tuple[str, int, str, bytes, int, int]]) -> None:
    try:
        file.executemany(
            "INSERT INTO instructions (id, sequence, ledger, content, settle_date, since, state, open, on_ledger,"
            " reason, alert, ledger_ref, height, attempts, fails, not_before)"
            " VALUES (?, ?, ?, ?, ?, ?, 'NEW', 1, 0, '', '', '', 0, 0, 0, 0)",
            rows,
        )
    except sqlite3.IntegrityError as error:
        raise OutboxFault(f"An instruction of a trade after the cursor is in the outbox already: {error}") from error


def _bust(file: sqlite3.Connection, progress: Progress, event: TradeBusted, sequence: int, now: int) -> None:
    """A trade is void: what it left is asked back, or reversed once it has settled.

    Whether a ledger has it is asked even of one that was never sent: this file may have been derived from the log anew,
    and then a former one may have sent it.
    """
    found = _entries(file, "WHERE id = ?", (f"{progress.market}-{event.trade_date}-{event.trade_id}-1",))
    if not found:
        raise OutboxFault(f"Trade {event.trade_id}, busted at sequence {sequence}, has left no instruction")
    entry = found[0]
    if entry.state in ENDS and entry.state is not State.SETTLED:
        return
    back = reversal(entry.instruction)
    _store(file, [(back.id, sequence, entry.ledger, _encode(back), back.settle_date, now)])
    (number,) = file.execute("SELECT number FROM instructions WHERE id = ?", (back.id,)).fetchone()
    file.execute("INSERT INTO busts VALUES (?, ?)", (entry.number, number))
    if entry.on_ledger is OnLedger.NO and not entry.alert:
        reason = "its trade was busted: does the ledger have it?"
        _go(file, _progress(file), entry, State.UNKNOWN, now, reason=reason, on_ledger=OnLedger.PERHAPS)
        file.execute("UPDATE instructions SET attempts = 0, not_before = 0 WHERE number = ?", (entry.number,))


def _undo(file: sqlite3.Connection, progress: Progress, now: int) -> None:
    """End what was busted and has turned out to be on no ledger, and reversals that have nothing to reverse."""
    for number, back in file.execute(
        "SELECT busts.number, busts.reversal FROM busts JOIN instructions AS busted ON busted.number = busts.number"
        " JOIN instructions AS back ON back.number = busts.reversal WHERE back.open = 1 AND busted.state <> 'SETTLED'"
        " AND (busted.open = 0 OR (busted.on_ledger = 0 AND busted.alert = ''))"
    ).fetchall():
        entry = _entry(file, number)
        if entry.state not in ENDS:
            _go(file, progress, entry, State.CANCELLED, now, reason="its trade was busted")
        _go(file, progress, _entry(file, back), State.CANCELLED, now, reason="what it would reverse did not settle")


def _start_day(file: sqlite3.Connection, date: int, now: int) -> None:
    if date > _progress(file).business_date:
        _cut_off(file, now)
        file.execute("UPDATE progress SET business_date = ?", (date,))


def _cut_off(file: sqlite3.Connection, now: int) -> int:
    progress = _progress(file)
    if not progress.is_open:
        return 0
    file.execute("UPDATE progress SET cut_off_date = business_date")
    progress = _progress(file)
    # What is UNKNOWN, or out at this moment, may yet turn out to have settled in time: it is left to its answer.
    missed = _entries(
        file,
        "WHERE open = 1 AND settle_date <= ? AND on_ledger <> 1 AND state <> 'UNKNOWN' ORDER BY number",
        (progress.business_date,),
    )
    for entry in missed:
        _miss(file, progress, entry, now)
    return len(missed)


def _miss(file: sqlite3.Connection, progress: Progress, entry: Entry, now: int) -> None:
    _go(file, progress, entry, State.FAILED_TODAY, now, reason=entry.reason or "not settled by the cut-off")
    # A day on which it was not even tried, because this file was being rebuilt from the log, is no fail of the members.
    file.execute(
        "UPDATE instructions SET fails = fails + (attempts > 0), attempts = 0, not_before = 0 WHERE number = ?",
        (entry.number,),
    )


def _go(
    file: sqlite3.Connection,
    progress: Progress,
    entry: Entry,
    after: State,
    now: int,
    *,
    reason: str = "",
    ledger_ref: str = "",
    height: int = 0,
    on_ledger: OnLedger | None = None,
) -> None:
    """Move one instruction, recording each step of the way. Raises IllegalMove."""
    steps = way(entry.state, after)
    before = entry.state
    for step in steps:
        last = step is after
        file.execute(
            "INSERT INTO moves VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                entry.number,
                before.value,
                step.value,
                reason if last else "",
                ledger_ref if last else "",
                now,
                progress.business_date,
            ),
        )
        before = step
    file.execute(
        "UPDATE instructions SET state = ?, open = ?, on_ledger = ?, reason = ?, ledger_ref = ?, height = ?, since = ?"
        " WHERE number = ?",
        (
            after.value,
            after not in ENDS,
            entry.on_ledger if on_ledger is None else on_ledger,
            reason,
            ledger_ref or entry.ledger_ref,
            max(height, entry.height),
            now if steps else entry.since,
            entry.number,
        ),
    )


def _answer(
    file: sqlite3.Connection, progress: Progress, entry: Entry, answer: Receipt | LedgerError, now: int
) -> Entry:
    if isinstance(answer, Receipt):
        _shown(file, progress, entry, answer.state, answer.reason, answer.ledger_ref, answer.height, now)
        file.execute("UPDATE instructions SET attempts = 0, not_before = 0 WHERE number = ?", (entry.number,))
    elif isinstance(answer, OutcomeUnknown):
        _go(file, progress, entry, State.UNKNOWN, now, reason=str(answer), on_ledger=OnLedger.PERHAPS)
        if entry.state is State.UNKNOWN:
            _later(file, entry, now)
        else:  # the first question is asked at once
            file.execute(
                "UPDATE instructions SET attempts = attempts + 1, not_before = 0 WHERE number = ?", (entry.number,)
            )
    elif isinstance(answer, NotFound) and entry.state is State.UNKNOWN:
        reason = "the ledger does not have it"
        _go(file, progress, entry, State.PRECHECKED, now, reason=reason, on_ledger=OnLedger.NO)
        if entry.attempts:
            _later(file, entry, now)  # a ledger that loses one message after the other is not to be flooded
        else:
            file.execute("UPDATE instructions SET attempts = 1, not_before = 0 WHERE number = ?", (entry.number,))
        _lapse(file, progress, entry.number, now)
    elif isinstance(answer, Short | Retryable | ConfigError):
        on_ledger = entry.on_ledger if entry.state is State.UNKNOWN else OnLedger.NO
        file.execute(
            "UPDATE instructions SET on_ledger = ?, reason = ? WHERE number = ?",
            (on_ledger, str(answer), entry.number),
        )
        _later(file, entry, now)
        _lapse(file, progress, entry.number, now)
    elif isinstance(answer, Rejected) and entry.state is not State.UNKNOWN:
        _go(file, progress, entry, State.REJECTED, now, reason=str(answer), on_ledger=OnLedger.NO)
    else:
        # Conflict, and answers that make no sense where they were given. Nothing more is sent; a person must look.
        on_ledger = OnLedger.YES if isinstance(answer, Conflict) else entry.on_ledger
        if entry.state is not State.UNKNOWN and on_ledger is OnLedger.PERHAPS:
            on_ledger = OnLedger.NO
        file.execute(
            "UPDATE instructions SET on_ledger = ?, alert = ? WHERE number = ?",
            (on_ledger, f"{type(answer).__name__}: {answer}", entry.number),
        )
    return _entry(file, entry.number)


def _later(file: sqlite3.Connection, entry: Entry, now: int) -> None:
    file.execute(
        "UPDATE instructions SET attempts = attempts + 1, not_before = ? WHERE number = ?",
        (now + back_off(entry.attempts), entry.number),
    )


def _lapse(file: sqlite3.Connection, progress: Progress, number: int, now: int) -> None:
    """The cut-off passed over an instruction that was out; now that it is not, it has missed the day."""
    entry = _entry(file, number)
    missed = not progress.is_open and entry.instruction.settle_date <= progress.business_date
    if missed and entry.on_ledger is OnLedger.NO and entry.state is not State.FAILED_TODAY:
        _miss(file, progress, entry, now)


def _shown(
    file: sqlite3.Connection,
    progress: Progress,
    entry: Entry,
    state: State,
    reason: str,
    ledger_ref: str,
    height: int,
    now: int,
) -> None:
    """The ledger shows this state. One that cannot follow ours is an alert: somebody else moves our instruction."""
    try:
        _go(
            file,
            progress,
            entry,
            state,
            now,
            reason=reason,
            ledger_ref=ledger_ref,
            height=height,
            on_ledger=OnLedger.YES,
        )
    except IllegalMove as illegal:
        file.execute(
            "UPDATE instructions SET on_ledger = 2, alert = ? WHERE number = ?",
            (f"The ledger shows {state}. {illegal}", entry.number),
        )


def _was_heard(entry: Entry, event: LedgerEvent) -> bool:
    """Events come at least once; several of one instruction may share a height, a block for instance."""
    if event.height != entry.height:
        return event.height < entry.height
    if event.state is entry.state or (entry.state is State.FAILED_TODAY and event.state not in ENDS):
        return True
    try:
        way(entry.state, event.state)
    except IllegalMove:
        return True
    return False


def _heard(file: sqlite3.Connection, ledger: str, events: Sequence[LedgerEvent], cursor: Cursor, now: int) -> int:
    progress = _progress(file)
    new = 0
    for event in events:
        found = _entries(file, "WHERE id = ? AND ledger = ?", (event.ins_id, ledger))
        # An event that is not ours is for the reconciliation to name.
        if not found or _was_heard(found[0], event):
            continue
        entry = found[0]
        if event.hash != entry.instruction.hash:
            file.execute(
                "UPDATE instructions SET alert = ? WHERE number = ?",
                (f"Conflict: the ledger's event {event.ledger_ref} has another content", entry.number),
            )
        else:
            _shown(file, progress, entry, event.state, "", event.ledger_ref, event.height, now)
        new += 1
    _undo(file, progress, now)
    file.execute("INSERT OR REPLACE INTO ledgers VALUES (?, ?)", (ledger, cursor))
    return new
