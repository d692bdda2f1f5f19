"""The embedded ledger: double entry in one SQLite file, units and yen in one transaction.

A DVP is four entries, two of units and two of yen, and either all of them are on the disk or none is. The file itself
refuses what must not be: a balance below nought and a second instruction under one id. Everything ever posted stays in
``entries``; ``balances`` is its sum, kept beside it, and reconciliation adds up the one to check the other.

``available`` and ``held`` are two drawers of an account: a hold is a posting from one to the other, so that holds are
in the journal like everything else and a position can be given as of any height. The height is the number of the
journal's line.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

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
    OutcomeUnknown,
    Position,
    Reason,
    Receipt,
    Refused,
    Rejected,
    Retryable,
    Short,
    State,
    Unsupported,
)
from gateway.settlement.database import CommitUnknown, Database
from gateway.settlement.instructions import AMOUNT_MAX, check, entries, money_asset

T = TypeVar("T")

APPLICATION: Final = "dojima embedded ledger 1"
SCHEMA: Final = f"""
CREATE TABLE journal (
    height INTEGER PRIMARY KEY,
    what TEXT NOT NULL,                       -- DVP, FOP, CASH, OPENING, HOLD, RELEASE, EXPIRE
    reference TEXT NOT NULL,                  -- instruction or hold
    at INTEGER NOT NULL                       -- nanoseconds since the epoch
);
CREATE TABLE instructions (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL,
    height INTEGER NOT NULL UNIQUE REFERENCES journal,
    content TEXT NOT NULL                     -- the instruction as JSON
) WITHOUT ROWID;
CREATE TABLE holds (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    asset TEXT NOT NULL,
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    expires INTEGER NOT NULL,                 -- nanoseconds since the epoch; 0: never
    state TEXT NOT NULL,                      -- HELD, CANCELLED (released), EXPIRED
    height INTEGER NOT NULL                   -- of its last change
) WITHOUT ROWID;
CREATE INDEX holds_by_expiry ON holds (expires) WHERE state = 'HELD' AND expires > 0;
CREATE TABLE entries (
    height INTEGER NOT NULL REFERENCES journal,
    account TEXT NOT NULL,
    asset TEXT NOT NULL,
    held INTEGER NOT NULL,                    -- 0: available, 1: held
    amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer')
);
CREATE INDEX entries_by_height ON entries (height);
CREATE TABLE balances (
    account TEXT NOT NULL,
    asset TEXT NOT NULL,
    held INTEGER NOT NULL,
    amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer' AND (amount >= 0 OR account = '{ISSUANCE}')),
    PRIMARY KEY (asset, account, held)
) WITHOUT ROWID;
"""
BATCH_MAX: Final = 1_000
EVENTS_MAX: Final = 2_000


class SqliteLedger:
    """``await SqliteLedger.open(path, clock)``; ``clock`` gives nanoseconds since the epoch."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    async def open(cls, path: Path, clock: Callable[[], int], *, read_only: bool = False) -> SqliteLedger:
        return cls(await Database.open(path, APPLICATION, SCHEMA, read_only=read_only), clock)

    async def close(self) -> None:
        await self._database.close()

    # --- LedgerAdapter -----------------------------------------------------------------------------------------------

    async def capabilities(self) -> Caps:
        return Caps(
            atomic_dvp=True,
            holds=True,
            partial=False,
            batch_max=BATCH_MAX,
            needs_affirmation=False,
            needs_approval=False,
            finality=0,
            native_idempotency=True,
        )

    async def health(self) -> Health:
        return Health(height=await self._read(_height))

    async def precheck(self, ins: Instruction) -> list[Reason]:
        try:
            check(ins)
        except Rejected as refused:
            return [refused.reason]
        return await self._read(lambda file: [short.reason for short in _shortages(_Posting(file), ins)])

    async def hold(self, hold_id: str, account: str, asset: str, quantity: int, expires: int) -> Receipt:
        if type(quantity) is not int or not 0 < quantity <= AMOUNT_MAX:
            raise Rejected(Reason.BAD_AMOUNT, f"Expected a quantity as int from 1 to {AMOUNT_MAX}, got {quantity!r}")
        return await self._write(lambda file, now: _hold(file, now, hold_id, account, asset, quantity, expires))

    async def release(self, hold_id: str) -> Receipt:
        def release(file: sqlite3.Connection, now: int) -> Receipt:
            if _hold_receipt(file, hold_id).state is State.HELD:
                _end_hold(file, now, hold_id, State.CANCELLED)
            return _hold_receipt(file, hold_id)

        return await self._write(release)

    async def submit(self, ins: Instruction) -> Receipt:
        (answer,) = await self.submit_batch([ins], atomic=True)
        if isinstance(answer, LedgerError):
            raise answer
        return answer

    async def submit_batch(self, instructions: Sequence[Instruction], atomic: bool) -> list[Receipt | LedgerError]:
        if len(instructions) > BATCH_MAX:
            raise Unsupported(f"Expected at most {BATCH_MAX} instructions, got {len(instructions)}")
        return await self._write(lambda file, now: _submit(file, now, instructions, atomic))

    async def affirm(self, ins_id: str, role: str) -> Receipt:
        raise Unsupported("The embedded ledger needs no affirmation")

    async def cash_confirmed(self, ins_id: str, reference: str) -> Receipt:
        raise Unsupported("The embedded ledger has the money leg itself")

    async def cancel(self, ins_id: str, reason: str) -> Receipt:
        """Whatever is on this ledger is settled: Rejected(WRONG_STATE), or NotFound."""
        await self.status(ins_id)
        raise Rejected(Reason.WRONG_STATE, f"{ins_id} is SETTLED")

    async def status(self, ins_id: str) -> Receipt:
        receipt = await self._read(lambda file: _receipt(file, ins_id))
        if receipt is None:
            raise NotFound(ins_id)
        return receipt

    async def events(self, cursor: Cursor) -> tuple[list[LedgerEvent], Cursor]:
        after = int(cursor or 0)
        found = await self._read(lambda file: _events(file, after))
        return found, str(found[-1].height) if found else cursor

    async def positions(self, asset: str, at: int | None = None) -> Iterable[Position]:
        return await self._read(lambda file: _positions(file, asset, at))

    # --- what only this ledger has -----------------------------------------------------------------------------------

    async def assets(self) -> list[str]:
        """All assets that were ever posted, money first."""
        return await self._read(
            lambda file: [row[0] for row in file.execute("SELECT DISTINCT asset FROM balances ORDER BY asset")]
        )

    async def audit(self) -> list[str]:
        """What is wrong inside the file, in words; [] when the books balance.

        Each line of the journal must sum to nought per asset, and each balance be the sum of its entries.
        """
        return await self._read(_audit)

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._database.read(function)
        except sqlite3.OperationalError as error:
            raise Retryable(str(error)) from error

    async def _write(self, function: Callable[[sqlite3.Connection, int], T]) -> T:
        """``function(file, now)`` after the holds whose time has come are ended.

        It refuses, if it does, before it writes; so a refusal need not undo what ended by itself.
        """
        now = self._clock()

        def step(file: sqlite3.Connection) -> T | LedgerError:
            _expire(file, now)
            try:
                return function(file, now)
            except LedgerError as refused:
                return refused

        try:
            answer = await self._database.write(step)
        except sqlite3.OperationalError as error:  # busy, full: rolled back, nothing happened
            raise Retryable(str(error)) from error
        except CommitUnknown as error:
            raise OutcomeUnknown(str(error)) from error
        if isinstance(answer, LedgerError):
            raise answer
        return answer


