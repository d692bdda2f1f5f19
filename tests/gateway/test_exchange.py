"""What a member can rely on, whatever others send and whenever the process ends."""

from __future__ import annotations

import asyncio
import threading

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import BACKEND
from engine.commands import CancelOrder, MassCancel, NewOrder, SetPhase
from engine.events import Accepted, Cancelled, Rejected
from engine.faults import InvariantBroken, LogFailed
from engine.log import MemoryStorage, encode_commands
from engine.log.log import LOG_NAME
from engine.log.replay import replay
from engine.log.storage import StoredFile
from engine.matching import continuous
from engine.types import Phase, Reason, Side
from gateway import journal
from gateway.bus.codec import Refused, decode
from gateway.bus.messages import BATCH_MAX, PAYLOAD_MAX, Fill, Hello, Inbound, OpenOrders, Reports
from tests.gateway.market import buy, market, sell


async def test_an_order_becomes_a_report_and_its_trade_two_fills():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10))
        m.send("bravo", sell("b-1", 100, 4))
        await m.until_reports("alfa", 2)
        await m.until_reports("bravo", 2)

        accepted, fill = (report.event for report in m.reports("alfa"))
        assert isinstance(accepted, Accepted)
        assert accepted.client_order_id == "a-1"
        assert isinstance(fill, Fill)
        assert (fill.side, fill.price, fill.quantity, fill.open_quantity) == (Side.BUY, 100, 4, 6)
        other = m.reports("bravo")[1].event
        assert isinstance(other, Fill)
        assert (other.side, other.quantity, other.open_quantity, other.trade_id) == (Side.SELL, 4, 0, fill.trade_id)
        assert m.numbers("alfa") == [1, 2]
        assert not m.bus.unacknowledged


async def test_no_member_is_told_of_another():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10))
        m.send("bravo", buy("b-1", 100, 10), sell("b-2", 101, 1))
        await m.until_reports("bravo", 2)
        for member in ("alfa", "bravo"):
            assert {report.event.participant for report in m.reports(member)} == {member}


async def test_the_same_command_again_is_answered_and_changes_nothing():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10))
        m.send("alfa", buy("a-1", 100, 10))
        m.send("alfa", buy("a-1", 101, 10))
        first, second, third = [report.event for report in await m.until_reports("alfa", 3)]
        assert isinstance(first, Accepted)
        assert not first.repeat
        assert isinstance(second, Accepted)
        assert second.repeat
        assert isinstance(third, Rejected)
        assert third.reason == Reason.DUPLICATE_CLIENT_ORDER_ID
        assert len((await m.open_orders("alfa")).orders) == 1


# --- durability ------------------------------------------------------------------------------------------------------


class GatedStorage(MemoryStorage):
    """A disk whose syncs of the log wait for the test, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.broken = False

    def open(self, name: str) -> StoredFile:
        file = super().open(name)
        if name == LOG_NAME:
            sync, write_durable = file.sync, file.write_durable

            def gated() -> None:
                self.waiting.set()
                assert self.gate.wait(20)
                if self.broken:
                    raise OSError(5, "Input/output error")
                sync()

            def gated_write(offset: int, data: bytes) -> None:
                gated()
                write_durable(offset, data)

            file.sync, file.write_durable = gated, gated_write  # type: ignore[method-assign]
        return file


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that took too long, whatever it took: the log's thread writes, and the loop goes on."""
    monkeypatch.setattr(journal, "QUICK_NS", -1)


@pytest.mark.usefixtures("slow_disk")
async def test_nothing_is_said_and_nothing_acknowledged_before_the_sync_returns():
    storage = GatedStorage()
    async with market(storage) as m:
        storage.gate.clear()
        storage.waiting.clear()
        m.send("alfa", buy("a-1", 100, 10))
        await asyncio.to_thread(storage.waiting.wait, 20)
        await asyncio.sleep(0.01)
        assert m.reports("alfa") == []
        assert len(m.bus.unacknowledged) == 1
        assert m.exchange.engine.depth("CONT") == ([], [])
        storage.gate.set()
        await m.until_reports("alfa", 1)
        assert not m.bus.unacknowledged


