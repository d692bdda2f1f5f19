"""The order log: every accepted command, in order, on disk before anybody hears of it.

The market is a function of this file. So it must be dense (no number missing), tamper-evident (each record carries a
hash over all before it) and honest about its end: after a crash the last record may be half there. Which half-there
records may be forgotten? Only those never acknowledged. Three statements tell them from damage:

* ``market.mark`` says up to where the log had certainly been synced. It is rewritten after each sync without a sync of
  its own, so it is a lower bound: exact after the death of the process, a little old after a power cut.
* Each record says up to where the log had been synced when it was written. A record that checks out and says so about
  the place of a broken one before it proves that the broken one had been durable.
* Otherwise what does not check out at the end is a torn write: it is cut, and reported.

Appending must cost next to nothing per command, so a member's batch goes in as the bytes that came, and space is
zeroed ahead so that a sync need not write a new file size (half the time of an fdatasync on ext4).

``docs/log-format.md`` describes the files byte by byte.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import PurePath
from typing import Annotated, Final, NamedTuple, cast

import msgspec
from msgspec import Meta

from engine.commands import Command
from engine.faults import LogDamaged, LogFailed
from engine.log.digest import STATE_VERSION
from engine.log.storage import Storage, StoredFile
from engine.ticket import CommandTicket
from engine.wire import read_groups

LOG_NAME: Final = "market.log"
FORMAT_VERSION: Final = 1
#: Largest payload of one record, in bytes.
RECORD_MAX: Final = 64 * 1024 * 1024
#: How far ahead of the last record the file is zeroed, in bytes: at first so far, then as far as it has come, up to the
#: most. The sync behind it takes longer than others, so a market that writes much has few of them.
AHEAD: Final = 256 * 1024
AHEAD_MOST: Final = 4 * 1024 * 1024

COMMANDS: Final = 1  #: kind of a record that holds commands
MARK: Final = 2  #: kind of a record that holds a digest mark

# magic, format version, header size, reserved, build, configuration digest, market id, created ns, reserved, checksum
_HEADER: Final = struct.Struct("<8sHHI32s32s16sQ20sI")
_HEADER_MAGIC: Final = b"DOJIMA\r\n"  # the line end shows a transfer in text mode
# magic, checksum, chain | length, kind, reserved, epoch, count, first sequence, durable offset
_RECORD: Final = struct.Struct("<4sI16sIB3sIIQQ")
_RECORD_MAGIC: Final = b"DREC"
_CHECKED_FROM: Final = 8  # the checksum covers everything behind itself
_CHAINED_FROM: Final = 24  # the chain value covers everything behind itself
# magic, durable offset, last sequence, chain, checksum
_DURABLE: Final = struct.Struct("<8sQQ16sI")
_DURABLE_MAGIC: Final = b"DOJIMARK"

_WINDOW: Final = 1024 * 1024
_TIME_MAX: Final = 2**63 - 1

_Groups = list[
    tuple[
        Annotated[int, Meta(ge=1, le=_TIME_MAX)],
        Annotated[str, Meta(pattern=r"^[a-z0-9-]{0,16}\Z")],
        list[Command],
    ]
]
_decode_groups: Final = msgspec.msgpack.Decoder(_Groups).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class Header(NamedTuple):
    """What a log says about itself, fixed when it is created."""

    build: str  #: version of the program that created it, at most 32 bytes
    configuration_digest: bytes = bytes(32)  #: of the configuration it was created with
    market_id: bytes = bytes(16)  #: tells one market from another
    created_ns: int = 0


class Ticket(NamedTuple):
    """What one write was given. It is durable once ``sync`` has returned at least ``last``."""

    first: int  #: sequence of its first command
    last: int  #: sequence of its last command
    end: int  #: offset of its end in the file


class Record(NamedTuple):
    """A record that checks out and follows its predecessor. ``offset`` and ``end`` count bytes in the file."""

    offset: int
    end: int
    kind: int
    epoch: int
    first: int  #: sequence of its first command; in a digest mark that of the next command
    commands: int  #: how many it holds
    chain: bytes
    payload: bytes


class Batch(NamedTuple):
    """One committed batch. The i-th command of a group has the group's time_ns + i."""

    record: Record
    #: (time_ns of its first command, participant, commands); new orders and cancels as tickets where that was asked for
    groups: Sequence[tuple[int, str, Sequence[Command | CommandTicket]]]


