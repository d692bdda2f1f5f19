"""Whoever has the log has the market: the same events, the same state, on every replay; and a changed log shows."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from engine.commands import Command
from engine.core import Engine
from engine.events import Event
from engine.faults import DigestMismatch, LogDamaged
from engine.log import LOG_NAME, FileStorage, Log, LogReader, MemoryStorage, encode_commands
from engine.log.digest import STATE_VERSION, DigestChain
from engine.log.log import MARK, Batch
from engine.log.replay import open_log, replay
from tests.engine.invent import STEP_NS, life
from tests.log.day import DAY, HEADER, OPEN_NS, Exchange, write_day
from tests.log.test_log import _header_chain, _reseal


def event_bytes(events: list[tuple[int, int, list[Event]]]) -> bytes:
    return b"".join(msgspec.msgpack.encode(entry) for entry in events)


def replayed(storage: MemoryStorage) -> tuple[bytes, bytes]:
    """All event bytes, and the state at the end."""
    events: list[tuple[int, int, list[Event]]] = []
    result = replay(storage, on_events=lambda n, t, p, c, e: events.append((n, t, e)))
    return event_bytes(events), result.engine.digest()


def told(storage: MemoryStorage) -> tuple[bytes, bytes]:
    """The same, where the engine writes events instead of making them: a replay that nobody listens to."""
    engine = Engine()
    said = b""
    for entry in LogReader(storage).entries(tickets=True):
        for time_ns, participant, commands in entry.groups if isinstance(entry, Batch) else ():
            said += engine.tell(commands, participant, time_ns)
    return said, engine.digest()


def test_a_replay_gives_the_same_event_bytes_and_state_as_the_first_time_every_time() -> None:
    storage = MemoryStorage()
    exchange = write_day(storage)
    once = replayed(storage)

    assert once == (event_bytes(exchange.events), exchange.engine.digest())
    assert replayed(storage) == once
    assert told(storage) == once


@pytest.mark.parametrize("pays", [True, False])
def test_a_replay_that_nobody_listens_to_agrees_whichever_reads_and_writes(
    pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.log.replay.PAYS", pays)
    storage = MemoryStorage()
    exchange = write_day(storage)

    result = replay(storage)

    assert (result.sequence, result.time_ns) == (exchange.engine.sequence, exchange.engine.time_ns)
    assert result.engine.digest() == exchange.engine.digest()
    assert result.digest.value() == exchange.digest.value()
    for until in range(1, exchange.engine.sequence):
        stopped = replay(storage, until=until)
        assert (stopped.sequence, stopped.engine.sequence, stopped.time_ns) == (until, until, stopped.engine.time_ns)


def test_batching_does_not_show_in_events_state_or_digest() -> None:
    found = set()
    for batch in (1, 2, 3, len(DAY)):
        storage = MemoryStorage()
        exchange = write_day(storage, batch, mark_every=0)
        found.add((*replayed(storage), exchange.digest.value()))
    assert len(found) == 1


@pytest.mark.parametrize("graceful", [True, False])
def test_a_restart_after_any_batch_is_as_if_there_had_been_none(graceful: bool) -> None:
    straight = MemoryStorage()
    whole = write_day(straight, mark_every=2)

    for stop in range(1, len(DAY)):
        storage = MemoryStorage()
        exchange = Exchange(Log.open(storage, HEADER))
        for i, message in enumerate(DAY[:stop]):
            exchange.commit(message, mark=(i + 1) % 2 == 0)
        if graceful:
            exchange.log.close()
        else:
            storage.close()
        before = exchange.events
        log = Log.open(storage, HEADER)
        result = replay(log.reader())
        exchange = Exchange(log, result.engine, result.digest)
        for i, message in enumerate(DAY[stop:], stop):
            exchange.commit(message, mark=(i + 1) % 2 == 0)

        assert before + exchange.events == whole.events
        assert exchange.engine.digest() == whole.engine.digest()
        assert exchange.digest.value() == whole.digest.value()
        log.close()
        assert [m[1:] for m in LogReader(storage).entries() if len(m) > 2] == [
            m[1:] for m in LogReader(straight).entries() if len(m) > 2
        ]


def test_an_invented_life_replays_and_may_be_restarted_anywhere() -> None:
    """All four market models, quotes that wait, kills, windows, funds, requests of operators: nothing is forgotten."""
    messages = [(member, [command]) for command, member in life(38, 700) if is_written(command)]
    straight = MemoryStorage()
    whole = Exchange(Log.open(straight, HEADER), step_ns=STEP_NS)
    for i, message in enumerate(messages):
        whole.commit(message, mark=i % 50 == 0)  # a replay compares the state at each mark
    whole.log.close()
    storage = MemoryStorage()
    exchange = Exchange(Log.open(storage, HEADER), step_ns=STEP_NS)
    for i, message in enumerate(messages):
        exchange.commit(message, mark=i % 50 == 0)
        if i % 300 == 299:
            storage.close()
            log = Log.open(storage, HEADER)
            result = replay(log.reader())
            assert result.engine.digest() == exchange.engine.digest()
            exchange = Exchange(log, result.engine, result.digest, STEP_NS)
    exchange.log.close()

    assert replayed(straight) == replayed(storage) == (event_bytes(whole.events), whole.engine.digest())
    assert told(straight) == (event_bytes(whole.events), whole.engine.digest())
    assert {type(event).__name__ for _, _, events in whole.events for event in events} >= {
        "QuoteChanged",
        "KillSwitched",
        "OperatorActed",
        "BalanceChanged",
        "Activated",
        "WindowBegan",
        "TradeBusted",
        "DisplayChanged",
    }


def is_written(command: Command) -> bool:
    """Whether a log can hold it: a caller of the library can send what no member could."""
    try:
        msgspec.msgpack.decode(encode_commands([command]), type=list[Command])
    except (OverflowError, UnicodeError, msgspec.ValidationError):
        return False
    return True


def test_what_a_replay_found_is_told() -> None:
    storage = MemoryStorage()
    exchange = write_day(storage, mark_every=3)
    seen: list[tuple[int, int]] = []
    result = replay(storage, progress=lambda done, total: seen.append((done, total)))

    assert result.complete
    assert (result.sequence, result.time_ns) == (exchange.engine.sequence, exchange.engine.time_ns)
    assert result.marks == len(DAY) // 3
    assert result.marked == exchange.events[-1][0] - sum(len(c) for _, c in DAY[len(DAY) // 3 * 3 :])
    assert result.digest.value() == exchange.digest.value()
    assert all(earlier < later for earlier, later in pairwise(done for done, _ in seen[:-1]))
    assert seen[-1] == (result.reader.end, result.reader.end)


def test_a_replay_until_any_sequence_stops_exactly_there() -> None:
    """Within a batch and at its end, where a mark follows that speaks of a later sequence."""
    storage = MemoryStorage()
    exchange = write_day(storage, batch=3, mark_every=1)
    for until in range(1, exchange.engine.sequence + 1):
        result = replay(storage, until=until)
        engine = Engine()
        for sequence, time_ns, participant, command in LogReader(storage).commands():
            if sequence <= until:
                engine.apply(command, participant, time_ns)
        assert result.sequence == until
        assert result.engine.digest() == engine.digest()
        assert not result.complete
    assert replay(storage, until=exchange.engine.sequence + 1).complete


def test_a_used_engine_is_refused() -> None:
    storage = MemoryStorage()
    exchange = write_day(storage)
    with pytest.raises(ValueError, match="Expected a fresh engine"):
        replay(storage, exchange.engine)


def _reseal_all(data: bytearray) -> None:
    """Make checksums and chain of a changed log right again, as somebody would who wants to hide the change."""
    chain = _header_chain(data)
    offset = 128
    while data[offset : offset + 4] == b"DREC":
        chain = _reseal(data, offset, chain)
        offset += 56 + struct.unpack_from("<I", data, offset + 24)[0]


def test_a_command_changed_with_checksums_and_chain_made_right_again_is_found_at_the_next_mark() -> None:
    storage = MemoryStorage()
    write_day(storage, mark_every=5)
    data = storage.files[LOG_NAME]
    at = data.index(b"\xa3a-1\xa8KDX-2107\x00\x0a") + 14
    data[at] = 11  # eleven units where ten were ordered
    _reseal_all(data)
    storage.files.pop("market.mark")
    list(LogReader(storage).commands())  # to the log alone it is a good log

    with pytest.raises(DigestMismatch, match="Expected event digest") as found:
        replay(storage)
    assert found.value.sequence == sum(len(commands) for _, commands in DAY[:5])
    assert found.value.offset == data.index(b"DREC", data.index(b"b-3"))


def test_a_mark_of_another_state_is_found_even_if_the_events_agree() -> None:
    storage = MemoryStorage()
    exchange = Exchange(Log.open(storage, HEADER))
    exchange.commit(*DAY[:3])
    exchange.log.write_mark(exchange.engine.sequence, exchange.digest.mark(), bytes(32))
    exchange.log.close()

    with pytest.raises(DigestMismatch, match="Expected state digest " + "00" * 32):
        replay(storage)


def _write_mark_of_version(exchange: Exchange, events_digest: bytes, state_digest: bytes, *version: int) -> None:
    """A mark as another build writes it: none that the first ones wrote, a number that later ones do."""
    exchange.log._append(
        MARK, 0, msgspec.msgpack.encode((exchange.log.sequence, events_digest, state_digest, *version))
    )


@pytest.mark.parametrize("version", [(STATE_VERSION + 1,), (STATE_VERSION + 1, "more"), ()])
def test_the_state_digest_of_another_version_is_not_compared_and_told(version: tuple[int, ...]) -> None:
    storage = MemoryStorage()
    exchange = Exchange(Log.open(storage, HEADER))
    exchange.commit(*DAY[:3])
    _write_mark_of_version(exchange, exchange.digest.mark(), bytes(32), *version)
    exchange.commit(*DAY[3:6], mark=True)
    exchange.log.close()

    result = replay(storage)

    assert (result.marks, result.other_states) == (2, 1)
    assert result.engine.digest() == exchange.engine.digest()


def test_the_events_are_compared_at_a_mark_of_any_version() -> None:
    storage = MemoryStorage()
    exchange = Exchange(Log.open(storage, HEADER))
    exchange.commit(*DAY[:3])
    _write_mark_of_version(exchange, bytes(32), bytes(32), STATE_VERSION + 1)
    exchange.log.close()

    with pytest.raises(DigestMismatch, match="Expected event digest " + "00" * 32):
        replay(storage)


def test_on_events_has_seen_everything_before_the_damage() -> None:
    storage = MemoryStorage()
    exchange = write_day(storage)
    data = storage.files[LOG_NAME]
    data[data.index(b"b-5")] ^= 1
    seen: list[int] = []
    commands: list[Command] = []
    with pytest.raises(LogDamaged) as damage:
        replay(storage, on_events=lambda n, t, p, c, e: (seen.append(n), commands.append(c))[0])
    assert seen == list(range(1, damage.value.sequence + 1))
    assert damage.value.sequence < exchange.engine.sequence
    assert commands[:2] == [DAY[0][1][0], DAY[1][1][0]]


def test_a_log_is_found_by_its_directory_or_its_file_under_any_name(tmp_path: Path) -> None:
    exchange = write_day(FileStorage(tmp_path))
    (tmp_path / "copy.log").write_bytes((tmp_path / LOG_NAME).read_bytes())

    for path in (tmp_path, tmp_path / LOG_NAME, tmp_path / "copy.log", str(tmp_path)):
        assert replay(path).sequence == exchange.engine.sequence
    assert replay(tmp_path / "copy.log").reader.mark_problem == "there is no copy.mark"
    with pytest.raises(FileNotFoundError, match=r"Expected an order log, found no .*none\.log"):
        open_log(tmp_path / "none.log")


# --- the digest ------------------------------------------------------------------------------------------------------


def test_event_bytes_at_hand_and_events_give_the_same_digest_however_they_come() -> None:
    exchange = write_day(MemoryStorage())
    one, other = DigestChain(), DigestChain()
    for sequence, time_ns, events in exchange.events * 40:  # beyond what is buffered
        one.update(sequence, time_ns, events)
    other.update_encoded(event_bytes(exchange.events * 39))
    assert one.value() != other.value()
    other.update_encoded(event_bytes(exchange.events))
    assert one.value() == other.value()
    assert one.mark() == other.mark()


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 65_535, 65_536])
def test_commands_taken_in_together_give_the_digest_of_each_by_itself(size: int) -> None:
    said = [
        (number, OPEN_NS + number, events) for number, (_, _, events) in enumerate(write_day(MemoryStorage()).events)
    ]
    said = (said * (size // len(said) + 1))[:size]
    one, other = DigestChain(), DigestChain()
    for entry in said:
        one.update(*entry)
    other.update_all(said)
    assert one.value() == other.value()


def test_a_digest_goes_on_from_a_mark() -> None:
    exchange = write_day(MemoryStorage())
    whole = DigestChain()
    for entry in exchange.events[:10]:
        whole.update(*entry)
    resumed = DigestChain(whole.mark())
    for entry in exchange.events[10:]:
        whole.update(*entry)
        resumed.update(*entry)
    assert whole.value() == resumed.value() == whole.mark() == resumed.mark()
    assert whole.value() == resumed.value()


@pytest.mark.parametrize("change", ["sequence", "time", "event", "order"])
def test_a_digest_shows_any_difference(change: str) -> None:
    entries = write_day(MemoryStorage()).events
    changed = list(entries)
    sequence, time_ns, events = changed[5]
    if change == "sequence":
        changed[5] = (sequence + 1, time_ns, events)
    elif change == "time":
        changed[5] = (sequence, time_ns + 1, events)
    elif change == "event":
        changed[5] = (sequence, time_ns, [])
    else:
        changed[5], changed[6] = changed[6], changed[5]
    one, other = DigestChain(), DigestChain()
    one.update_encoded(event_bytes(entries))
    other.update_encoded(event_bytes(changed))
    assert one.value() != other.value()