@pytest.mark.usefixtures("slow_disk")
async def test_while_one_batch_syncs_the_next_gathers_and_goes_to_disk_in_one_record():
    storage = GatedStorage()
    async with market(storage) as m:
        storage.gate.clear()
        storage.waiting.clear()
        m.send("alfa", buy("a-1", 100, 10))
        await asyncio.to_thread(storage.waiting.wait, 20)
        before = m.exchange.engine.sequence
        for index in range(100):
            m.send("bravo", buy(f"b-{index}", 100, 1))
        storage.gate.set()
        await m.until_reports("bravo", 100)
    records = [record for record in replay(storage).reader.records() if record.commands]
    assert [record.commands for record in records if record.first > before] == [1, 100]


@pytest.mark.parametrize("quick", [True, False])
async def test_a_failed_sync_stops_the_exchange_without_an_answer(quick: bool, request: pytest.FixtureRequest):
    if not quick:
        request.getfixturevalue("slow_disk")
    storage = GatedStorage()
    fault = None
    try:
        async with market(storage) as m:
            storage.broken = True
            m.send("alfa", buy("a-1", 100, 10))
            await m.until(lambda: m.bus.status[-1].state == "down")
    except LogFailed as error:
        fault = error
    assert fault is not None
    assert m.reports("alfa") == []
    assert len(m.bus.unacknowledged) == 1
    assert m.exchange.engine.depth("CONT") == ([], [])


async def test_a_restart_goes_on_with_the_next_report_and_the_same_book():
    storage = MemoryStorage()
    async with market(storage) as m:
        m.send("alfa", buy("a-1", 100, 10), buy("a-2", 99, 5))
        m.send("bravo", sell("b-1", 100, 4))
        await m.until_reports("alfa", 3)
        depth, digest = m.exchange.engine.depth("CONT"), m.exchange.engine.digest()

    async with market(storage) as m:
        assert m.exchange.engine.digest() == digest
        assert m.exchange.engine.depth("CONT") == depth
        assert [(hello.next_report, hello.sequence) for hello in m.answers("alfa", Hello)] == [
            (4, m.exchange.engine.sequence)
        ]
        m.send("alfa", buy("a-1", 100, 10), buy("a-3", 98, 1))
        events = [report.event for report in await m.until_reports("alfa", 2)]
        assert [event.repeat for event in events if isinstance(event, Accepted)] == [True, False]
        assert m.numbers("alfa") == [4, 5]
        await m.until_reports("alfa", 2)
    assert replay(storage).complete


async def test_what_was_not_acknowledged_comes_again_and_does_no_harm():
    """The crash between commit and acknowledgement: the broker redelivers what is in the log already."""
    storage = MemoryStorage()
    payload = msgspec.msgpack.encode(Inbound(commands=msgspec.Raw(encode_commands([buy("a-1", 100, 10)]))))
    async with market(storage) as m:
        m.bus.publish_as("alfa", payload)
        await m.until_reports("alfa", 1)
    async with market(storage) as m:
        m.bus.publish_as("alfa", payload)
        (report,) = await m.until_reports("alfa", 1)
        assert isinstance(report.event, Accepted)
        assert report.event.repeat
        assert m.exchange.engine.depth("CONT")[0] == [(100, 10)]


async def test_what_arrives_while_stopping_stays_with_the_broker():
    async with market() as m:
        m.exchange.stop()
        await asyncio.sleep(0.05)
        m.send("alfa", buy("a-1", 100, 10))
        assert len(m.bus.unacknowledged) == 1
        assert m.bus.status[-1].state == "down"


async def test_a_stop_answers_what_was_taken_in():
    async with market() as m:
        for index in range(50):
            m.send("alfa", buy(f"a-{index}", 100, 1))
        m.exchange.stop()
        await m.until_reports("alfa", 50)
    assert not m.bus.unacknowledged


# --- bad messages ----------------------------------------------------------------------------------------------------

ORDER = ["new", "a-1", "CONT", 0, 10, 100]


