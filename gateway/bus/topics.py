"""Topic names of the bus, in one place. The level behind ``in`` and ``out`` is the participant: the broker's access
list ties it to the login, and it is the only statement of who sent something."""

from __future__ import annotations

from typing import Final

ROOT: Final = "dojima/v1"
STATUS: Final = f"{ROOT}/status"
ALL_IN: Final = f"{ROOT}/in/+"
ALL_MARKET_DATA: Final = f"{ROOT}/md/+/+"


def inbound(participant: str) -> str:
    return f"{ROOT}/in/{participant}"


def outbound(participant: str) -> str:
    return f"{ROOT}/out/{participant}"


def market_data(instrument: str, kind: str) -> str:
    """``kind`` is one of snapshot (retained), depth, trades, indicative, auction, phase."""
    return f"{ROOT}/md/{instrument}/{kind}"


def participant_of(topic: str) -> str:
    """The sender of a message: the last level of its ``in`` topic."""
    return topic.rsplit("/", 1)[-1]
