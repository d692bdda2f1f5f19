"""Rebuild a market from its log, and prove that it is the one that was.

Three things are compared on the way: the log with itself (checksums, chain, dense numbers, increasing stamps), what the
engine says now with what it said then (the running digest of event bytes at each digest mark), and the state it reaches
with the state it had; a state digest that is made of other things than this build's (``STATE_VERSION``) cannot be
compared, which is counted and leaves the events as proof. So a start after a crash, a resend of old reports and an
auditor with a copy of the file all go through here, and none of them can read past a difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

from engine.commands import Command
from engine.core import Engine
from engine.events import Event
from engine.faults import DigestMismatch
from engine.log.digest import STATE_VERSION, DigestChain
from engine.log.log import LOG_NAME, LogReader, Mark
from engine.log.storage import FileStorage, Storage
from engine.wire import PAYS

OnEvents = Callable[[int, int, str, Command, list[Event]], None]
"""Called with (sequence, time_ns, participant, command, events) right after each command was applied."""

Progress = Callable[[int, int], None]
"""Called with (bytes replayed, bytes in all) now and then; the last call has both the same."""


class ReplayResult(NamedTuple):
    """A market as its log says it is, up to ``sequence``."""

    engine: Engine
    digest: DigestChain  #: go on from here; ``value()`` is the digest of the events since the last mark
    sequence: int  #: last command applied
    time_ns: int  #: its stamp; 0 if there is none
    marks: int  #: digest marks that agreed
    other_states: int  #: of these, marks whose state digest another version made: only the events were compared
    marked: int  #: sequence of the last of them
    reader: LogReader  #: for ``header``, ``torn``, ``mark_problem``, ``end``, ``chain``
    complete: bool  #: the end of the log was reached, not the sequence asked for


def open_log(path: str | os.PathLike[str]) -> LogReader:
    """A reader of a log file, or of the log in a directory; disturbs no exchange that writes there.

    Raises FileNotFoundError that says what was expected where, and LogDamaged.
    """
    place = Path(path)
    name = LOG_NAME
    if not place.is_dir():
        place, name = place.parent, place.name
    try:
        return LogReader(FileStorage(place, read_only=True), name)
    except FileNotFoundError:
        raise FileNotFoundError(f"Expected an order log, found no {place / name}") from None


def replay(
    source: LogReader | Storage | str | os.PathLike[str],
    engine: Engine | None = None,
    on_events: OnEvents | None = None,
    *,
    until: int | None = None,
    progress: Progress | None = None,
) -> ReplayResult:
    """Apply every command of a log, up to and including ``until``, and verify all that the log lets one verify.

    With ``until`` nothing behind the record that holds it is looked at, a digest mark neither.

    ``engine`` must be fresh; None makes one. Raises LogDamaged where the log does not check out, DigestMismatch where
    the market it gives is not the one recorded; ``on_events`` has then seen all commands before.
    """
    if isinstance(source, LogReader):
        reader = source
    elif isinstance(source, str | os.PathLike):
        reader = open_log(source)
    else:
        reader = LogReader(source)
    if engine is None:
        engine = Engine()
    elif engine.sequence:
        raise ValueError(f"Expected a fresh engine, got one at sequence {engine.sequence}")
    digest = DigestChain()
    apply = engine.apply
    update = digest.update_all
    size = reader.size()
    sequence = time_ns = marks = other_states = marked = 0
    last = until if until is not None else 2**63
    complete = False
    # Who listens is told commands and events; the engine alone takes tickets, and says bytes, in compiled code faster.
    unheard = on_events is None and PAYS
    for entry in reader.entries(tickets=unheard):
        if isinstance(entry, Mark):
            recorded, replayed = entry.events_digest, digest.mark()
            what = "event digest"
            if recorded == replayed and entry.state_version != STATE_VERSION:
                other_states += 1
            elif recorded == replayed:
                recorded, replayed = entry.state_digest, engine.mark_digest()
                what = "state digest"
            if recorded != replayed:
                raise DigestMismatch(
                    what, sequence=sequence, offset=entry.record.offset, recorded=recorded, replayed=replayed
                )
            marks += 1
            marked = sequence
            continue
        for start_ns, participant, commands in entry.groups:
            if unheard:
                count = min(len(commands), last - sequence)
                if count:
                    digest.update_encoded(engine.tell(commands[:count], participant, start_ns))
                    sequence += count
                    time_ns = start_ns + count - 1
                continue
            stamp = start_ns
            said: list[tuple[int, int, list[Event]]] = []
            for command in commands:
                if sequence >= last:
                    break
                events = apply(command, participant, stamp)
                sequence += 1
                time_ns = stamp
                said.append((sequence, stamp, events))
                if on_events is not None:
                    on_events(sequence, stamp, participant, cast("Command", command), events)
                stamp += 1
            update(said)
        if progress is not None:
            progress(entry.record.end, size)
        if sequence >= last:
            break  # without a look at what follows: it may be the damage that one wants to stop before
    else:
        complete = True
    if progress is not None:
        progress(size, size)
    return ReplayResult(engine, digest, sequence, time_ns, marks, other_states, marked, reader, complete)
