"""A large auction with a storm of cancels queued behind it: each cancel meets the order as the auction left it.

Whoever sent a cancel before the auction and was sequenced behind it must be told that the order is filled; what was not
filled must go, and no quantity may get lost. ``make test-full`` holds the auction of half a million orders.
"""

from __future__ import annotations

import random

import pytest

from engine import (
    AuctionUncrossed,
    Cancelled,
    CancelOrder,
    CancelReason,
    Engine,
    ListInstrument,
    NewOrder,
    OrderType,
    Phase,
    Reason,
    Rejected,
    SetPhase,
    Side,
    StartDay,
    Traded,
)
from tests.market import CODE, TODAY


@pytest.mark.parametrize(
    ("profile", "count"),
    [("START", 4_000), ("TSE_HYBRID", 4_000), pytest.param("START", 500_000, marks=pytest.mark.slow)],
)
def test_cancels_queued_behind_a_large_auction_meet_what_it_has_left(profile: str, count: int) -> None:
    draw = random.Random(count)
    engine = Engine()
    for command in (ListInstrument(CODE, profile, 100_000), StartDay(TODAY), SetPhase(CODE, Phase.PRE_OPEN)):
        engine.apply(command)
    ordered: dict[str, int] = {}
    members: dict[str, str] = {}
    for number in range(count):
        name = f"o-{number}"
        members[name] = f"member-{draw.randrange(40)}"
        ordered[name] = draw.randrange(1, 50)
        market = draw.random() < 0.02
        terms = (0, OrderType.MARKET) if market else (100_000 + draw.randrange(-300, 301), OrderType.LIMIT)
        order = NewOrder(name, CODE, Side(number % 2), ordered[name], *terms)
        assert not isinstance(engine.apply(order, members[name])[0], Rejected)
    phases = [Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION] if profile == "START" else [Phase.OPENING_AUCTION]
    events = [event for phase in phases for event in engine.apply(SetPhase(CODE, phase))]
    engine.apply(SetPhase(CODE, Phase.BREAK if profile == "START" else Phase.CONTINUOUS))

    [result] = [event for event in events if isinstance(event, AuctionUncrossed)]
    traded = dict.fromkeys(ordered, 0)
    gone = dict.fromkeys(ordered, 0)
    for event in events:
        if isinstance(event, Traded):
            traded[event.buy_client_order_id] += event.quantity
            traded[event.sell_client_order_id] += event.quantity
            assert event.price == result.price
        elif isinstance(event, Cancelled):
            gone[event.client_order_id] = event.quantity
    assert result.price
    assert sum(traded.values()) == 2 * result.volume
    storm = list(ordered)
    draw.shuffle(storm)
    for number, name in enumerate(storm):
        [answer] = engine.apply(CancelOrder(f"c-{number}", name), members[name])
        if traded[name] == ordered[name]:
            assert isinstance(answer, Rejected)
            assert answer.reason == Reason.ORDER_FILLED
        elif gone[name]:
            assert isinstance(answer, Rejected)
            assert answer.reason == Reason.ORDER_GONE
        else:
            assert isinstance(answer, Cancelled)
            assert answer.reason == CancelReason.MEMBER
            gone[name] = answer.quantity
        assert traded[name] + gone[name] == ordered[name]
    assert engine.depth(CODE) == ([], [])
    engine.check()
