"""Every kind of order that a market model can offer, read from the table of ``engine/profiles.py``.

For whoever invents orders: a kind that is new in the table is drawn from then on, and nobody has to think of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from engine.profiles import (
    ICEBERG,
    MINIMUM,
    NOT_OFFERED,
    POST_ONLY,
    PROFILES,
    SELF_TRADE,
    STOPS,
    UNPRICED,
    Rules,
    meaning,
)
from engine.types import OrderType, Phase, SelfTrade, TimeInForce


class Kind(NamedTuple):
    type: OrderType
    validity: TimeInForce
    option: int  #: 0: none


def everything(profile: str) -> Rules:
    """A profile with all that it can offer."""
    wanted = {"imbalance_only": 1, "break_new": 1, "call_ncp": 1}
    return Rules(PROFILES[profile], {name: wanted[name] for name in wanted if name in PROFILES[profile].parameters})


#: All kinds that a profile can offer.
KINDS = {
    profile: [
        Kind(order_type, validity, option)
        for order_type in OrderType
        for validity in TimeInForce
        for option in (0, ICEBERG, POST_ONLY, MINIMUM, SELF_TRADE)
        if meaning(everything(profile), Phase.CLOSED, order_type, validity, option) != NOT_OFFERED
    ]
    for profile in PROFILES
}


def terms(
    kind: Kind, stop_price: int, expire_date: int, display_quantity: int, minimum_quantity: int, self_trade: SelfTrade
) -> dict[str, Any]:
    """What makes a limit order one of ``kind``: of the rest, what this kind has to say."""
    made: dict[str, Any] = {"order_type": kind.type, "time_in_force": kind.validity}
    if UNPRICED & 1 << kind.type:
        made["price"] = 0
    if STOPS & 1 << kind.type:
        made["stop_price"] = stop_price
    if kind.validity == TimeInForce.GTD:
        made["expire_date"] = expire_date
    if kind.option == ICEBERG:
        made["display_quantity"] = display_quantity
    elif kind.option == MINIMUM:
        made["minimum_quantity"] = minimum_quantity
    elif kind.option == SELF_TRADE:
        made["self_trade"] = self_trade
    elif kind.option == POST_ONLY:
        made["post_only"] = True
    return made
