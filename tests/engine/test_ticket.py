"""An order taken out of its message says what the message says."""

from __future__ import annotations

import msgspec
import pytest

from engine import NewOrder, OrderType, SelfTrade, Side, TimeInForce
from engine.ticket import ticket_of

PLAIN = NewOrder("a-1", "KDX-2107", Side.SELL, 10, 100, OrderType.MARKET, TimeInForce.GTC, "x")
RICH = {
    "display_quantity": 2,
    "stop_price": 3,
    "minimum_quantity": 4,
    "post_only": True,
    "self_trade": SelfTrade.CANCEL_BOTH,
    "expire_date": 20261124,
    "confirmed": True,
}


@pytest.mark.parametrize("post_only", [False, True])
def test_a_ticket_has_every_field_of_its_order_under_its_name(post_only: bool) -> None:
    order = msgspec.structs.replace(PLAIN, **RICH | {"post_only": post_only, "confirmed": not post_only})
    ticket = ticket_of(order)

    fields = msgspec.structs.asdict(order)
    assert {name: getattr(ticket, name) for name in fields} == fields
    assert len({repr(value) for value in fields.values()}) == len(fields)  # so none can stand for another
    assert ticket.command is order


def test_a_ticket_takes_numbers_that_no_message_can_hold() -> None:
    ticket = ticket_of(msgspec.structs.replace(PLAIN, quantity=10**30, side=-(10**20)))

    assert (ticket.quantity, ticket.side) == (10**30, -(10**20))


@pytest.mark.parametrize(
    "change", [{name: value} for name, value in RICH.items()], ids=lambda change: next(iter(change))
)
def test_whatever_most_orders_do_not_carry_makes_an_order_special(change: dict[str, int]) -> None:
    assert not ticket_of(PLAIN).special
    assert ticket_of(msgspec.structs.replace(PLAIN, **change)).special


def test_an_order_of_another_type_than_limit_and_market_is_special() -> None:
    special = [kind for kind in OrderType if ticket_of(msgspec.structs.replace(PLAIN, order_type=kind)).special]

    assert special == [kind for kind in OrderType if kind > OrderType.MARKET]
