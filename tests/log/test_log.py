"""What was acknowledged is in the log; what is damaged is not read over; what was never durable is cut."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import zlib
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.commands import Command, NewOrder, SetPhase
from engine.faults import LogDamaged, LogFailed
from engine.log import (
    LOG_NAME,
    Batch,
    DirectoryInUse,
    FileStorage,
    Header,
    Log,
    LogReader,
    Mark,
    MemoryStorage,
    Storage,
    encode_commands,
)
from engine.log import log as module
from engine.log.digest import STATE_VERSION
from engine.log.log import _WINDOW as WINDOW
from engine.log.log import _decode_groups as decode_groups
from engine.types import Phase, Side
from tests.log.faulty import FaultyDisk

HEADER = Header("0.1.0", bytes(range(32)), bytes(range(16)), 1_764_000_000_000_000_000)
MARK_NAME = "market.mark"
START = 128


def order(name: str) -> NewOrder:
    return NewOrder(name, "KDX-2107", Side.BUY, 10, 100_000)


def raw(*commands: Command) -> bytes:
    return encode_commands(list(commands))


def contents(storage: Storage) -> list[tuple[int, int, str, Command]]:
    return list(LogReader(storage).commands())


def three_batches(log: Log) -> list[int]:
    """Write three batches, each durable; returns where each ends."""
    return [
        log.append([(100, "alpha", raw(order("a-1"), order("a-2"))), (110, "beta", raw(order("b-1")))]).end,
        log.append([(120, "", raw(SetPhase("KDX-2107", Phase.PRE_OPEN)))]).end,
        log.append([(130, "alpha", msgspec.Raw(raw(order("a-3"))))]).end,
    ]


THREE_BATCHES = [
    (1, 100, "alpha", order("a-1")),
    (2, 101, "alpha", order("a-2")),
    (3, 110, "beta", order("b-1")),
    (4, 120, "", SetPhase("KDX-2107", Phase.PRE_OPEN)),
    (5, 130, "alpha", order("a-3")),
]


# --- writing and reading back ----------------------------------------------------------------------------------------


@pytest.fixture(params=["files", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return FileStorage(tmp_path / "market") if request.param == "files" else MemoryStorage()


def test_what_was_written_is_read_back_with_number_stamp_and_sender(storage: Storage) -> None:
    with Log.open(storage, HEADER) as log:
        three_batches(log)

    assert contents(storage) == THREE_BATCHES


def test_a_reopened_log_goes_on_with_the_next_number_stamp_and_chain(storage: Storage) -> None:
    with Log.open(storage, HEADER) as log:
        three_batches(log)
        chain = log.chain
    with Log.open(storage, Header("0.2.0")) as log:
        assert (log.sequence, log.durable_sequence, log.time_ns, log.chain) == (5, 5, 130, chain)
        assert log.header == HEADER
        assert log.torn is None
        ticket = log.append([(131, "beta", raw(order("b-2"), order("b-3")))])

    assert (ticket.first, ticket.last) == (6, 7)
    assert contents(storage)[5:] == [(6, 131, "beta", order("b-2")), (7, 132, "beta", order("b-3"))]
    with Log.open(storage, HEADER) as log:
        assert log.time_ns == 132


def test_a_group_of_any_size_and_any_array_encoding_is_counted_right(storage: Storage) -> None:
    one = raw(order("a-1"))[1:]
    with Log.open(storage, HEADER) as log:
        assert log.write([(1, "alpha", b"\x9f" + one * 15)]).last == 15
        assert log.write([(100, "alpha", b"\xdc" + (16).to_bytes(2, "big") + one * 16)]).last == 31
        assert log.write([(200, "alpha", b"\xdd" + (3).to_bytes(4, "big") + one * 3)]).last == 34

    assert len(contents(storage)) == 34


def test_a_sender_is_read_back_only_as_it_could_have_been_written() -> None:
    for sender in ("alpha\n", "Alpha"):
        with pytest.raises(msgspec.ValidationError):
            decode_groups(msgspec.msgpack.encode([(200, sender, [order("a-4")])]))
    assert decode_groups(msgspec.msgpack.encode([(200, "alpha", [order("a-4")])]))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], "Expected at least one group"),
        ([(200, "alpha", b"\x90")], "Expected at least one command"),
        ([(130, "alpha", raw(order("a-4")))], "Expected a stamp after 130, got 130"),
        (
            [(140, "alpha", raw(order("a-4"), order("a-5"))), (141, "beta", raw(order("b-4")))],
            "Expected a stamp after 141, got 141",
        ),
        ([(200, "Alpha", raw(order("a-4")))], "Expected a participant"),
        ([(200, "a" * 17, raw(order("a-4")))], "Expected a participant"),
        ([(200, "alpha\n", raw(order("a-4")))], "Expected a participant"),
        ([(200, "alpha", b"\x81\x01\x02")], "Expected a MessagePack array of commands"),
        ([(200, "alpha", b"")], "Expected a MessagePack array of commands"),
    ],
)
def test_a_batch_that_could_not_be_read_back_is_refused_and_leaves_no_trace(
    groups: list[tuple[int, str, bytes]], expected: str
) -> None:
    storage = MemoryStorage()
    with Log.open(storage, HEADER) as log:
        three_batches(log)
        before = bytes(storage.files[LOG_NAME])
        with pytest.raises(ValueError, match=expected):
            log.write(groups)
        assert storage.files[LOG_NAME] == before
        assert log.append([(131, "alpha", raw(order("a-4")))]).first == 6

    assert len(contents(storage)) == 6


def test_digest_marks_lie_between_batches_and_speak_of_the_command_before(storage: Storage) -> None:
    with Log.open(storage, HEADER) as log:
        log.write([(1, "alpha", raw(order("a-1")))])
        log.write_mark(1, b"e" * 32, b"s" * 32)
        with pytest.raises(ValueError, match="Expected a mark for the last sequence written, 1, got 2"):
            log.write_mark(2, b"e" * 32, b"s" * 32)
        log.write([(2, "alpha", raw(order("a-2")))])
        log.sync()

    batch, mark, _ = LogReader(storage).entries()
    assert isinstance(batch, Batch)
    assert isinstance(mark, Mark)
    assert mark[1:] == (1, b"e" * 32, b"s" * 32, STATE_VERSION)
    assert len(contents(storage)) == 2


def test_a_sync_covers_what_was_written_before_it() -> None:
    storage = MemoryStorage()
    with Log.open(storage, HEADER) as log:
        log.write([(1, "alpha", raw(order("a-1")))])
        assert (log.sequence, log.durable_sequence) == (1, 0)
        assert log.sync() == 1
        log.write([(2, "alpha", raw(order("a-2")))])
        assert (log.sequence, log.durable_sequence) == (2, 1)


def test_space_is_zeroed_ahead_of_the_end_and_given_back_on_closing() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER, ahead=1000)
    end = log.append([(1, "alpha", raw(order("a-1")))]).end
    assert storage.files[LOG_NAME][end:] == bytes(1000)
    grown = log.append([(2, "alpha", raw(order("a-2")))]).end
    assert storage.files[LOG_NAME][grown:] == bytes(end + 1000 - grown)
    log.close()
    assert len(storage.files[LOG_NAME]) == grown


def test_a_long_log_zeroes_as_far_ahead_as_it_has_come_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_MOST", 3_000)
    storage = MemoryStorage()
    log = Log.open(storage, HEADER, ahead=1_000)
    steps: list[tuple[int, int]] = []
    for number in range(150):
        before = len(storage.files[LOG_NAME])
        end = log.append([(1 + number, "alpha", raw(order(f"a-{number}")))]).end
        if len(storage.files[LOG_NAME]) > before:
            steps.append((end, len(storage.files[LOG_NAME]) - end))

    assert [ahead for end, ahead in steps] == [min(max(1_000, end), 3_000) for end, ahead in steps]
    assert {1_000, 3_000} < {ahead for _, ahead in steps}


def test_a_closed_log_takes_nothing_more_and_may_be_closed_again(storage: Storage) -> None:
    log = Log.open(storage, HEADER)
    three_batches(log)
    log.close()
    log.close()
    with pytest.raises(LogFailed, match="it is closed"):
        log.write([(150, "alpha", raw(order("a-5")))])
    with pytest.raises(LogFailed, match="it is closed"):
        log.sync()
    assert contents(storage) == THREE_BATCHES


def test_a_header_that_does_not_fit_is_refused_before_anything_is_created() -> None:
    storage = MemoryStorage()
    with pytest.raises(ValueError, match="Expected build"):
        Log.open(storage, Header("x" * 33))
    assert storage.files == {}


# --- one writer, many readers ----------------------------------------------------------------------------------------


def test_a_directory_in_use_is_refused_to_a_second_writer_and_names_the_first(tmp_path: Path) -> None:
    with Log.open(FileStorage(tmp_path), HEADER), pytest.raises(DirectoryInUse, match=f"process {os.getpid()}"):
        Log.open(FileStorage(tmp_path), HEADER)

    Log.open(FileStorage(tmp_path), HEADER).close()


def test_a_damaged_log_frees_the_directory_again(tmp_path: Path) -> None:
    Log.open(FileStorage(tmp_path), HEADER).close()
    (tmp_path / LOG_NAME).write_bytes(b"not a log")
    for _ in range(2):
        with pytest.raises(LogDamaged):
            Log.open(FileStorage(tmp_path), HEADER)


def test_a_reader_follows_while_the_writer_writes_and_touches_nothing(tmp_path: Path) -> None:
    with Log.open(FileStorage(tmp_path), HEADER) as log:
        for i in range(1, 50):
            log.append([(i, "alpha", raw(order(f"a-{i}")))])
            reader = LogReader(FileStorage(tmp_path, read_only=True))
            assert [sequence for sequence, *_ in reader.commands()] == list(range(1, i + 1))
            assert reader.torn is None
            reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        FileStorage(tmp_path, read_only=True).open(LOG_NAME).write(0, b"x")


def test_a_reader_finds_a_write_under_way_to_be_a_torn_tail_not_damage() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER, ahead=0)
    ends = three_batches(log)
    log.write([(140, "alpha", raw(order("a-4")))])
    under_way = storage.files[LOG_NAME].index(b"a-4") + 3
    del storage.files[LOG_NAME][under_way:]

    reader = LogReader(storage)
    assert list(reader.commands()) == THREE_BATCHES
    assert reader.torn is not None
    assert (reader.torn.offset, reader.torn.size) == (ends[2], under_way - ends[2])


def test_the_record_that_was_completed_while_a_reader_looked_is_read() -> None:
    """The reader sees half a record, then a later one that calls it durable: it looks again and cries no damage."""
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    ends = three_batches(log)
    whole = bytes(storage.files[LOG_NAME])
    storage.files[LOG_NAME][ends[0] + 60 : ends[1]] = bytes(ends[1] - ends[0] - 60)

    class Catching(MemoryStorage):
        def open(self, name: str):  # type: ignore[no-untyped-def]
            file = super().open(name)
            read = file.read

            def read_then_complete(offset: int, size: int) -> bytes:
                data = read(offset, size)
                if name == LOG_NAME and size > START and offset <= ends[0]:
                    storage.files[LOG_NAME][:] = whole
                return data

            file.read = read_then_complete  # type: ignore[method-assign]
            return file

    late = Catching()
    late.files = {LOG_NAME: storage.files[LOG_NAME]}
    assert contents(late) == THREE_BATCHES


# --- the end of the log after a crash --------------------------------------------------------------------------------


def test_cut_at_any_byte_of_the_unsynced_tail_nothing_acknowledged_is_lost() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER, ahead=0)
    ends = three_batches(log)
    log.write([(140, "alpha", raw(order("a-4"), order("a-5")))])
    log.write_mark(7, b"e" * 32, b"s" * 32)
    last = log.write([(150, "beta", raw(order("b-2")))]).end
    whole = {name: bytes(data) for name, data in storage.files.items()}
    seen = set()

    for zeroed in (0, 1000):  # with and without space ahead
        for cut in range(ends[2], last + 1):
            after = MemoryStorage()
            after.files = {name: bytearray(data) for name, data in whole.items()}
            del after.files[LOG_NAME][cut:]
            after.files[LOG_NAME].extend(bytes(zeroed))
            with Log.open(after, HEADER) as reopened:
                seen.add(reopened.sequence)
                assert reopened.torn is None or reopened.torn.offset + reopened.torn.size <= cut
                first = reopened.append([(1000, "gamma", raw(order("c-1")))]).first
            found = contents(after)
            assert found[:5] == THREE_BATCHES
            assert found[-1] == (first, 1000, "gamma", order("c-1"))
            assert [sequence for sequence, *_ in found] == list(range(1, first + 1))

    assert seen == {5, 7, 8}


def test_what_lay_behind_a_torn_record_never_comes_back() -> None:
    """The first of two unsynced records is broken, the second whole; a new one of the first one's size is written."""
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    ends = three_batches(log)
    end = log.write([(140, "alpha", raw(order("a-4")))]).end
    log.write([(150, "alpha", raw(order("a-5")))])
    storage.files[LOG_NAME][end - 1] ^= 1
    storage.close()

    with Log.open(storage, HEADER) as log:
        assert log.torn is not None
        assert log.torn.offset == ends[2]
        assert log.append([(160, "alpha", raw(order("a-6")))]).end == end
        assert contents(storage) == [*THREE_BATCHES, (6, 160, "alpha", order("a-6"))]


