"""What the compiled reader reads and the writer writes is msgspec's; what they do not know they leave to it.

Both are run here whichever engine was built: it is the same source. Only codec and replay ask which is faster.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import (
    AmendOrder,
    CancelOrder,
    Engine,
    Event,
    MassCancel,
    MemberCommand,
    NewOrder,
    OrderType,
    SelfTrade,
    Side,
    TimeInForce,
)
from engine.commands import StartDay
from engine.events import Accepted, Cancelled, Traded
from engine.log import LogReader, MemoryStorage, log
from engine.names import Names, name_of
from engine.ticket import CancelTicket, CommandTicket, OrderTicket
from engine.types import PRICE_MAX, QUANTITY_MAX
from engine.wire import EventWriter, read_groups, read_message
from gateway.bus import codec
from gateway.bus.codec import Refused, Request
from gateway.bus.messages import BATCH_MAX, MESSAGE_ID_MAX, Inbound
from tests.log.day import write_day

encode = msgspec.msgpack.encode

ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=36)
texts = ids | st.sampled_from(["", "é", "a b", "x" * 31, "x" * 32, "x" * 37, "\0"])
codes = st.sampled_from(["KDX-2107", "A", "B", "CONT", "ABCDEFGHIJKL", "ABCDEFGHIJKLM", ""])
edges = st.sampled_from([0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, QUANTITY_MAX, PRICE_MAX])
numbers = edges | st.integers(0, 2**49) | st.sampled_from([-1, QUANTITY_MAX + 1, PRICE_MAX + 1, 2**63, 2**64 - 1])
flags = st.booleans() | st.sampled_from([0, 1, None])
#: Elements of a new order and of a cancel, right and wrong, in their order; a message may stop after any of them.
ORDER: list[st.SearchStrategy[Any]] = [
    *(texts, codes, st.integers(-1, 2), numbers, numbers, st.integers(-1, 6), st.integers(-1, 8), texts),
    *(numbers, numbers, numbers, flags, st.integers(-1, 7), st.sampled_from([0, 20261124, 99991231, 99991232])),
    *(flags, numbers),
]
good_orders = st.builds(
    NewOrder,
    ids,
    st.sampled_from(["KDX-2107", "CONT", "ABCDEFGHIJKL"]),
    st.sampled_from(Side),
    st.integers(0, QUANTITY_MAX),
    st.integers(0, PRICE_MAX),
    st.sampled_from(OrderType),
    st.sampled_from(TimeInForce),
    st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=32),
    st.integers(0, QUANTITY_MAX),
    st.integers(0, PRICE_MAX),
    st.integers(0, QUANTITY_MAX),
    st.booleans(),
    st.sampled_from(SelfTrade),
    st.integers(0, 99991231),
    st.booleans(),
)
good_cancels = st.builds(CancelOrder, ids, ids)


@st.composite
def commands(draw: st.DrawFn) -> Any:
    """An array that is nearly a command."""
    kind = draw(st.sampled_from(["new", "new", "new", "cancel", "amend", "nwe"]))
    elements = ORDER if kind == "new" else [texts, texts, numbers]
    return [kind, *[draw(element) for element in elements[: draw(st.integers(0, len(elements)))]]]


def payload(wishes: Any, **others: Any) -> bytes:
    return encode({**others, "commands": wishes})


def read(data: bytes) -> tuple[str, int, list[MemberCommand]] | None:
    """What our reader makes of a message, tickets as the orders they are."""
    found = read_message(data, MESSAGE_ID_MAX, BATCH_MAX)
    if found is None:
        return None
    return found.message_id, found.start, [orders(wish) for wish in found.commands]


def orders(wish: MemberCommand | CommandTicket) -> MemberCommand:
    return wish.command if isinstance(wish, CommandTicket) else wish


def decoded(data: bytes) -> Request | None:
    """What msgspec makes of it alone; None: it refuses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "PAYS", False)
        try:
            return codec.decode(data)
        except Refused:
            return None


def agree(data: bytes) -> bool:
    """Whether our reader read it; what it did read is what msgspec reads."""
    found = read(data)
    if found is None:
        return False
    request = decoded(data)
    assert request is not None
    message_id, start, wishes = found
    assert (message_id, data[start:], wishes) == (request.message_id, bytes(request.raw), list(request.commands))
    assert (request.resend_from, request.open_orders, request.presence) == (None, False, None)
    assert repr(wishes) == repr(request.commands)  # enums are enums, and flags are flags
    return True


