"""The commands and events that make up a market's day, read from bytes and written as bytes in compiled code.

A decoder that knows every type asks each element what it may be; that took a quarter of a command's way from bytes to
answers. Nine in ten commands are plain: a new order or a cancel, as any encoder writes them. Those are read here, a new
order straight into the ticket that the engine works with. Whatever is written otherwise, is any other command, or is
wrong in any way, is left alone: ``None`` sends the reader's caller to msgspec, which alone says what is wrong. So there
is nothing here to refuse with, and what is read here is what msgspec would have read (``tests/gateway/test_wire.py``).

The other way round, whoever only wants the bytes of events (a replay, which hashes them) need not have them as objects:
making one, asking each of its fields what it is and dropping it again costs three times what it takes to write numbers
that are at hand. Events that are made with every order are written here, as msgspec would write them; all others are
left to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, final

import msgspec
from librt.strings import BytesWriter, write_i64_be
from mypy_extensions import i64, mypyc_attr, u8

from engine.backend import CHOSEN, COMPILED
from engine.checks import is_participant
from engine.commands import AmendOrder, MassCancel
from engine.events import Event
from engine.names import NAME_MAX, PADDING, Name, Names, name_at
from engine.packing import ARRAY, ARRAY_16, ARRAY_32, FIFTEEN, TEXT, TEXT_8, put_array, put_text
from engine.ticket import CancelTicket, CommandTicket, OrderTicket
from engine.types import PRICE_MAX, QUANTITY_MAX, OrderType, SelfTrade, Side, TimeInForce

#: Compiled, reader and writer are the faster ones for what is plain; interpreted they are not, and nobody asks them.
PAYS: Final = CHOSEN == COMPILED

#: A member's command as it may travel to the engine.
Wish = CommandTicket | AmendOrder | MassCancel

# The bounds of ``engine.commands``. 0 is the least number everywhere.
_CODE_MAX: Final = 12
_ACCOUNT_MAX: Final = 32
_DATE_MAX: Final = 99_991_231
_SIDE_MAX: Final = len(Side) - 1
_TYPE_MAX: Final = len(OrderType) - 1
_VALIDITY_MAX: Final = len(TimeInForce) - 1
_SELF_TRADE_MAX: Final = len(SelfTrade) - 1
_PRICE_MAX: Final = PRICE_MAX
_QUANTITY_MAX: Final = QUANTITY_MAX

# MessagePack, as far as it is read here.
_MAP_1: Final = 0x81
_MAP_2: Final = 0x82
_FALSE: Final = 0xC2
_TRUE: Final = 0xC3
_NUMBER_8: Final = 0xCC  #: with 1 byte; 2, 4 and 8 follow
_NUMBER_64: Final = 0xCF
_NUMBER_MAX: Final = 2**63 - 1
_PLAIN: Final = 0x80  #: below it a byte is a number itself, or a character

_MESSAGE_ID: Final = b"\xaamessage_id"
_COMMANDS: Final = b"\xa8commands"
_NEW: Final = b"\xa3new"
_CANCEL: Final = b"\xa6cancel"
#: Elements of a new order, its name included: without all that has a default, and with all.
_NEW_LEAST: Final = 5
_NEW_MOST: Final = 16
_CANCEL_SIZE: Final = 3
_GROUP_SIZE: Final = 3
_PARTICIPANT_MAX: Final = 16


class Message(NamedTuple):
    """One member's message of nothing but plain commands."""

    message_id: str
    start: int  #: where in the payload the array of commands begins; it ends with the payload
    commands: list[Wish]


_NO_NAME: Final = Name(b"", 0, 0, 0, "")


