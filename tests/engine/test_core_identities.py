"""An id is one command for the life of the log: again is harmless, otherwise is refused."""

from __future__ import annotations

import msgspec
import pytest

from engine import (
    Accepted,
    AmendOrder,
    Cancelled,
    CancelOrder,
    CancelReason,
    Event,
    MassCancel,
    MassCancelled,
    NewOrder,
    Phase,
    Reason,
    Rejected,
    Side,
    TimeInForce,
)
from engine.identities import fingerprint
from tests.market import CODE, START_DAY, every, only, refusal, start, zaraba

BID = NewOrder("a-1", CODE, Side.BUY, 10, 100)


def repeated(events: list[Event]) -> list[Event]:
    return [msgspec.structs.replace(event, repeat=True) for event in events]


def test_the_same_order_again_is_answered_as_a_repeat_without_effect() -> None:
    market = zaraba()
    first = market.run(BID, "alpha")
    before = market.engine.depth(CODE)

    assert market.run(BID, "alpha") == repeated(first)
    assert market.engine.depth(CODE) == before
    assert len(market.engine.open_orders("alpha")) == 1


def test_a_repeat_gives_the_recorded_outcome_whatever_has_happened_since() -> None:
    market = zaraba()
    first = market.run(BID, "alpha")
    market.amend("a-1", 20, 105)
    market.sell(20, 100)

    assert market.run(BID, "alpha") == repeated(first)


def test_a_waiting_order_repeats_as_waiting_after_it_has_joined_the_book() -> None:
    market = start(Phase.PRE_OPEN)
    order = NewOrder("a-1", CODE, Side.BUY, 10, 100, time_in_force=TimeInForce.ON_CLOSE)
    first = market.run(order, "alpha")
    market.phase(*START_DAY[1:5])

    assert market.run(order, "alpha") == repeated(first)
    assert only(first, Accepted).waiting


@pytest.mark.parametrize(
    "request_",
    [
        CancelOrder("r-1", "a-1"),
        AmendOrder("r-1", "a-1", 5),
        AmendOrder("r-1", "a-1", 25, 101),
        AmendOrder("r-1", "a-1", 10, 100),  # refused: no change
        CancelOrder("r-1", "nothing"),  # refused: unknown
        NewOrder("r-1", CODE, Side.BUY, 0, 100),  # refused: no quantity
        NewOrder("r-1", "OTHER", Side.BUY, 1, 100),
        NewOrder("r-1", CODE, Side.BUY, 10**30, 100),
    ],
)
def test_every_request_repeats_its_outcome_refused_or_not(request_: object) -> None:
    market = zaraba()
    market.run(BID, "alpha")
    first = market.run(request_, "alpha")  # type: ignore[arg-type]
    market.sell(1, 100)
    digest = market.engine.depth(CODE), market.engine.open_orders("alpha")

    assert market.run(request_, "alpha") == repeated(first)  # type: ignore[arg-type]
    assert (market.engine.depth(CODE), market.engine.open_orders("alpha")) == digest