@given(st.lists(good_orders | good_cancels, min_size=1, max_size=20), st.just("") | ids)
def test_plain_messages_are_read_as_msgspec_reads_them(wishes: list[MemberCommand], message_id: str) -> None:
    assert agree(encode(Inbound(commands=msgspec.Raw(encode(wishes)), message_id=message_id)))


@given(good_orders, st.integers(5, 16))
def test_what_an_order_leaves_out_is_its_default(order: NewOrder, size: int) -> None:
    assert agree(payload([msgspec.to_builtins(order)[:size]]))


@given(st.lists(commands(), min_size=1, max_size=3), st.sampled_from([{}, {"message_id": "m"}, {"v": 1}, {"x": 1}]))
def test_what_is_nearly_a_command_is_read_right_or_left_alone(wishes: list[Any], others: dict[str, Any]) -> None:
    agree(payload(wishes, **others))


spoils = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["set", "del", "ins"])), max_size=3
)


def spoil(data: bytes, how: list[tuple[int, int, str]]) -> bytes:
    spoilt = bytearray(data)
    for place, value, what in how:
        place %= len(spoilt)
        if what == "set":
            spoilt[place] = value
        elif what == "del":
            del spoilt[place]
        else:
            spoilt.insert(place, value)
    return bytes(spoilt)


@given(st.lists(good_orders | good_cancels, min_size=1, max_size=3), spoils)
def test_spoilt_bytes_are_read_right_or_left_alone(wishes: list[Any], how: list[tuple[int, int, str]]) -> None:
    agree(spoil(encode(Inbound(commands=msgspec.Raw(encode(wishes)), message_id="m-1")), how))


@given(st.binary(max_size=40))
def test_any_bytes_are_read_right_or_left_alone(data: bytes) -> None:
    agree(data)


def groups_agree(data: bytes) -> bool:
    """Whether our reader read these groups of a record; what it did read is what the log's decoder reads."""
    found = read_groups(data)
    if found is None:
        return False
    told = [(time_ns, participant, [orders(wish) for wish in wishes]) for time_ns, participant, wishes in found]
    assert repr(told) == repr(log._decode_groups(data))
    return True


