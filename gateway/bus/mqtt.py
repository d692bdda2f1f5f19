"""The part of MQTT 3.1.1 and 5 that the exchange speaks, as bytes: no socket, no clock, no state but a cut packet.

Why not a library here: paho spends three system calls on every packet it reads and one on every packet it writes, takes
one packet per turn of the event loop, and goes through locks and callbacks for users we do not have. In a profile of
the gateway under single commands that was more than half of all processor time. A burst is one read and one write here.
Members' clients keep aiomqtt (``link.py``): for them a message more or less a millisecond is nothing, breadth is.

What comes is the broker's and may be anything: ``Reader`` and the ``read_*`` functions return what the standard allows
and raise ``ProtocolError`` for the rest, and nothing else. References in brackets are to the numbered statements of the
OASIS standard, version 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

CONNECT: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
SUBSCRIBE: Final = 8
SUBACK: Final = 9
PINGRESP: Final = 13
DISCONNECT: Final = 14

PINGREQ_BYTES: Final = b"\xc0\x00"

#: Packet ids have 16 bits and are never 0.
ID_MAX: Final = 65_535
#: Longest packet the format can express, behind its fixed header.
LENGTH_MAX: Final = 268_435_455

#: What a broker may send, and the only flags it may send it with [2.1.3-1]; those of PUBLISH carry meaning.
_FLAGS: Final = {CONNACK: 0, PUBACK: 0, SUBACK: 0, PINGRESP: 0, DISCONNECT: 0}
#: Longest packet of any kind but PUBLISH: reasons and properties are short texts.
_SHORT: Final = 262_144

# Properties of version 5 by the shape of their value: bytes of a number; or one of these.
_VARIABLE, _DATA, _PAIR = 0, -1, -2
_PROPERTIES: Final = {
    **dict.fromkeys((0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A), 1),
    **dict.fromkeys((0x13, 0x21, 0x22, 0x23), 2),
    **dict.fromkeys((0x02, 0x11, 0x18, 0x27), 4),
    0x0B: _VARIABLE,
    **dict.fromkeys((0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F), _DATA),
    0x26: _PAIR,
}
_SERVER_KEEP_ALIVE, _REASON, _RECEIVE_MAXIMUM, _MAXIMUM_QOS, _RETAIN_AVAILABLE, _MAXIMUM_PACKET = (
    0x13, 0x1F, 0x21, 0x24, 0x25, 0x27,
)  # fmt: skip

_RETURN_CODES: Final = {
    1: "unacceptable protocol version",
    2: "identifier rejected",
    3: "server unavailable",
    4: "bad user name or password",
    5: "not authorised",
}
_REASONS: Final = {
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x84: "unsupported protocol version",
    0x85: "identifier rejected",
    0x86: "bad user name or password",
    0x87: "not authorised",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8B: "server shutting down",
    0x8D: "keep alive timeout",
    0x8E: "session taken over by another client of the same name",
    0x93: "receive maximum exceeded",
    0x95: "packet too large",
    0x97: "quota exceeded",
}


class ProtocolError(Exception):
    """The broker sent what MQTT does not allow. Says what was expected and what came."""


class Connack(NamedTuple):
    """The broker's answer to CONNECT. Version 3.1.1 has no bounds to tell, so they are the format's own."""

    session_present: bool
    code: int  #: 0: welcome
    text: str  #: what the code means
    receive_maximum: int = ID_MAX  #: most QoS 1 publishes it takes unacknowledged
    packet_maximum: int = LENGTH_MAX
    keep_alive: int | None = None  #: seconds that it wants instead of ours
    qos_1: bool = True
    retain: bool = True


class Publish(NamedTuple):
    topic: bytes
    payload: bytes
    qos: int  #: 0 or 1
    retain: bool
    packet_id: int  #: 0 with QoS 0


# --- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """Cuts a stream into packets, wherever the network has cut it."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed = 2  # bytes before which no look at the rest is worth it

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Every packet that ``data`` completes, as (first byte, body). Raises ``ProtocolError`` behind the last good.

        Take all before feeding more.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        at, size = 0, len(data)
        while size - at >= 2:
            first, length = data[at], data[at + 1]
            begin = at + 2
            if length >= 128:  # a number of up to four bytes, seven bits each, the smallest first
                length &= 127
                for shift in (7, 14, 21):
                    if begin == size:
                        break
                    digit = data[begin]
                    begin += 1
                    length |= (digit & 127) << shift
                    if digit < 128:
                        break
                else:
                    raise ProtocolError("Expected a packet length of at most 4 bytes, got more")
                if data[begin - 1] >= 128:  # the length itself is cut
                    break
            kind = first >> 4
            if kind != PUBLISH:
                if _FLAGS.get(kind) != first & 15:
                    raise ProtocolError(f"Expected a packet that a broker sends, got first byte 0x{first:02x}")
                if length > _SHORT:
                    raise ProtocolError(f"Expected a packet of at most {_SHORT} bytes, got {length} of kind {kind}")
            end = begin + length
            if end > size:
                self._rest += data[at:] if at else data
                self._needed = end - at
                return
            yield first, data[begin:end]
            at = end
        self._rest += data[at:]
        self._needed = len(self._rest) + 1


