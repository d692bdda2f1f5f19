"""A running digest of everything the engine says.

Two runs that give the same digest said the same, byte for byte. The digest covers event bytes, not batches: the
MessagePack encoding of ``[sequence, time_ns, events]`` of every command, one behind the other, so how commands were
grouped on their way does not show.

At a digest mark the chain starts anew from the mark's own digest: d_mark = blake2b(d_previous mark, event bytes since).
So whoever knows a mark can go on from there, which a hash in the middle of its work does not allow. How often marks
are written therefore shows in the digest; the log says where they are.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

from engine.events import Event

DIGEST_SIZE: Final = 32
START: Final = bytes(DIGEST_SIZE)  #: where the first chain of a log starts
#: What ``Engine.mark_digest`` is made of, as a number that each digest mark carries. Raise it whenever the same market
#: has another state digest than before: a mark of another version is then not compared, instead of being taken for a
#: market that differs. Event bytes have no version: they never change (``tests/project/test_golden.py``).
STATE_VERSION: Final = 11

_FLUSH: Final = 64 * 1024
_encode: Final = msgspec.msgpack.Encoder().encode
_encode_into: Final = msgspec.msgpack.Encoder().encode_into


class DigestChain:
    """Takes the events of each command, in order; says what they come to.

    Events are encoded into a buffer and hashed some thousand at a time: a hash call per command would cost as much as
    the encoding.
    """

    def __init__(self, start: bytes = START) -> None:
        """``start`` is the digest of the mark to go on from."""
        self._hash = blake2b(start, digest_size=DIGEST_SIZE)
        self._buffer = bytearray()

    def update(self, sequence: int, time_ns: int, events: list[Event]) -> None:
        """Take in what one command led to."""
        buffer = self._buffer
        _encode_into((sequence, time_ns, events), buffer, -1)
        if len(buffer) > _FLUSH:
            self._hash.update(buffer)
            buffer.clear()

    def update_all(self, said: list[tuple[int, int, list[Event]]]) -> None:
        """The same for several commands in order, each as (sequence, time_ns, events)."""
        # As one array, whose header is no part of it: a call for each command costs as much as its encoding.
        data = _encode(said)
        size = len(said)
        self.update_encoded(data[1 if size < 16 else 3 if size < 65_536 else 5 :])

    def update_encoded(self, data: bytes) -> None:
        """The same for event bytes that are at hand: those of one command, or of several in order."""
        self._buffer += data
        if len(self._buffer) > _FLUSH:
            self._hash.update(self._buffer)
            self._buffer.clear()

    def value(self) -> bytes:
        """The digest of everything so far. Goes on unchanged."""
        self._hash.update(self._buffer)
        self._buffer.clear()
        return self._hash.digest()

    def mark(self) -> bytes:
        """The digest for a mark at this point; goes on from there."""
        digest = self.value()
        self._hash = blake2b(digest, digest_size=DIGEST_SIZE)
        return digest
