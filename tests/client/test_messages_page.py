"""``docs/messages.md`` is true: its bytes are what the code reads and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest

from engine.commands import AmendOrder, CancelOrder, MassCancel, MemberCommand, NewOrder
from engine.types import OrderType, SelfTrade, TimeInForce
from gateway.bus.messages import Depth, Inbound, MarketData, OrderData, Outbound, PrivateEvent, Snapshot, Status
from gateway.livebook import LiveBook

PAGE = (Path(__file__).parents[2] / "docs" / "messages.md").read_text(encoding="utf-8")
EXAMPLES = [
    (kind, json.loads(meaning), bytes.fromhex(re.sub(r"\s", "", code)))
    for meaning, kind, code in re.findall(r"```json\n(.*?)\n```\n```hex (\w+)\n(.*?)```", PAGE, re.DOTALL)
]
TYPES: dict[str, Any] = {"in": Inbound, "out": Outbound, "md": MarketData, "order": OrderData, "status": Status}


def name_of(example: object) -> str:
    return example.get("kind", "inbound") if isinstance(example, dict) else ""


@pytest.mark.parametrize(("kind", "meaning", "code"), EXAMPLES, ids=[name_of(meaning) for _, meaning, _ in EXAMPLES])
def test_an_example_means_what_it_says_and_is_what_the_code_writes(kind: str, meaning: Any, code: bytes) -> None:
    assert msgpack.unpackb(code, strict_map_key=False) == meaning
    message = msgspec.msgpack.decode(code, type=TYPES[kind])
    assert msgspec.msgpack.encode(message) == code
    if kind == "in":
        commands = msgspec.msgpack.decode(message.commands, type=list[MemberCommand])
        # Elements left out have their defaults; those given are read as given.
        for command, given in zip(commands, meaning.get("commands", []), strict=True):
            assert msgspec.to_builtins(command)[: len(given)] == given


def test_every_block_of_bytes_is_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("```hex ") == 21
    assert {message.get("kind") for kind, message, _ in EXAMPLES if kind == "md"} == {
        cls.__struct_config__.tag for cls in MarketData.__args__
    }
    assert {message.get("kind") for kind, message, _ in EXAMPLES if kind == "out"} == {
        cls.__struct_config__.tag for cls in Outbound.__args__
    }


def test_the_elements_of_commands_and_events_are_listed_in_their_order() -> None:
    for command in (NewOrder, CancelOrder, AmendOrder, MassCancel):
        row = re.search(rf"^\| `{command.__struct_config__.tag}` \| (.*) \|$", PAGE, re.MULTILINE)
        assert row is not None
        named = [name for name in re.findall(r"`(\w+)`", row[1]) if name in command.__struct_fields__]
        assert named == list(command.__struct_fields__)
    for event in PrivateEvent.__args__:
        row = re.search(rf"^\| `{event.__struct_config__.tag}` \| (.*) \|$", PAGE, re.MULTILINE)
        assert row is not None, event
        elements = re.sub(r"\([^)]*\)", "", row[1]).split(",")
        assert len(elements) == len(event.__struct_fields__), event


def test_the_digests_of_the_page_prove_the_book_they_describe() -> None:
    messages = [msgspec.msgpack.decode(code, type=MarketData) for kind, _, code in EXAMPLES if kind == "md"]
    book = LiveBook("KDX-2107")
    for message in messages:
        book.take(message)
        if isinstance(message, Snapshot | Depth):
            assert book.is_whole
    assert (book.proofs, book.drifts, book.n, book.phase) == (1, 0, 819, "Break")


def test_the_shell_line_sends_the_first_example() -> None:
    found = re.search(r"printf '([^']*)'", PAGE)
    assert found is not None
    text = found[1].encode("ascii").decode("unicode_escape").encode("latin-1")
    assert text == EXAMPLES[0][2]


def test_the_numbers_of_the_market_s_words_are_all_on_the_page() -> None:
    for field, words in (("order_type", OrderType), ("time_in_force", TimeInForce), ("self_trade", SelfTrade)):
        told = re.search(rf"`{field}` \(([^)]*)\)", PAGE)
        assert told is not None
        assert told[1].lower() == ", ".join(f"{word.value} {word.name.lower().replace('_', '-')}" for word in words)