@final
class _Reader:
    """A place in bytes that moves on as they are read. What is not there as expected turns ``plain`` to False."""

    def __init__(self, data: bytes, at: i64) -> None:
        self.data: Final = data + PADDING
        # The same, a character for each byte: a text of ASCII is a piece of it, made in one step instead of two.
        self._characters: Final = data.decode("latin-1")
        self.end: Final[i64] = len(data)
        self.at: i64 = at
        self.plain: bool = True
        # The last instrument's code: the next is often the same, and then needs no text of its own.
        self._code: str = ""
        self._code_at: i64 = 0
        self._code_size: i64 = -1

    def fail(self) -> i64:
        """Give up: nothing more is there to be read."""
        self.plain = False
        self.at = self.end
        return 0

    def header(self) -> i64:
        """How many elements the array here has."""
        data = self.data
        at = self.at
        if at >= self.end:
            return self.fail()
        first: i64 = data[at]
        at += 1
        if first & ~FIFTEEN == ARRAY:
            self.at = at
            return first & FIFTEEN
        stop = at + 2
        if first == ARRAY_32:
            stop = at + 4
        elif first != ARRAY_16:
            return self.fail()
        if stop > self.end:
            return self.fail()
        size: i64 = 0
        while at < stop:
            byte: i64 = data[at]
            size = size << 8 | byte
            at += 1
        self.at = at
        return size

    def is_next(self, expected: bytes) -> bool:
        """Whether these bytes are next; then they are passed."""
        data = self.data
        at = self.at
        size: i64 = len(expected)
        if at + size > self.end:
            return False
        for i in range(size):
            if data[at + i] != expected[i]:
                return False
        self.at = at + size
        return True

    def number(self, most: i64) -> i64:
        """A number from 0 to ``most``."""
        data = self.data
        at = self.at
        if at >= self.end:
            return self.fail()
        value: i64 = data[at]
        at += 1
        if value >= _PLAIN:
            if value < _NUMBER_8 or value > _NUMBER_64:
                return self.fail()
            stop: i64 = at + 1
            if value == _NUMBER_64:
                stop = at + 8
            elif value != _NUMBER_8:
                stop = at + 2 * (value - _NUMBER_8)
            if stop > self.end or (value == _NUMBER_64 and data[at] >= _PLAIN):
                return self.fail()
            value = 0
            while at < stop:
                byte: i64 = data[at]
                value = value << 8 | byte
                at += 1
        if value > most:
            return self.fail()
        self.at = at
        return value

    def flag(self) -> bool:
        """Yes or no."""
        at = self.at
        if at < self.end:
            value: i64 = self.data[at]
            if value & ~1 == _FALSE:
                self.at = at + 1
                return value == _TRUE
        self.fail()
        return False

    def length(self, least: i64, most: i64) -> i64:
        """The bytes of the text here; the first of them is next."""
        data = self.data
        at = self.at
        if at >= self.end:
            return self.fail()
        size: i64 = data[at]
        at += 1
        if size & ~0x1F == TEXT:
            size &= 0x1F
        elif size == TEXT_8 and at < self.end:
            size = data[at]
            at += 1
        else:
            return self.fail()
        if size < least or size > most or at + size > self.end:
            return self.fail()
        self.at = at
        return size

    def size(self, least: i64, most: i64) -> i64:
        """The same of a text of ASCII alone."""
        size = self.length(least, most)
        data = self.data
        at = self.at
        for i in range(at, at + size):
            if data[i] >= _PLAIN:
                return self.fail()
        return size

    def text(self, least: i64, most: i64) -> str:
        """A text of ``least`` to ``most`` characters, all ASCII."""
        size = self.size(least, most)
        if size == 0:
            return ""
        at = self.at
        self.at = at + size
        return self._characters[at : at + size]

    def name(self) -> Name:
        """An id."""
        size = self.length(1, NAME_MAX)
        at = self.at
        self.at = at + size
        name = name_at(self.data, at, size) if size else None
        if name is None:
            self.fail()
            return _NO_NAME
        return name

    def code(self) -> str:
        """An instrument's code."""
        size = self.size(1, _CODE_MAX)
        at = self.at
        if size == self._code_size:
            data = self.data
            before = self._code_at
            i: i64 = 0
            while i < size and data[at + i] == data[before + i]:
                i += 1
            if i == size:
                self.at = at + size
                return self._code
        self._code_at = at
        self._code_size = size
        self.at = at + size
        self._code = self._characters[at : at + size]
        return self._code

    def order(self, size: i64) -> OrderTicket:
        """A new order of ``size`` elements, of which the first has been read."""
        name = self.name()
        instrument = self.code()
        side = self.number(_SIDE_MAX)
        quantity = self.number(_QUANTITY_MAX)
        price: i64 = 0
        order_type: i64 = 0
        validity: i64 = 0
        account = ""
        display: i64 = 0
        stop_price: i64 = 0
        minimum: i64 = 0
        post_only = False
        self_trade: i64 = 0
        expire_date: i64 = 0
        confirmed = False
        if size > 5:
            price = self.number(_PRICE_MAX)
        if size > 6:
            order_type = self.number(_TYPE_MAX)
        if size > 7:
            validity = self.number(_VALIDITY_MAX)
        if size > 8:
            account = self.text(0, _ACCOUNT_MAX)
        if size > 9:
            display = self.number(_QUANTITY_MAX)
        if size > 10:
            stop_price = self.number(_PRICE_MAX)
        if size > 11:
            minimum = self.number(_QUANTITY_MAX)
        if size > 12:
            post_only = self.flag()
        if size > 13:
            self_trade = self.number(_SELF_TRADE_MAX)
        if size > 14:
            expire_date = self.number(_DATE_MAX)
        if size > 15:
            confirmed = self.flag()
        return OrderTicket(
            name,
            instrument,
            side,
            quantity,
            price,
            order_type,
            validity,
            account,
            display,
            stop_price,
            minimum,
            post_only,
            self_trade,
            expire_date,
            confirmed,
            None,
        )

    def commands(self, most: i64) -> list[Wish]:
        """An array of up to ``most`` commands."""
        found: list[Wish] = []
        count = self.header()
        if count > most:
            self.fail()
            return found
        while count and self.plain:
            size = self.header()
            if self.is_next(_NEW) and _NEW_LEAST <= size <= _NEW_MOST:
                found.append(self.order(size))
            elif self.is_next(_CANCEL) and size == _CANCEL_SIZE:
                request = self.name()
                found.append(CancelTicket(request, self.name(), None))
            else:
                self.fail()
            count -= 1
        return found