@pytest.mark.parametrize(
    ("message", "place", "says"),
    [
        ({"commands": [ORDER, [*ORDER[:5], "x"]]}, "$.commands[1].price", "Expected `int`, got `str`"),
        ({"commands": [[*ORDER[:4], -1, 5]]}, "$.commands[0].quantity", "Expected `int` >= 0, got -1"),
        ({"commands": [["new", "", "CONT", 0, 1, 5]]}, "$.commands[0].client_order_id", "length >= 1, got ''"),
        ({"commands": [["nwe", "a-1"]]}, "$.commands[0].command", "new, cancel, amend, mass_cancel, got 'nwe'"),
        ({"commands": [["new", "a-1", "CONT"]]}, "$.commands[0]", "no side, no quantity"),
        ({"commands": [["new", "a-1", "CONT", 7, 1, 5]]}, "$.commands[0].side", "0 (BUY), 1 (SELL), got 7"),
        ({"commands": [["phase", "CONT", 0]]}, "$.commands[0].command", "got 'phase'"),
        ({"commands": [ORDER] * (BATCH_MAX + 1)}, "$.commands", f"length <= {BATCH_MAX}, got {BATCH_MAX + 1}"),
        ({"commands": 5}, "$.commands", "Expected `array`, got `int`"),
        ({"v": 2}, "$.v", "Expected 1, got 2"),
        ({"resend_from": 0}, "$.resend_from", "Expected `int` >= 1, got 0"),
        ({"message_id": "x" * 37}, "$.message_id", "length <= 36, got 'xxx"),
        ({}, "$", "Expected commands, resend_from or open_orders, got none of them"),
        ({"commands": [], "open_orders": False}, "$", "got none of them"),
        ({"commands": [], "participant": "bravo"}, "$", "unknown field `participant`"),
        ([], "$", "Expected `object`, got `array`"),
        (b"", "$", "truncated"),
        (b"\x81\xa8commands" + b"\x91" * 50_000 + b"\x90", "$", "nesting"),
        (b"\x81\xa8commands\xdd\xff\xff\xff\xff\x01", "$", "truncated"),
        (b"\xc1", "$", "malformed"),
        (b"\xdf\x00\x01\x38\x80" + b"\xa1v\x01" * 80_000, "$", "Expected at most 16 keys, got 80000"),
        (b"\xde\x00\x11" + b"\xa1q\x01" * 17, "$", "Expected at most 16 keys, got 17"),
        (b"\x81\xa8commands\xdd\x00\x03\xd0\x90" + b"\xc0" * 250_000, "$.commands", "<= 1000, got 250000"),
    ],
)
async def test_a_malformed_message_is_answered_with_its_place(message: object, place: str, says: str):
    payload = message if isinstance(message, bytes) else msgpack.packb(message)
    async with market() as m:
        sequence = m.exchange.engine.sequence
        m.bus.publish_as("alfa", payload)
        (error,) = m.errors("alfa")
        assert (error.code, error.place) == ("MALFORMED", place)
        assert says in error.text
        assert not m.bus.unacknowledged
        m.send("bravo", buy("b-1", 100, 10))
        await m.until_reports("bravo", 1)
        assert m.exchange.engine.sequence == sequence + 1


async def test_an_answer_to_a_bad_command_echoes_the_message_id():
    async with market() as m:
        m.bus.publish_as("alfa", msgpack.packb({"message_id": "m-7", "commands": [["new"]]}))
        assert m.errors("alfa")[0].message_id == "m-7"


@pytest.mark.parametrize(
    "wrong",
    [{}, {"commands": []}, {"v": 2}, {"resend_from": 0}, {"open_orders": 1}, {"other": 1}, {"commands": [["new"]]}],
)
def test_an_answer_echoes_the_message_id_wherever_the_fault_is(wrong: dict[str, object]):
    with pytest.raises(Refused) as refused:
        decode(msgpack.packb({**wrong, "message_id": "m-8"}))
    assert refused.value.answer.message_id == "m-8"


