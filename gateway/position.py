"""Where a client stands: the next report it has not read, and the commands nobody has answered yet.

With this file a restarted client goes on at its next report and re-sends what was left unanswered, under the same ids.
A command is noted before it is published, a report after its reader came back for the next one; so a crash in between
repeats, and never loses. The file survives the end of the process (it is written, not synced): after a power cut a
client may read some reports again and should look at ``open_orders``.

The file is a row of MessagePack values appended one after the other, and written afresh, short, at every start:
``["position", 1, participant]``, ``["next", n]``, ``["sent", id, command]``, ``["answered", id]``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import msgpack  # type: ignore[import-untyped]

if sys.platform != "win32":
    import fcntl


class PositionUnusable(Exception):
    """The position file belongs to somebody else, or is not one. Says which and what to do."""


class Position:
    """``next_report`` (0: never read one) and ``unanswered`` (id to command bytes, in the order they were sent)."""

    def __init__(self, path: Path, participant: str) -> None:
        """Reads what is there and takes the file for this process alone. Raises ``PositionUnusable``, ``OSError``."""
        self.path = path
        self.next_report = 0
        self.unanswered: dict[str, bytes] = {}
        self._buffer: list[bytes] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(path.with_name(path.name + ".lock"), "a+b")  # noqa: SIM115  held as long as the client lives
        try:
            if sys.platform != "win32":
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():
                self._read(participant)
            self._rewrite(participant)
        except BlockingIOError:
            self._lock.close()
            raise PositionUnusable(
                f"{path} is in use by another process: expected one client per position file; "
                f"stop the other one or give this one a file of its own"
            ) from None
        except BaseException:
            self._lock.close()
            raise

    def _read(self, participant: str) -> None:
        unpacker = msgpack.Unpacker(raw=False)
        unpacker.feed(self.path.read_bytes())
        first = True
        try:
            for entry in unpacker:  # a torn last entry ends the loop: it was never complete
                if first and entry[:2] != ["position", 1]:
                    raise ValueError(f"it begins with {entry!r}")
                if first and entry[2] != participant:
                    raise PositionUnusable(
                        f"{self.path} is the position of participant {entry[2]!r}, expected {participant!r}: "
                        f"give each participant a file of its own"
                    )
                first = False
                if entry[0] == "next":
                    self.next_report = entry[1]
                elif entry[0] == "sent":
                    self.unanswered[entry[1]] = entry[2]
                elif entry[0] == "answered":
                    self.unanswered.pop(entry[1], None)
        except (ValueError, TypeError, IndexError, KeyError, msgpack.UnpackException) as error:
            raise PositionUnusable(
                f"{self.path} is not a position file of this version ({error}): move it away; "
                f"the client then starts at the present and open_orders() tells what is in the market"
            ) from error

    def _rewrite(self, participant: str) -> None:
        entries: list[object] = [["position", 1, participant], ["next", self.next_report]]
        entries += [["sent", command_id, raw] for command_id, raw in self.unanswered.items()]
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_bytes(b"".join(msgpack.packb(entry) for entry in entries))
        os.replace(fresh, self.path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def sent(self, command_id: str, command: bytes) -> None:
        self.unanswered[command_id] = command
        self._buffer.append(msgpack.packb(["sent", command_id, command]))

    def answered(self, command_id: str) -> None:
        if self.unanswered.pop(command_id, None) is not None:
            self._buffer.append(msgpack.packb(["answered", command_id]))

    def reached(self, next_report: int) -> None:
        if next_report != self.next_report:
            self.next_report = next_report
            self._buffer.append(msgpack.packb(["next", next_report]))

    def write(self) -> None:
        """Hand what was noted to the operating system. Raises ``OSError``."""
        if self._buffer:
            data = b"".join(self._buffer)
            self._buffer.clear()
            while data:
                data = data[os.write(self._file, data) :]

    def close(self) -> None:
        self.write()
        os.close(self._file)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
