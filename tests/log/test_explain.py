"""An order's life tells what the market did to it on its own account, not only what was asked."""

from __future__ import annotations

from engine import Engine, ListInstrument, NewOrder, OrderType, Phase, SetPhase, Side, StartDay
from engine.log.explain import OrderLife

TOKEN = "KDX-2107"


def life_of(participant: str, client_order_id: str, *orders: tuple[str, NewOrder]) -> list[str]:
    """The steps of one order in a continuous market to which these orders come."""
    engine = Engine()
    life = OrderLife(participant, client_order_id)
    opening = [ListInstrument(TOKEN, "CONTINUOUS", 100), StartDay(20261124), SetPhase(TOKEN, Phase.CONTINUOUS)]
    for number, (sender, command) in enumerate([*(("", command) for command in opening), *orders], 1):
        life.fold(number, number, sender, command, engine.apply(command, sender, number))
    return [step.text for step in life.steps]


def test_a_prevented_self_trade_is_named_on_both_orders() -> None:
    orders = (
        ("alpha", NewOrder("a-1", TOKEN, Side.SELL, 5, 100)),
        ("alpha", NewOrder("a-2", TOKEN, Side.BUY, 3, 100)),
    )

    said = "a trade of 3 at 100 with the same member's order {} is prevented"
    assert said.format("a-1") in life_of("alpha", "a-2", *orders)
    assert said.format("a-2") in life_of("alpha", "a-1", *orders)


def test_a_triggered_stop_says_what_triggered_it() -> None:
    steps = life_of(
        "alpha",
        "a-1",
        ("alpha", NewOrder("a-1", TOKEN, Side.BUY, 1, order_type=OrderType.STOP, stop_price=105)),
        ("beta", NewOrder("b-1", TOKEN, Side.SELL, 5, 105)),
        ("gamma", NewOrder("c-1", TOKEN, Side.BUY, 1, 105)),
    )

    assert "the last price reached its stop price 105: it takes part from now on" in steps
    assert any(step.startswith("buys 1 at 105 with") for step in steps)