def read_message(payload: bytes, id_max: int, commands_max: int) -> Message | None:
    """A member's message, where it holds an id or none, then plain commands, and nothing else; otherwise None.

    ``id_max`` characters make the longest id, ``commands_max`` commands the largest batch.
    """
    reader = _Reader(payload, 1)
    first = payload[0] if payload else 0
    message_id = ""
    if first == _MAP_2:
        if not reader.is_next(_MESSAGE_ID):
            return None
        message_id = reader.text(1, id_max)
    elif first != _MAP_1:
        return None
    if not reader.is_next(_COMMANDS):
        return None
    start = reader.at
    commands = reader.commands(commands_max)
    if not reader.plain or reader.at != reader.end or not commands:
        return None
    return Message(message_id, start, commands)


def read_groups(payload: bytes) -> list[tuple[int, str, list[Wish]]] | None:
    """What a record of the log holds, where that is members' plain commands and nothing else; otherwise None.

    As (time_ns of the first command, participant, commands), see ``engine/log/log.py``.
    """
    reader = _Reader(payload, 0)
    found: list[tuple[int, str, list[Wish]]] = []
    count = reader.header()
    while count and reader.plain:
        if reader.header() != _GROUP_SIZE:
            return None
        time_ns = reader.number(_NUMBER_MAX)
        participant = reader.text(1, _PARTICIPANT_MAX)
        if time_ns == 0 or is_participant(participant) is None:
            return None
        found.append((time_ns, participant, reader.commands(_NUMBER_MAX)))
        count -= 1
    return found if reader.plain and reader.at == reader.end else None


