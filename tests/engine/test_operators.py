"""Operators' requests: what takes effect at once, what waits for a second operator, and what an auditor finds of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Engine
from engine.commands import (
    Command,
    ExchangeCommand,
    ListInstrument,
    NewOrder,
    OperatorConfirm,
    OperatorDecline,
    OperatorRequest,
    ResumeInstrument,
    SetPhase,
    SetReferencePrice,
    StartDay,
    SuspendInstrument,
)
from engine.events import (
    Event,
    OperatorActed,
    OperatorDeclined,
    OperatorRefused,
    OperatorRequested,
    ReferencePriceSet,
    Rejected,
    TradingStateChanged,
)
from engine.types import Phase, Reason, Side

PRICE = SetReferencePrice("A", 120)
LIMIT = 100


@pytest.fixture
def market() -> Engine:
    """A listed instrument; a waiting request can be confirmed up to stamp 1 + LIMIT if asked for at 1."""
    engine = Engine()
    engine.apply(ListInstrument("A", reference_price=100))
    return engine


def ask(engine: Engine, time_ns: int = 1, request_id: str = "r-1", command: ExchangeCommand = PRICE) -> list[Event]:
    return engine.apply(OperatorRequest("olga", request_id, command, LIMIT), "", time_ns)


def refusal(events: list[Event]) -> OperatorRefused:
    (event,) = events
    assert isinstance(event, OperatorRefused), event
    return event


def test_a_light_request_takes_effect_at_once_and_the_answer_names_who_asked(market: Engine):
    suspend = SuspendInstrument("A")

    assert market.apply(OperatorRequest("olga", "r-1", suspend)) == [
        TradingStateChanged("A", True),
        OperatorActed("olga", "r-1", suspend),
    ]


def test_a_weighty_request_changes_nothing_until_another_operator_confirms_it(market: Engine):
    assert ask(market) == [OperatorRequested("olga", "r-1", PRICE, 1 + LIMIT)]
    assert market.instrument("A").reference_price == 100

    events = market.apply(OperatorConfirm("omar", "c-1", "olga", "r-1"), "", 1 + LIMIT)

    assert events == [ReferencePriceSet("A", 120), OperatorActed("olga", "r-1", PRICE, "omar", "c-1")]
    assert market.instrument("A").reference_price == 120


def test_nobody_confirms_his_own_request_and_another_still_can(market: Engine):
    ask(market)

    assert refusal(market.apply(OperatorConfirm("olga", "c-1", "olga", "r-1"), "", 2)).reason == Reason.NOT_PERMITTED
    assert market.instrument("A").reference_price == 100
    assert isinstance(market.apply(OperatorConfirm("omar", "c-1", "olga", "r-1"), "", 3)[-1], OperatorActed)


def test_a_confirmation_after_the_time_limit_is_too_late_for_ever(market: Engine):
    ask(market)
    assert market.waiting_requests(1 + LIMIT) == [OperatorRequested("olga", "r-1", PRICE, 1 + LIMIT)]
    assert market.waiting_requests(2 + LIMIT) == []

    for number in (1, 2):
        late = refusal(market.apply(OperatorConfirm("omar", f"c-{number}", "olga", "r-1"), "", 1 + LIMIT + number))
        assert late.reason == Reason.TOO_LATE
    assert market.instrument("A").reference_price == 100


def test_what_was_confirmed_or_declined_cannot_be_confirmed_again(market: Engine):
    ask(market)
    ask(market, 2, "r-2")
    market.apply(OperatorConfirm("omar", "c-1", "olga", "r-1"), "", 3)
    declined = market.apply(OperatorDecline("omar", "c-2", "olga", "r-2"), "", 4)

    assert declined == [OperatorDeclined("omar", "c-2", "olga", "r-2", PRICE)]
    for number, request_id in ((3, "r-1"), (4, "r-2"), (5, "r-9")):
        found = refusal(market.apply(OperatorConfirm("olaf", f"c-{number}", "olga", request_id), "", 5))
        assert found.reason == Reason.UNKNOWN_REQUEST


def test_whoever_asked_may_take_it_back(market: Engine):
    ask(market)

    assert market.apply(OperatorDecline("olga", "d-1", "olga", "r-1"), "", 2) == [
        OperatorDeclined("olga", "d-1", "olga", "r-1", PRICE)
    ]


def test_the_same_again_is_answered_as_it_stands_now_and_does_nothing(market: Engine):
    ask(market)
    assert ask(market, 2) == [OperatorRequested("olga", "r-1", PRICE, 1 + LIMIT, repeat=True)]
    confirm = OperatorConfirm("omar", "c-1", "olga", "r-1")
    market.apply(confirm, "", 3)
    market.apply(SetReferencePrice("A", 130), "", 4)

    again = OperatorActed("olga", "r-1", PRICE, "omar", "c-1", repeat=True)
    assert market.apply(confirm, "", 5) == [again]
    assert ask(market, 6) == [again]
    assert market.instrument("A").reference_price == 130


def test_an_id_belongs_to_one_request(market: Engine):
    ask(market)

    assert refusal(ask(market, 2, "r-1", SetReferencePrice("A", 121))).reason == Reason.DUPLICATE_CLIENT_ORDER_ID
    assert refusal(market.apply(OperatorConfirm("olga", "r-1", "olga", "r-1"), "", 3)).reason == (
        Reason.DUPLICATE_CLIENT_ORDER_ID
    )
    assert market.apply(OperatorRequest("omar", "r-1", SetReferencePrice("A", 122)))[-1] == OperatorActed(
        "omar", "r-1", SetReferencePrice("A", 122)
    )


def test_what_the_market_declines_is_said_with_its_reason_to_both(market: Engine):
    wish = SetReferencePrice("B", 5)
    assert refusal(market.apply(OperatorRequest("olga", "r-1", wish))).reason == Reason.UNKNOWN_INSTRUMENT
    ask(market, 2, "r-2", wish)

    found = refusal(market.apply(OperatorConfirm("omar", "c-1", "olga", "r-2"), "", 3))

    assert (found.operator, found.request_id, found.confirmed_by, found.confirm_id) == ("olga", "r-2", "omar", "c-1")
    assert found.reason == Reason.UNKNOWN_INSTRUMENT
    assert market.waiting_requests(3) == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (OperatorRequest("Olga", "r-1", PRICE), Reason.BAD_IDENTITY),
        (OperatorRequest("", "r-1", PRICE), Reason.BAD_IDENTITY),
        (OperatorRequest("olga", "with space", PRICE), Reason.BAD_IDENTITY),
        (OperatorRequest("olga", "r-1", SetReferencePrice("A", 2**70)), Reason.BAD_REFERENCE_DATA),
        (OperatorConfirm("omar", "", "olga", "r-1"), Reason.BAD_IDENTITY),
        (OperatorConfirm("omar", "c-1", "x" * 99, "\n"), Reason.UNKNOWN_REQUEST),
    ],
)
def test_a_malformed_request_is_refused(market: Engine, command: Command, reason: Reason):
    before = market.digest()
    (event,) = market.apply(command)
    assert isinstance(event, Rejected | OperatorRefused)
    assert event.reason == reason
    assert market.instrument("A").reference_price == 100
    assert market.digest() != before  # it has a number like every command
    market.check()


def test_a_member_cannot_ask_for_anything_here(market: Engine):
    for command in (
        OperatorRequest("olga", "r-1", PRICE),
        OperatorConfirm("olga", "c-1", "olga", "r-1"),
        OperatorDecline("olga", "d-1", "olga", "r-1"),
    ):
        (event,) = market.apply(command, "alfa")
        assert isinstance(event, Rejected)
        assert (event.participant, event.reason) == ("alfa", Reason.NOT_PERMITTED)


def test_a_request_for_a_members_command_is_no_command(market: Engine):
    order = NewOrder("a-1", "A", Side.BUY, 1, 100)
    for confirm_ns in (0, LIMIT):
        with pytest.raises(TypeError, match="Expected a command of the exchange, got NewOrder"):
            market.apply(OperatorRequest("olga", "r-1", order, confirm_ns))  # type: ignore[arg-type]
    assert market.sequence == 1


def test_what_waits_is_part_of_the_state(market: Engine):
    other = Engine()
    other.apply(ListInstrument("A", reference_price=100))
    other.apply(SetReferencePrice("B", 1), "", 1)  # refused: only the number is used

    ask(market)

    assert market.sequence == other.sequence
    assert market.digest() != other.digest()


WISHES: list[ExchangeCommand] = [
    StartDay(20261124),
    SetPhase("A", Phase.PRE_OPEN),
    SetPhase("A", Phase.CLOSED),
    SetReferencePrice("A", 110),
    SetReferencePrice("A", 0),
    SuspendInstrument("A"),
    ResumeInstrument("A"),
    SuspendInstrument("B"),
    ListInstrument("B"),
    ListInstrument("C", profile="NONE"),
]


@given(st.lists(st.tuples(st.sampled_from(WISHES), st.booleans()), max_size=12))
def test_through_an_operator_a_command_does_what_it_does_by_itself(wishes: list[tuple[ExchangeCommand, bool]]):
    plain, operated = Engine(), Engine()
    replayed = Engine()
    log: list[tuple[Command, int]] = []

    def run(command: Command) -> list[Event]:
        log.append((command, operated.sequence + 1))
        return operated.apply(command, "", operated.sequence + 1)

    for engine in (plain, operated, replayed):
        engine.apply(ListInstrument("A", reference_price=100), "", 1)
    for number, (wish, weighty) in enumerate(wishes):
        expected = plain.apply(wish, "", plain.sequence + 1)
        events = run(OperatorRequest("olga", f"r-{number}", wish, LIMIT * weighty))
        if weighty:
            assert events == operated.waiting_requests(operated.time_ns)
            events = run(OperatorConfirm("omar", f"c-{number}", "olga", f"r-{number}"))
        answer = events.pop()
        if isinstance(expected[0], Rejected):
            assert events == []
            assert isinstance(answer, OperatorRefused)
            assert (answer.reason, answer.text) == (expected[0].reason, expected[0].text)
        else:
            assert events == expected
            assert isinstance(answer, OperatorActed)
    for code in plain.instruments():
        assert plain.instrument(code) == operated.instrument(code)
    operated.check()
    for command, time_ns in log:  # what the log holds is what the wire could carry
        raw = msgspec.msgpack.encode(command)
        replayed.apply(msgspec.msgpack.decode(raw, type=Command), "", time_ns)
    assert replayed.digest() == operated.digest()
