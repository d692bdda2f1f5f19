"""Operators over the bus: who may order what, who has to agree, and what a crash leaves of it."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from engine.commands import (
    Command,
    ExchangeCommand,
    Kill,
    ListInstrument,
    OperatorConfirm,
    OperatorRequest,
    SetReferencePrice,
    SetTickTable,
    SuspendInstrument,
    TickRow,
)
from engine.events import (
    OperatorActed,
    OperatorDeclined,
    OperatorRefused,
    OperatorRequested,
    ReferencePriceSet,
    TradingStateChanged,
)
from engine.log import LogReader, MemoryStorage
from engine.types import Reason
from gateway.bus import topics
from gateway.bus.messages import (
    Confirm,
    ControlReport,
    ControlReports,
    Hello,
    MessageError,
    OperatorInbound,
    OperatorOutbound,
    RequestCommand,
    WaitingRequests,
)
from gateway.clock import SECOND_NS
from gateway.config import ConfigError, parse
from gateway.operators import at_once
from tests.gateway.market import ManualClock, Market, buy, market, sell

OPERATORS = """
[operators]
names = ["olga", "omar"]
confirm_seconds = 60
"""
PRICE = SetReferencePrice("CONT", 120)


def say(m: Market, name: str, *commands: Any, **fields: Any) -> None:
    m.bus.publish_as(topics.operator(name), OperatorInbound(commands=list(commands), **fields))


def control(m: Market, name: str = "olga") -> list[ControlReport]:
    """All reports an operator got, in the order of arrival."""
    found = []
    for message in m.bus.out.get(topics.operator(name), []):
        if isinstance(message, ControlReports):
            found.extend(message.reports)
    return found


def errors(m: Market, name: str) -> list[MessageError]:
    return [message for message in m.bus.out.get(topics.operator(name), []) if isinstance(message, MessageError)]


async def answered(m: Market, kind: type, count: int = 1) -> list[Any]:
    def found() -> list[Any]:
        return [report.event for report in control(m) if isinstance(report.event, kind)]

    await m.until(lambda: len(found()) >= count)
    return found()


async def test_one_operator_suspends_and_both_are_told():
    async with market(text=OPERATORS) as m:
        say(m, "olga", RequestCommand("r-1", SuspendInstrument("CONT")))
        await answered(m, OperatorActed)

        assert [report.event for report in control(m)[-2:]] == [
            TradingStateChanged("CONT", True),
            OperatorActed("olga", "r-1", SuspendInstrument("CONT")),
        ]
        assert control(m, "omar") == control(m, "olga")
        assert m.exchange.engine.instrument("CONT").suspended
        assert not m.bus.unacknowledged
        said = [fields for event, fields in m.heard if event == "operator"]
        assert [(fields["by"], fields["request_id"]) for fields in said] == [("olga", "r-1")]


async def test_a_reference_price_waits_for_the_second_operator_and_the_log_names_both():
    storage = MemoryStorage()
    async with market(storage, OPERATORS) as m:
        say(m, "olga", RequestCommand("r-1", PRICE))
        (requested,) = await answered(m, OperatorRequested)
        assert requested == OperatorRequested("olga", "r-1", PRICE, m.exchange.engine.time_ns + 60 * SECOND_NS)
        assert m.exchange.engine.instrument("CONT").reference_price == 100_000
        say(m, "omar", waiting=True, message_id="q")
        await m.until(lambda: isinstance(m.bus.out["op/omar"][-1], WaitingRequests))
        assert m.bus.out["op/omar"][-1] == WaitingRequests(len(control(m)) + 1, [requested], "q")

        say(m, "omar", Confirm("c-1", "olga", "r-1"))
        assert await answered(m, OperatorActed) == [OperatorActed("olga", "r-1", PRICE, "omar", "c-1")]
        assert [report.event for report in control(m)[-2:-1]] == [ReferencePriceSet("CONT", 120)]
        assert m.exchange.engine.instrument("CONT").reference_price == 120

    logged = [command for _, _, who, command in LogReader(storage).commands() if not who]
    assert logged[-2:] == [
        OperatorRequest("olga", "r-1", PRICE, 60 * SECOND_NS),
        OperatorConfirm("omar", "c-1", "olga", "r-1"),
    ]


async def test_the_same_operator_cannot_confirm_himself_not_even_under_another_id():
    async with market(text=OPERATORS) as m:
        say(m, "olga", RequestCommand("r-1", PRICE), Confirm("r-2", "olga", "r-1"))

        (refused,) = await answered(m, OperatorRefused)
        assert (refused.request_id, refused.reason) == ("r-2", Reason.NOT_PERMITTED)
        assert m.exchange.engine.instrument("CONT").reference_price == 100_000


async def test_a_confirmation_too_late_is_refused_and_nothing_waits_any_more():
    clock = ManualClock()
    async with market(text=OPERATORS, clock=clock) as m:
        say(m, "olga", RequestCommand("r-1", PRICE))
        await answered(m, OperatorRequested)
        clock.time_ns += 61 * SECOND_NS
        say(m, "omar", Confirm("c-1", "olga", "r-1"))

        (refused,) = await answered(m, OperatorRefused)
        assert (refused.operator, refused.reason) == ("omar", Reason.TOO_LATE)
        say(m, "omar", waiting=True)
        await m.until(lambda: isinstance(m.bus.out["op/omar"][-1], WaitingRequests))
        assert m.bus.out["op/omar"][-1].requests == []  # type: ignore[union-attr]
        assert m.exchange.engine.instrument("CONT").reference_price == 100_000


async def test_a_request_outlives_the_exchange_and_an_answer_is_not_given_twice():
    storage, clock = MemoryStorage(), ManualClock()
    async with market(storage, OPERATORS, clock=clock) as m:
        say(m, "olga", RequestCommand("r-1", PRICE))
        await answered(m, OperatorRequested)
        before = control(m)
    async with market(storage, OPERATORS, clock=clock) as m:
        assert control(m) == []  # nothing is said twice by itself
        assert m.bus.out["op/olga"] == [Hello(len(before) + 1, m.exchange.engine.sequence)]
        say(m, "olga", RequestCommand("r-1", PRICE))
        say(m, "omar", Confirm("c-1", "olga", "r-1"))
        say(m, "omar", Confirm("c-1", "olga", "r-1"))

        first, second = await answered(m, OperatorActed, 2)
        assert (first.repeat, second.repeat) == (False, True)
        assert [event.repeat for event in await answered(m, OperatorRequested)] == [True]
        assert [r.event for r in control(m) if isinstance(r.event, ReferencePriceSet)] == [
            ReferencePriceSet("CONT", 120)
        ]
        say(m, "olga", resend_from=1)
        await m.until(lambda: isinstance(m.bus.out["op/olga"][-1], Hello))
        resent = [each for each in m.bus.out["op/olga"] if isinstance(each, ControlReports) and each.resent]
        assert [each.first for each in resent] == [1]
        assert resent[0].reports[: len(before)] == before
        assert m.bus.out["op/olga"][-1] == Hello(len(resent[0].reports) + 1, m.exchange.engine.sequence)


async def test_an_operator_lists_an_instrument_and_a_table_while_the_market_runs():
    async with market(text=OPERATORS) as m:
        table = SetTickTable("fine", 0, [TickRow(0, 10)])
        listing = ListInstrument("NEW", tick_table="fine", reference_price=500)
        say(m, "olga", RequestCommand("r-1", table), RequestCommand("r-2", listing))
        say(m, "omar", Confirm("c-1", "olga", "r-1"), Confirm("c-2", "olga", "r-2"))

        await answered(m, OperatorActed, 2)
        assert "NEW" in m.exchange.engine.instruments()
        await m.until(lambda: "NEW" in m.bus.retained)


async def test_what_members_do_is_not_told_to_operators():
    async with market(text=OPERATORS) as m:
        count = len(control(m))
        m.send("alfa", buy("a-1", 100, 5), buy("a-2", -1 % 2**40, 5))
        m.send("bravo", sell("b-1", 100, 3))
        await m.until_reports("bravo", 2)
        say(m, "olga", RequestCommand("r-1", SuspendInstrument("NONE")))
        await answered(m, OperatorRefused)

        assert len(control(m)) == count + 1


async def test_a_member_or_stranger_on_an_operators_topic_is_turned_away():
    async with market(text=OPERATORS) as m:
        for name in ("alfa", "Olga", "", "olga/x", "x" * 40):
            say(m, name, RequestCommand("r-1", SuspendInstrument("CONT")))
            assert [error.code for error in errors(m, name)] == ["UNKNOWN_MEMBER"]
        m.send("olga", buy("a-1", 100, 5))  # and an operator is no member
        assert [error.code for error in m.errors("olga")] == ["UNKNOWN_MEMBER"]
        assert m.exchange.counters.unknown_member == 6
        assert not m.exchange.engine.instrument("CONT").suspended
        assert not m.bus.unacknowledged


async def test_without_operators_in_the_settings_nobody_is_one():
    async with market() as m:
        say(m, "olga", RequestCommand("r-1", SuspendInstrument("CONT")))
        assert [error.code for error in errors(m, "olga")] == ["UNKNOWN_MEMBER"]


@pytest.mark.parametrize(
    ("payload", "code", "place"),
    [
        (b"", "MALFORMED", "$"),
        (b"\xc1", "MALFORMED", "$"),
        (b"\x91" * 3000, "MALFORMED", "$"),
        (b"\x80", "MALFORMED", "$"),
        (bytes(300_000), "TOO_LARGE", "$"),
        (b"\x82\xa7waiting\xc3\xa7waiting\xc3", "MALFORMED", "$.waiting"),
        ({"commands": [["request", "r", ["new", "a", "CONT", 0, 1, 1]]]}, "MALFORMED", "$.commands[0].command.type"),
        ({"commands": [["request", "r", ["reference", "CONT", -1]]]}, "MALFORMED", "$.commands[0].command.price"),
        ({"commands": [["request", "", ["suspend", "CONT"]]]}, "MALFORMED", "$.commands[0].request_id"),
        ({"commands": [["operator_request", "omar", "r", ["suspend", "CONT"]]]}, "MALFORMED", "$.commands[0].type"),
        ({"commands": [["confirm", "c", "olga"]]}, "MALFORMED", "$.commands[0]"),
        ({"commands": [["confirm", "c", "olga", "r", "omar"]]}, "MALFORMED", "$.commands[0]"),
        ({"operator": "omar"}, "MALFORMED", "$"),
        ({"resend_from": 0}, "MALFORMED", "$.resend_from"),
    ],
)
async def test_a_malformed_message_is_answered_with_its_place_and_changes_nothing(payload: Any, code: str, place: str):
    async with market(text=OPERATORS) as m:
        before = m.exchange.engine.sequence
        raw = payload if isinstance(payload, bytes) else msgspec.msgpack.encode(payload)
        m.bus.publish_as(topics.operator("olga"), raw)

        (error,) = errors(m, "olga")
        assert (error.code, error.place) == (code, place)
        assert (
            "xpected" in error.text or "malformed" in error.text or "truncated" in error.text or "unknown" in error.text
        )
        assert m.exchange.engine.sequence == before
        assert not m.bus.unacknowledged


async def test_a_retained_message_is_not_carried_out():
    async with market(text=OPERATORS) as m:
        message = OperatorInbound(commands=[RequestCommand("r-1", SuspendInstrument("CONT"))])
        m.bus.publish_as(topics.operator("olga"), message, retained=True)
        assert [error.code for error in errors(m, "olga")] == ["RETAINED"]
        assert not m.exchange.engine.instrument("CONT").suspended


async def test_a_flood_is_slowed_down():
    async with market(text=OPERATORS + "rate = 1\n") as m:
        for number in range(5):
            say(m, "olga", RequestCommand(f"r-{number}", SuspendInstrument("CONT")))
        assert [error.code for error in errors(m, "olga")] == ["THROTTLED"] * 3
        assert errors(m, "olga")[0].retry_after_ms > 0


def test_what_is_not_named_as_light_takes_two():
    light = {kind.__struct_config__.tag for kind in get_args(ExchangeCommand) if at_once(least(kind))}
    assert light == {"suspend", "resume", "phase", "disconnected"}
    assert at_once(Kill("alfa", ""))
    assert at_once(Kill("", "CONT"))


def least(kind: type[msgspec.Struct]) -> Any:
    """The shortest command of its kind."""
    fields = []
    for field in msgspec.structs.fields(kind):
        if field.required:
            for value in ("A", 1, [], False):
                with contextlib.suppress(msgspec.ValidationError):
                    fields.append(msgspec.convert(value, field.type))
                    break
    return kind(*fields)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('operators = { names = ["olga"] }', "operators.names"),
        ('members = ["olga"]\noperators = { names = ["olga", "omar"] }', "operators.names[0]"),
        ('operators = { names = ["olga", "exchange"] }', "operators.names[1]"),
        ('operators = { names = ["olga", "OMAR"] }', "operators.names[1]"),
        ('operators = { names = ["olga", "omar"], confirm_seconds = 0 }', "operators.confirm_seconds"),
        ('drop_copy = [{ login = "alfa", members = ["alfa"] }]', "drop_copy[0].login"),
        (
            'operators = { names = ["olga", "omar"] }\ndrop_copy = [{ login = "omar", members = ["alfa"] }]',
            "drop_copy[0].login",
        ),
    ],
)
def test_logins_that_cannot_be_are_refused_at_the_start(text: str, place: str):
    with pytest.raises(ConfigError, match=place.replace("[", r"\[").replace("]", r"\]")):
        parse(text)


def test_what_the_log_holds_is_what_the_wire_could_carry():
    for command in (OperatorRequest("olga", "r", PRICE, 5), OperatorConfirm("omar", "c", "olga", "r")):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=Command) == command


def test_the_messages_of_the_page_are_messages():
    page = (Path(__file__).parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)\n```", page, re.DOTALL)]
    assert len(examples) == 6
    for example in examples:
        kind: Any = OperatorOutbound if "kind" in example else OperatorInbound
        message = msgspec.msgpack.decode(msgspec.msgpack.encode(example), type=kind)
        said = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
        assert said == example
    for event in (OperatorRequested, OperatorActed, OperatorRefused, OperatorDeclined):
        row = re.search(rf"^\| `{event.__struct_config__.tag}` \| (.*) \|$", page, re.MULTILINE)
        assert row is not None
        assert re.findall("|".join(event.__struct_fields__), re.sub(r"\(.*?\)|;.*", "", row[1])) == list(
            event.__struct_fields__
        )
