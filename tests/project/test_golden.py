"""Logs of yesterday replay today, on every Python, to the same bytes.

The files in ``golden/`` were written by an earlier build and are never written again: they stand for the logs of our
users. Compared is what members were told, the event bytes. A change that fails here changes what a recorded command
means. Then the rule behind it needs a switch that old logs do not have, or, if the format itself has to move, a new
format version beside the old. New behaviour gets a new file here.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec
import pytest

from engine import Engine, Event, InstrumentRebuilt, InstrumentSetAside, Traded
from engine.log.digest import STATE_VERSION
from engine.log.replay import open_log, replay

FOLDER = Path(__file__).with_name("golden")


class Known(NamedTuple):
    commands: int
    trades: int
    events: str  #: SHA-256 over the event bytes of all commands, see docs/log-format.md


GOLDEN = {
    #: ``dojima demo --tokens 5 --seconds 12``: eight firms, two calls, settlement days behind it
    "start-day.log": Known(497, 103, "0f35473a638c9268b0d6aa60a1e1c87e1721713e22389e38e13fc6734f2dc17d"),
    #: ``tests.log.day``: a bit of everything, a START book and a CONTINUOUS one side by side
    "both-profiles.log": Known(36, 5, "1622b67ab72a86636f7bae0c385c2bc888b6c3609ee658173b8675cf1bee5f58"),
    #: ``tests.engine.invent`` (seed 8, 1,000 commands), then by hand a day of TSE_HYBRID with both kinds of quotes,
    #: funari and imbalance-only orders, a volatility call, and what operators ask for
    "four-models.log": Known(1741, 198, "3441d2a57099abc87b3bdac836f80567bce871abd69ae235ff30c0469a484eb7"),
}

#: ``STATE_VERSION``, and what the state comes to at the end.
STATES = {
    "start-day.log": (11, "1271a8444d2d98f20b38eaddc20c53b4bf5fece416583def844317e878663ba9"),
    "both-profiles.log": (11, "7d035f684a27cf5f2143a967cf96343a65ca738eae0fd59c0bf301bd7df84274"),
    "four-models.log": (11, "17aa30e029323ff4ca19fbebb9520f7206a98d2dd0a08221b464c74cfd7e1cdb"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_log_of_an_earlier_build_gives_the_bytes_it_always_gave(name: str) -> None:
    engine = Engine()
    digest = sha256()
    trades = 0

    for sequence, time_ns, participant, command in open_log(FOLDER / name).commands():
        events = engine.apply(command, participant, time_ns)
        digest.update(msgspec.msgpack.encode([sequence, time_ns, events]))
        trades += sum(isinstance(event, Traded) for event in events)

    assert Known(engine.sequence, trades, digest.hexdigest()) == GOLDEN[name]


@pytest.mark.parametrize("name", STATES)
def test_a_state_digest_is_made_of_the_same_as_others_of_its_version(name: str) -> None:
    """Whoever changes what ``Engine.mark_digest`` is made of raises ``STATE_VERSION``, and puts both here anew."""
    found = replay(FOLDER / name).engine.mark_digest().hex()

    assert (STATE_VERSION, found) == STATES[name]


def test_the_golden_logs_hold_every_event_but_those_of_a_defect() -> None:
    found = set()
    for name in GOLDEN:
        engine = Engine()
        for _, time_ns, participant, command in open_log(FOLDER / name).commands():
            found |= {type(event) for event in engine.apply(command, participant, time_ns)}

    assert set(get_args(Event)) - found == {InstrumentSetAside, InstrumentRebuilt}


def test_every_golden_log_is_replayed() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(GOLDEN)
