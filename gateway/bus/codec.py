"""From a member's bytes to commands, or to an answer that names the place.

Whatever arrives, ``decode`` either returns what it asks for or raises ``Refused`` with text and place for the sender;
nothing else comes out of it. Types say what is allowed (``engine.commands``), msgspec checks it, and this module only
translates msgspec's ``$[2][5]`` into the name a person knows: ``$.commands[2].price``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta, Raw

from engine.commands import ExchangeCommand, MemberCommand
from engine.ticket import CommandTicket
from engine.wire import PAYS, read_message
from gateway.bus.messages import (
    BATCH_MAX,
    MESSAGE_ID_MAX,
    PAYLOAD_MAX,
    Confirm,
    Decline,
    Inbound,
    MessageError,
    OperatorInbound,
    Presence,
    RequestCommand,
)

Commands = Annotated[list[MemberCommand], Meta(max_length=BATCH_MAX)]

_inbound: Final = msgspec.msgpack.Decoder(Inbound)
_commands: Final = msgspec.msgpack.Decoder(Commands)
_loose: Final = msgspec.msgpack.Decoder(list[Raw])
_any: Final = msgspec.msgpack.Decoder()
_key: Final = msgspec.msgpack.Decoder(str)
_encoder: Final = msgspec.msgpack.Encoder()

_STRUCTS: Final = {command.__struct_config__.tag: command for command in get_args(MemberCommand)}
#: Names of the array positions of each command; position 0 is the command's own name.
FIELDS: Final = {tag: ("command", *struct.__struct_fields__) for tag, struct in _STRUCTS.items()}
_REQUIRED: Final = {
    tag: 1 + len(struct.__struct_fields__) - len(struct.__struct_defaults__) for tag, struct in _STRUCTS.items()
}
#: Fields that hold one of a few numbers, and what these mean.
_CHOICES: Final = {
    field.name: ", ".join(f"{choice.value} ({choice.name})" for choice in kind)
    for struct in _STRUCTS.values()
    for field in msgspec.structs.fields(struct)
    for kind in (field.type, *get_args(field.type))
    if isinstance(kind, type) and issubclass(kind, IntEnum)
}
_FIXMAP: Final = 0x80  #: first byte of an empty map; up to 15 keys add their number to it
_LONG_MAPS: Final = (b"\xde", b"\xdf")  #: first byte of a map that has its number of keys behind it
_KEYS_MAX: Final = 16  #: more than any message has
_VERSION: Final = b"\xa1v\x01"
_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$([^`]*)`$")
_ELEMENT: Final = re.compile(r"^\[(\d+)\](?:\[(\d+)\])?(.*)$")

#: What decoding hostile bytes may raise: DecodeError and UnicodeDecodeError are ValueErrors, deep nesting ends in
#: RecursionError.
DECODE_ERRORS: Final = (ValueError, RecursionError, OverflowError, MemoryError)


class Request(NamedTuple):
    """One member's message, checked. ``raw`` is the array of commands as it came: it goes into the log so.

    New orders and cancels may be tickets (``engine/ticket.py``): where they were written plainly.
    """

    commands: Sequence[MemberCommand | CommandTicket]
    raw: Raw
    message_id: str
    resend_from: int | None
    open_orders: bool
    presence: Presence | None = None


class Refused(Exception):
    """The message cannot be taken. ``answer`` says why, to its sender."""

    def __init__(self, code: Literal["MALFORMED", "TOO_LARGE"], text: str, place: str, message_id: str = "") -> None:
        super().__init__(text)
        self.answer = MessageError(code=code, text=text, place=place, message_id=message_id)


def decode(payload: bytes) -> Request:
    """Raises ``Refused`` and nothing else."""
    _refuse_large(payload)
    plain = read_message(payload, MESSAGE_ID_MAX, BATCH_MAX) if PAYS else None
    if plain is not None:
        return Request(plain.commands, Raw(payload[plain.start :]), plain.message_id, None, False)
    try:
        message = _inbound.decode(payload)
    except DECODE_ERRORS as error:
        raise _refused(*_split(error), payload) from None
    try:
        commands = _commands.decode(message.commands)
    except DECODE_ERRORS as error:
        text, place = _split(error)
        text, place = _name(text, place, message.commands)
        raise Refused("MALFORMED", text, place, message.message_id) from None
    presence = message.presence
    asked = (len(commands) > 0) + (message.resend_from is not None) + message.open_orders + (presence is not None)
    # As many keys as there are fields with something in them, and the version first or not at all: each came once.
    keys = _FIXMAP + asked + (message.message_id != "")
    if payload[0] != keys and (payload[0] != keys + 1 or not payload.startswith(_VERSION, 1)):
        _refuse_repeats(payload, message.message_id)
    if not asked:
        text = "Expected commands, resend_from or open_orders, got none of them"
        raise Refused("MALFORMED", text, "$", message.message_id)
    if presence is not None and asked > 1:
        raise Refused("MALFORMED", "Expected presence alone, got more beside it", "$.presence", message.message_id)
    return Request(commands, message.commands, message.message_id, message.resend_from, message.open_orders, presence)


def _refuse_large(payload: bytes) -> None:
    """What is too large to look into: 256 KiB of keys take longer to read than 1,000 orders to carry out."""
    if len(payload) > PAYLOAD_MAX:
        raise Refused("TOO_LARGE", f"Expected at most {PAYLOAD_MAX} bytes, got {len(payload)}", "$")
    if payload[:1] in _LONG_MAPS and _length(payload) > _KEYS_MAX:
        raise Refused("MALFORMED", f"Expected at most {_KEYS_MAX} keys, got {_length(payload)}", "$")


def message_id_of(payload: bytes) -> str:
    """The id of a message that is refused for another reason than its content; "" if it cannot be read."""
    try:
        _refuse_large(payload)
        return _inbound.decode(payload).message_id
    except (*DECODE_ERRORS, Refused):
        return ""


def _pairs(payload: bytes) -> list[tuple[str, Raw]]:
    """Keys and values of the map outside, those included that come twice: of these msgspec takes the last in silence.

    A map of n on the wire is an array of 2 n under another header. Raises ``DECODE_ERRORS``.
    """
    first = payload[0] if payload else 0
    if first & 0xF0 == _FIXMAP:
        count, start = first & 0x0F, 1
    elif first in (0xDE, 0xDF):
        start = 3 if first == 0xDE else 5
        count = _length(payload)
    else:
        raise ValueError("Expected a map")
    if 2 * count > len(payload):
        raise ValueError("Expected as many keys and values as the map has")
    parts = _loose.decode(b"\xdd" + (2 * count).to_bytes(4, "big") + payload[start:])
    return [(_key.decode(key), value) for key, value in zip(parts[::2], parts[1::2], strict=True)]


def _refuse_repeats(payload: bytes, message_id: str) -> None:
    keys = [key for key, _ in _pairs(payload)]
    for key in keys:
        if keys.count(key) > 1:
            text = f"Expected each key once, got {key} {keys.count(key)} times"
            raise Refused("MALFORMED", text, f"$.{key}", message_id)


def _refused(text: str, place: str, payload: bytes) -> Refused:
    """The answer to a map that is wrong outside its commands: with the value that came, and its id if that can be
    read."""
    message_id = ""
    try:
        found = dict(_pairs(payload))
        if "message_id" in found:
            value = _any.decode(found["message_id"])
            message_id = value if isinstance(value, str) and len(value) <= MESSAGE_ID_MAX else ""
        name = place[1:]
        if name in found:
            if name == "v" and text.startswith("Invalid"):
                text = "Expected 1"
            if ", got" not in text:
                text += f", got {_short(_any.decode(found[name]))}"
    except (*DECODE_ERRORS, TypeError):  # the bytes are too broken to say more
        pass
    if "unknown field" in text:
        text += f": expected {', '.join(Inbound.__struct_fields__)}"
    return Refused("MALFORMED", text, f"${place}", message_id)


def _split(error: BaseException) -> tuple[str, str]:
    """An error's text, and the place behind ``$`` where msgspec names one."""
    if isinstance(error, RecursionError):
        return "Expected arrays and maps a few levels deep, got deeper nesting", ""
    text = str(error)
    found = _PLACE.search(text)
    return (text[: found.start()], found.group(1)) if found else (text, "")


