"""A market as a library: commands in, events out, nothing else.

An opening auction in a notebook:

>>> from engine import *
>>> market = Engine()
>>> for command in ListInstrument("KDX-2107"), StartDay(20261124), SetPhase("KDX-2107", Phase.PRE_OPEN):
...     events = market.apply(command)
>>> events = market.apply(NewOrder("a-1", "KDX-2107", Side.BUY, 30, 100_500), "alpha")
>>> events = market.apply(NewOrder("b-1", "KDX-2107", Side.SELL, 20, 99_500), "beta")
>>> market.indicative("KDX-2107")
Equilibrium(price=100500, volume=20, surplus=10)
>>> events = market.apply(SetPhase("KDX-2107", Phase.PRE_OPEN_NCP))
>>> changed, result, trade = market.apply(SetPhase("KDX-2107", Phase.OPENING_AUCTION))
>>> f"{trade.quantity} at {trade.price}: {trade.buyer} from {trade.seller}"
'20 at 100500: alpha from beta'

``Engine.apply`` is the engine; ``engine/core.py`` is where to start reading, ``engine/types.py`` has the words.
"""

from typing import Final

from engine.backend import confirm as _confirm
from engine.commands import (
    AmendOrder,
    CancelOrder,
    Command,
    LimitRow,
    ListInstrument,
    MassCancel,
    MemberCommand,
    NewOrder,
    ResumeInstrument,
    SetCalendar,
    SetLimitTable,
    SetPhase,
    SetReferencePrice,
    SetTickTable,
    StartDay,
    SuspendInstrument,
    TickRow,
)
from engine.core import Engine
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    Cancelled,
    DayLimitsSet,
    DayStarted,
    DisplayChanged,
    Event,
    InstrumentListed,
    MassCancelled,
    PhaseChanged,
    ReferenceDataSet,
    ReferencePriceSet,
    Rejected,
    SelfTradePrevented,
    Traded,
    TradingStateChanged,
)
from engine.market import InstrumentView, OrderView
from engine.types import CancelReason, OrderType, Phase, Reason, SelfTrade, Side, TimeInForce

#: Which engine is loaded, "compiled" or "interpreted": the same source. ``DOJIMA_BACKEND`` chooses.
BACKEND: Final = _confirm()

__all__ = [
    "BACKEND",
    "Accepted",
    "Activated",
    "AmendOrder",
    "Amended",
    "AuctionUncrossed",
    "CancelOrder",
    "CancelReason",
    "Cancelled",
    "Command",
    "DayLimitsSet",
    "DayStarted",
    "DisplayChanged",
    "Engine",
    "Event",
    "InstrumentListed",
    "InstrumentView",
    "LimitRow",
    "ListInstrument",
    "MassCancel",
    "MassCancelled",
    "MemberCommand",
    "NewOrder",
    "OrderType",
    "OrderView",
    "Phase",
    "PhaseChanged",
    "Reason",
    "ReferenceDataSet",
    "ReferencePriceSet",
    "Rejected",
    "ResumeInstrument",
    "SelfTrade",
    "SelfTradePrevented",
    "SetCalendar",
    "SetLimitTable",
    "SetPhase",
    "SetReferencePrice",
    "SetTickTable",
    "Side",
    "StartDay",
    "SuspendInstrument",
    "TickRow",
    "TimeInForce",
    "Traded",
    "TradingStateChanged",
]
