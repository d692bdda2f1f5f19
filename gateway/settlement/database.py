"""One SQLite file behind one worker thread.

Outbox and embedded ledger both need the same of SQLite: that a commit is on the disk when it returns
(``synchronous=FULL``), that others may read meanwhile (WAL), and that the event loop never waits for it. One thread per
file also puts all that is asked of a file in one order, so a question asked after a call that timed out is answered
after that call.

Survives the death of the process and of the power; not the loss of the disk.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class CommitUnknown(Exception):
    """The commit failed half way: only reading the file again can tell whether it took effect."""


class WrongFile(ValueError):
    """The file is there but is not what was expected."""


class Database:
    """``await Database.open(path, application, schema)``; ``application`` names what the file is, and its version."""

    def __init__(self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self.path = path
        self._connection = connection
        self._thread = thread
        self._closed = False

    @classmethod
    async def open(cls, path: Path, application: str, schema: str, *, read_only: bool = False) -> Database:
        """Open or create. Raises FileNotFoundError (``read_only`` only), WrongFile, sqlite3.Error."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=path.name)
        try:
            connection = await asyncio.get_running_loop().run_in_executor(
                thread, _connect, path, application, schema, read_only
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(path, connection, thread)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """``function`` sees one state of the file from beginning to end."""
        return await self._run(_reading, function)

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """All that ``function`` does, on the disk, or nothing of it when it or the file raises.

        Raises CommitUnknown when that cannot be told.
        """
        return await self._run(_writing, function)

    async def _run(
        self, how: Callable[[sqlite3.Connection, Callable[[sqlite3.Connection], T]], T], what: Callable[..., T]
    ) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, how, self._connection, what)

    async def close(self) -> None:
        """Waits for what is under way. Closing twice does no harm."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
            self._thread.shutdown(wait=True)


def _connect(path: Path, application: str, schema: str, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # As the order log: what members own is not for every user of the machine. SQLite's files beside it follow.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
    elif not path.exists():
        raise FileNotFoundError(f"Expected {application} at {path}, found no file")
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}",
        uri=True,
        isolation_level=None,  # transactions are written out, below
        check_same_thread=False,  # only ever used by the one thread, and closed by it
        timeout=5,
    )
    try:
        if not read_only:
            try:
                mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            except sqlite3.OperationalError:
                raise  # locked, or no place: says nothing about what the file is
            except sqlite3.DatabaseError as error:
                raise WrongFile(f"Expected {application}, got something else ({error}) - in {path}") from error
            if mode != "wal":
                raise WrongFile(f"Expected a file system on which SQLite can use WAL, got {mode} - in {path}")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                # One transaction: a half-made file after a crash would be taken for a whole one.
                connection.executescript(
                    "BEGIN IMMEDIATE; CREATE TABLE about (application TEXT NOT NULL);"
                    f"INSERT INTO about VALUES ('{application}');{schema};COMMIT"
                )
        try:
            found = connection.execute("SELECT application FROM about").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise WrongFile(f"Expected {application}, got something else ({error}) - in {path}") from error
        if found != application:
            raise WrongFile(f"Expected {application}, got {found} - in {path}")
    except BaseException:
        connection.close()
        raise
    return connection


def _reading(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN")
    try:
        return function(connection)
    finally:
        connection.execute("ROLLBACK")


def _writing(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = function(connection)
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back after some errors, a full disk for one
            connection.execute("ROLLBACK")
        raise
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise CommitUnknown(str(error)) from error
    return result
