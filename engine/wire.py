"""The two commands that make up a market's day, read from their bytes in compiled code.

A decoder that knows every type asks each element what it may be; that took a quarter of a command's way from bytes to
answers. Nine in ten commands are plain: a new order or a cancel, as any encoder writes them. Those are read here, a new
order straight into the ticket that the engine works with. Whatever is written otherwise, is any other command, or is
wrong in any way, is left alone: ``None`` sends the reader's caller to msgspec, which alone says what is wrong. So there
is nothing here to refuse with, and what is read here is what msgspec would have read (``tests/gateway/test_wire.py``).
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

from mypy_extensions import i64

from engine.backend import CHOSEN, COMPILED
from engine.checks import is_participant
from engine.commands import AmendOrder, CancelOrder, MassCancel
from engine.ticket import OrderTicket
from engine.types import PRICE_MAX, QUANTITY_MAX, OrderType, SelfTrade, Side, TimeInForce

#: Compiled, this reader is the faster one for what is plain; interpreted it is not, and nobody asks it.
PAYS: Final = CHOSEN == COMPILED

#: A member's command as it may travel to the engine.
Wish = OrderTicket | CancelOrder | AmendOrder | MassCancel

# The bounds of ``engine.commands``. 0 is the least number everywhere.
_ID_MAX: Final = 36
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
_ARRAY: Final = 0x90  #: up to 15 elements
_ARRAY_16: Final = 0xDC  #: with 2 bytes of length
_ARRAY_32: Final = 0xDD
_TEXT: Final = 0xA0  #: up to 31 bytes
_TEXT_8: Final = 0xD9
_FALSE: Final = 0xC2
_TRUE: Final = 0xC3
_NUMBER_8: Final = 0xCC  #: with 1 byte; 2, 4 and 8 follow
_NUMBER_64: Final = 0xCF
_NUMBER_MAX: Final = 2**63 - 1
_PLAIN: Final = 0x80  #: below it a byte is a number itself, or a character
_FIFTEEN: Final = 15

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

_CancelOrder: Final = CancelOrder


class Message(NamedTuple):
    """One member's message of nothing but plain commands."""

    message_id: str
    start: int  #: where in the payload the array of commands begins; it ends with the payload
    commands: list[Wish]


@final
class _Reader:
    """A place in bytes that moves on as they are read. What is not there as expected turns ``plain`` to False."""

    def __init__(self, data: bytes, at: i64) -> None:
        self.data: Final = data
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
        if first & ~_FIFTEEN == _ARRAY:
            self.at = at
            return first & _FIFTEEN
        stop = at + 2
        if first == _ARRAY_32:
            stop = at + 4
        elif first != _ARRAY_16:
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

    def size(self, least: i64, most: i64) -> i64:
        """The length of the text here, which is of ASCII alone; its first character is next."""
        data = self.data
        at = self.at
        if at >= self.end:
            return self.fail()
        size: i64 = data[at]
        at += 1
        if size & ~0x1F == _TEXT:
            size &= 0x1F
        elif size == _TEXT_8 and at < self.end:
            size = data[at]
            at += 1
        else:
            return self.fail()
        if size < least or size > most or at + size > self.end:
            return self.fail()
        for i in range(at, at + size):
            if data[i] >= _PLAIN:
                return self.fail()
        self.at = at
        return size

    def text(self, least: i64, most: i64) -> str:
        """A text of ``least`` to ``most`` characters, all ASCII."""
        size = self.size(least, most)
        if size == 0:
            return ""
        at = self.at
        self.at = at + size
        return self._characters[at : at + size]

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
        client_order_id = self.text(1, _ID_MAX)
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
            client_order_id,
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
                request_id = self.text(1, _ID_MAX)
                found.append(_CancelOrder(request_id, self.text(1, _ID_MAX)))
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
