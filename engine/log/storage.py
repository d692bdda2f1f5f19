"""Where the log's bytes live: a port, real files behind it, and memory for tests and notebooks.

The log needs little from a disk: a few named files that can be read and written at an offset, one call after which
the bytes survive a power cut, creation that is whole or not at all, and the certainty that nobody else writes. A
port that small can be played by a simulator that tears writes and loses what was not synced.

Writing is *at an offset* rather than at the end of the file, because the log fills space that was zeroed beforehand: on
ext4 an fdatasync that need not record a new file size takes half the time (``docs/log-format.md`` has the figures).

POSIX only: flock, pread, pwrite.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Final, Protocol

LOCK_NAME: Final = "market.lock"


class DirectoryInUse(Exception):
    """Another process writes in this directory. ``pid`` names it, 0 when unknown."""

    def __init__(self, place: str, pid: int) -> None:
        self.pid = pid
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"{place} is in use by {holder}; stop it first, or give this exchange a directory of its own")


class StoredFile(Protocol):
    """A file of bytes. Every call may raise OSError, which says that the disk did not do its part."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer only where the file ends."""

    def write(self, offset: int, data: bytes) -> None:
        """All of ``data`` at ``offset``, growing the file if need be. Durable only after ``sync``."""

    def write_durable(self, offset: int, data: bytes) -> None:
        """``write``, but on return these bytes survive a power cut. Says nothing of what was written before."""

    def sync(self) -> None:
        """When it returns, everything written to this file before the call survives a power cut."""

    def truncate(self, size: int) -> None:
        """Forget what lies behind ``size``. Durable only after ``sync``."""

    def size(self) -> int: ...

    def close(self) -> None: ...


class Storage(Protocol):
    """A place for a few named files."""

    def exists(self, name: str) -> bool: ...

    def open(self, name: str) -> StoredFile:
        """An existing file; FileNotFoundError if there is none."""

    def create(self, name: str, data: bytes) -> StoredFile:
        """A new file that holds ``data``. On return it survives a power cut; until then it is there whole or not."""

    def lock(self) -> None:
        """Be the only writer until ``close``; DirectoryInUse if somebody else is."""

    def close(self) -> None: ...


class _File:
    """A real file."""

    def __init__(self, path: Path, flags: int) -> None:
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o640)
        self._can_write_durable = True

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        while data and len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, offset: int, data: bytes) -> None:
        done = os.pwrite(self._fd, data, offset)
        while done < len(data):  # a full disk or a signal cuts a write short
            done += os.pwrite(self._fd, data[done:], offset + done)

    def write_durable(self, offset: int, data: bytes) -> None:
        # One call instead of two: a thread that comes back from a call waits for its turn each time.
        done = 0
        if sys.platform == "linux" and self._can_write_durable:
            try:
                done = os.pwritev(self._fd, [data], offset, os.RWF_DSYNC)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._can_write_durable = False  # this file system, or a kernel before 4.7
        if done < len(data):
            self.write(offset, data)
            self.sync()

    def sync(self) -> None:
        if sys.platform == "darwin":  # there fsync stops at the drive's cache
            fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(self._fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileStorage:
    """A directory. ``read_only`` creates, locks and writes nothing, so a running exchange is not disturbed."""

    def __init__(self, directory: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.directory = Path(directory)
        self._read_only = read_only
        self._lock_fd = -1
        if not read_only and not self.directory.is_dir():
            self.directory.mkdir(parents=True)
            _sync_directory(self.directory.parent)

    def exists(self, name: str) -> bool:
        return (self.directory / name).exists()

    def open(self, name: str) -> StoredFile:
        return _File(self.directory / name, os.O_RDONLY if self._read_only else os.O_RDWR)

    def create(self, name: str, data: bytes) -> StoredFile:
        # Written aside and renamed: whoever opens `name` finds all of `data`.
        aside = self.directory / (name + ".new")
        file = _File(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            file.write(0, data)
            file.sync()
            os.rename(aside, self.directory / name)
            _sync_directory(self.directory)
        except OSError:
            file.close()
            raise
        return file

    def lock(self) -> None:
        # flock belongs to the open file: it goes with the process however that ends, and a new one can take it at once.
        path = self.directory / LOCK_NAME
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            written = os.pread(fd, 32, 0).strip()
            os.close(fd)
            raise DirectoryInUse(str(self.directory), int(written) if written.isdigit() else 0) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._lock_fd = fd

    def close(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _sync_directory(path: Path) -> None:
    """A new name survives a power cut only once its directory was synced."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _MemoryFile:
    def __init__(self, data: bytearray) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self._data):
            self._data.extend(bytes(offset - len(self._data)))
        self._data[offset : offset + len(data)] = data

    write_durable = write

    def sync(self) -> None:
        pass

    def truncate(self, size: int) -> None:
        del self._data[size:]
        self._data.extend(bytes(size - len(self._data)))

    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        pass


class MemoryStorage:
    """Files that live as long as this object: for notebooks and tests. ``files`` holds their bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self._locked = False

    def exists(self, name: str) -> bool:
        return name in self.files

    def open(self, name: str) -> StoredFile:
        if name not in self.files:
            raise FileNotFoundError(name)
        return _MemoryFile(self.files[name])

    def create(self, name: str, data: bytes) -> StoredFile:
        self.files[name] = bytearray(data)
        return _MemoryFile(self.files[name])

    def lock(self) -> None:
        if self._locked:
            raise DirectoryInUse("this storage", os.getpid())
        self._locked = True

    def close(self) -> None:
        self._locked = False
