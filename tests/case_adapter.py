"""Drives the real engine, command by command, for the matching cases of ``tests/cases``.

A case speaks of decimal prices, local ids and a book that is simply there. Here it becomes an instrument of the profile
CONTINUOUS whose price unit divides every price and reference of the case, and whose tick is the case's own; owners
become members, ids become client_order_ids, and every step is a command through ``Engine.apply``.

``Unsupported`` names what the engine does not do; a case that needs it is skipped, not passed.
"""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from typing import Any

from engine import (
    AmendOrder,
    AuctionUncrossed,
    Cancelled,
    CancelOrder,
    Command,
    Engine,
    Event,
    ListInstrument,
    MassCancel,
    NewOrder,
    OrderType,
    Phase,
    Rejected,
    SelfTrade,
    SetPhase,
    SetReferencePrice,
    SetTickTable,
    Side,
    StartDay,
    TickRow,
    TimeInForce,
    Traded,
)
from engine.profiles import CHOICES

# The runner may be the copy beside this file or one elsewhere; its own classes are the ones it can compare.
if "run_cases" in sys.modules:
    import run_cases
else:
    from tests.cases import run_cases

CODE = "CASE"
SIDES = {"buy": Side.BUY, "sell": Side.SELL}
TYPES = {
    "limit": OrderType.LIMIT,
    "market": OrderType.MARKET,
    "mtl": OrderType.MARKET_TO_LIMIT,
    "stop": OrderType.STOP,
    "stop_limit": OrderType.STOP_LIMIT,
}
MODES = {
    "none": "none",
    "cancel_maker": "cancel_oldest",
    "cancel_taker": "cancel_newest",
    "cancel_both": "cancel_both",
    "decrement": "decrement",
    "reject": "reject",
}
VALIDITIES = {
    "gtc": TimeInForce.GTC,
    "day": TimeInForce.DAY,
    "ioc": TimeInForce.IOC,
    "fok": TimeInForce.FOK,
}
#: Rules that are on or off and have the same name here.
SWITCHES = ("market_rests", "qty_up_keeps_priority", "mtl_needs_limit")
#: Rules that name a variant and have the same name here.
VARIANTS = ("iceberg_entry", "iceberg_uncross")


def whole(value: Decimal, unit: Decimal) -> int:
    """``value`` in units; the case's own numbers always come out whole."""
    units = value / unit
    if units != units.to_integral_value():
        raise ValueError(f"Expected a multiple of {unit}, got {value}")
    return int(units)


def common_unit(values: list[Decimal]) -> Decimal:
    """The largest unit that divides all of them."""
    exponent = min(0, *(int(value.normalize().as_tuple().exponent) for value in values))
    scale = Decimal(1).scaleb(exponent)
    return math.gcd(*(int(value / scale) for value in values)) * scale