# How events begin: the header of an array of one element more than they have fields, and the name.
_ACCEPTED: Final = b"\x9e\xa8accepted"
_CANCELLED: Final = b"\x9c\xa9cancelled"
_TRADED: Final = b"\xdc\x00\x14\xa6traded"
_8_BITS: Final = 0xFF
_16_BITS: Final = 0xFFFF
_32_BITS: Final = 0xFFFFFFFF
_62_BITS: Final = 2**62 - 1  #: up to here a number is no object in compiled code

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Event).decode


@final
@mypyc_attr(acyclic=True)
class WrittenEvent:
    """An ``Accepted`` or a ``Cancelled``, never a repeated one, as bytes, with what most who hear of it ask."""

    def __init__(
        self,
        written: bytes,
        participant: str,
        order_id: int,
        instrument: str,
        side: int,
        price: int,
        change: int,
    ) -> None:
        self.written: Final = written
        self.participant: Final = participant
        self.order_id: Final = order_id
        self.instrument: Final = instrument
        self.side: Final = side
        self.price: Final = price
        self.change: Final = change  #: of the open quantity at that price; 0: the order waits outside the book

    @property
    def event(self) -> Event:
        """The event itself, made anew each time."""
        event: Event = _decode(self.written)
        return event


def plain(events: Iterable[Event | WrittenEvent]) -> list[Event]:
    """All of them as objects."""
    return [event.event if isinstance(event, WrittenEvent) else event for event in events]