groups = st.lists(
    st.tuples(
        st.integers(1, 2**63 - 1),
        st.from_regex(r"[a-z0-9-]{1,16}", fullmatch=True),
        st.lists(good_cancels, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@given(groups, spoils)
def test_groups_of_a_record_are_read_as_the_log_reads_them(
    groups: list[tuple[int, str, list[MemberCommand]]], how: list[tuple[int, int, str]]
) -> None:
    written = b"\xdd" + len(groups).to_bytes(4, "big") + encode(groups)[1:]  # with the header that the log writes
    assert groups_agree(encode(groups))
    assert groups_agree(written)
    groups_agree(spoil(written, how))


@pytest.mark.parametrize("participant", ["", "Alpha", "x" * 17, "a\n"])
def test_groups_of_the_exchange_and_of_nobody_are_left_alone(participant: str) -> None:
    assert not groups_agree(encode([(1, participant, [CancelOrder("c-1", "a-1")])]))
    assert groups_agree(encode([(1, "alpha", [CancelOrder("c-1", "a-1")])]))
    assert not groups_agree(encode([(0, "alpha", [CancelOrder("c-1", "a-1")])]))
    assert not groups_agree(encode([(2**63, "alpha", [CancelOrder("c-1", "a-1")])]))


def test_a_log_read_in_tickets_is_the_same_market() -> None:
    storage = MemoryStorage()
    exchange = write_day(storage, 1)
    engine = Engine()
    tickets = 0
    for entry in LogReader(storage).entries(tickets=True):
        for time_ns, participant, wishes in entry.groups if isinstance(entry, log.Batch) else ():
            for number, wish in enumerate(wishes):
                tickets += isinstance(wish, OrderTicket)
                engine.apply(wish, participant, time_ns + number)
    assert tickets
    assert engine.digest() == exchange.engine.digest()


def test_every_cut_is_left_alone() -> None:
    whole = payload(
        [["new", "a-1", "CONT", 0, 70_000, 2**40, 0, 0, "x" * 32], ["cancel", "c-1", "a-1"]], message_id="m"
    )

    assert agree(whole)
    assert [size for size in range(len(whole)) if read(whole[:size]) is not None] == []


def test_rare_commands_empty_arrays_and_large_batches_are_left_to_msgspec() -> None:
    order = NewOrder("a-1", "CONT", Side.BUY, 1, 1)

    assert agree(payload([order] * BATCH_MAX))
    for wishes in ([], [order] * (BATCH_MAX + 1), [order, AmendOrder("r-1", "a-1", 2)], [MassCancel("r-1")]):
        assert read(payload(wishes)) is None


def test_a_ticket_made_of_bytes_says_what_its_order_says() -> None:
    order = NewOrder(
        "a-1", "CONT", Side.SELL, 2, 1, OrderType.STOP, TimeInForce.GTD, "x", 5, 6, 7, True, SelfTrade.NONE, 8
    )
    found = read_message(payload([order]), MESSAGE_ID_MAX, BATCH_MAX)

    assert found is not None
    ticket = found.commands[0]
    assert isinstance(ticket, OrderTicket)
    assert {name: getattr(ticket, name) for name in order.__struct_fields__} == msgspec.structs.asdict(order)
    assert ticket.command == order
    assert encode(ticket.command) == encode(order)


def test_a_cancel_made_of_bytes_says_what_it_said() -> None:
    found = read_message(payload([CancelOrder("c-1", "a-1")]), MESSAGE_ID_MAX, BATCH_MAX)

    assert found is not None
    ticket = found.commands[0]
    assert isinstance(ticket, CancelTicket)
    assert ticket.command == CancelOrder("c-1", "a-1")


whole = edges | st.integers(-(2**63), 2**64 - 1) | st.sampled_from([2**62 - 1, 2**62, 2**63 - 1, 2**63])
#: What a field of an event can hold.
CONTENTS: dict[Any, st.SearchStrategy[Any]] = {
    str: texts | st.text(max_size=300) | st.sampled_from(["é" * 16, "x" * 255, "x" * 256, "\U0001f600"]),
    int: whole,
    bool: st.booleans(),
    bool | None: st.sampled_from([None, False, True]),
    list[str]: st.lists(texts, max_size=3),
}


def content(kind: Any) -> st.SearchStrategy[Any]:
    if kind in CONTENTS:
        return CONTENTS[kind]
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return st.sampled_from(kind)
    return st.just(StartDay(20261124))  # what an operator asks for


def of(kind: type[Event]) -> st.SearchStrategy[Event]:
    return st.builds(kind, *[content(field.type) for field in msgspec.structs.fields(kind)])


@given(st.lists(st.tuples(of(Accepted) | of(Cancelled) | of(Traded), ids, ids), min_size=1, max_size=3))
def test_an_event_is_written_as_msgspec_writes_it(events: list[tuple[Event, str, str]]) -> None:
    writer = EventWriter()
    for event, first, second in events:
        names = Names()
        names.append(name_of(first))
        names.append(name_of(second))
        if isinstance(event, Accepted):
            event = msgspec.structs.replace(event, client_order_id=first)
            fields = msgspec.structs.astuple(event)
            written = writer.accepted(fields[0], name_of(first), *fields[2:])
        elif isinstance(event, Cancelled):
            request = name_of(second) if event.request_id else None
            event = msgspec.structs.replace(
                event, client_order_id=first, order_id=1, request_id=second if request is not None else ""
            )
            fields = msgspec.structs.astuple(event)
            written = writer.cancelled(fields[0], names, *fields[2:8], request, *fields[9:])
        else:
            event = msgspec.structs.replace(
                event, buy_client_order_id=first, buy_order_id=1, sell_client_order_id=second, sell_order_id=2
            )
            fields = msgspec.structs.astuple(event)
            written = writer.traded(names, *fields[:5], *fields[6:10], *fields[11:])
        assert written == encode(event)


@pytest.mark.parametrize("kind", get_args(Event))
def test_what_commands_lead_to_is_written_as_msgspec_writes_it(kind: type[Event]) -> None:
    @settings(max_examples=10)
    @given(st.lists(st.tuples(whole, whole, st.lists(st.tuples(of(kind), st.booleans()), max_size=20)), max_size=3))
    def check(said: list[tuple[int, int, list[tuple[Event, bool]]]]) -> None:
        writer = EventWriter()
        for sequence, time_ns, events in said:
            writer.command(sequence, time_ns, [encode(event) if written else event for event, written in events])
        plain = [(sequence, time_ns, [event for event, _ in events]) for sequence, time_ns, events in said]
        assert writer.written() == b"".join(encode(what) for what in plain)

    check()


@pytest.mark.parametrize("count", [15, 16, 65_535, 65_536])
def test_commands_that_lead_to_many_events_are_written_as_msgspec_writes_them(count: int) -> None:
    event = msgspec.convert(["mass_cancelled", "a", "r", 1], Event)
    writer = EventWriter()
    writer.command(1, 2, [event] * count)

    assert writer.written() == encode((1, 2, [event] * count))