@pytest.mark.parametrize(
    ("keys", "repeated"),
    [
        (["commands", "commands"], "commands"),
        (["v", "commands", "commands"], "commands"),
        (["v", "commands", "v"], "v"),
        (["message_id", "commands", "message_id"], "message_id"),
        (["resend_from", "open_orders", "commands", "message_id", "v", "resend_from"], "resend_from"),
        (["open_orders", "open_orders"], "open_orders"),
    ],
)
@pytest.mark.parametrize("header", ["fixmap", "map16", "map32"])
def test_a_key_that_comes_twice_is_refused_by_name(keys: list[str], repeated: str, header: str):
    values = {"v": 1, "message_id": "m-9", "commands": [ORDER], "resend_from": 1, "open_orders": True}

    def message(*names: str) -> bytes:
        count = len(names)
        start = {"fixmap": bytes([0x80 + count]), "map16": b"\xde\0" + bytes([count])}
        return start.get(header, b"\xdf\0\0\0" + bytes([count])) + b"".join(
            msgpack.packb(name) + msgpack.packb(values[name]) for name in names
        )

    assert decode(message(*dict.fromkeys(keys)))
    with pytest.raises(Refused) as refused:
        decode(message(*keys))
    answer = refused.value.answer
    assert (answer.place, answer.text) == (f"$.{repeated}", f"Expected each key once, got {repeated} 2 times")


def test_a_key_spelt_two_ways_is_still_the_same_key():
    commands = msgpack.packb([ORDER])
    with pytest.raises(Refused, match="got commands 2 times"):
        decode(b"\x82\xd9\x08commands" + commands + b"\xa8commands" + commands)


async def test_an_oversized_message_is_refused_unread():
    async with market() as m:
        m.bus.publish_as("alfa", b"\x80" + bytes(PAYLOAD_MAX))
        assert m.errors("alfa")[0].code == "TOO_LARGE"


async def test_a_retained_command_is_answered_and_not_executed():
    async with market() as m:
        payload = msgpack.packb({"message_id": "m-1", "commands": [ORDER]})
        m.bus.publish_as("alfa", payload, retained=True)
        (error,) = m.errors("alfa")
        assert (error.code, error.message_id) == ("RETAINED", "m-1")
        assert m.exchange.counters.retained == 1
        assert not m.bus.unacknowledged
        m.bus.publish_as("alfa", payload)
        (report,) = await m.until_reports("alfa", 1)
        assert not report.event.repeat


async def test_strangers_who_use_up_the_places_do_not_shut_out_a_member_with_orders():
    async with market(text="limits.members = 2\n") as m:
        m.send("alfa", buy("a-1", 100, 10))
        await m.until_reports("alfa", 1)
        m.exchange._senders.clear()  # as after a restart
        for stranger in ("x", "y", "z"):
            m.send(stranger)
        m.send("alfa", buy("a-2", 100, 10))
        await m.until_reports("alfa", 2)
        assert m.errors("z")[0].code == "UNKNOWN_MEMBER"


async def test_only_members_on_the_list_are_served():
    async with market(text='members = ["alfa"]\n') as m:
        m.send("bravo", buy("b-1", 100, 10))
        m.send("alfa", buy("a-1", 100, 10))
        await m.until_reports("alfa", 1)
        assert m.errors("bravo")[0].code == "UNKNOWN_MEMBER"
        assert m.reports("bravo") == []


@pytest.mark.parametrize("name", ["", "Alfa", "a" * 17, "alfa/x", "exchange ", "ア"])
async def test_a_sender_without_a_members_name_is_not_served_and_not_answered(name: str):
    async with market() as m:
        m.send(name, buy("b-1", 100, 10))
        assert m.exchange.counters.unknown_member == 1
        assert name not in m.bus.out
        assert not m.bus.unacknowledged


