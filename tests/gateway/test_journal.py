"""A small batch on a quick disk is written where it is asked for, anything else by the log's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from engine.commands import SetPhase
from engine.faults import LogFailed
from engine.log import Header, Log, MemoryStorage, encode_commands
from engine.log.log import LOG_NAME
from engine.log.storage import StoredFile
from engine.types import Phase
from gateway.journal import QUICK_NS, SMALL_BYTES, DiskJournal, Group
from tests.gateway.market import ManualClock

ONE = encode_commands([SetPhase("CALL", Phase.CALL)])
MANY = encode_commands([SetPhase("CALL", Phase.CALL)] * (SMALL_BYTES // (len(ONE) - 1) + 1))


class TimedStorage(MemoryStorage):
    """A disk whose writes of the log take ``takes_ns`` each on a clock, and that notes which thread wrote."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock
        self.takes_ns = 0
        self.broken = False
        self.writers: list[str] = []

    def open(self, name: str) -> StoredFile:
        file = super().open(name)
        if name == LOG_NAME:
            write = file.write

            def timed(offset: int, data: bytes) -> None:
                if self.broken:
                    raise OSError(5, "Input/output error")
                self.writers.append(threading.current_thread().name)
                self.clock.machine_ns += self.takes_ns
                write(offset, data)

            file.write = file.write_durable = timed  # type: ignore[method-assign]
        return file


class Desk:
    """A journal on such a disk, and the batches to give it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.storage = TimedStorage(self.clock)
        self.log = Log.open(self.storage, Header("test"), ahead=0)
        self.journal = DiskJournal(self.log, self.clock)
        self.stamp = 0

    def append(self, raw: bytes = ONE) -> asyncio.Future[None]:
        self.storage.writers.clear()
        return self.journal.append(None, [self.group(raw)])

    def group(self, raw: bytes) -> Group:
        self.stamp += 100_000
        return self.stamp, "", raw

    @property
    def writer(self) -> str:
        (name,) = set(self.storage.writers)
        return name


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    found = Desk()
    yield found
    found.journal.close()
    found.log.close()


HERE = threading.current_thread().name


async def test_a_small_batch_on_a_quick_disk_is_durable_on_return(desk: Desk) -> None:
    done = desk.append()
    assert done.done()
    assert desk.writer == HERE
    assert desk.log.durable_sequence == desk.log.sequence == 1


async def test_a_large_batch_goes_to_the_thread_and_the_next_small_one_does_not(desk: Desk) -> None:
    done = desk.append(MANY)
    assert not done.done()
    await done
    assert desk.writer == "log"
    assert desk.log.durable_sequence == desk.log.sequence
    assert desk.append().done()


async def test_a_slow_disk_holds_up_the_loop_once(desk: Desk) -> None:
    desk.storage.takes_ns = QUICK_NS + 1
    assert desk.append().done()
    for _ in range(3):
        done = desk.append()
        assert not done.done()
        await done
        assert desk.writer == "log"

    desk.storage.takes_ns = QUICK_NS // 4
    await desk.append()
    assert desk.writer == "log"
    assert desk.append().done()
    assert desk.writer == HERE


async def test_a_mark_alone_and_a_mark_before_a_batch_are_written(desk: Desk) -> None:
    await desk.append()
    await desk.journal.append((1, b"e" * 32, b"s" * 32), [])
    assert desk.log.durable_offset == desk.log.end
    await desk.journal.append((1, b"e" * 32, b"s" * 32), [desk.group(ONE)])
    assert desk.log.durable_sequence == 2
    assert [record.kind for record in desk.log.reader().records()] == [1, 2, 2, 1]


@pytest.mark.parametrize("raw", [ONE, MANY])
async def test_what_fails_is_raised_where_it_is_awaited(desk: Desk, raw: bytes) -> None:
    desk.storage.broken = True
    done = desk.append(raw)
    with pytest.raises(LogFailed, match="Input/output error"):
        await done


async def test_whoever_no_longer_waits_costs_nothing(desk: Desk) -> None:
    desk.append(MANY).cancel()
    await desk.append(MANY)
    assert desk.log.durable_sequence == desk.log.sequence
