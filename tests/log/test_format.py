"""``docs/log-format.md`` is enough to read a log: the reader in here was written from that page alone."""

from __future__ import annotations

import struct
import zlib
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec

from engine.log import FileStorage, Log
from tests.log.day import DAY, HEADER, Exchange


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    data = path.read_bytes()
    magic, version, size, _, build, configuration, market, created = struct.unpack_from("<8sHHI32s32s16sQ", data)
    assert magic == b"DOJIMA\r\n"
    assert (version, size) == (1, 128)
    assert struct.unpack_from("<I", data, 124)[0] == zlib.crc32(data[:124])
    header = {
        "build": build.rstrip(b"\0").decode(),
        "configuration": configuration,
        "market": market,
        "created": created,
    }
    chain = blake2b(data[:128], digest_size=16).digest()
    offset = 128
    records = []
    while data[offset : offset + 4] == b"DREC":
        checksum, found, length, kind, epoch, count, first, durable = struct.unpack_from(
            "<I16sIB3xIIQQ", data, offset + 4
        )
        end = offset + 56 + length
        assert checksum == zlib.crc32(data[offset + 8 : end])
        chain = blake2b(chain + data[offset + 24 : end], digest_size=16).digest()
        assert chain == found
        payload = msgpack.unpackb(data[offset + 56 : end])
        records.append(
            {"kind": kind, "epoch": epoch, "count": count, "first": first, "durable": durable, "payload": payload}
            | {"offset": offset, "end": end, "chain": chain}
        )
        offset = end
    assert not any(data[offset:])
    return header, records


def test_a_stranger_reads_every_command_with_its_number_stamp_and_sender(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path), HEADER))
    for i in range(0, len(DAY), 3):
        exchange.commit(*DAY[i : i + 3], mark=True)

    header, records = read(tmp_path / "market.log")

    assert header == {
        "build": "0.1.0",
        "configuration": bytes(32),
        "market": b"the test market.",
        "created": 1_764_000_000_000_000_000,
    }
    found = []
    sequence = 0
    stamps = []
    for record in records:
        assert record["first"] == sequence + 1
        assert record["epoch"] == 1
        assert record["durable"] <= record["offset"]
        if record["kind"] == 1:
            for time_ns, participant, commands in record["payload"]:
                for i, command in enumerate(commands):
                    sequence += 1
                    stamps.append((sequence, time_ns + i))
                    found.append((participant, command))
            assert sequence == record["first"] + record["count"] - 1
    sent = [(participant, command) for participant, commands in DAY for command in commands]
    assert found == [(participant, msgpack.unpackb(msgspec.msgpack.encode(command))) for participant, command in sent]
    assert stamps == [(sequence, time_ns) for sequence, time_ns, _ in exchange.events]
    exchange.log.close()


def test_a_stranger_recomputes_the_event_digests_from_the_events(tmp_path: Path) -> None:
    """MessagePack by another library: the bytes that are hashed are those any encoder gives."""
    exchange = Exchange(Log.open(FileStorage(tmp_path), HEADER))
    for i in range(0, len(DAY), 4):
        exchange.commit(*DAY[i : i + 4], mark=True)
    _, records = read(tmp_path / "market.log")
    exchange.log.close()

    marks = [record["payload"] for record in records if record["kind"] == 2]
    assert len(marks) == -(-len(DAY) // 4)
    digest = bytes(32)
    events = iter(exchange.events)
    sequence = 0
    for marked, recorded, _, _ in marks:
        data = digest
        while sequence < marked:
            sequence, time_ns, said = next(events)
            data += msgpack.packb([sequence, time_ns, msgspec.to_builtins(said)])
        digest = blake2b(data, digest_size=32).digest()
        assert digest == recorded
    assert marks[-1][2] == exchange.engine.mark_digest()


def test_a_stranger_reads_the_durable_mark(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path), HEADER))
    exchange.commit(*DAY[:5])
    data = (tmp_path / "market.mark").read_bytes()
    _, records = read(tmp_path / "market.log")

    magic, durable, sequence, chain, checksum = struct.unpack("<8sQQ16sI", data)
    assert magic == b"DOJIMARK"
    assert checksum == zlib.crc32(data[:40])
    assert (durable, sequence, chain) == (records[-1]["end"], exchange.engine.sequence, records[-1]["chain"])
    exchange.log.close()