class Mark(NamedTuple):
    """What the market looked like after ``sequence``, as the engine that wrote the log saw it."""

    record: Record
    sequence: int
    events_digest: bytes
    state_digest: bytes
    state_version: int  #: ``engine.log.digest.STATE_VERSION`` of who wrote it; 0: not said


class _MarkPayload(msgspec.Struct, array_like=True):
    """A digest mark as it is written; later versions may append."""

    sequence: int
    events_digest: bytes
    state_digest: bytes
    state_version: int = 0  #: the first marks did not say it


_decode_mark: Final = msgspec.msgpack.Decoder(_MarkPayload).decode


class TornTail(NamedTuple):
    """Bytes at the end that never became a durable record."""

    offset: int
    size: int
    why: str


def encode_commands(commands: list[Command]) -> bytes:
    """The array a group holds, for the exchange's own commands; a member's come encoded."""
    return _encode(commands)


def mark_name(log_name: str) -> str:
    """The durable mark lies beside its log: ``market.mark`` for ``market.log``."""
    return PurePath(log_name).stem + ".mark"


class LogReader:
    """Reads and verifies a log, from the start, as often as wanted; also while an exchange writes it.

    Opening verifies the header. Raises LogDamaged as soon as something durable does not check out, and
    FileNotFoundError if there is no log.

    After ``records``, ``entries`` or ``commands`` has run to its end, ``end``, ``sequence``, ``epoch``, ``chain`` and
    ``torn`` describe the end of the log, and ``time_ns`` the last stamp (not after ``records``, which looks into no
    payload).
    """

    def __init__(self, storage: Storage, name: str = LOG_NAME) -> None:
        # The mark first: it is a lower bound, and the log only grows while we look.
        self.durable = 0  #: everything before this offset must check out; 0: unknown
        self._durable_chain = b""
        self.mark_problem = ""  #: why the durable mark says nothing, if it does not
        self._read_mark(storage, mark_name(name))
        if storage.exists(mark_name(name)) and not storage.exists(name):
            raise LogDamaged(
                f"{name} is missing although {mark_name(name)} is there ({self.durable} bytes had been durable)",
                offset=0,
                advice=f"Bring the file back. To begin a new market, remove {mark_name(name)} too.",
            )
        self._file: StoredFile = storage.open(name)
        data = self._file.read(0, _HEADER.size)
        self.header = _parse_header(data)
        self._header_chain = blake2b(data, digest_size=16).digest()
        self._window = b""
        self._window_at = 0
        self._rewind()

    def _rewind(self) -> None:
        self.end = _HEADER.size
        self.sequence = 0
        self.epoch = 0
        self.chain = self._header_chain
        self.time_ns = 0
        self.torn: TornTail | None = None

    def _read_mark(self, storage: Storage, name: str) -> None:
        if not storage.exists(name):
            self.mark_problem = f"there is no {name}"
            return
        file = storage.open(name)
        try:
            for _ in range(2):  # twice: it may be rewritten while we read
                data = file.read(0, _DURABLE.size)
                if len(data) == _DURABLE.size:
                    magic, durable, _, chain, checksum = _DURABLE.unpack(data)
                    if magic == _DURABLE_MAGIC and checksum == zlib.crc32(data[:-4]):
                        self.durable, self._durable_chain = durable, chain
                        return
        finally:
            file.close()
        self.mark_problem = f"{name} does not check out"

    def close(self) -> None:
        self._file.close()

    def size(self) -> int:
        """Size of the file in bytes, zeroed space included."""
        return self._file.size()

    # --- reading -----------------------------------------------------------------------------------------------------

    def commands(self) -> Iterator[tuple[int, int, str, Command]]:
        """Every command as (sequence, time_ns, participant, command)."""
        for entry in self.entries():
            if isinstance(entry, Batch):
                sequence = entry.record.first
                for time_ns, participant, commands in entry.groups:
                    for command in commands:
                        yield sequence, time_ns, participant, cast("Command", command)
                        sequence += 1
                        time_ns += 1

    def entries(self, tickets: bool = False) -> Iterator[Batch | Mark]:
        """Every record, decoded. Stamps increase from command to command.

        With ``tickets`` new orders and cancels may come as ``engine/wire.py`` reads them, for whoever only feeds an
        engine.
        """
        for record in self.records():
            try:
                if record.kind == MARK:
                    mark = _decode_mark(record.payload)
                    if mark.sequence != record.first - 1:
                        text = f"a digest mark for sequence {mark.sequence} behind {record.first - 1}"
                        raise self._damaged(record, text)
                    yield Mark(record, mark.sequence, mark.events_digest, mark.state_digest, mark.state_version)
                    continue
                groups: Sequence[tuple[int, str, Sequence[Command | CommandTicket]]] | None = None
                if tickets:
                    groups = read_groups(record.payload)
                if groups is None:
                    groups = _decode_groups(record.payload)
            except (msgspec.DecodeError, RecursionError) as error:
                text = f"the record checks out, but its payload is not understood ({error or 'nested too deep'})"
                raise self._damaged(record, text) from error
            count = 0
            for time_ns, _, commands in groups:
                if time_ns <= self.time_ns:
                    text = f"expected a stamp after {self.time_ns}, got {time_ns} at command {record.first + count}"
                    raise self._damaged(record, text)
                self.time_ns = time_ns + len(commands) - 1
                count += len(commands)
            if count != record.commands:
                raise self._damaged(record, f"expected {record.commands} commands in the record, got {count}")
            yield Batch(record, groups)

    def _damaged(self, record: Record, text: str) -> LogDamaged:
        return LogDamaged(
            text,
            offset=record.offset,
            sequence=record.first - 1,
            advice=f"The log was created by build {self.header.build or 'unknown'}: read it with that one.",
        )

    def records(self) -> Iterator[Record]:
        """Every record, undecoded, in order. Sequences are dense and the chain holds; else LogDamaged."""
        self._rewind()
        passed_durable = not self.durable
        while True:
            if not passed_durable and self.end >= self.durable:
                passed_durable = True
                if self.end != self.durable or self.chain != self._durable_chain:
                    raise LogDamaged(
                        f"the durable mark was not taken from this log: no such record ends at {self.durable}",
                        offset=self.end,
                        sequence=self.sequence,
                        advice="Put the log and the durable mark of one market side by side.",
                    )
            found = self._record_at(self.end)
            if isinstance(found, str):
                problem, (valid, behind) = found, self._evidence(self.end)
                self._window = b""  # what we saw may have been a write under way: look again now
                found = self._record_at(self.end)
                if isinstance(found, str):
                    self._finish(problem, valid, behind)
                    return
            if found.first != self.sequence + 1:
                raise LogDamaged(
                    f"expected sequence {self.sequence + 1}, got {found.first}", offset=self.end, sequence=self.sequence
                )
            if found.epoch < self.epoch:
                raise LogDamaged(
                    f"expected epoch {self.epoch} or later, got {found.epoch}", offset=self.end, sequence=self.sequence
                )
            self.end = found.end
            self.sequence += found.commands
            self.epoch = found.epoch
            self.chain = found.chain
            yield found

    def _record_at(self, offset: int) -> Record | str:
        """The record at ``offset``, or why there is none."""
        head = self._bytes(offset, _RECORD.size)
        if not any(head):
            return "no record"
        if len(head) < _RECORD.size:
            return "the file ends within a record's head"
        magic, checksum, chain, length, kind, reserved, epoch, commands, first, _ = _RECORD.unpack(head)
        if magic != _RECORD_MAGIC:
            return f"expected a record ({_RECORD_MAGIC!r}), got {magic!r}"
        if length > RECORD_MAX:
            return f"expected a payload of at most {RECORD_MAX} bytes, got {length}"
        end = offset + _RECORD.size + length
        data = self._bytes(offset, end - offset)
        if len(data) < end - offset:
            return f"the file ends within a record of {_RECORD.size + length} bytes"
        view = memoryview(data)
        computed = zlib.crc32(view[_CHECKED_FROM:])
        if checksum != computed:
            return f"expected checksum {checksum:08x}, got {computed:08x}"
        # From here on the bytes are as somebody wrote them: no torn write looks like this.
        expected = blake2b(self.chain, digest_size=16)
        expected.update(view[_CHAINED_FROM:])
        if chain != expected.digest():
            raise LogDamaged(
                "the record checks out, but it does not continue the one before it",
                offset=offset,
                sequence=self.sequence,
            )
        if kind not in (COMMANDS, MARK) or any(reserved) or (commands == 0) != (kind == MARK):
            raise LogDamaged(
                f"a record of kind {kind} with {commands} commands is not known to this build",
                offset=offset,
                sequence=self.sequence,
                advice=f"The log was created by build {self.header.build or 'unknown'}: read it with a newer build.",
            )
        return Record(offset, end, kind, epoch, first, commands, chain, data[_RECORD.size :])

    def _bytes(self, offset: int, size: int) -> bytes:
        """Bytes of the file, read through a window because records are small."""
        start = offset - self._window_at
        if start < 0 or start + size > len(self._window):
            self._window = self._file.read(offset, max(size, _WINDOW))
            self._window_at = offset
            start = 0
        return self._window[start : start + size]

    # --- the end -----------------------------------------------------------------------------------------------------

    def _evidence(self, offset: int) -> tuple[int, int]:
        """What lies behind a place without a record.

        Returns the offset of a record that proves the place to have been durable, or 0; and the end of data, which is
        behind the last byte that is not zero, or ``offset`` when only zeroed space follows.
        """
        behind = offset
        place = offset
        while data := self._file.read(place, _WINDOW + _RECORD.size):
            used = len(data.rstrip(b"\0"))
            if used:
                behind = max(behind, place + used)
            at = data.find(_RECORD_MAGIC, 1 if place == offset else 0)
            while 0 <= at < _WINDOW:
                if self._proves_durable(place + at, offset):
                    return place + at, behind
                at = data.find(_RECORD_MAGIC, at + 1)
            place += _WINDOW
        return 0, behind

    def _proves_durable(self, at: int, offset: int) -> bool:
        head = self._file.read(at, _RECORD.size)
        if len(head) < _RECORD.size:
            return False
        checksum: int
        _, checksum, _, length, _, _, _, _, first, durable = _RECORD.unpack(head)
        if not offset < durable <= at or length > RECORD_MAX or first <= self.sequence:
            return False
        data = head + self._file.read(at + _RECORD.size, length)
        return len(data) == _RECORD.size + length and zlib.crc32(memoryview(data)[_CHECKED_FROM:]) == checksum

    def _finish(self, problem: str, valid: int, behind: int) -> None:
        """No record at ``end``: the end of the log, a torn tail, or damage."""
        if self.end < self.durable:
            raise LogDamaged(
                f"{problem}, although everything up to byte {self.durable} had been durable",
                offset=self.end,
                sequence=self.sequence,
            )
        if valid:
            raise LogDamaged(
                f"{problem}, although the record at byte {valid} says that this had been durable",
                offset=self.end,
                sequence=self.sequence,
            )
        if behind > self.end:
            self.torn = TornTail(self.end, behind - self.end, problem)