class _Posting:
    """Balances as a batch changes them: read once each, written once each at the end."""

    def __init__(self, file: sqlite3.Connection) -> None:
        self._file = file
        self._balances: dict[tuple[str, str, int], int] = {}
        self._changed: set[tuple[str, str, int]] = set()
        self._entries: list[tuple[int, str, str, int, int]] = []

    def balance(self, account: str, asset: str, held: int = 0) -> int:
        key = (account, asset, held)
        amount = self._balances.get(key)
        if amount is None:
            row = self._file.execute(
                "SELECT amount FROM balances WHERE account = ? AND asset = ? AND held = ?", key
            ).fetchone()
            amount = self._balances[key] = row[0] if row else 0
        return amount

    def post(self, height: int, account: str, asset: str, amount: int, held: int = 0) -> None:
        key = (account, asset, held)
        self._balances[key] = self.balance(*key) + amount
        self._changed.add(key)
        self._entries.append((height, account, asset, held, amount))

    def write(self) -> None:
        self._file.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", self._entries)
        self._file.executemany(
            "INSERT INTO balances VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET amount = excluded.amount",
            [(*key, self._balances[key]) for key in sorted(self._changed)],
        )


def _height(file: sqlite3.Connection) -> int:
    height: int = file.execute("SELECT coalesce(max(height), 0) FROM journal").fetchone()[0]
    return height