commands = st.lists(
    st.one_of(
        st.lists(
            st.one_of(
                st.sampled_from(["new", "cancel", "amend", "mass_cancel", "phase", "a-1", "CONT", ""]),
                st.integers(-(2**63), 2**64 - 1),
                st.floats(),
                st.booleans(),
                st.none(),
                st.binary(max_size=8),
                st.text(max_size=8),
                st.lists(st.integers(0, 3), max_size=3),
            ),
            max_size=16,
        ),
        st.just(ORDER),
    ),
    max_size=5,
)
payloads = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda c: msgpack.packb({"commands": c}), commands),
    st.builds(lambda c, cut: msgpack.packb({"commands": c})[: -cut or None], commands, st.integers(0, 20)),
    st.builds(
        lambda key, value: msgpack.packb({key: value}),
        st.sampled_from(["v", "message_id", "commands", "resend_from", "open_orders", "x"]),
        st.one_of(st.integers(-5, 2**60), st.text(max_size=50), st.none(), st.binary(max_size=9)),
    ),
)


@settings(max_examples=40)
@given(st.lists(payloads, min_size=1, max_size=20))
def test_no_bytes_stop_the_exchange_and_each_message_is_answered(messages: list[bytes]):
    async def run() -> None:
        async with market() as m:
            expected = 0
            for payload in messages:
                m.bus.publish_as("alfa", payload)
                try:
                    request = decode(payload)
                except Refused:
                    expected += 1
                else:
                    expected += len(request.commands) + bool(request.open_orders) + bool(request.resend_from)
            m.send("bravo", buy("b-1", 100, 10))
            await m.until_reports("bravo", 1)
            # An error, a report per command, an answer per question; a resend ends with a Hello.
            answers = sum(
                len(message.reports)
                if isinstance(message, Reports) and not message.resent
                else 0
                if isinstance(message, Reports)
                else 1
                for message in m.bus.out.get("alfa", [])
            )
            assert answers >= expected
            assert not m.bus.unacknowledged

    asyncio.run(run())


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_a_member_beyond_its_rate_is_told_when_to_come_back():
    async with market(text="[limits]\nmember_rate = 10\nmember_burst = 5\n") as m:
        for index in range(7):
            m.send("alfa", buy(f"a-{index}", 100, 1), message_id=f"m-{index}")
        await m.until_reports("alfa", 5)
        errors = m.errors("alfa")
        assert [(error.code, error.message_id) for error in errors] == [("THROTTLED", "m-5"), ("THROTTLED", "m-6")]
        m.clock.machine_ns += errors[0].retry_after_ms * 1_000_000
        m.send("alfa", buy("a-5", 100, 1))
        await m.until_reports("alfa", 6)


async def test_a_mass_cancel_takes_more_of_the_rate_than_an_order():
    async with market(text="[limits]\nmember_rate = 10\nmember_burst = 12\nmember_mass_cancel = 10\n") as m:
        m.send("alfa", MassCancel("c-1"))
        for index in range(3):
            m.send("alfa", buy(f"mass_cancel-{index}", 100, 1))
        await m.until_reports("alfa", 3)
        (error,) = m.errors("alfa")
        assert error.code == "THROTTLED"
        assert "a mass cancel counts as 10" in error.text


async def test_mass_cancels_cost_what_they_walk_over_and_a_batch_of_them_gets_no_credit():
    async with market(text="[limits]\nmember_rate = 1000\nmember_burst = 1000\nmember_mass_cancel = 10\n") as m:
        m.send("alfa", *(buy(f"a-{index}", 100, 1) for index in range(1000)))
        await m.until_reports("alfa", 1000)
        m.clock.machine_ns += 2_000_000_000
        # Each walks over 1,000 orders: 10, and a tenth of 1,000 and of the commands that come with it.
        m.send("alfa", *(MassCancel(f"c-{index}", price_from=1, price_to=1) for index in range(10)), message_id="m-1")
        (error,) = m.errors("alfa")
        assert (error.code, error.place, error.message_id) == ("TOO_LARGE", "$.commands", "m-1")
        assert "at most 1000 commands, got one of 1110: send its 10 mass cancels one by one" in error.text
        for index in range(10):
            m.send("alfa", MassCancel(f"d-{index}", price_from=1, price_to=1), message_id=f"n-{index}")
        await m.until_reports("alfa", 1009)
        throttled = m.errors("alfa")[1]
        assert (throttled.code, throttled.message_id) == ("THROTTLED", "n-9")
        m.clock.machine_ns += 2_000_000_000
        m.send("alfa", MassCancel("d-10"))
        await m.until_reports("alfa", 2010)
        m.clock.machine_ns += 2_000_000_000
        m.send("alfa", MassCancel("d-11"))  # finds nothing open, so that those behind it have nothing to walk over
        await m.until_reports("alfa", 2011)
        m.send("alfa", *(MassCancel(f"e-{index}") for index in range(20)))
        await m.until_reports("alfa", 2031)