def test_a_cut_before_the_durable_mark_is_refused_at_every_byte() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER, ahead=0)
    ends = three_batches(log)
    whole = {name: bytes(data) for name, data in storage.files.items()}

    for cut in range(ends[2]):
        after = MemoryStorage()
        after.files = {name: bytearray(data) for name, data in whole.items()}
        del after.files[LOG_NAME][cut:]
        before = bytes(after.files[LOG_NAME])
        with pytest.raises(LogDamaged) as damage:
            Log.open(after, HEADER)
        assert damage.value.offset == max([0, *(at for at in (START, *ends) if at <= cut)])
        assert after.files[LOG_NAME] == before


@pytest.mark.parametrize("with_mark", [True, False])
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_bit_of_what_is_durable_is_refused_with_its_place(with_mark: bool, step: int) -> None:
    """Without the mark the records themselves say what had been durable: all but the last one."""
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    ends = three_batches(log)
    whole = {name: bytes(data) for name, data in storage.files.items()}
    bounds = [0, START, *ends]

    for bit in range(0, 8 * (ends[2] if with_mark else ends[1]), step):
        after = MemoryStorage()
        after.files = {name: bytearray(data) for name, data in whole.items()}
        if not with_mark:
            del after.files[MARK_NAME]
        after.files[LOG_NAME][bit // 8] ^= 1 << bit % 8
        damaged = bytes(after.files[LOG_NAME])
        with pytest.raises(LogDamaged, match="The log is damaged at byte") as damage:
            Log.open(after, HEADER)
        assert damage.value.offset == max(at for at in bounds if at <= bit // 8)
        assert damage.value.advice
        assert after.files[LOG_NAME] == damaged


def test_the_last_record_without_a_mark_to_vouch_for_it_is_taken_for_a_torn_write() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    ends = three_batches(log)
    del storage.files[MARK_NAME]
    storage.files[LOG_NAME][ends[2] - 1] ^= 1
    log.storage.close()

    with Log.open(storage, HEADER) as reopened:
        assert reopened.sequence == 4
        assert reopened.torn is not None
        assert (reopened.torn.offset, reopened.torn.size) == (ends[1], ends[2] - ends[1])
        assert reopened.mark_problem == "there is no market.mark"
    assert contents(storage) == THREE_BATCHES[:4]


def test_a_damaged_mark_is_no_mark_and_says_so() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    three_batches(log)
    whole = bytes(storage.files[MARK_NAME])
    assert len(whole) == 44
    for bit in range(8 * len(whole)):
        storage.files[MARK_NAME][:] = whole
        storage.files[MARK_NAME][bit // 8] ^= 1 << bit % 8
        reader = LogReader(storage)
        assert reader.mark_problem == "market.mark does not check out"
        assert list(reader.commands()) == THREE_BATCHES


def test_a_missing_log_beside_its_mark_is_damage_not_a_new_market() -> None:
    storage = MemoryStorage()
    Log.open(storage, HEADER).close()
    del storage.files[LOG_NAME]
    with pytest.raises(LogDamaged, match=r"market\.log is missing"):
        Log.open(storage, HEADER)
    with pytest.raises(FileNotFoundError):
        LogReader(MemoryStorage())


def test_an_older_copy_of_the_log_and_one_of_another_market_are_told_from_the_mark() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER, ahead=0)
    older = bytes(storage.files[LOG_NAME])
    three_batches(log)
    other = MemoryStorage()
    log = Log.open(other, HEADER._replace(market_id=b"another market.."), ahead=0)
    three_batches(log)

    storage.files[LOG_NAME][:] = older
    with pytest.raises(LogDamaged, match="had been durable"):
        contents(storage)
    storage.files[LOG_NAME][:] = other.files[LOG_NAME]
    with pytest.raises(LogDamaged, match="not taken from this log"):
        contents(storage)


def _reseal(data: bytearray, offset: int, chain: bytes) -> bytes:
    """Give a changed record the checksum and chain value it would have had; returns the chain value."""
    (length,) = struct.unpack_from("<I", data, offset + 24)
    end = offset + 56 + length
    chain = blake2b(chain + data[offset + 24 : end], digest_size=16).digest()
    data[offset + 8 : offset + 24] = chain
    struct.pack_into("<I", data, offset + 4, zlib.crc32(data[offset + 8 : end]))
    return chain


def _header_chain(data: bytearray) -> bytes:
    return blake2b(data[:START], digest_size=16).digest()


def test_a_record_replaced_by_a_well_formed_one_breaks_the_chain() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    ends = three_batches(log)
    data = storage.files[LOG_NAME]
    at = data.index(b"a-1")
    data[at : at + 3] = b"a-9"
    _reseal(data, START, _header_chain(data))

    with pytest.raises(LogDamaged, match="does not continue the one before it") as damage:
        contents(storage)
    assert (damage.value.offset, damage.value.sequence) == (ends[0], 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: struct.pack_into("<Q", data, START + 40, 2), "expected sequence 1, got 2"),
        (lambda data: struct.pack_into("<I", data, START + 36, 4), "expected 4 commands in the record, got 3"),
        (lambda data: struct.pack_into("<B", data, START + 28, 9), "a record of kind 9 with 3 commands is not known"),
        (lambda data: struct.pack_into("<B", data, START + 28, 2), "a record of kind 2 with 3 commands is not known"),
        (lambda data: struct.pack_into("<B", data, START + 30, 1), "is not known to this build"),
        (lambda data: struct.pack_into(">Q", data, START + 56 + 7, 0), "Expected `int` >= 1 - at `\\$\\[0\\]\\[0\\]`"),
        (lambda data: data.__setitem__(slice(START + 56 + 16, START + 56 + 17), b"A"), "matching regex"),
        (lambda data: data.__setitem__(slice(data.index(b"new"), data.index(b"new") + 3), b"wen"), "Invalid value"),
        (lambda data: data.__setitem__(START + 56, 0xC1), "its payload is not understood"),
    ],
)
def test_a_record_that_checks_out_but_makes_no_sense_is_damage(change, expected: str) -> None:  # type: ignore[no-untyped-def]
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    log.append([(100, "alpha", raw(order("a-1"), order("a-2"), order("a-3")))])
    data = storage.files[LOG_NAME]
    change(data)
    _reseal(data, START, _header_chain(data))
    del storage.files[MARK_NAME]

    with pytest.raises(LogDamaged, match=expected) as damage:
        contents(storage)
    assert damage.value.offset == START


