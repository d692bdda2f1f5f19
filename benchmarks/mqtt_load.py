"""Many members' connections on one thread, for a load generator that costs the machine next to nothing.

A full client library spends more on a message than gateway and broker together, and would on two cores be what is
measured. So here is the part of MQTT 3.1.1 that a load needs and no more: connect, subscribe, publish at QoS 1 with
packets made beforehand, read and acknowledge. Anything unexpected raises ``LoadFailed``; nothing is sent again.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
TIMEOUT = 20.0  #: seconds in which a broker must connect and subscribe us


class LoadFailed(Exception):
    """The broker refused, closed or said something that no load expects."""


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def packet(kind: int, flags: int, body: bytes) -> bytes:
    """Any MQTT control packet."""
    length, size = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        size += bytes([digit | (128 if length else 0)])
        if not length:
            return bytes([kind << 4 | flags]) + size + body


def publish(topic: str, number: int, payload: bytes) -> bytes:
    """A QoS 1 PUBLISH. ``number`` counts a connection's packets; what goes on the wire has 16 bits and is never 0."""
    return packet(PUBLISH, 2, _text(topic) + (number % 65_535 + 1).to_bytes(2, "big") + payload)


class Connection:
    """One member. ``receive`` is called with the payload of each message that arrives, and when it did (ns)."""

    def __init__(self, port: int, name: str, password: str, topic: str, receive: Callable[[bytes, int], None]) -> None:
        self.receive = receive
        self.acknowledged = 0  #: PUBACKs: messages the broker has taken
        self._in = bytearray()
        self._out = bytearray()
        self._ready: list[int] = []
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flags = 0x82 | (0x40 if password else 0)
        login = _text(name) + (_text(password) if password else b"")
        # Protocol name and level, user name and password follow, clean session, no keep-alive.
        self.socket.sendall(packet(CONNECT, 0, _text("MQTT") + bytes([4, flags, 0, 0]) + _text(f"load-{name}") + login))
        self._wait_for(CONNACK)
        self.socket.sendall(packet(SUBSCRIBE, 2, b"\0\1" + _text(topic) + b"\1"))
        self._wait_for(SUBACK)
        self.socket.setblocking(False)

    def _wait_for(self, kind: int) -> None:
        while kind not in self._ready:
            data = self.socket.recv(65536)
            if not data:
                raise LoadFailed("the broker closed the connection while connecting")
            self._in += data
            self._parse()

    def send(self, data: bytes) -> None:
        """Whole packets. What the socket does not take now goes with the next ``turn``."""
        if not self._out:
            try:
                taken = self.socket.send(data)
            except BlockingIOError:
                taken = 0
            if taken == len(data):
                return
            data = data[taken:]
        self._out += data

    @property
    def waiting(self) -> bool:
        """There is something to send that the socket has not taken."""
        return bool(self._out)

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._out[: self.socket.send(self._out)]

    def read(self) -> None:
        """Take in what has arrived."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise LoadFailed("the broker closed the connection")
        self._in += data
        self._parse()

    def _parse(self) -> None:
        data, at = self._in, 0
        answers = bytearray()
        now = time.perf_counter_ns()
        while len(data) - at >= 2:
            length = shift = 0
            place = at + 1
            while place < len(data):
                digit = data[place]
                place += 1
                length |= (digit & 127) << shift
                shift += 7
                if digit < 128:
                    break
            else:
                break  # the length itself has not arrived whole
            if len(data) - place < length:
                break
            kind, flags = data[at] >> 4, data[at] & 15
            if kind == PUBLISH:
                begin = place + 2 + int.from_bytes(data[place : place + 2], "big")
                if flags & 6:
                    answers += b"\x40\x02" + data[begin : begin + 2]
                    begin += 2
                self.receive(bytes(data[begin : place + length]), now)
            elif kind == PUBACK:
                self.acknowledged += 1
            elif kind in (CONNACK, SUBACK):
                code = data[place + length - 1]
                if code >= 0x80 or (kind == CONNACK and code):
                    raise LoadFailed(f"the broker refused with code {code}")
                self._ready.append(kind)
            else:
                raise LoadFailed(f"the broker sent a packet of kind {kind}")
            at = place + length
        del data[:at]
        if answers:
            self.send(bytes(answers))

    def close(self) -> None:
        self.socket.close()


def turn(connections: Sequence[Connection], seconds: float) -> None:
    """Send and receive what can be, waiting up to ``seconds`` for something to arrive."""
    sockets = {connection.socket: connection for connection in connections}
    blocked = [connection.socket for connection in connections if connection.waiting]
    readable, writable, _ = select.select(list(sockets), blocked, [], seconds)
    for found in writable:
        sockets[found].flush()
    for found in readable:
        sockets[found].read()