def test_a_mass_cancel_repeats_its_count_and_cancels_nothing_more() -> None:
    market = zaraba()
    market.run(BID, "alpha")
    assert only(market.run(MassCancel("m-1"), "alpha"), MassCancelled).count == 1
    market.buy(10, 100, id="a-2")

    assert market.run(MassCancel("m-1"), "alpha") == [MassCancelled("alpha", "m-1", 1, repeat=True)]
    assert len(market.engine.open_orders("alpha")) == 1


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(BID, quantity=11),
        msgspec.structs.replace(BID, price=101),
        msgspec.structs.replace(BID, side=Side.SELL),
        msgspec.structs.replace(BID, account="x"),
        msgspec.structs.replace(BID, time_in_force=TimeInForce.GTC),
        msgspec.structs.replace(BID, instrument="OTHER"),
        CancelOrder("a-1", "a-1"),
        AmendOrder("a-1", "a-1", 5),
        MassCancel("a-1"),
    ],
)
def test_an_id_used_again_for_anything_else_is_refused_as_a_duplicate(other: object) -> None:
    market = zaraba()
    market.run(BID, "alpha")

    assert refusal(market.run(other, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID  # type: ignore[arg-type]
    assert market.engine.depth(CODE) == ([(100, 10)], [])
    assert not refusal(market.run(other, "alpha")).repeat  # type: ignore[arg-type]


def test_the_id_of_a_refused_order_is_used_up() -> None:
    market = zaraba()
    market.run(msgspec.structs.replace(BID, quantity=0), "alpha")

    assert refusal(market.run(BID, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID


def test_the_id_of_a_request_is_no_order() -> None:
    market = zaraba()
    market.run(BID, "alpha")
    market.run(CancelOrder("r-1", "a-1"), "alpha")

    assert refusal(market.run(CancelOrder("r-2", "r-1"), "alpha")).reason == Reason.UNKNOWN_ORDER


def test_each_member_has_ids_of_its_own() -> None:
    market = zaraba()

    assert only(market.run(BID, "alpha"), Accepted).order_id == 1
    assert only(market.run(BID, "beta"), Accepted).order_id == 2


def test_ids_are_remembered_over_days() -> None:
    market = start(Phase.PRE_OPEN)
    first = market.run(BID, "alpha")
    market.phase(*START_DAY[1:])

    assert market.run(BID, "alpha") == repeated(first)
    late = market.run(CancelOrder("r-1", "a-1"), "alpha")
    assert refusal(late).reason == Reason.ORDER_GONE


@pytest.mark.parametrize("participant", ["", "Alpha", "a" * 17, "a b", "a\n", "ä", "\ud800"])
def test_a_malformed_participant_is_refused(participant: str) -> None:
    market = zaraba()

    event = refusal(market.run(BID, participant))

    assert (event.reason, event.participant, event.client_order_id) == (Reason.BAD_IDENTITY, "", "a-1")
    assert market.engine.participants() == []


@pytest.mark.parametrize("name", ["", "a" * 37, "a b", "a\n", "ä", "\ud800"])
def test_a_malformed_id_is_refused_and_not_echoed(name: str) -> None:
    market = zaraba()

    for command in (msgspec.structs.replace(BID, client_order_id=name), CancelOrder(name, "a"), MassCancel(name)):
        event = refusal(market.run(command, "alpha"))
        assert (event.reason, event.client_order_id) == (Reason.BAD_IDENTITY, "")
        msgspec.msgpack.encode(event)


def test_a_malformed_account_is_refused() -> None:
    market = zaraba()

    assert refusal(market.buy(1, 100, account="a b")).reason == Reason.BAD_IDENTITY
    assert isinstance(market.buy(1, 100, account="x" * 32)[0], Accepted)


def test_a_cancelled_order_s_request_repeats_with_what_was_cancelled() -> None:
    market = zaraba()
    market.run(BID, "alpha")
    market.sell(4, 100)
    market.run(CancelOrder("r-1", "a-1"), "alpha")

    assert market.run(CancelOrder("r-1", "a-1"), "alpha") == [
        Cancelled("alpha", "a-1", 1, CODE, Side.BUY, 100, 6, CancelReason.MEMBER, "r-1", repeat=True)
    ]
    assert not every(market.run(BID, "alpha"), Rejected)


def test_a_command_with_the_checksum_of_an_order_is_a_duplicate_and_stops_nobody() -> None:
    # A member can compute such a pair in a second: 36 free characters against a checksum of 63 bits.
    market = zaraba()
    market.run(BID, "alpha")
    forged = CancelOrder("a-1", "KLJMNJJEDFNKIOLGLGFJMOKQQIFMPLORSJGO")
    market.engine._identities._fingerprints[0] = fingerprint(forged)

    assert refusal(market.run(forged, "alpha")).reason == Reason.DUPLICATE_CLIENT_ORDER_ID