@final
class EventWriter:
    """Writes events, by a method for each type with its fields in their order, enums as numbers; and what has them."""

    def __init__(self, *, keeps: bool = False) -> None:
        """``keeps``: somebody is going to hear of the events, so what is asked of them most often comes with the bytes.

        Trades are then left to be made as objects.
        """
        self.keeps: Final = keeps
        self._out: Final = BytesWriter()
        # The last member and the last code, as they were written: the next is often the same object.
        self._member: str = ""
        self._member_bytes: bytes = _encode("")
        self._code: str = ""
        self._code_bytes: bytes = _encode("")

    def accepted(
        self,
        participant: str,
        client_order_id: Name,
        order_id: int,
        instrument: str,
        side: int,
        quantity: int,
        price: int,
        order_type: int,
        time_in_force: int,
        account: str,
        display_quantity: int,
        repeat: bool,
        waiting: bool,
    ) -> bytes | WrittenEvent:
        """An ``Accepted``."""
        out = self._out
        out.truncate(0)
        out.write(_ACCEPTED)
        self._put_member(participant)
        client_order_id.write(out)
        self._put(order_id)
        self._put_code(instrument)
        self._put(side)
        self._put(quantity)
        self._put(price)
        self._put(order_type)
        self._put(time_in_force)
        self._put_text(account)
        self._put(display_quantity)
        self._put_flag(repeat)
        self._put_flag(waiting)
        return self._done(participant, order_id, instrument, side, price, 0 if waiting else quantity)

    def cancelled(
        self,
        participant: str,
        client_order_ids: Names,
        order_id: int,
        instrument: str,
        side: int,
        price: int,
        quantity: int,
        reason: int,
        request_id: Name | None,
        repeat: bool,
        waiting: bool,
    ) -> bytes | WrittenEvent:
        """A ``Cancelled``; its client_order_id is that of ``order_id``."""
        out = self._out
        out.truncate(0)
        out.write(_CANCELLED)
        self._put_member(participant)
        client_order_ids.write(order_id, out)
        self._put(order_id)
        self._put_code(instrument)
        self._put(side)
        self._put(price)
        self._put(quantity)
        self._put(reason)
        if request_id is None:
            out.append(u8(TEXT))
        else:
            request_id.write(out)
        self._put_flag(repeat)
        self._put_flag(waiting)
        return self._done(participant, order_id, instrument, side, price, 0 if waiting else -quantity)

    def _done(
        self, participant: str, order_id: int, instrument: str, side: int, price: int, change: int
    ) -> bytes | WrittenEvent:
        """What was written, in the form that is asked for."""
        written = self._out.getvalue()
        return WrittenEvent(written, participant, order_id, instrument, side, price, change) if self.keeps else written

    def traded(
        self,
        client_order_ids: Names,
        trade_id: int,
        instrument: str,
        price: int,
        quantity: int,
        buyer: str,
        buy_order_id: int,
        buy_open: int,
        buy_account: str,
        seller: str,
        sell_order_id: int,
        sell_open: int,
        sell_account: str,
        maker: int,
        trade_date: int,
        settlement_date: int,
        buy_limit: int,
        sell_limit: int,
    ) -> bytes:
        """A ``Traded``; each client_order_id is that of the order."""
        out = self._out
        out.truncate(0)
        out.write(_TRADED)
        self._put(trade_id)
        self._put_code(instrument)
        self._put(price)
        self._put(quantity)
        self._put_text(buyer)
        client_order_ids.write(buy_order_id, out)
        self._put(buy_order_id)
        self._put(buy_open)
        self._put_text(buy_account)
        self._put_text(seller)
        client_order_ids.write(sell_order_id, out)
        self._put(sell_order_id)
        self._put(sell_open)
        self._put_text(sell_account)
        self._put(maker)
        self._put(trade_date)
        self._put(settlement_date)
        self._put(buy_limit)
        self._put(sell_limit)
        return out.getvalue()

    def command(self, sequence: int, time_ns: int, events: Sequence[Event | WrittenEvent]) -> None:
        """What one command led to, behind those before it. Of the events some may be written by now."""
        out = self._out
        out.append(u8(ARRAY | 3))
        self._put(sequence)
        self._put(time_ns)
        put_array(len(events), out)
        for event in events:
            said: object = event
            if isinstance(said, bytes):
                out.write(said)
            elif isinstance(said, WrittenEvent):
                out.write(said.written)
            else:
                out.write(_encode(event))

    def written(self) -> bytes:
        """What all the commands led to, since it was asked the last time."""
        data = self._out.getvalue()
        self._out.truncate(0)
        return data

    def _put(self, value: int) -> None:
        out = self._out
        if not 0 <= value <= _62_BITS:
            out.write(_encode(value))
            return
        number: i64 = value
        if number >= _PLAIN:
            if number <= _8_BITS:
                out.append(u8(_NUMBER_8))
            elif number <= _16_BITS:
                out.append(u8(_NUMBER_8 + 1))
                out.append(u8(number >> 8))
            elif number <= _32_BITS:
                out.append(u8(_NUMBER_8 + 2))
                out.append(u8(number >> 24))
                out.append(u8(number >> 16 & _8_BITS))
                out.append(u8(number >> 8 & _8_BITS))
            else:
                out.append(u8(_NUMBER_64))
                write_i64_be(out, number)
                return
        out.append(u8(number & _8_BITS))

    def _put_flag(self, value: bool) -> None:
        self._out.append(u8(_TRUE) if value else u8(_FALSE))

    def _put_text(self, text: str) -> None:
        out = self._out
        if not text:
            out.append(u8(TEXT))
            return
        data = text.encode("utf-8")
        size: i64 = len(data)
        if size > _8_BITS:
            out.write(_encode(text))
            return
        put_text(size, out)
        out.write(data)

    def _put_member(self, text: str) -> None:
        if text is not self._member:
            self._member = text
            self._member_bytes = _encode(text)
        self._out.write(self._member_bytes)

    def _put_code(self, text: str) -> None:
        if text is not self._code:
            self._code = text
            self._code_bytes = _encode(text)
        self._out.write(self._code_bytes)
