"""Topic names of the bus, in one place. The level behind ``in`` and ``out`` is the participant: the broker's access
list ties it to the login, and it is the only statement of who sent something.

Members are not the only ones with a topic of their own: an operator has ``op/NAME/in`` and ``/out``, the login that
reads a copy of a member's reports ``copy/LOGIN/MEMBER/in`` and ``/out``. An *address* names any of them: a participant,
or ``op/NAME``, or ``copy/LOGIN/MEMBER``. No participant contains a slash, so none can be taken for another.
"""

from __future__ import annotations

from typing import Final

ROOT: Final = "dojima/v1"
STATUS: Final = f"{ROOT}/status"
ALL_IN: Final = f"{ROOT}/in/+"
ALL_OPERATORS_IN: Final = f"{ROOT}/op/+/in"
ALL_COPIES_IN: Final = f"{ROOT}/copy/+/+/in"
ALL_MARKET_DATA: Final = f"{ROOT}/md/+/+"

OPERATOR: Final = "op/"
COPY: Final = "copy/"
BY_ORDER: Final = "by_order/"


def operator(name: str) -> str:
    """The address of an operator."""
    return f"{OPERATOR}{name}"


def copy(login: str, participant: str) -> str:
    """The address at which ``login`` reads a copy of a member's reports."""
    return f"{COPY}{login}/{participant}"


def inbound(address: str) -> str:
    return f"{ROOT}/{address}/in" if "/" in address else f"{ROOT}/in/{address}"


def outbound(address: str) -> str:
    return f"{ROOT}/{address}/out" if "/" in address else f"{ROOT}/out/{address}"


def market_data(instrument: str, kind: str) -> str:
    """``kind`` is one of snapshot (retained), depth, trades, indicative, auction, phase, bust; or, on a topic further
    down and in a row of its own, ``by_order/changes`` and ``by_order/orders/PART`` (retained)."""
    return f"{ROOT}/md/{instrument}/{kind}"


def by_order(instrument: str) -> str:
    """The filter for all that is said of an instrument order by order."""
    return market_data(instrument, f"{BY_ORDER}#")


def sender_of(topic: str) -> str:
    """The address of whoever sent a message, by the topic it came on."""
    address = topic.removeprefix(f"{ROOT}/")
    return address.removeprefix("in/") if address.startswith("in/") else address.removesuffix("/in")
