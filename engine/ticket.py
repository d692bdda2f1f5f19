"""A member's order as the engine reads it: whole and once.

A message's attribute costs compiled code some 60 ns, because it has to ask the message's class for it every time, and
an order on its way through checks, book and events is asked thirty times. So its fields are taken out at once, into
attributes that compiled code finds by their place.
"""

from __future__ import annotations

from typing import Final, final

from msgspec.structs import astuple
from mypy_extensions import mypyc_attr

from engine.commands import NewOrder
from engine.types import OrderType, SelfTrade

# Compiled code asks an enum's class for its members by name, each time: as much as ten comparisons. These it knows.
MARKET_ORDER: Final = 1
SELF_TRADE_NONE: Final = 1
SELF_TRADE_REJECT: Final = 6
assert (MARKET_ORDER, SELF_TRADE_NONE, SELF_TRADE_REJECT) == (OrderType.MARKET, SelfTrade.NONE, SelfTrade.REJECT)

_Fields = tuple[str, str, int, int, int, int, int, str, int, int, int, bool, int, int, bool]
_fields: Final = astuple


@final
@mypyc_attr(free_list_len=1)
class OrderTicket:
    """A ``NewOrder``: the fields of ``engine.commands.NewOrder`` under their names, enums as plain numbers.

    A caller of the library can send any number there; the checks refuse it.
    """

    def __init__(self, command: NewOrder) -> None:
        self.command: Final = command
        fields: _Fields = _fields(command)
        self.client_order_id: Final = fields[0]
        self.instrument: Final = fields[1]
        self.side: Final = fields[2]
        self.quantity: Final = fields[3]
        self.price: Final = fields[4]
        self.order_type: Final = fields[5]
        self.time_in_force: Final = fields[6]
        self.account: Final = fields[7]
        self.display_quantity: Final = fields[8]
        self.stop_price: Final = fields[9]
        self.minimum_quantity: Final = fields[10]
        self.post_only: Final = fields[11]
        self.self_trade: Final = fields[12]
        self.expire_date: Final = fields[13]
        self.confirmed: Final = fields[14]
        #: Whether it carries what most orders do not, and so has to be looked at more closely.
        self.special: Final = bool(
            fields[5] > MARKET_ORDER
            or fields[8]
            or fields[9]
            or fields[10]
            or fields[11]
            or fields[12]
            or fields[13]
            or fields[14]
        )
