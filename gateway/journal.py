"""Makes batches durable: the order log, written so that it holds up nobody for long.

Handing a batch to a thread and hearing back costs as much as a quick disk takes to write it: four times a thread has to
be woken, or to wait for its turn. So a small batch is written where it is asked for, as long as the disk is quick; the
messages that arrive meanwhile are the next batch either way. A large one is worth the thread, because the loop applies
the batch before it meanwhile; and a slow disk never holds up the loop twice.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Sequence
from queue import SimpleQueue
from typing import Final, Protocol

import msgspec

from engine.log import Log
from gateway.clock import Clock

#: Most bytes of commands that are written in place.
SMALL_BYTES: Final = 4 * 1024
#: A write that took longer than this, in ns, is the last one in place until one has taken less.
QUICK_NS: Final = 5_000_000

Group = tuple[int, str, bytes | msgspec.Raw]
DigestMark = tuple[int, bytes, bytes]


class Journal(Protocol):
    """The order log on a disk, or whatever stands in for it."""

    def append(self, mark: DigestMark | None, groups: Sequence[Group]) -> Awaitable[None]:
        """Begin to write the mark (about what was written before), then the groups. Done when all of it is durable.

        An exception is fatal: nothing more may be acknowledged.
        """

    def close(self) -> None:
        """End what works for it; the log itself belongs to whoever opened it."""


class DiskJournal:
    """The order log.

    Its thread is not an executor's: two locks, a future of its own and a work item per batch cost more than a small
    batch itself.
    """

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._quick = True
        self._jobs: SimpleQueue[tuple[DigestMark | None, Sequence[Group], asyncio.Future[None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def append(self, mark: DigestMark | None, groups: Sequence[Group]) -> asyncio.Future[None]:
        """One at a time: the one before must be done."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._quick and sum(len(commands) for _, _, commands in groups) <= SMALL_BYTES:
            _settle(done, self._write(mark, groups))
            return done
        self._jobs.put((mark, groups, done))
        if self._thread is None:
            # A daemon: who never calls ``close`` has given up what is not durable, and must not be kept from ending.
            self._thread = threading.Thread(target=self._work, name="log", daemon=True)
            self._thread.start()
        return done

    def _write(self, mark: DigestMark | None, groups: Sequence[Group]) -> BaseException | None:
        """What went wrong is raised where it is awaited, and ends the exchange there."""
        begin = self._clock.monotonic_ns()
        try:
            if mark is not None:
                self._log.write_mark(*mark)
            if groups:
                self._log.append(groups)
            else:
                self._log.sync()
        except BaseException as fault:
            return fault
        self._quick = self._clock.monotonic_ns() - begin <= QUICK_NS
        return None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            mark, groups, done = job
            error = self._write(mark, groups)
            done.get_loop().call_soon_threadsafe(_settle, done, error)

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.cancelled():
        return  # nobody waits any more
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