async def test_the_word_presence_in_an_order_gets_nobody_past_the_rate():
    async with market(text="[limits]\nmember_rate = 10\nmember_burst = 3\n") as m:
        for index in range(5):
            m.send("alfa", buy(f"presence-{index}", 100, 1), message_id=f"m-{index}")
        m.send("alfa", open_orders=True, message_id="presence")
        await m.until_reports("alfa", 3)
        assert [(error.code, error.message_id) for error in m.errors("alfa")] == [
            ("THROTTLED", "m-3"),
            ("THROTTLED", "m-4"),
            ("THROTTLED", "presence"),
        ]


async def test_a_flood_is_not_answered_message_by_message():
    async with market(text='members = ["alfa", "bravo"]\n') as m:
        for sender in ("alfa", "stranger", "another"):
            for _ in range(3000):
                m.bus.publish_as(sender, b"\xc0")
        m.send("bravo", buy("b-1", 100, 1))
        await m.until_reports("bravo", 1)
        assert len(m.errors("alfa")) == 2000
        assert len(m.errors("stranger") + m.errors("another")) == 2000
        assert m.exchange.counters.malformed == 3000
        assert m.exchange.counters.unknown_member == 6000
        assert not m.bus.unacknowledged
        m.clock.machine_ns += 1_000_000_000
        m.bus.publish_as("alfa", b"\xc0")
        assert len(m.errors("alfa")) == 2001


async def test_malformed_messages_count_by_their_size():
    nested = b"\x81\xa8commands\xdc\x01\x20" + (b"\x91" * 900 + b"\xc0") * 288
    async with market() as m:
        for _ in range(100):
            m.bus.publish_as("alfa", nested)
        assert m.exchange.counters.malformed == 13  # 8,109 of the rate each, of which there are 100,000 at once
        assert m.exchange.counters.throttled == 87
        assert len(m.errors("alfa")) == 7  # 254 each, of 2,000
        m.clock.machine_ns += 3_000_000_000
        m.send("alfa", buy("a-1", 100, 1))
        await m.until_reports("alfa", 1)


async def test_a_failure_to_read_old_reports_is_answered():
    async def fail(participant: str, first: int, count: int) -> list[bytes]:
        raise RuntimeError("no disk")

    async with market(text="[reports]\nwindow = 1\n") as m:
        m.exchange._derive = fail
        m.send("alfa", *(buy(f"a-{index}", 100, 1) for index in range(3)))
        await m.until_reports("alfa", 3)
        for question in (1, 2):  # a failure does not keep the next question out
            m.send("alfa", resend_from=1, message_id=f"q-{question}")
            await m.until(lambda: len(m.errors("alfa")) == question)  # noqa: B023
            error = m.errors("alfa")[-1]
            assert (error.code, error.place, error.message_id) == ("THROTTLED", "$.resend_from", f"q-{question}")
            assert error.retry_after_ms > 0
            assert "ask again" in error.text


async def test_a_name_with_a_newline_behind_it_is_no_member():
    async with market() as m:
        m.send("alfa\n", buy("a-1", 100, 1))
        assert m.exchange.counters.unknown_member == 1
        assert not m.bus.unacknowledged


async def test_questions_have_a_rate_of_their_own_because_each_walks_far():
    async with market(text="[limits]\nmember_questions = 2\n") as m:
        for _ in range(6):
            m.send("alfa", open_orders=True)
        assert len(m.answers("alfa", OpenOrders)) == 4
        assert [error.code for error in m.errors("alfa")] == ["THROTTLED"] * 2
        m.send("alfa", buy("a-1", 100, 1))
        await m.until_reports("alfa", 1)


