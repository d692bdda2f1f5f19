"""A market small enough for settlement tests: a listing, days and trades as events, and a clock that stands still."""

from __future__ import annotations

from engine.events import DayStarted, InstrumentListed, TradeBusted, Traded
from gateway.settlement.adapter import Instruction, Kind
from gateway.settlement.instructions import seal

T0 = 1_795_000_000 * 10**9
TRADE_DATE, SETTLE_DATE, NEXT_DATE = 20261124, 20261126, 20261127


class Clock:
    """Nanoseconds since the epoch, moved by hand."""

    def __init__(self, now: int = T0) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: int) -> None:
        self.now += seconds * 10**9


def listed(instrument: str = "KDX-2107", ledger: str = "embedded", price_decimals: int = 0) -> InstrumentListed:
    return InstrumentListed(
        instrument=instrument,
        profile="START",
        lot=1,
        price_decimals=price_decimals,
        reference_price=0,
        settlement_days=2,
        ledger=ledger,
    )


def traded(
    trade_id: int = 1,
    *,
    instrument: str = "KDX-2107",
    seller: str = "alpha",
    buyer: str = "bravo",
    quantity: int = 10,
    price: int = 100,
    sell_account: str = "",
    buy_account: str = "",
    trade_date: int = TRADE_DATE,
    settlement_date: int = SETTLE_DATE,
) -> Traded:
    return Traded(
        trade_id=trade_id,
        instrument=instrument,
        price=price,
        quantity=quantity,
        buyer=buyer,
        buy_client_order_id=f"b-{trade_id}",
        buy_order_id=2 * trade_id,
        buy_open=0,
        buy_account=buy_account,
        seller=seller,
        sell_client_order_id=f"s-{trade_id}",
        sell_order_id=2 * trade_id + 1,
        sell_open=0,
        sell_account=sell_account,
        maker=-1,
        trade_date=trade_date,
        settlement_date=settlement_date,
    )


def busted(trade: Traded) -> TradeBusted:
    return TradeBusted(
        trade_id=trade.trade_id,
        instrument=trade.instrument,
        price=trade.price,
        quantity=trade.quantity,
        buyer=trade.buyer,
        buy_client_order_id=trade.buy_client_order_id,
        buy_order_id=trade.buy_order_id,
        buy_account=trade.buy_account,
        seller=trade.seller,
        sell_client_order_id=trade.sell_client_order_id,
        sell_order_id=trade.sell_order_id,
        sell_account=trade.sell_account,
        trade_date=trade.trade_date,
    )


def day(date: int = TRADE_DATE) -> DayStarted:
    return DayStarted(date=date)


def instruction(
    ins_id: str = "i-1",
    *,
    seller: str = "alpha",
    buyer: str = "bravo",
    asset: str = "KDX-2107",
    quantity: int = 10,
    cash: int = 1000,
    currency: str = "JPY",
    kind: Kind = Kind.DVP,
    partial_ok: bool = False,
) -> Instruction:
    return seal(
        Instruction(
            id=ins_id,
            hash="",
            version=1,
            trade_ids=(1,),
            seller=seller,
            buyer=buyer,
            asset=asset,
            quantity=quantity,
            cash=cash,
            currency=currency,
            trade_date=TRADE_DATE,
            settle_date=SETTLE_DATE,
            kind=kind,
            partial_ok=partial_ok,
        )
    )
