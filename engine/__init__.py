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
    BustTrade,
    CancelOrder,
    Command,
    Disconnected,
    Kill,
    LimitRow,
    ListInstrument,
    MassCancel,
    MemberCommand,
    NewOrder,
    OperatorConfirm,
    OperatorDecline,
    OperatorRequest,
    Restore,
    ResumeInstrument,
    SetCalendar,
    SetLimitTable,
    SetPhase,
    SetReferencePrice,
    SetRiskLimits,
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
    CancelFrozen,
    Cancelled,
    ConnectionLost,
    DayLimitsSet,
    DayStarted,
    DisplayChanged,
    Event,
    InstrumentListed,
    KillSwitched,
    LargeOrderAlerted,
    MassCancelled,
    OperatorActed,
    OperatorDeclined,
    OperatorRefused,
    OperatorRequested,
    PhaseChanged,
    PhaseTimed,
    ReferenceDataSet,
    ReferencePriceSet,
    Rejected,
    RiskLimitsSet,
    SelfTradePrevented,
    TradeBusted,
    Traded,
    TradingStateChanged,
    VolatilityInterrupted,
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
    "BustTrade",
    "CancelFrozen",
    "CancelOrder",
    "CancelReason",
    "Cancelled",
    "Command",
    "ConnectionLost",
    "DayLimitsSet",
    "DayStarted",
    "Disconnected",
    "DisplayChanged",
    "Engine",
    "Event",
    "InstrumentListed",
    "InstrumentView",
    "Kill",
    "KillSwitched",
    "LargeOrderAlerted",
    "LimitRow",
    "ListInstrument",
    "MassCancel",
    "MassCancelled",
    "MemberCommand",
    "NewOrder",
    "OperatorActed",
    "OperatorConfirm",
    "OperatorDecline",
    "OperatorDeclined",
    "OperatorRefused",
    "OperatorRequest",
    "OperatorRequested",
    "OrderType",
    "OrderView",
    "Phase",
    "PhaseChanged",
    "PhaseTimed",
    "Reason",
    "ReferenceDataSet",
    "ReferencePriceSet",
    "Rejected",
    "Restore",
    "ResumeInstrument",
    "RiskLimitsSet",
    "SelfTrade",
    "SelfTradePrevented",
    "SetCalendar",
    "SetLimitTable",
    "SetPhase",
    "SetReferencePrice",
    "SetRiskLimits",
    "SetTickTable",
    "Side",
    "StartDay",
    "SuspendInstrument",
    "TickRow",
    "TimeInForce",
    "TradeBusted",
    "Traded",
    "TradingStateChanged",
    "VolatilityInterrupted",
]