def _shortages(posting: _Posting, ins: Instruction) -> list[Short]:
    short = []
    if ins.quantity and ins.kind is not Kind.OPENING:
        available = posting.balance(ins.seller, ins.asset)
        if available < ins.quantity:
            text = f"{ins.seller} has {available} {ins.asset} available, {ins.quantity} are due"
            short.append(Short(Reason.INSUFFICIENT_SECURITIES, text))
    if ins.cash:
        available = posting.balance(ins.buyer, money_asset(ins.currency))
        if available < ins.cash:
            text = f"{ins.buyer} has {available} {ins.currency} available, {ins.cash} are due"
            short.append(Short(Reason.INSUFFICIENT_CASH, text))
    return short


def _submit(
    file: sqlite3.Connection, now: int, instructions: Sequence[Instruction], atomic: bool
) -> list[Receipt | LedgerError]:
    posting = _Posting(file)
    height = _height(file)
    fresh: dict[str, tuple[Instruction, Receipt]] = {}
    answers: list[Receipt | LedgerError] = []
    for ins in instructions:
        try:
            check(ins)
            known = fresh.get(ins.id)
            if known:
                if known[0].hash != ins.hash:
                    raise Conflict(f"{ins.id} is on the ledger with another content")
                answers.append(known[1])
                continue
            row = file.execute("SELECT hash FROM instructions WHERE id = ?", (ins.id,)).fetchone()
            if row:
                if row[0] != ins.hash:
                    raise Conflict(f"{ins.id} is on the ledger with another content")
                receipt = _receipt(file, ins.id)
                assert receipt is not None
                answers.append(receipt)
                continue
            short = _shortages(posting, ins)
            if short:
                raise short[0]
            postings = entries(ins)
            for account, asset, amount in postings:
                if abs(posting.balance(account, asset) + amount) > AMOUNT_MAX:
                    raise Rejected(Reason.BAD_AMOUNT, f"The balance of {account} in {asset} would pass {AMOUNT_MAX}")
            height += 1
            for account, asset, amount in postings:
                posting.post(height, account, asset, amount)
            receipt = Receipt(ins_id=ins.id, state=State.SETTLED, ledger_ref=str(height), height=height, at=now)
            fresh[ins.id] = (ins, receipt)
            answers.append(receipt)
        except (Refused, Conflict) as refused:
            if atomic:
                raise
            answers.append(refused)
    file.executemany(
        "INSERT INTO journal VALUES (?, ?, ?, ?)",
        [(receipt.height, ins.kind.value, ins.id, now) for ins, receipt in fresh.values()],
    )
    file.executemany(
        "INSERT INTO instructions VALUES (?, ?, ?, ?)",
        [
            (ins.id, ins.hash, receipt.height, msgspec.json.encode(ins).decode())
            for ins, receipt in sorted(fresh.values(), key=lambda pair: pair[0].id)
        ],
    )
    posting.write()
    return answers


def _receipt(file: sqlite3.Connection, ins_id: str) -> Receipt | None:
    row = file.execute(
        "SELECT height, at FROM instructions JOIN journal USING (height) WHERE id = ?", (ins_id,)
    ).fetchone()
    if row is None:
        return None
    return Receipt(ins_id=ins_id, state=State.SETTLED, ledger_ref=str(row[0]), height=row[0], at=row[1])


def _events(file: sqlite3.Connection, after: int) -> list[LedgerEvent]:
    rows = file.execute(
        "SELECT height, at, content FROM instructions JOIN journal USING (height)"
        " WHERE height > ? ORDER BY height LIMIT ?",
        (after, EVENTS_MAX),
    )
    found = []
    for height, at, content in rows:
        ins = msgspec.json.decode(content, type=Instruction)
        found.append(
            LedgerEvent(
                ins_id=ins.id,
                state=State.SETTLED,
                kind=ins.kind,
                hash=ins.hash,
                seller=ins.seller,
                buyer=ins.buyer,
                asset=ins.asset,
                quantity=ins.quantity,
                cash=ins.cash,
                currency=ins.currency,
                height=height,
                ledger_ref=str(height),
                at=at,
            )
        )
    return found


def _positions(file: sqlite3.Connection, asset: str, at: int | None) -> list[Position]:
    if at is None:
        rows = file.execute("SELECT account, held, amount FROM balances WHERE asset = ?", (asset,))
    else:
        rows = file.execute(
            "SELECT account, held, sum(amount) FROM entries WHERE asset = ? AND height <= ? GROUP BY account, held",
            (asset, at),
        )
    drawers: dict[str, list[int]] = {}
    for account, held, amount in rows:
        drawers.setdefault(account, [0, 0])[held] = amount
    return [
        Position(account=account, asset=asset, available=available, held=held)
        for account, (available, held) in sorted(drawers.items())
    ]