async def test_a_question_costs_as_many_as_its_answer_has_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gateway.exchange.OPEN_ORDERS_MAX", 10)
    async with market(text="[limits]\nmember_questions = 2\n") as m:
        m.send("alfa", *(buy(f"a-{index}", 100, 1) for index in range(41)))
        await m.until_reports("alfa", 41)
        for _ in range(3):
            m.send("alfa", open_orders=True)
        assert [len(part.orders) for part in m.answers("alfa", OpenOrders)] == [10, 10, 10, 10, 1]
        first, second = m.errors("alfa")
        assert (first.code, first.retry_after_ms) == (second.code, second.retry_after_ms) == ("THROTTLED", 1001)
        m.clock.machine_ns += first.retry_after_ms * 1_000_000
        m.send("alfa", open_orders=True)
        assert len(m.answers("alfa", OpenOrders)) == 10


async def test_one_members_flood_is_refused_while_others_find_room():
    storage = GatedStorage()
    text = "[limits]\nmember_waiting_commands = 20\nwaiting_commands = 100\n"
    async with market(storage, text) as m:
        storage.gate.clear()
        for index in range(500):
            m.send("alfa", buy(f"a-{index}", 100, 1), message_id=f"m-{index}")
        m.send("bravo", buy("b-1", 100, 1))
        refused = m.errors("alfa")
        assert {error.code for error in refused} == {"THROTTLED"}
        assert len(refused) >= 470
        assert m.errors("bravo") == []
        storage.gate.set()
        await m.until_reports("bravo", 1)
        accepted = len(m.reports("alfa"))
        assert accepted + len(refused) == 500  # each was either done or refused
        m.send("alfa", buy("a-499", 100, 1))
        await m.until_reports("alfa", accepted + 1)


async def test_the_exchange_as_a_whole_takes_in_no_more_than_its_bound():
    storage = GatedStorage()
    async with market(storage, "[limits]\nwaiting_commands = 50\nmember_waiting_commands = 20\n") as m:
        storage.gate.clear()
        for index in range(30):
            for member in ("alfa", "bravo", "charlie", "delta"):
                m.send(member, buy(f"{member}-{index}", 100, 1))
        taken = 120 - sum(len(m.errors(member)) for member in ("alfa", "bravo", "charlie", "delta"))
        assert taken == 50
        storage.gate.set()
        await m.until_reports("alfa", 1)


# --- questions -------------------------------------------------------------------------------------------------------


async def test_reports_come_again_from_any_number_from_memory_and_from_the_log():
    async with market(text="[reports]\nwindow = 5\n") as m:
        for index in range(20):
            m.send("alfa", buy(f"a-{index}", 100, 1))
        original = dict(zip(range(1, 21), await m.until_reports("alfa", 20), strict=True))
        for first in (18, 16, 15, 1, 20):
            m.bus.out["alfa"].clear()
            m.send("alfa", resend_from=first)
            await m.until(lambda: bool(m.answers("alfa", Hello)))
            assert dict(zip(m.numbers("alfa"), m.reports("alfa"), strict=True)) == {
                n: report for n, report in original.items() if n >= first
            }
            assert all(message.resent for message in m.answers("alfa", Reports))
            assert m.answers("alfa", Hello)[-1].next_report == 21


async def test_a_long_resend_comes_in_pieces_that_the_hello_lets_one_ask_on_from():
    async with market(text="[reports]\nwindow = 3\nresend = 7\n") as m:
        for index in range(20):
            m.send("alfa", buy(f"a-{index}", 100, 1))
        await m.until_reports("alfa", 20)
        m.bus.out["alfa"].clear()
        mine = 1
        while True:
            count = len(m.answers("alfa", Hello))
            m.send("alfa", resend_from=mine)
            await m.until(lambda count=count: len(m.answers("alfa", Hello)) > count)
            mine = m.numbers("alfa")[-1] + 1
            if mine >= m.answers("alfa", Hello)[-1].next_report:
                break
        assert m.numbers("alfa") == list(range(1, 21))


