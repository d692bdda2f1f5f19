"""A mass cancel walks its member's own orders, and what a non-cancel period holds up is bounded and keeps its order."""

from __future__ import annotations

import pytest

from engine import (
    Cancelled,
    CancelOrder,
    CancelReason,
    Engine,
    MassCancel,
    MassCancelled,
    NewOrder,
    Phase,
    Reason,
    Side,
)
from engine.backend import CHOSEN, COMPILED
from engine.checks import DEFERRED_MAX
from engine.faults import InvariantBroken
from tests.market import CODE, every, only, refusal, start, zaraba


def walked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on, the books that are walked whole."""
    walks: list[str] = []
    monkeypatch.setattr(Engine, "_open_orders", lambda self, instrument: walks.append(instrument.code) or [])
    return walks


@pytest.mark.skipif(CHOSEN == COMPILED, reason="a compiled engine cannot be watched")
def test_a_mass_cancel_and_a_question_walk_no_book(monkeypatch: pytest.MonkeyPatch) -> None:
    market = start(Phase.PRE_OPEN)
    for _ in range(5):
        market.buy(1, 100)
    walks = walked(monkeypatch)

    assert market.engine.apply(MassCancel("m"), "beta") == [MassCancelled("beta", "m", 0)]
    assert len(market.engine.apply(MassCancel("m"), "alpha")) == 6
    assert market.engine.open_orders("beta") == []
    assert walks == []


def test_orders_that_ended_are_forgotten_and_the_open_ones_keep_their_order() -> None:
    market = zaraba()
    kept = []
    for i in range(300):
        rests = i % 50 == 7
        event = market.engine.apply(NewOrder(f"a-{i}", CODE, Side.BUY, 1, 50 if rests else 100 + i % 3), "alpha")[0]
        if rests:
            kept.append(event.order_id)  # type: ignore[union-attr]
        elif i % 2:
            market.engine.apply(NewOrder(f"b-{i}", CODE, Side.SELL, 1, 100), "beta")
        else:
            market.engine.apply(CancelOrder(f"c-{i}", f"a-{i}"), "alpha")
    member = market.engine._identities.by_name["alpha"]

    assert member.most_open() <= 128
    assert [order.order_id for order in market.engine.open_orders("alpha")] == sorted(kept)
    assert [event.order_id for event in every(market.mass_cancel(), Cancelled)] == sorted(kept)
    assert market.engine.open_orders("alpha") == []
    assert member.most_open() == 0


def test_many_open_orders_of_one_member_all_go_at_once() -> None:
    market = zaraba()
    for i in range(200):
        market.engine.apply(NewOrder(f"a-{i}", CODE, Side.BUY, 1, 100 - i % 7), "alpha")
        market.engine.apply(NewOrder(f"b-{i}", CODE, Side.SELL, 1, 200 + i % 7), "beta")

    events = market.mass_cancel()

    assert [event.order_id for event in every(events, Cancelled)] == list(range(1, 400, 2))
    assert only(events, MassCancelled).count == 200
    assert len(market.engine.open_orders("beta")) == 200


def test_a_member_waits_with_at_most_a_hundred_mass_cancels_for_a_book() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(1, 100, id="mine")
    market.buy(1, 99, member="beta", id="yours")
    market.phase(Phase.PRE_OPEN_NCP)
    for i in range(DEFERRED_MAX):
        assert only(market.run(MassCancel(f"m-{i}"), "alpha"), MassCancelled).count == 0

    for command in (MassCancel("one-more"), MassCancel("one-more-here", CODE)):
        event = refusal(market.run(command, "alpha"))
        assert event.reason == Reason.WRONG_PHASE
        assert (
            event.text == f"Expected at most 100 mass cancels to wait for {CODE}, which is in PreOpenNCP, got one more"
        )
    assert only(market.run(MassCancel("m"), "beta"), MassCancelled).count == 0

    events = market.phase(Phase.OPENING_AUCTION, Phase.BREAK)
    assert [(event.client_order_id, event.request_id) for event in every(events, Cancelled)] == [
        ("mine", "m-0"),
        ("yours", "m"),
    ]
    market.phase(Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP)
    assert only(market.run(MassCancel("again"), "alpha"), MassCancelled).count == 0


def test_mass_cancels_that_waited_are_carried_out_as_they_came_each_on_what_the_earlier_ones_left() -> None:
    market = start(Phase.PRE_OPEN)
    for name, price, member in (("a-1", 97, "alpha"), ("b-1", 98, "beta"), ("a-2", 99, "alpha"), ("a-3", 95, "alpha")):
        market.buy(1, price, member=member, id=name)
    market.phase(Phase.PRE_OPEN_NCP)
    market.run(MassCancel("x", price_from=98), "alpha")
    market.run(MassCancel("y"), "beta")
    market.buy(1, 99, id="late")
    market.run(MassCancel("z", price_to=97), "alpha")

    events = market.phase(Phase.OPENING_AUCTION, Phase.BREAK)

    assert [
        (event.client_order_id, event.request_id)
        for event in every(events, Cancelled)
        if event.reason == CancelReason.MASS_CANCEL
    ] == [("a-2", "x"), ("b-1", "y"), ("a-1", "z"), ("a-3", "z")]
    assert [order.client_order_id for order in market.engine.open_orders("alpha")] == ["late"]


def test_check_notices_an_order_that_its_member_does_not_know() -> None:
    market = zaraba()
    market.buy(1, 100)
    member = market.engine._identities.by_name["alpha"]
    member._last = type(member)(0, "empty")._last

    with pytest.raises(InvariantBroken, match="members know of other open orders"):
        market.engine.check()


def test_check_notices_an_order_that_stands_with_another_member() -> None:
    market = zaraba()
    market.buy(1, 100)
    market.sell(1, 101)
    alpha, beta = (market.engine._identities.by_name[name] for name in ("alpha", "beta"))
    alpha._last, beta._last = beta._last, alpha._last

    with pytest.raises(InvariantBroken, match="The open orders of alpha are not its own"):
        market.engine.check()