class Log:
    """The writer. ``write`` numbers and hands to the disk, ``sync`` makes durable; only then may events be released.

    Threads: one thread writes; ``sync`` may run in another one at the same time and makes durable what was written
    before it began. So while one batch syncs the next can be written. Both block; nothing here awaits.

    Once a write or sync has failed every further call raises LogFailed.
    """

    def __init__(self, storage: Storage, file: StoredFile, mark: StoredFile, reader: LogReader, *, ahead: int) -> None:
        """Use ``Log.open``."""
        self.storage = storage
        self.header = reader.header
        self.torn = reader.torn  #: what was cut when the log was opened
        self.mark_problem = reader.mark_problem  #: why the durable mark said nothing when the log was opened
        self.time_ns = reader.time_ns  #: last stamp
        self.epoch = max(reader.epoch, 1)  #: which leader writes; one of its own never leads twice
        self._file = file
        self._mark = mark
        self._ahead = ahead
        self._allocated = file.size()
        # What was written, as one value, so that a sync in another thread sees it whole: (end, sequence, chain).
        self._written = (reader.end, reader.sequence, reader.chain)
        self._durable = self._written
        self._failed: BaseException | None = None
        self._syncing = threading.Lock()

    @classmethod
    def open(cls, storage: Storage, header: Header, *, ahead: int = AHEAD) -> Log:
        """Lock the storage, verify the log, cut a torn tail; ``header`` is used if there is no log yet.

        Raises DirectoryInUse and LogDamaged; then nothing was changed, and the storage is free again.
        """
        storage.lock()
        try:
            name = mark_name(LOG_NAME)
            if not storage.exists(LOG_NAME) and not storage.exists(name):
                storage.create(LOG_NAME, _pack_header(header)).close()
            reader = LogReader(storage, LOG_NAME)
            try:
                last: Record | None = None
                for record in reader.records():
                    last = record if record.kind == COMMANDS else last
                if last is not None:
                    reader.time_ns = _last_stamp(last)
            finally:
                reader.close()
            file = storage.open(LOG_NAME)
            if reader.torn is not None:
                # Whatever was there must be gone for good before anything is written over it.
                file.truncate(reader.end)
            # A killed process may have left records in the page cache: they count as durable only from here on.
            file.sync()
            if storage.exists(name):
                mark = storage.open(name)
            else:
                mark = storage.create(name, _pack_mark(reader.end, reader.sequence, reader.chain))
            log = cls(storage, file, mark, reader, ahead=ahead)
            log._write_mark_file()
        except BaseException:
            storage.close()
            raise
        return log

    # --- where it stands ---------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """Sequence of the last command written (not yet durable perhaps)."""
        return self._written[1]

    @property
    def chain(self) -> bytes:
        """Chain value of the last record written: two logs with the same chain hold the same records."""
        return self._written[2]

    @property
    def end(self) -> int:
        """Offset behind the last record written."""
        return self._written[0]

    @property
    def durable_sequence(self) -> int:
        """Sequence of the last command that survives a power cut."""
        return self._durable[1]

    @property
    def durable_offset(self) -> int:
        return self._durable[0]

    def reader(self) -> LogReader:
        """A reader of this log, for replay and for resending."""
        return LogReader(self.storage, LOG_NAME)

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, groups: Iterable[tuple[int, str, bytes | msgspec.Raw]]) -> Ticket:
        """Append one batch: groups of (time_ns, participant, MessagePack array of commands as it came).

        The i-th command of a group gets the stamp ``time_ns + i``; stamps increase over the log's life. The commands
        must have been decoded as ``engine.commands.Command`` before: the log does not look into them.

        Raises ValueError, writing nothing, for an empty batch or group and for a stamp that does not increase;
        LogFailed if the disk refuses.
        """
        count, time_ns, payload = self._checked(groups)
        ticket = self._append(COMMANDS, count, payload)
        self.time_ns = time_ns
        return ticket

    def append(self, groups: Iterable[tuple[int, str, bytes | msgspec.Raw]]) -> Ticket:
        """``write`` and ``sync`` in one: on return the batch is durable, as is what was written before. Blocks."""
        count, time_ns, payload = self._checked(groups)
        with self._syncing:
            ticket = self._append(COMMANDS, count, payload, durable=True)
        self.time_ns = time_ns
        return ticket

    def _checked(self, groups: Iterable[tuple[int, str, bytes | msgspec.Raw]]) -> tuple[int, int, bytes]:
        """Number of commands, stamp of the last one and payload of a batch."""
        parts: list[bytes | msgspec.Raw] = [b""]
        time_ns = self.time_ns
        count = groups_count = 0
        for start_ns, participant, commands in groups:
            size = _array_size(commands)
            if start_ns <= time_ns:
                raise ValueError(f"Expected a stamp after {time_ns}, got {start_ns}")
            if not size:
                raise ValueError(f"Expected at least one command in a group, got none from {participant!r}")
            time_ns = start_ns + size - 1
            count += size
            groups_count += 1
            parts.append(b"\x93\xcf" + start_ns.to_bytes(8, "big") + _packed_participant(participant))
            parts.append(commands)
        if not count:
            raise ValueError("Expected at least one group in a batch, got none")
        parts[0] = b"\xdd" + groups_count.to_bytes(4, "big")
        return count, time_ns, b"".join(parts)

    def write_mark(self, sequence: int, events_digest: bytes, state_digest: bytes) -> Ticket:
        """Append a digest mark: what the events so far and the state came to after ``sequence``, the last one written.

        It becomes durable with the next sync. Raises ValueError if ``sequence`` is not the last one written.
        """
        if sequence != self.sequence:
            raise ValueError(f"Expected a mark for the last sequence written, {self.sequence}, got {sequence}")
        return self._append(MARK, 0, _encode((sequence, events_digest, state_digest, STATE_VERSION)))

    def _append(self, kind: int, commands: int, payload: bytes, *, durable: bool = False) -> Ticket:
        """Write one record; ``durable``: and sync, in one call of the system where nothing else is to be synced."""
        if self._failed is not None:
            raise LogFailed(f"The log takes nothing more: {self._failed}") from self._failed
        if len(payload) > RECORD_MAX:
            raise ValueError(f"Expected a batch of at most {RECORD_MAX} bytes, got {len(payload)}")
        offset, sequence, chain = self._written
        first = sequence + 1
        synced = self._durable[0]
        # Packed without them: checksum and chain stand in front of what they cover.
        head = _RECORD.pack(b"", 0, b"", len(payload), kind, b"", self.epoch, commands, first, synced)[_CHAINED_FROM:]
        link = blake2b(chain, digest_size=16)
        link.update(head)
        link.update(payload)
        chain = link.digest()
        checksum = zlib.crc32(payload, zlib.crc32(head, zlib.crc32(chain)))
        data = b"".join((_RECORD_MAGIC, checksum.to_bytes(4, "little"), chain, head, payload))
        end = offset + len(data)
        alone = synced == offset and end <= self._allocated
        try:
            if end > self._allocated:
                allocated = end + (max(self._ahead, min(end, AHEAD_MOST)) if self._ahead else 0)
                self._file.write(self._allocated, bytes(allocated - self._allocated))
                self._allocated = allocated
            if durable and alone:
                self._file.write_durable(offset, data)
            else:
                self._file.write(offset, data)
        except OSError as error:
            self._failed = error
            raise LogFailed(f"Writing {len(data)} bytes at offset {offset} of the log failed: {error}") from error
        self._written = (end, sequence + commands, chain)
        if durable:
            self._settle(done=alone)
        return Ticket(first, sequence + commands, end)

    def sync(self) -> int:
        """Make durable everything written before this call; returns the last durable sequence. Blocks.

        Raises LogFailed if the disk refuses; the process must then stop.
        """
        with self._syncing:
            return self._settle()

    def _settle(self, *, done: bool = False) -> int:
        """Sync, unless that is ``done``, and note it in the mark file; returns the last durable sequence."""
        if self._failed is not None:
            raise LogFailed(f"The log takes nothing more: {self._failed}") from self._failed
        written = self._written
        try:
            if not done:
                self._file.sync()
            self._durable = written
            self._write_mark_file()
        except OSError as error:
            self._failed = error
            raise LogFailed(f"Syncing the log at offset {written[0]} failed: {error}") from error
        return written[1]

    def _write_mark_file(self) -> None:
        self._mark.write(0, _pack_mark(*self._durable))

    def close(self) -> None:
        """Sync, give zeroed space back, and free the storage. After a failure: only free it."""
        try:
            if self._failed is None:
                self.sync()
                self._file.truncate(self.end)
                self._file.sync()
        finally:
            self._failed = self._failed or ValueError("it is closed")
            self._file.close()
            self._mark.close()
            self.storage.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- bytes ---------------------------------------------------------------------------------------------------------