def _name(text: str, place: str, raw: Raw) -> tuple[str, str]:
    """Place and text of an error inside the array of commands, as a member reads them."""
    found = _ELEMENT.match(place)
    if found is None:
        if not place and "length" in text:
            text += f", got {_length(raw)}"
        return text, f"$.commands{place}"
    index = int(found.group(1))
    try:
        parts = _loose.decode(_loose.decode(raw)[index])
        tag = _any.decode(parts[0])
        fields = FIELDS.get(tag, ())
        position = None if found.group(2) is None else int(found.group(2))
        if position is None:
            if fields and len(parts) < _REQUIRED[tag]:
                text += f": no {', no '.join(fields[len(parts) : _REQUIRED[tag]])}"
            return text, f"$.commands[{index}]"
        name = fields[position] if position < len(fields) else "command" if position == 0 else str(position)
        value = tag if position == 0 else _any.decode(parts[position])
        if text.startswith("Invalid"):
            text = f"Expected one of {', '.join(FIELDS) if position == 0 else _CHOICES.get(name, text)}"
        if ", got" not in text:
            text += f", got {_short(value)}"
        return text, f"$.commands[{index}].{name}{found.group(3)}"
    except (*DECODE_ERRORS, IndexError, TypeError):  # the bytes are too broken to say more
        return text, f"$.commands{place}"


