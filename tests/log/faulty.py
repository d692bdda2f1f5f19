"""A disk that behaves as badly as a disk may: it loses, reorders and tears what was not synced, and fails on demand.

What a crash leaves is chosen by the caller, sector by sector: each 512-byte piece of each unsynced write reached the
platter or did not, in any combination, and one more piece may have been cut in the middle. What was synced is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.log.storage import DirectoryInUse, StoredFile

SECTOR = 512


class FaultyFile:
    def __init__(self, disk: FaultyDisk, name: str) -> None:
        self._disk = disk
        self._name = name

    def _now(self) -> bytearray:
        return self._disk.now[self._name]

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._now()[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self._disk.step("write", self._name)
        _apply(self._now(), offset, data)
        self._disk.pending[self._name].append((offset, bytes(data)))

    def write_durable(self, offset: int, data: bytes) -> None:
        assert not self._disk.pending[self._name], "what was written before would not become durable with it"
        self.write(offset, data)  # a sync that fails leaves it where a crash decides
        self.sync()

    def sync(self) -> None:
        self._disk.step("sync", self._name)
        self._disk.durable[self._name] = bytearray(self._now())
        self._disk.pending[self._name].clear()

    def truncate(self, size: int) -> None:
        self._disk.step("truncate", self._name)
        _resize(self._now(), size)
        self._disk.pending[self._name].append(size)

    def size(self) -> int:
        return len(self._now())

    def close(self) -> None:
        pass


class FaultyDisk:
    """A Storage. ``fail(what, name)`` says whether this write, sync, truncate or create fails."""

    def __init__(self) -> None:
        self.durable: dict[str, bytearray] = {}
        self.now: dict[str, bytearray] = {}
        self.pending: dict[str, list[Any]] = {}
        self.fail: Callable[[str, str], bool] = lambda what, name: False
        self._locked = False

    def step(self, what: str, name: str) -> None:
        if self.fail(what, name):
            raise OSError(5, f"Input/output error ({what} {name})")

    def exists(self, name: str) -> bool:
        return name in self.now

    def open(self, name: str) -> StoredFile:
        if name not in self.now:
            raise FileNotFoundError(name)
        return FaultyFile(self, name)

    def create(self, name: str, data: bytes) -> StoredFile:
        self.step("create", name)
        self.now[name] = bytearray(data)
        self.durable[name] = bytearray(data)
        self.pending[name] = []
        return FaultyFile(self, name)

    def lock(self) -> None:
        if self._locked:
            raise DirectoryInUse("this disk", 0)
        self._locked = True

    def close(self) -> None:
        self._locked = False

    def crash(self, kept: Callable[[int], bool], torn_at: int = 0) -> FaultyDisk:
        """The disk as found after a power cut. ``kept(i)`` says whether the i-th unsynced piece had reached it.

        ``torn_at`` cuts the first piece that was lost in the middle: so many of its bytes are there.
        """
        after = FaultyDisk()
        piece = 0
        for name, durable in self.durable.items():
            data = bytearray(durable)
            for change in self.pending[name]:
                if isinstance(change, int):
                    if kept(piece):
                        _resize(data, change)
                    piece += 1
                    continue
                offset, written = change
                start = 0
                while start < len(written):
                    # Sectors lie at multiples of 512 in the file, not in the write.
                    stop = min(len(written), start + SECTOR - (offset + start) % SECTOR)
                    part = written[start:stop]
                    if kept(piece):
                        _apply(data, offset + start, part)
                    elif torn_at:
                        _apply(data, offset + start, part[:torn_at])
                        torn_at = 0
                    piece += 1
                    start = stop
            after.now[name] = data
            after.durable[name] = bytearray(data)
            after.pending[name] = []
        return after


def _apply(data: bytearray, offset: int, part: bytes) -> None:
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(part)] = part


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))