def _pack_header(header: Header) -> bytes:
    build = header.build.encode()
    if len(build) > 32 or len(header.configuration_digest) != 32 or len(header.market_id) != 16:
        raise ValueError(f"Expected build <= 32 bytes, configuration digest of 32 and market id of 16, got {header}")
    fixed = _HEADER.pack(
        _HEADER_MAGIC,
        FORMAT_VERSION,
        _HEADER.size,
        0,
        build,
        header.configuration_digest,
        header.market_id,
        header.created_ns,
        b"",
        0,
    )[:-4]
    return fixed + zlib.crc32(fixed).to_bytes(4, "little")


def _parse_header(data: bytes) -> Header:
    if len(data) < _HEADER.size:
        raise LogDamaged(f"expected a header of {_HEADER.size} bytes, got {len(data)}", offset=0, advice=_NOT_A_LOG)
    magic, version, size, _, build, configuration, market, created_ns, _, checksum = _HEADER.unpack(data)
    if magic != _HEADER_MAGIC:
        raise LogDamaged(f"expected a log ({_HEADER_MAGIC!r}), got {magic!r}", offset=0, advice=_NOT_A_LOG)
    if checksum != zlib.crc32(data[:-4]):
        raise LogDamaged(
            f"expected checksum {checksum:08x} of the header, got {zlib.crc32(data[:-4]):08x}",
            offset=0,
            advice="Put a good copy of the log in its place.",
        )
    if version != FORMAT_VERSION or size != _HEADER.size:
        raise LogDamaged(
            f"expected format version {FORMAT_VERSION}, got {version}",
            offset=8,
            advice="Read it with the build that wrote it.",
        )
    try:
        return Header(build.rstrip(b"\0").decode(), configuration, market, created_ns)
    except UnicodeDecodeError as error:
        raise LogDamaged(f"the build version is no text: {error}", offset=16, advice=_NOT_A_LOG) from error