def read_publish(first: int, body: bytes, version: int) -> Publish:
    qos = first >> 1 & 3
    if qos > 1:
        raise ProtocolError(f"Expected a PUBLISH with the QoS subscribed to, 0 or 1, got {qos}")
    if len(body) < 2:
        raise ProtocolError(f"Expected a topic in PUBLISH, got {len(body)} bytes in all")
    at = 2 + (body[0] << 8 | body[1])
    topic = body[2:at]
    packet_id = 0
    if qos:
        packet_id = int.from_bytes(body[at : at + 2], "big")
        at += 2
        if not packet_id:
            raise ProtocolError("Expected a packet id in PUBLISH with QoS 1, got none")
    if at > len(body) or not topic:  # an alias in place of a topic needs our consent, which version 5 was not given
        raise ProtocolError("Expected a topic in PUBLISH as long as it says, got less")
    if version == 5:
        _, at = _properties(body, at)
    return Publish(topic, body[at:], qos, bool(first & 1), packet_id)


def read_connack(body: bytes, version: int) -> Connack:
    if len(body) < 2 or body[0] > 1 or (version == 4 and len(body) != 2):
        raise ProtocolError(f"Expected CONNACK with flags and code, got {body[:16].hex()}")
    present, code = bool(body[0]), body[1]
    if version == 4 or (code and len(body) == 2):  # brokers of version 3 answer so to a CONNECT of version 5
        return Connack(present, code, _RETURN_CODES.get(code) or _reason(code))
    found, end = _properties(body, 2)
    if end != len(body):
        raise ProtocolError(f"Expected the end of CONNACK behind its properties, got {len(body) - end} bytes more")
    receive, packet = _number(found, _RECEIVE_MAXIMUM, ID_MAX), _number(found, _MAXIMUM_PACKET, LENGTH_MAX)
    if not receive or not packet:
        raise ProtocolError("Expected a Receive Maximum and a Maximum Packet Size above 0 in CONNACK, got 0")
    return Connack(
        present,
        code,
        _reason(code, found),
        receive,
        packet,
        _number(found, _SERVER_KEEP_ALIVE, 0) if _SERVER_KEEP_ALIVE in found else None,
        _number(found, _MAXIMUM_QOS, 1) >= 1,
        _number(found, _RETAIN_AVAILABLE, 1) == 1,
    )


def read_puback(body: bytes, version: int) -> tuple[int, int]:
    """Packet id and reason code; from 0x80 on the message was not taken."""
    if len(body) == 2:
        packet_id, code = body[0] << 8 | body[1], 0
    elif version == 5 and len(body) > 2:
        packet_id, code = body[0] << 8 | body[1], body[2]
        if len(body) > 3 and _properties(body, 3)[1] != len(body):
            raise ProtocolError("Expected the end of PUBACK behind its properties, got more")
    else:
        raise ProtocolError(f"Expected PUBACK with a packet id, got {body[:16].hex()}")
    if not packet_id:
        raise ProtocolError("Expected PUBACK with a packet id, got 0")
    return packet_id, code


def read_suback(body: bytes, version: int) -> tuple[int, list[int]]:
    """Packet id and one code for each subscription; from 0x80 on it was refused."""
    at = 2
    if version == 5:
        _, at = _properties(body, 2)
    if len(body) <= at:
        raise ProtocolError(f"Expected SUBACK with a packet id and codes, got {body[:16].hex()}")
    return body[0] << 8 | body[1], list(body[at:])


def read_disconnect(body: bytes, version: int) -> str:
    """Why the broker ends the connection, in words. Only version 5 says so."""
    if version != 5:
        raise ProtocolError("Expected a packet that a broker of version 3.1.1 sends, got DISCONNECT")
    code = body[0] if body else 0
    found, _ = _properties(body, 1) if len(body) > 1 else ({}, 0)
    return _reason(code, found)


def _reason(code: int, found: dict[int, bytes] | None = None) -> str:
    text = _REASONS.get(code, "")
    said = (found or {}).get(_REASON, b"").decode(errors="replace")
    return f"{text or 'reason'} (0x{code:02x}{': ' * bool(said)}{said})"


