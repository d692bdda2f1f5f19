"""``docs/asyncapi.yaml`` is the contract in force: it agrees with the code, and real messages agree with it."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import msgpack
import msgspec
import pytest
import yaml
from jsonschema import Draft7Validator
from msgspec import inspect as shape

from engine.commands import MemberCommand
from gateway.bus import messages
from tests.project import asyncapi

FILE = Path(__file__).resolve().parents[2] / "docs" / "asyncapi.yaml"
WRITTEN = yaml.safe_load(FILE.read_text())
PAYLOADS = list(
    dict.fromkeys(struct for _, _, payload in asyncapi.CHANNELS.values() for struct in get_args(payload) or (payload,))
)
COMMANDS = get_args(MemberCommand)


@cache
def validator(name: str) -> Draft7Validator:
    """Of the schema ``name`` of the written document."""
    return Draft7Validator({"$ref": f"#/components/schemas/{name}", "components": WRITTEN["components"]})


def valid(name: str, value: Any) -> bool:
    return bool(validator(name).is_valid(value))


def samples(kind: shape.Type) -> list[Any]:
    """Values of a type as they look on the wire: the ends of each range, each alternative, with and without options."""
    match kind:
        case shape.Metadata():
            pattern = (kind.extra_json_schema or {}).get("pattern", "")
            return [sample.upper() if "A-Z" in pattern else sample for sample in samples(kind.type)]
        case shape.StructType():
            return structs(kind)
        case shape.EnumType():
            return [member.value for member in kind.cls]
        case shape.UnionType():
            # Of many alternatives one value each: the validator tries every value against every alternative.
            most = 1 if len(kind.types) > 20 else None
            return [value for each in kind.types for value in samples(each)[:most]]
        case shape.ListType():
            several = samples(kind.item_type)
            most = kind.max_length or len(several)
            return [[], *(several[start : start + most] for start in range(0, len(several), most))]
        case shape.DictType():
            return [{}, {"name": samples(kind.value_type)[0]}]
        case shape.IntType():
            return [0 if kind.ge is None else kind.ge, 2**53 if kind.le is None else kind.le]
        case shape.StrType():
            return ["a1"] if kind.min_length or kind.pattern else ["a1", ""]
        case shape.LiteralType():
            return list(kind.values)
        case shape.BoolType():
            return [False, True]
        case shape.NoneType():
            return [None]
        case shape.RawType():
            return [[], [value for command in COMMANDS for value in samples(shape.type_info(command))]]
    raise TypeError(kind)


def structs(kind: shape.StructType) -> list[Any]:
    """Every value of every field at least once, the others at their first; and the shortest form."""
    columns = [samples(field.type) for field in kind.fields]
    rows = [[column[0] for column in columns]]
    rows += [
        [value if place == position else column[0] for place, column in enumerate(columns)]
        for position, values in enumerate(columns)
        for value in values[1:]
    ]
    needed = [field.required for field in kind.fields]
    if kind.array_like:
        tag = [] if kind.tag is None else [kind.tag]
        return [tag + row for row in rows] + [tag + rows[0][: sum(needed)]]
    tag_item = {} if kind.tag_field is None else {kind.tag_field: kind.tag}
    names = [field.encode_name for field in kind.fields]
    least = {name: value for name, value, must in zip(names, rows[0], needed, strict=True) if must}
    return [tag_item | dict(zip(names, row, strict=True)) for row in rows] + [tag_item | least]


def test_the_document_is_what_the_code_says() -> None:
    assert FILE.read_text() == asyncapi.text(), "run `make contract`"


def test_the_schemas_are_well_formed_and_every_reference_leads_somewhere() -> None:
    for schema in WRITTEN["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)
    references = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            references.extend([value["$ref"]] if "$ref" in value else [])
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                collect(each)

    collect(WRITTEN)
    for reference in references:
        place = WRITTEN
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    assert len(references) > 50


def test_every_type_of_message_and_event_is_described() -> None:
    described = set(WRITTEN["components"]["schemas"])
    outbound, private, market = (
        {cls.__name__ for cls in get_args(union)}
        for union in (messages.Outbound, messages.PrivateEvent, messages.MarketData)
    )
    commands = {cls.__name__ for cls in COMMANDS}
    assert outbound | private | market | commands | {"Inbound", "Status", "Report", "OpenOrder", "Level"} <= described


@pytest.mark.parametrize("struct", [*PAYLOADS, *COMMANDS], ids=lambda struct: struct.__name__)
def test_what_the_document_allows_the_code_takes_and_says(struct: type[msgspec.Struct]) -> None:
    decoder = msgspec.msgpack.Decoder(struct)
    for sample in samples(shape.type_info(struct)):
        assert valid(struct.__name__, sample), sample

        taken = decoder.decode(msgpack.packb(sample))
        said = msgpack.unpackb(msgspec.msgpack.encode(taken), strict_map_key=False)

        assert valid(struct.__name__, said), said


def spoilt(command: type[msgspec.Struct]) -> list[Any]:
    """A good command with one thing wrong, for each thing that can be."""
    kind = shape.type_info(command)
    assert isinstance(kind, shape.StructType)
    good = structs(kind)[0]
    bad = [[*good, "more"], good[:1], ["nonsense", *good[1:]], {}, None]
    for position, field in enumerate(kind.fields, start=1):
        wrong: list[Any] = [1.5, [], {}, b"x"]
        types = field.type.types if isinstance(field.type, shape.UnionType) else (field.type,)
        for each in types:
            if isinstance(each, shape.IntType):
                assert each.ge is not None
                assert each.le is not None, "whatever a member sends is bounded"
                wrong += ["1", each.ge - 1, each.le + 1]
            elif isinstance(each, shape.StrType):
                wrong += [1, "x" * 37, "with space", "ü"]
            elif isinstance(each, shape.EnumType):
                wrong += [99, -1, "BUY"]
            elif isinstance(each, shape.BoolType):
                wrong += [0, "true"]
        bad += [[*good[:position], value, *good[position + 1 :]] for value in wrong]
    return bad


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_what_the_document_forbids_the_code_refuses(command: type[msgspec.Struct]) -> None:
    for value in spoilt(command):
        if not (isinstance(value, list) and any(isinstance(each, bytes) for each in value)):  # JSON has no bytes
            assert not valid(command.__name__, value), value
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgpack.packb(value), type=command)


def test_a_map_with_an_unknown_key_is_refused_in_both_worlds() -> None:
    for key, value in product(["V", "sender"], [1, "alpha"]):
        assert not valid("Inbound", {key: value})
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgpack.packb({key: value}), type=messages.Inbound)