def test_a_stamp_among_those_of_the_group_before_is_damage() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    log.append([(100, "alpha", raw(order("a-1"), order("a-2"))), (110, "beta", raw(order("b-1")))])
    data = storage.files[LOG_NAME]
    struct.pack_into(">Q", data, data.index(b"\x93\xcf" + (110).to_bytes(8, "big")) + 2, 101)
    _reseal(data, START, _header_chain(data))
    del storage.files[MARK_NAME]

    with pytest.raises(LogDamaged, match="expected a stamp after 101, got 101 at command 3"):
        contents(storage)


def test_a_stamp_that_steps_back_is_damage() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    ends = three_batches(log)
    data = storage.files[LOG_NAME]
    struct.pack_into(">Q", data, ends[0] + 56 + 7, 110)
    _reseal(data, ends[1], _reseal(data, ends[0], bytes(data[START + 8 : START + 24])))
    del storage.files[MARK_NAME]

    with pytest.raises(LogDamaged, match="expected a stamp after 110, got 110 at command 4") as damage:
        contents(storage)
    assert (damage.value.offset, damage.value.sequence) == (ends[0], 3)


def test_the_epoch_never_steps_back_and_a_reopened_log_stays_in_it() -> None:
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    ends = three_batches(log)
    storage.close()
    data = storage.files[LOG_NAME]

    def set_epochs(*epochs: int) -> None:
        chain = _header_chain(data)
        for at, epoch in zip([START, *ends], epochs, strict=False):
            struct.pack_into("<I", data, at + 32, epoch)
            chain = _reseal(data, at, chain)

    del storage.files[MARK_NAME]
    set_epochs(1, 7, 7)
    with Log.open(storage, HEADER) as log:
        assert log.epoch == 7
    del storage.files[MARK_NAME]
    set_epochs(1, 7, 6)
    with pytest.raises(LogDamaged, match="expected epoch 7 or later, got 6") as damage:
        contents(storage)
    assert damage.value.offset == ends[1]