def _hold_receipt(file: sqlite3.Connection, hold_id: str) -> Receipt:
    row = file.execute(
        "SELECT state, holds.height, at FROM holds JOIN journal USING (height) WHERE id = ?", (hold_id,)
    ).fetchone()
    if row is None:
        raise NotFound(hold_id)
    return Receipt(ins_id=hold_id, state=State(row[0]), ledger_ref=str(row[1]), height=row[1], at=row[2])


def _hold(
    file: sqlite3.Connection, now: int, hold_id: str, account: str, asset: str, quantity: int, expires: int
) -> Receipt:
    known = file.execute("SELECT account, asset, quantity, expires FROM holds WHERE id = ?", (hold_id,)).fetchone()
    if known is None:
        posting = _Posting(file)
        available = posting.balance(account, asset)
        if account == ISSUANCE:
            raise Rejected(Reason.NOT_AUTHORISED, f"{ISSUANCE} is for opening balances only")
        if available < quantity:
            money = asset.startswith("@")
            reason = Reason.INSUFFICIENT_CASH if money else Reason.INSUFFICIENT_SECURITIES
            raise Short(reason, f"{account} has {available} {asset} available, {quantity} are to be held")
        height = _move_drawer(file, now, "HOLD", hold_id, account, asset, quantity)
        file.execute(
            "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?)",
            (hold_id, account, asset, quantity, expires, State.HELD.value, height),
        )
    elif known != (account, asset, quantity, expires):
        raise Conflict(f"Hold {hold_id} is on the ledger with another content")
    return _hold_receipt(file, hold_id)


def _expire(file: sqlite3.Connection, now: int) -> None:
    """Holds end by themselves, at the first writing after their time."""
    rows = file.execute(
        "SELECT id FROM holds WHERE state = 'HELD' AND expires > 0 AND expires <= ? ORDER BY expires, id", (now,)
    ).fetchall()
    for (hold_id,) in rows:
        _end_hold(file, now, hold_id, State.EXPIRED)


def _end_hold(file: sqlite3.Connection, now: int, hold_id: str, state: State) -> None:
    account, asset, quantity = file.execute(
        "SELECT account, asset, quantity FROM holds WHERE id = ?", (hold_id,)
    ).fetchone()
    what = "EXPIRE" if state is State.EXPIRED else "RELEASE"
    height = _move_drawer(file, now, what, hold_id, account, asset, -quantity)
    file.execute("UPDATE holds SET state = ?, height = ? WHERE id = ?", (state.value, height, hold_id))


def _move_drawer(
    file: sqlite3.Connection, now: int, what: str, hold_id: str, account: str, asset: str, quantity: int
) -> int:
    height = _height(file) + 1
    file.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (height, what, hold_id, now))
    posting = _Posting(file)
    posting.post(height, account, asset, -quantity, held=0)
    posting.post(height, account, asset, quantity, held=1)
    posting.write()
    return height


def _audit(file: sqlite3.Connection) -> list[str]:
    wrong = [
        f"instruction {ins_id} has the hash {kept}, its content {content.hash}"
        for ins_id, kept, content in (
            (ins_id, kept, msgspec.json.decode(text, type=Instruction))
            for ins_id, kept, text in file.execute("SELECT id, hash, content FROM instructions ORDER BY height")
        )
        if kept != content.hash
    ]
    wrong += [
        f"journal line {height} does not sum to nought in {asset}: {amount}"
        for height, asset, amount in file.execute(
            "SELECT height, asset, sum(amount) FROM entries GROUP BY height, asset HAVING sum(amount) <> 0"
        )
    ]
    summed = {
        (account, asset, held): amount
        for account, asset, held, amount in file.execute(
            "SELECT account, asset, held, sum(amount) FROM entries GROUP BY account, asset, held"
        )
    }
    kept = {
        (account, asset, held): amount
        for account, asset, held, amount in file.execute("SELECT account, asset, held, amount FROM balances")
    }
    wrong += [
        f"balance of {key[0]} in {key[1]}{' (held)' if key[2] else ''} is {kept.get(key, 0)},"
        f" its entries sum to {summed.get(key, 0)}"
        for key in sorted(summed.keys() | kept.keys())
        if summed.get(key, 0) != kept.get(key, 0)
    ]
    return wrong
