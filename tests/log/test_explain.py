"""An order's life tells what the market did to it on its own account, not only what was asked."""

from __future__ import annotations

from typing import Any

from engine import (
    BustTrade,
    Command,
    Engine,
    Kill,
    ListInstrument,
    NewOrder,
    OrderType,
    Phase,
    RenewQuote,
    SetPhase,
    SetRiskLimits,
    Side,
    StartDay,
)
from engine.log.explain import OrderLife

TOKEN = "KDX-2107"


def life_of(participant: str, client_order_id: str, *orders: tuple[str, Command], **listing: Any) -> list[str]:
    """The steps of one order in a continuous market to which these orders come."""
    engine = Engine()
    life = OrderLife(participant, client_order_id)
    opening = [
        ListInstrument(TOKEN, "CONTINUOUS", 100, **listing),
        StartDay(20261124),
        SetPhase(TOKEN, Phase.CONTINUOUS),
    ]
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


def test_what_the_operator_did_to_an_order_is_part_of_its_life() -> None:
    steps = life_of(
        "alpha",
        "a-1",
        ("alpha", NewOrder("a-1", TOKEN, Side.SELL, 5, 100)),
        ("beta", NewOrder("b-1", TOKEN, Side.BUY, 2, 100)),
        ("", BustTrade(1)),
        ("", Kill("", TOKEN)),
    )

    assert "trade 1 of 2 at 100 was an error and is void; the order does not come back" in steps
    assert steps[-1] == "3 open are withdrawn: the exchange's operator put the kill switch on"


def test_a_volatility_interruption_says_which_price_was_too_far() -> None:
    steps = life_of(
        "alpha",
        "a-1",
        ("alpha", NewOrder("a-1", TOKEN, Side.SELL, 5, 120)),
        ("beta", NewOrder("b-1", TOKEN, Side.BUY, 2, 120)),
        rules={"volatility_band": 1_000},
    )

    assert "the next trade would be at 120, outside 90 to 110 around 100: trading stops and a call follows" in steps


def test_a_large_order_says_that_its_member_had_to_confirm_it() -> None:
    steps = life_of(
        "alpha",
        "a-1",
        ("", SetRiskLimits(share_alert=500)),
        ("alpha", NewOrder("a-1", TOKEN, Side.SELL, 60, 120, confirmed=True)),
        units_outstanding=1_000,
    )

    assert any("60 of 1,000 units" in step and "its member confirmed it" in step for step in steps)


def test_the_quotes_that_kept_an_order_from_trading_are_named() -> None:
    engine = Engine()
    life = OrderLife("alpha", "a-1")
    commands: list[tuple[str, Command]] = [
        ("", ListInstrument(TOKEN, "TSE_HYBRID", 500)),
        ("", StartDay(20261124)),
        ("", SetPhase(TOKEN, Phase.PRE_OPEN)),
        ("alpha", NewOrder("a-1", TOKEN, Side.BUY, 5, 0, OrderType.MARKET)),
        ("", SetPhase(TOKEN, Phase.OPENING_AUCTION, delay_ms=1_500)),
        ("", SetPhase(TOKEN, Phase.CONTINUOUS)),
        ("", RenewQuote(TOKEN)),
        ("beta", NewOrder("b-1", TOKEN, Side.SELL, 5, 515)),
    ]
    for number, (sender, command) in enumerate(commands, 1):
        stamp = number + (180_000_000_000 if number > 6 else 0)
        life.fold(number, stamp, sender, command, engine.apply(command, sender, stamp))

    texts = [step.text for step in life.steps]

    quoted = [text for text in texts if "quote" in text]
    assert [text.split(";")[0] for text in quoted] == [f"a special bid quote stands at {at}" for at in (510, 520)]
    assert texts[-1].startswith("buys 5 at 515")