@pytest.mark.parametrize("distance", [-3, -1, 0, 1, WINDOW // 2])
def test_proof_that_a_broken_record_was_durable_is_found_however_far_behind(distance: int) -> None:
    """Only the third record was written after a sync; it lies around and beyond the first piece that is searched."""
    storage = MemoryStorage()
    log = Log.open(storage, HEADER)
    small = raw(order("a-1"))
    end = log.write([(100, "alpha", small)]).end
    filler = WINDOW + distance - (end - START)
    head = end - START - len(small)
    big = b"\x91\xc6" + (filler - head - 6).to_bytes(4, "big") + bytes(filler - head - 6)
    assert log.write([(110, "alpha", big)]).end == START + WINDOW + distance
    log.sync()
    log.write([(120, "alpha", small)])
    del storage.files[MARK_NAME]
    storage.files[LOG_NAME][end - 1] ^= 1

    with pytest.raises(LogDamaged, match=f"the record at byte {START + WINDOW + distance} says that this had been"):
        list(LogReader(storage).records())


def test_a_log_of_another_format_or_no_log_at_all_is_refused() -> None:
    storage = MemoryStorage()
    Log.open(storage, HEADER).close()
    good = bytes(storage.files[LOG_NAME])
    storage.files[LOG_NAME][:8] = b"SQLite f"
    with pytest.raises(LogDamaged, match="Is this the order log of an exchange"):
        LogReader(storage)
    future = bytearray(good)
    struct.pack_into("<H", future, 8, 2)
    struct.pack_into("<I", future, 124, zlib.crc32(future[:124]))
    storage.files[LOG_NAME][:] = future
    with pytest.raises(LogDamaged, match="expected format version 1, got 2"):
        LogReader(storage)


# --- faults of the disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["sync", "write"])
def test_a_failed_sync_or_write_is_final(what: str) -> None:
    disk = FaultyDisk()
    log = Log.open(disk, HEADER)
    three_batches(log)
    disk.fail = lambda step, name: step == what and name == LOG_NAME
    with pytest.raises(LogFailed, match="Input/output error"):
        log.append([(140, "alpha", raw(order("a-4")))])
    disk.fail = lambda step, name: False

    with pytest.raises(LogFailed, match="takes nothing more"):
        log.write([(150, "alpha", raw(order("a-5")))])
    with pytest.raises(LogFailed, match="takes nothing more"):
        log.sync()
    assert log.durable_sequence == 5
    log.close()
    assert contents(disk.crash(lambda _: False)) == THREE_BATCHES


@pytest.mark.parametrize("system", ["as it is", "writes half", "does not know how"])
def test_a_batch_that_is_written_and_synced_in_one_call_is_there_whatever_the_system_can(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    pwritev = getattr(os, "pwritev", None)

    def write(fd: int, buffers: list[bytes], offset: int, flags: int) -> int:
        asked.append(flags)
        if system == "does not know how":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        (data,) = buffers
        assert pwritev is not None
        return pwritev(fd, [data[: len(data) // 2] if system == "writes half" else data], offset, flags)

    monkeypatch.setattr(os, "pwritev", write, raising=False)
    with Log.open(FileStorage(tmp_path), HEADER) as log:
        for i in range(1, 5):
            ticket = log.append([(100 * i, "alpha", raw(order(f"a-{i}")))])
            assert (log.durable_sequence, log.durable_offset) == (i, ticket.end)
    if sys.platform == "linux":  # the first batch zeroes space ahead, so it takes two calls
        assert asked == [os.RWF_DSYNC] * (1 if system == "does not know how" else 3)

    assert [sequence for sequence, *_ in contents(FileStorage(tmp_path))] == [1, 2, 3, 4]


def test_a_failed_write_of_the_durable_mark_is_final_too() -> None:
    disk = FaultyDisk()
    log = Log.open(disk, HEADER)
    disk.fail = lambda step, name: step == "write" and name == MARK_NAME
    with pytest.raises(LogFailed, match="Input/output error"):
        log.append([(140, "alpha", raw(order("a-4")))])
    with pytest.raises(LogFailed, match="takes nothing more"):
        log.sync()


@given(data=st.data())
def test_whatever_a_power_cut_leaves_of_what_was_not_synced_the_rest_is_there(data: st.DataObject) -> None:
    """Several lives of one market, each ended by a power cut that loses, reorders and tears unsynced sectors."""
    disk = FaultyDisk()
    durable: list[tuple[int, int, str, Command]] = []
    time_ns = 0
    for life in range(data.draw(st.integers(1, 3), label="lives")):
        log = Log.open(disk, HEADER, ahead=data.draw(st.sampled_from([0, 100, 5000]), label="ahead"))
        found = contents(disk)
        assert found[: len(durable)] == durable
        assert log.sequence == len(found)
        durable = found  # opening made it durable
        written = list(found)
        for step in range(data.draw(st.integers(0, 5), label="steps")):
            for write in range(data.draw(st.integers(1, 3), label="writes in one sync")):
                commands = [order(f"o-{life}-{step}-{write}-{i}") for i in range(data.draw(st.integers(1, 30)))]
                time_ns = max(time_ns, log.time_ns) + data.draw(st.integers(1, 5))
                at_once = data.draw(st.booleans(), label="durable at once")
                ticket = (log.append if at_once else log.write)([(time_ns, "alpha", raw(*commands))])
                assert ticket.first == len(written) + 1
                written += [(ticket.first + i, time_ns + i, "alpha", command) for i, command in enumerate(commands)]
                durable = list(written) if at_once else durable
                if data.draw(st.booleans(), label="mark"):
                    log.write_mark(log.sequence, b"e" * 32, b"s" * 32)
            if data.draw(st.booleans(), label="sync"):
                assert log.sync() == len(written)
                durable = list(written)
        kept = data.draw(st.integers(0, 2**64 - 1), label="sectors kept")
        disk = disk.crash(lambda i, kept=kept: bool(kept >> i % 64 & 1), data.draw(st.integers(0, 511), label="torn"))  # type: ignore[misc]
        survived = contents(disk)
        assert survived[: len(durable)] == durable
        assert survived == written[: len(survived)]


def test_after_the_death_of_the_process_everything_written_is_there_and_becomes_durable() -> None:
    disk = FaultyDisk()
    log = Log.open(disk, HEADER)
    three_batches(log)
    log.write([(140, "alpha", raw(order("a-4")))])

    disk.close()  # the kernel still has all that was written, and frees the lock
    reopened = Log.open(disk, HEADER)
    assert (reopened.sequence, reopened.durable_sequence) == (6, 6)
    assert len(contents(disk.crash(lambda _: False))) == 6


def test_nothing_is_left_half_done_when_power_goes_while_a_log_is_created() -> None:
    for fail_at in range(1, 6):
        disk = FaultyDisk()
        steps = iter(range(1, 100))
        disk.fail = lambda what, name, steps=steps, fail_at=fail_at: next(steps) == fail_at  # type: ignore[misc]
        try:
            Log.open(disk, HEADER)
        except OSError:
            disk.fail = lambda what, name: False
            disk = disk.crash(lambda _: False)
            with Log.open(disk, HEADER) as log:
                log.append([(1, "alpha", raw(order("a-1")))])
            assert len(contents(disk)) == 1


# --- a real process, really killed -----------------------------------------------------------------------------------

WRITER = """
import sys
from engine.commands import NewOrder
from engine.log import FileStorage, Header, Log, encode_commands
log = Log.open(FileStorage(sys.argv[1]), Header("0.1.0"), ahead=10_000)
print("open", log.sequence, flush=True)
while True:
    i = log.sequence + 1
    batch = [NewOrder(f"o-{i + j}", "KDX-2107", 0, 10, 100_000) for j in range(i % 40 + 1)]
    ticket = log.append([(log.time_ns + 1, "alpha", encode_commands(batch))])
    print(ticket.last, flush=True)
"""


def _kill_rounds(directory: Path, rounds: int, acknowledgements: int) -> None:
    acknowledged = 0
    for turn in range(rounds):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            word, sequence = process.stdout.readline().split()
            assert word == "open"
            assert int(sequence) >= acknowledged
            for _ in range(acknowledgements + turn * 7 % 13):
                acknowledged = int(process.stdout.readline())
        finally:
            process.kill()
            rest = process.communicate()[0].split("\n")
        acknowledged = max([acknowledged, *(int(line) for line in rest[:-1])])
        found = contents(FileStorage(directory, read_only=True))
        assert [sequence for sequence, *_ in found] == list(range(1, len(found) + 1))
        assert len(found) >= acknowledged
        assert all(isinstance(c, NewOrder) and c.client_order_id == f"o-{sequence}" for sequence, _, _, c in found)


def test_a_process_killed_while_appending_loses_nothing_it_had_acknowledged(tmp_path: Path) -> None:
    _kill_rounds(tmp_path, rounds=3, acknowledgements=20)


@pytest.mark.slow
def test_a_process_killed_many_times_while_appending_loses_nothing(tmp_path: Path) -> None:
    _kill_rounds(tmp_path, rounds=60, acknowledgements=100)