class Adapter(run_cases.EngineAdapter):
    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__(case)
        if self.rules.get("reuse_id"):
            raise run_cases.Unsupported("reuse_id")  # an id is one order for the life of the log
        references = [Decimal(step["price"]) for step in case["steps"] if step["op"] == "reference"]
        if "reference" in self.rules:
            references.append(Decimal(self.rules["reference"]))
        self.unit = common_unit([self.tick, *references])
        self.engine = Engine()
        self.members: dict[str, str] = {}  #: participant by owner
        self.owners: dict[str, str] = {}  #: participant by the case's order id
        self.client_order_ids: dict[str, str] = {}
        self.ids: dict[str, str] = {}  #: and back
        self.requests = 0
        reference = whole(Decimal(self.rules["reference"]), self.unit) if "reference" in self.rules else 0
        rules: dict[str, int | str] = {"self_trade": self.mode(self.rules.get("stp", "none"))}
        if "auction" in self.rules:
            rules["auction_price"] = self.rules["auction"]
        for rule in SWITCHES:
            if rule in self.rules:
                rules[rule] = int(self.rules[rule])
        for rule in VARIANTS:
            if rule in self.rules:
                rules[rule] = self.variant(rule, self.rules[rule])
        for command in (
            SetTickTable("case", 0, [TickRow(0, whole(self.tick, self.unit))]),
            ListInstrument(CODE, "CONTINUOUS", reference, tick_table="case", rules=rules),
            StartDay(20261124),
            SetPhase(CODE, Phase.CONTINUOUS),
        ):
            self.operate(command)

    @staticmethod
    def mode(name: str) -> str:
        if name not in MODES:
            raise run_cases.Unsupported(f"stp {name}")
        return MODES[name]

    @staticmethod
    def variant(rule: str, value: str) -> str:
        if value not in CHOICES[rule]:
            raise run_cases.Unsupported(f"{rule} {value}")
        return value

    # --- helpers -----------------------------------------------------------------------------------------------------

    def operate(self, command: Command) -> list[Event]:
        """A command of the exchange, which has to succeed."""
        events = self.engine.apply(command)
        for event in events:
            if isinstance(event, Rejected):
                raise AssertionError(event.text)
        return events

    def member(self, owner: str | None) -> str:
        """Everybody without an owner is one member: such orders have no group of their own."""
        return self.members.setdefault(owner or "", f"member-{len(self.members)}")

    def client_order_id(self, oid: str) -> str:
        name = self.client_order_ids.setdefault(oid, f"order-{len(self.client_order_ids)}")
        self.ids[name] = oid
        return name

    def request_id(self) -> str:
        self.requests += 1
        return f"request-{self.requests}"

    def order_id(self, oid: str) -> int:
        if oid not in self.owners:
            return 0
        return self.engine.order_id(self.owners[oid], self.client_order_id(oid))

    def units(self, price: str | None) -> int:
        return whole(Decimal(price), self.unit) if price is not None else 0

    def price(self, units: int) -> Decimal:
        return units * self.unit

    def send(self, command: Command, participant: str) -> Any:
        """A member's command, and what it did in the words of the runner."""
        events = self.engine.apply(command, participant)
        result = run_cases.Result()
        for event in events:
            if isinstance(event, Rejected):
                result.accepted = False
                result.reason = event.text
            elif getattr(event, "repeat", False):
                result.accepted = False
                result.reason = "a repeat, without effect"
            elif isinstance(event, Traded):
                buy, sell = self.ids[event.buy_client_order_id], self.ids[event.sell_client_order_id]
                maker, taker = (buy, sell) if event.maker == Side.BUY else (sell, buy)
                result.trades.append(run_cases.Trade(maker, taker, self.price(event.price), event.quantity))
            elif isinstance(event, Cancelled):
                result.cancelled.append(self.ids[event.client_order_id])
        return result

    # --- steps -------------------------------------------------------------------------------------------------------

    def new(self, step: dict[str, Any]) -> Any:
        if step["type"] not in TYPES:
            raise run_cases.Unsupported(step["type"])
        oid = step["id"]
        # An id is one name for the whole case, whoever uses it again.
        participant = self.owners.setdefault(oid, self.member(step.get("owner")))
        # Without an account there is no group, so nothing to prevent.
        if not step.get("owner"):
            mode = SelfTrade.NONE
        else:
            mode = SelfTrade[self.mode(step["stp"]).upper()] if step.get("stp") else SelfTrade.DEFAULT
        order = NewOrder(
            self.client_order_id(oid),
            CODE,
            SIDES[step["side"]],
            step["qty"],
            self.units(step.get("price")),
            TYPES[step["type"]],
            VALIDITIES[step["tif"]],
            display_quantity=step.get("display_qty") or 0,
            stop_price=self.units(step.get("stop_price")),
            post_only=bool(step.get("post_only")),
            self_trade=mode,
        )
        return self.send(order, participant)

    def cancel(self, step: dict[str, Any]) -> Any:
        oid = step["id"]
        participant = self.member(step["owner"]) if step.get("owner") else self.owners.get(oid, self.member(None))
        return self.send(CancelOrder(self.request_id(), self.client_order_id(oid)), participant)

    def replace(self, step: dict[str, Any]) -> Any:
        oid = step["id"]
        if step.get("qty") == 0:  # a total of nothing ends the order; an amend's 0 leaves the quantity alone
            return self.cancel(step)
        amend = AmendOrder(
            self.request_id(),
            self.client_order_id(oid),
            step.get("qty", 0),
            self.units(step.get("price")),
        )
        return self.send(amend, self.owners.get(oid, self.member(None)))

    def mass_cancel(self, step: dict[str, Any]) -> Any:
        price_from = math.ceil(Decimal(step.get("price_from", "0")) / self.unit)
        price_to = math.floor(Decimal(step["price_to"]) / self.unit) if "price_to" in step else 0
        total = run_cases.Result()
        if "price_to" in step and (price_to < 1 or price_to < price_from):
            return total  # no order can have such a price
        side = SIDES[step["side"]] if step.get("side") else None
        for member in [self.member(step["owner"])] if step.get("owner") else list(self.members.values()):
            command = MassCancel(self.request_id(), CODE, side, max(price_from, 0), price_to)
            result = self.send(command, member)
            total.accepted = total.accepted and result.accepted
            total.reason = total.reason or result.reason
            total.cancelled.extend(result.cancelled)
        return total

    def set_reference(self, price: Decimal) -> None:
        self.operate(SetReferencePrice(CODE, whole(price, self.unit)))

    def open_call(self) -> None:
        self.operate(SetPhase(CODE, Phase.CALL))

    def indicative(self) -> Any:
        found = self.engine.indicative(CODE)
        return run_cases.Auction(self.price(found.price) if found.price else None, found.volume, found.surplus)

    def uncross(self) -> Any:
        result = run_cases.Result()
        for event in self.operate(SetPhase(CODE, Phase.CALL_AUCTION)):
            if isinstance(event, AuctionUncrossed):
                price = self.price(event.price) if event.price else None
                result.auction = run_cases.Auction(price, event.volume, event.surplus)
            elif isinstance(event, Traded):
                for name in (event.buy_client_order_id, event.sell_client_order_id):
                    oid = self.ids[name]
                    result.fills[oid] = result.fills.get(oid, 0) + event.quantity
            elif isinstance(event, Cancelled):
                result.cancelled.append(self.ids[event.client_order_id])
        self.operate(SetPhase(CODE, Phase.CONTINUOUS))
        self.engine.check()
        return result

    # --- questions ---------------------------------------------------------------------------------------------------

    def book(self) -> dict[str, list[tuple[Decimal, int]]]:
        bids, asks = self.engine.depth(CODE)
        return {
            "bids": [(self.price(price), quantity) for price, quantity in bids if price],
            "asks": [(self.price(price), quantity) for price, quantity in asks if price],
        }

    def order(self, oid: str) -> dict[str, int] | None:
        number = self.order_id(oid)
        if not number:
            return None
        view = self.engine.order(number)
        return {"open": view.open_quantity, "displayed": view.displayed} if view.open_quantity else None

    def queue(self, side: str) -> list[str]:
        orders = self.engine.queue(CODE, SIDES[side])
        return [self.ids[self.engine.order(order).client_order_id] for order in orders]
