"""The fields of an order, or of a cancel, as its way through the engine needs them.

A message is an object of an interpreted class: to read one of its fields from compiled code costs a hundred
instructions, and an order on its way through checks, book and events is asked thirty times. So it travels as a ticket,
whose attributes compiled code finds by their place, and ids are left in the bytes they came in. A cancel travels in the
same way. ``engine/wire.py`` makes tickets straight from bytes; of a ``NewOrder`` that a caller of the library has made,
``ticket_of`` takes the fields out at once.
"""

from __future__ import annotations

from typing import Final, final

from msgspec.structs import astuple
from mypy_extensions import mypyc_attr

from engine.commands import CancelOrder, NewOrder
from engine.names import Name, name_of
from engine.types import OrderType, SelfTrade, Side, TimeInForce

# Compiled code asks an enum's class for its members by name, each time: as much as ten comparisons. These it knows.
MARKET_ORDER: Final = 1
SELF_TRADE_NONE: Final = 1
SELF_TRADE_REJECT: Final = 6
assert (MARKET_ORDER, SELF_TRADE_NONE, SELF_TRADE_REJECT) == (OrderType.MARKET, SelfTrade.NONE, SelfTrade.REJECT)

_Fields = tuple[str, str, int, int, int, int, int, str, int, int, int, bool, int, int, bool]
_fields: Final = astuple


@final
@mypyc_attr(acyclic=True)
class OrderTicket:
    """A ``NewOrder``: the fields of ``engine.commands.NewOrder`` under their names, enums as plain numbers.

    A caller of the library can send any number there; the checks refuse it.
    """

    def __init__(
        self,
        name: Name,
        instrument: str,
        side: int,
        quantity: int,
        price: int,
        order_type: int,
        time_in_force: int,
        account: str,
        display_quantity: int,
        stop_price: int,
        minimum_quantity: int,
        post_only: bool,
        self_trade: int,
        expire_date: int,
        confirmed: bool,
        command: NewOrder | None,
    ) -> None:
        """``name`` is its client_order_id, ``command`` what the fields were taken from, if it was an object."""
        self.name: Final = name
        self.instrument: Final = instrument
        self.side: Final = side
        self.quantity: Final = quantity
        self.price: Final = price
        self.order_type: Final = order_type
        self.time_in_force: Final = time_in_force
        self.account: Final = account
        self.display_quantity: Final = display_quantity
        self.stop_price: Final = stop_price
        self.minimum_quantity: Final = minimum_quantity
        self.post_only: Final = post_only
        self.self_trade: Final = self_trade
        self.expire_date: Final = expire_date
        self.confirmed: Final = confirmed
        self._command: Final = command
        #: Whether it carries what most orders do not, and so has to be looked at more closely.
        self.special: Final = bool(
            order_type > MARKET_ORDER
            or display_quantity
            or stop_price
            or minimum_quantity
            or post_only
            or self_trade
            or expire_date
            or confirmed
        )

    @property
    def client_order_id(self) -> str:
        return self.name.text

    @property
    def command(self) -> NewOrder:
        """The order as a message: made when somebody asks, which is when it is refused or said again."""
        if self._command is not None:
            return self._command
        return NewOrder(
            self.client_order_id,
            self.instrument,
            Side(self.side),
            self.quantity,
            self.price,
            OrderType(self.order_type),
            TimeInForce(self.time_in_force),
            self.account,
            self.display_quantity,
            self.stop_price,
            self.minimum_quantity,
            self.post_only,
            SelfTrade(self.self_trade),
            self.expire_date,
            self.confirmed,
        )


def ticket_of(command: NewOrder) -> OrderTicket:
    """The ticket of an order that is an object."""
    fields: _Fields = _fields(command)
    return OrderTicket(
        name_of(fields[0]),
        fields[1],
        fields[2],
        fields[3],
        fields[4],
        fields[5],
        fields[6],
        fields[7],
        fields[8],
        fields[9],
        fields[10],
        fields[11],
        fields[12],
        fields[13],
        fields[14],
        command,
    )


@final
@mypyc_attr(acyclic=True)
class CancelTicket:
    """A ``CancelOrder``."""

    def __init__(self, request: Name, order: Name, command: CancelOrder | None) -> None:
        """Its request_id and its client_order_id; ``command`` is what they were taken from, if it was an object."""
        self.request: Final = request
        self.order: Final = order
        self._command: Final = command

    @property
    def command(self) -> CancelOrder:
        """The cancel as a message, as ``OrderTicket.command``."""
        return self._command if self._command is not None else CancelOrder(self.request.text, self.order.text)


def cancel_of(command: CancelOrder) -> CancelTicket:
    """The ticket of a cancel that is an object."""
    return CancelTicket(name_of(command.request_id), name_of(command.client_order_id), command)


#: A command as it travels through the engine.
CommandTicket = OrderTicket | CancelTicket