async def test_beyond_the_retention_the_first_number_available_is_named():
    async with market(text="[reports]\nretention = 4\n") as m:
        for index in range(10):
            m.send("alfa", buy(f"a-{index}", 100, 1))
        await m.until_reports("alfa", 10)
        m.send("alfa", resend_from=6, message_id="m-1")
        (error,) = m.errors("alfa")
        assert (error.code, error.first_available, error.message_id) == ("NOT_AVAILABLE", 7, "m-1")
        m.bus.out["alfa"].clear()
        m.send("alfa", resend_from=7)
        await m.until_reports("alfa", 4)
        assert m.numbers("alfa") == [7, 8, 9, 10]


async def test_asking_for_what_is_not_there_yet_is_answered_with_where_one_stands():
    async with market() as m:
        m.send("alfa", resend_from=99)
        assert [hello.next_report for hello in m.answers("alfa", Hello)] == [1]


async def test_open_orders_are_as_of_the_next_report_and_come_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gateway.exchange.OPEN_ORDERS_MAX", 3)
    async with market() as m:
        m.send("alfa", *(buy(f"a-{index}", 100 - index, 10) for index in range(7)))
        m.send("bravo", sell("b-1", 100, 4))
        await m.until_reports("alfa", 8)
        m.send("alfa", CancelOrder("c-1", "a-6"))
        await m.until_reports("alfa", 9)
        assert isinstance(m.reports("alfa")[-1].event, Cancelled)
        last = await m.open_orders("alfa")
        parts = m.bus.out["alfa"][-2:]
        assert last is parts[-1]
        assert [part.more for part in parts] == [True, False]
        orders = [order for part in parts for order in part.orders]
        assert [order.client_order_id for order in orders] == [f"a-{index}" for index in range(6)]
        assert orders[0].open_quantity == 6
        assert last.next_report == 10


async def test_every_member_is_greeted_when_the_exchange_starts():
    storage = MemoryStorage()
    async with market(storage, 'members = ["alfa", "zulu"]\n') as m:
        m.send("alfa", NewOrder("a-1", "CONT", Side.BUY, 1, 100))
        await m.until_reports("alfa", 1)
    async with market(storage, 'members = ["alfa", "zulu"]\n') as m:
        assert [hello.next_report for hello in m.answers("alfa", Hello)] == [2]
        assert [hello.next_report for hello in m.answers("zulu", Hello)] == [1]
        assert m.bus.status[0].state == "up"
    assert m.bus.status[-1].state == "down"


# --- failure inside --------------------------------------------------------------------------------------------------


async def test_an_instrument_that_is_set_aside_raises_an_alarm_and_the_exchange_serves_on():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10, "CALL"))
        m.send("bravo", sell("b-1", 100, 10, "CALL"))
        await m.until_reports("bravo", 1)
        m.exchange.engine._orders.open[1] -= 1  # the row no longer says what its level says

        await m.exchange.submit(SetPhase("CALL", Phase.PRE_OPEN_NCP), SetPhase("CALL", Phase.OPENING_AUCTION))
        m.send("alfa", buy("a-2", 100, 10, "CALL"))
        m.send("alfa", buy("a-3", 100, 10))
        *_, refused, accepted = [report.event for report in await m.until_reports("alfa", 3)]

        alarms = [fields["text"] for event, fields in m.heard if event == "alarm"]
        assert len(alarms) == 1
        assert alarms[0].startswith("CALL is set aside, cancels wait too; the others trade on.")
        assert isinstance(refused, Rejected)
        assert refused.reason == Reason.SET_ASIDE
        assert isinstance(accepted, Accepted)


async def test_a_members_command_that_sets_an_instrument_aside_raises_the_alarm_too(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> int:
        raise InvariantBroken("The match does not add up")

    if BACKEND == "compiled":
        pytest.skip("compiled code cannot be patched")
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10))
        await m.until_reports("alfa", 1)
        monkeypatch.setattr(continuous, "take", broken)
        m.send("bravo", sell("b-1", 100, 10))
        await m.until_reports("bravo", 1)

        assert [fields["text"] for event, fields in m.heard if event == "alarm"] == [
            "CONT is set aside, orders can be cancelled; the others trade on. The match does not add up"
        ]