def _number(found: dict[int, bytes], name: int, otherwise: int) -> int:
    return int.from_bytes(found[name], "big") if name in found else otherwise


def _properties(body: bytes, at: int) -> tuple[dict[int, bytes], int]:
    """Properties from ``at`` on, by their id, and where they end. Of one that repeats the last counts."""
    if body[at : at + 1] == b"\0":  # nearly always
        return {}, at + 1
    length, at = _variable(body, at)
    end = at + length
    if end > len(body):
        raise ProtocolError("Expected properties as long as they say, got the end of the packet")
    found = {}
    while at < end:
        name, at = _variable(body, at)
        shape = _PROPERTIES.get(name)
        if shape is None:
            raise ProtocolError(f"Expected a property of MQTT 5, got 0x{name:02x}")
        if shape > 0:
            begin, at = at, at + shape
        elif shape == _VARIABLE:
            begin = at
            _, at = _variable(body, at)
        else:
            for _ in range(2 if shape == _PAIR else 1):
                begin = at + 2
                at = begin + int.from_bytes(body[at:begin], "big")
        if at > end:
            raise ProtocolError(f"Expected property 0x{name:02x} as long as it says, got the end of the properties")
        found[name] = body[begin:at]
    return found, end


def _variable(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= len(body):
            raise ProtocolError("Expected a number, got the end of the packet")
        digit = body[at]
        at += 1
        value |= (digit & 127) << shift
        if digit < 128:
            return value, at
    raise ProtocolError("Expected a number of at most 4 bytes, got more")


# --- writing ---------------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    """A string, or bytes, behind a length of two bytes."""
    data = value.encode() if isinstance(value, str) else value
    if len(data) > 65_535:
        raise ValueError(f"Expected at most 65535 bytes, got {len(data)}")
    return len(data).to_bytes(2, "big") + data


def packet(first: int, *parts: bytes) -> bytes:
    """A control packet: first byte, length, body. Raises ``ValueError`` when it is longer than MQTT can say."""
    length = sum(map(len, parts))
    if length < 128:
        return b"".join((bytes((first, length)), *parts))
    if length > LENGTH_MAX:
        raise ValueError(f"Expected a packet of at most {LENGTH_MAX} bytes, got {length}")
    head = bytearray((first,))
    while length:
        length, digit = divmod(length, 128)
        head.append(digit | (128 if length else 0))
    return b"".join((head, *parts))


def connect(
    version: int, session: str, keep_alive: int, *, user: str, password: str, will_topic: str, will: bytes
) -> bytes:
    """CONNECT to a session that lasts, with a retained will at QoS 1. ``version`` is 4 (3.1.1) or 5."""
    # Will retain, will QoS 1, will. Clean session (3.1.1) or clean start (5) is not set: what was kept comes.
    flags = 0x20 | 0x08 | 0x04 | (0x80 if user else 0) | (0x40 if user and password else 0)
    v5 = version == 5
    return packet(
        CONNECT << 4,
        text("MQTT") + bytes((version, flags)) + keep_alive.to_bytes(2, "big"),
        b"\x05\x11\xff\xff\xff\xff" if v5 else b"",  # Session Expiry Interval: never
        text(session),
        b"\0" if v5 else b"",
        text(will_topic),
        text(will),
        text(user) if user else b"",
        text(password) if user and password else b"",
    )


def subscribe(version: int, packet_id: int, topics: Iterable[str]) -> bytes:
    """SUBSCRIBE at QoS 1. In version 5 too: retained messages come, and are marked, for nothing may vanish unseen."""
    return packet(
        SUBSCRIBE << 4 | 2,
        packet_id.to_bytes(2, "big"),
        b"\0" if version == 5 else b"",
        *(text(topic) + b"\x01" for topic in topics),
    )


def publish(version: int, topic: bytes, payload: bytes, packet_id: int, *, retain: bool) -> bytes:
    """PUBLISH; ``topic`` as ``text`` made it, ``packet_id`` 0 for QoS 0."""
    first = PUBLISH << 4 | (2 if packet_id else 0) | retain
    if packet_id:
        topic += _ID(packet_id)
    if version == 5:
        topic += b"\0"
    length = len(topic) + len(payload)
    if length < 128:
        return bytes((first, length)) + topic + payload
    if length < 16_384:
        return bytes((first, length & 127 | 128, length >> 7)) + topic + payload
    return packet(first, topic, payload)


def puback(packet_id: int) -> bytes:
    """PUBACK of a message that was taken: the same bytes in both versions, since 5 may leave out a reason of 0."""
    return _PUBACK(PUBACK << 4, 2, packet_id)


_ID: Final = struct.Struct(">H").pack
_PUBACK: Final = struct.Struct(">BBH").pack