_NOT_A_LOG: Final = "Is this the order log of an exchange? Nothing was changed."


def _pack_mark(end: int, sequence: int, chain: bytes) -> bytes:
    fixed = _DURABLE.pack(_DURABLE_MAGIC, end, sequence, chain, 0)[:-4]
    return fixed + zlib.crc32(fixed).to_bytes(4, "little")


def _last_stamp(record: Record) -> int:
    """The last stamp in a record of commands, read without a look at the commands."""
    try:
        groups = msgspec.msgpack.decode(record.payload, type=list[tuple[int, str, msgspec.Raw]])
        time_ns, _, commands = groups[-1]
        return time_ns + _array_size(commands) - 1
    except (msgspec.DecodeError, IndexError, ValueError) as error:
        raise LogDamaged(
            f"the record checks out, but its payload is not understood ({error})",
            offset=record.offset,
            sequence=record.first - 1,
        ) from error


def _array_size(commands: bytes | msgspec.Raw) -> int:
    """How many elements a MessagePack array says it has."""
    view = commands if isinstance(commands, bytes) else memoryview(commands)
    first = view[0] if len(view) else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    if first == 0xDC:
        return int.from_bytes(view[1:3], "big")
    if first == 0xDD:
        return int.from_bytes(view[1:5], "big")
    raise ValueError(f"Expected a MessagePack array of commands, got a value that starts with {first:#04x}")


@lru_cache(maxsize=4096)
def _packed_participant(participant: str) -> bytes:
    data = participant.encode()
    if len(data) > 16 or not all(c in b"abcdefghijklmnopqrstuvwxyz0123456789-" for c in data):
        raise ValueError(f"Expected a participant of [a-z0-9-], at most 16, or none, got {participant!r}")
    return bytes((0xA0 | len(data),)) + data