def _length(raw: bytes | Raw) -> int:
    """How many elements an array has, or keys a map, by its header: what is too long is not worth reading."""
    data = bytes(memoryview(raw)[:5])
    return data[0] & 0x0F if data[0] < 0xDC else int.from_bytes(data[1 : 5 if data[0] & 1 else 3], "big")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


encode = _encoder.encode


# --- an operator's message -------------------------------------------------------------------------------------------

_operator: Final = msgspec.msgpack.Decoder(OperatorInbound)
_WISHES: Final[dict[Any, type[msgspec.Struct]]] = {
    struct.__struct_config__.tag: struct for struct in (RequestCommand, Confirm, Decline)
}
_EXCHANGE: Final[dict[Any, type[msgspec.Struct]]] = {
    struct.__struct_config__.tag: struct for struct in get_args(ExchangeCommand)
}


def decode_operator(payload: bytes) -> OperatorInbound:
    """Raises ``Refused`` and nothing else."""
    _refuse_large(payload)
    try:
        message = _operator.decode(payload)
    except DECODE_ERRORS as error:
        text, place = _split(error)
        raise Refused("MALFORMED", *_name_operator(text, place, payload)) from None
    _refuse_repeats(payload, message.message_id)
    if not (message.commands or message.waiting or message.resend_from is not None):
        raise Refused(
            "MALFORMED", "Expected commands, resend_from or waiting, got none of them", "$", message.message_id
        )
    return message


def _name_operator(text: str, place: str, payload: bytes) -> tuple[str, str, str]:
    """Text, place and message id of an error in an operator's message, with the names of what stands at each place."""
    named, message_id = "$", ""
    try:
        value: Any = _any.decode(payload)
        found = value.get("message_id", "")
        message_id = found if isinstance(found, str) and len(found) <= MESSAGE_ID_MAX else ""
        fields: tuple[str, ...] = ()
        for step in re.findall(r"\.(\w+)|\[(\d+)\]", place):
            index = int(step[1]) if step[1] else step[0]
            value = value[index]
            name = fields[index] if isinstance(index, int) and index < len(fields) else ""
            named += f".{name or index}" if name or step[0] else f"[{index}]"
            tags = _WISHES if named.count("[") == 1 and not name else _EXCHANGE if name == "command" else {}
            struct = tags.get(value[0]) if tags and isinstance(value, list) and value else None
            fields = ("type", *struct.__struct_fields__) if struct is not None else ("type",) if tags else ()
        if text.startswith("Invalid") and named.endswith(".type"):
            text = f"Expected one of {', '.join(_EXCHANGE if '.command.' in named else _WISHES)}"
        if ", got" not in text and place:
            text += f", got {_short(value)}"
    except (*DECODE_ERRORS, LookupError, TypeError, AttributeError):  # the bytes are too broken to say more
        named = f"${place}"
    return text, named, message_id
