"""Writes ``docs/asyncapi.yaml`` from the code, so that the contract in the document is the contract in force.

    python -m tests.project.asyncapi > docs/asyncapi.yaml

Names, array positions, types, bounds and defaults come from the msgspec Structs; explanations from their docstrings and
the ``#:`` comments behind their fields; topics from ``gateway.bus.topics``. Only what code cannot know is written here:
who may use a channel, with which quality of service, and the introduction. ``test_asyncapi.py`` compares the file with
what this module would write, and both with real messages.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from enum import Enum
from types import ModuleType
from typing import Any, get_args

import yaml
from msgspec import inspect as shape

import engine.commands
import engine.events
import engine.types
from engine.commands import INSTRUMENT_PATTERN, PARTICIPANT_PATTERN, MemberCommand
from gateway.bus import messages, topics

INTRODUCTION = f"""\
How a member firm, a market data reader or an operator's tool talks to the exchange, in any language.

Payloads are MessagePack. On the outside they are maps with names; where there are many (commands, reports, price
levels) they are arrays, and a field is known by its position. Fields are only ever appended, with a default, and never
renumbered: a reader ignores elements and keys that it does not know, a sender may leave out optional ones at the end.
All numbers are integers: prices in the instrument's price unit (10^-price_decimals yen), quantities in whole tokens,
times in nanoseconds since the epoch (UTC), dates as YYYYMMDD.

The contract is the same on MQTT 3.1.1 and 5: correlation lives in the payload. A PUBACK says only that the broker has a
message. An order is in the market when its Accepted report arrives, and then it is on disk. Send every command again,
under the same id, until it is answered: the answer to a repeat is the recorded one, and nothing happens twice.

Whoever publishes on a member's topic is that member: the broker ties the topic to the login, no payload names its own
sender. Largest payload: {messages.PAYLOAD_MAX:,} bytes; most commands in one message: {messages.BATCH_MAX:,}.
"""

LINE_MAX = 110
#: Name of the channel: address, what it is for, the payloads it carries.
CHANNELS: dict[str, tuple[str, str, Any]] = {
    "memberIn": (
        topics.inbound("{participant}"),
        "Commands and questions of one member. Only that member may publish here.",
        messages.Inbound,
    ),
    "memberOut": (
        topics.outbound("{participant}"),
        "Answers and reports to one member. Only that member may read here.",
        messages.Outbound,
    ),
    **{
        f"marketData{kind.capitalize()}": (topics.market_data("{instrument}", kind), "Public market data.", message)
        for kind, message in (
            ("snapshot", messages.Snapshot),
            ("depth", messages.Depth),
            ("trades", messages.Trades),
            ("indicative", messages.Indicative),
            ("auction", messages.AuctionResult),
            ("phase", messages.PhaseMessage),
            ("bust", messages.TradeBust),
            ("quote", messages.QuoteMessage),
        )
    },
    "orderChanges": (
        topics.market_data("{instrument}", f"{topics.BY_ORDER}changes"),
        "Public market data, order by order; a row of its own, for the profiles that the exchange has set so.",
        messages.OrderChanges,
    ),
    "ordersSnapshot": (
        topics.market_data("{instrument}", f"{topics.BY_ORDER}orders/{{part}}"),
        "Every order of a book, in parts numbered from 0.",
        messages.OrdersSnapshot,
    ),
    "operatorIn": (
        topics.inbound(topics.operator("{operator}")),
        "Requests and questions of one operator of the exchange. Only that operator may publish here.",
        messages.OperatorInbound,
    ),
    "operatorOut": (
        topics.outbound(topics.operator("{operator}")),
        "One row of reports for all operators, and answers to one. Only that operator may read here.",
        messages.OperatorOutbound,
    ),
    "copyIn": (
        topics.inbound(topics.copy("{login}", "{participant}")),
        "Questions of a login that reads a copy of a member's reports; commands are refused.",
        messages.Inbound,
    ),
    "copyOut": (
        topics.outbound(topics.copy("{login}", "{participant}")),
        "The copy: what the member reads, message for message, and answers to this login.",
        messages.Outbound,
    ),
    "status": (
        topics.STATUS,
        "Whether the exchange is up. The broker itself says down when it vanishes.",
        messages.Status,
    ),
}
#: What the exchange does on each channel: action, quality of service, retained.
OPERATIONS: dict[str, tuple[str, str, int, bool]] = {
    "takeCommands": ("receive", "memberIn", 1, False),
    "report": ("send", "memberOut", 1, False),
    "publishOrderChanges": ("send", "orderChanges", 0, False),
    "publishOrders": ("send", "ordersSnapshot", 0, True),
    "takeRequests": ("receive", "operatorIn", 1, False),
    "reportToOperators": ("send", "operatorOut", 1, False),
    "takeQuestions": ("receive", "copyIn", 1, False),
    "reportToReaders": ("send", "copyOut", 1, False),
    "publishSnapshot": ("send", "marketDataSnapshot", 0, True),
    "publishDepth": ("send", "marketDataDepth", 0, False),
    "publishTrades": ("send", "marketDataTrades", 0, False),
    "publishIndicative": ("send", "marketDataIndicative", 0, False),
    "publishAuction": ("send", "marketDataAuction", 0, False),
    "publishPhase": ("send", "marketDataPhase", 0, False),
    "publishBust": ("send", "marketDataBust", 0, False),
    "announceStatus": ("send", "status", 1, True),
}


class Line(dict[str, Any]):
    """A mapping that is written on one line if it fits."""


class Items(list[Any]):
    """A list that is written on one line, or as few as it takes."""


def wrapped(text: str) -> str:
    """Paragraphs in lines of a length that reads well where the document indents them."""
    return "\n".join(textwrap.fill(line, LINE_MAX) for line in text.split("\n"))


# --- explanations, from the source ---------------------------------------------------------------------------------


def comments(module: ModuleType) -> dict[str, dict[str, str]]:
    """Class to name to the ``#:`` comment on the same line, for fields of Structs and members of enums."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                target = item.target if isinstance(item, ast.AnnAssign) else None
                if isinstance(item, ast.Assign):
                    target = item.targets[0]  # type: ignore[assignment]
                if isinstance(target, ast.Name) and (match := re.search(r"#: (.*)", lines[item.end_lineno - 1])):  # type: ignore[operator]
                    found.setdefault(node.name, {})[target.id] = match[1].strip()
    return found


COMMENTS = {
    name: fields
    for module in (engine.types, engine.commands, engine.events, messages)
    for name, fields in comments(module).items()
}


def explanation(cls: type) -> str | None:
    """The class's own docstring as one paragraph per paragraph; msgspec and enum supply none that say anything."""
    text = inspect.cleandoc(cls.__doc__) if cls.__doc__ else ""
    if not text or "__doc__" not in vars(cls) or text.startswith("Enum where members"):
        return None
    plain = re.sub(r"``([^`]*)``", r"\1", text)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in plain.split("\n\n"))


# --- schemas, from the Structs -------------------------------------------------------------------------------------


class Schemas:
    """JSON Schema (draft 7, as AsyncAPI 3 has it) of everything that is asked for, by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def of(self, kind: shape.Type) -> Any:
        """The schema of one type; Structs and enums are put aside under their names and referred to."""
        match kind:
            case shape.Metadata():
                return Line({**self.of(kind.type), **(kind.extra_json_schema or {})})
            case shape.StructType():
                return self._named(kind.cls, lambda: self._struct(kind))
            case shape.EnumType():
                return self._named(kind.cls, lambda: enumeration(kind.cls))
            case shape.UnionType():
                return Line(oneOf=[self.of(each) for each in kind.types])
            case shape.ListType():
                most = {} if kind.max_length is None else {"maxItems": kind.max_length}
                return Line(type="array", **most, items=self.of(kind.item_type))
            case shape.DictType():
                return Line(type="object", additionalProperties=self.of(kind.value_type))
            case shape.IntType():
                bounds = {"minimum": kind.ge, "maximum": kind.le}
                return Line(type="integer", **{name: value for name, value in bounds.items() if value is not None})
            case shape.StrType():
                limits = {"minLength": kind.min_length, "maxLength": kind.max_length, "pattern": kind.pattern}
                return Line(type="string", **{name: value for name, value in limits.items() if value is not None})
            case shape.LiteralType():
                values = list(kind.values)
                return Line(const=values[0]) if len(values) == 1 else Line(enum=values)
            case shape.BoolType():
                return Line(type="boolean")
            case shape.NoneType():
                return Line(type="null")
            case shape.RawType():  # only Inbound.commands: kept as bytes by the gateway, decoded by the engine's types
                return {
                    "type": "array",
                    "maxItems": messages.BATCH_MAX,
                    "items": self.of(shape.type_info(MemberCommand)),
                }
        raise TypeError(f"Expected a type that a message may have, got {kind}")

    def _named(self, cls: type, make: Any) -> Line:
        if cls.__name__ not in self.by_name:
            self.by_name[cls.__name__] = None  # holds the place: what it refers to comes behind it
            self.by_name[cls.__name__] = make()
        return Line({"$ref": f"#/components/schemas/{cls.__name__}"})

    def _field(self, struct: shape.StructType, field: shape.Field) -> Any:
        schema = self.of(field.type)
        extra: dict[str, Any] = {}
        if (text := COMMENTS.get(struct.cls.__name__, {}).get(field.name)) is not None:
            extra["description"] = text.replace("``", "")
        if not field.required and isinstance(field.default, str | int | bool | None):
            extra["default"] = field.default.value if isinstance(field.default, Enum) else field.default
        if extra and "$ref" in schema:
            schema = Line(allOf=[schema])  # draft 7 ignores whatever stands beside a reference
        return type(schema)({**schema, **extra})

    def _struct(self, struct: shape.StructType) -> dict[str, Any]:
        required = [field for field in struct.fields if field.required]
        paragraphs = [text] if (text := explanation(struct.cls)) else []
        if struct.array_like:
            positions = [] if struct.tag is None else [f'"{struct.tag}"']
            positions += [field.name + ("" if field.required else "?") for field in struct.fields]
            paragraphs.append(f"[{', '.join(positions)}]")
        schema: dict[str, Any] = {"description": wrapped("\n\n".join(paragraphs))} if paragraphs else {}
        if struct.array_like:
            tag = [] if struct.tag is None else [Line(title="type", const=struct.tag)]
            schema["type"] = "array"
            schema["items"] = tag + [
                type(item)({"title": field.name, **item})
                for field in struct.fields
                for item in (self._field(struct, field),)
            ]
            schema["minItems"] = len(tag) + len(required)
            if struct.forbid_unknown_fields:
                schema["additionalItems"] = False
            return schema
        schema["type"] = "object"
        names = [field.encode_name for field in required]
        properties = {field.encode_name: self._field(struct, field) for field in struct.fields}
        if struct.tag_field is not None:
            names.insert(0, struct.tag_field)
            properties = {struct.tag_field: Line(const=struct.tag), **properties}
        if names:
            schema["required"] = Items(names)
        schema["properties"] = properties
        if struct.forbid_unknown_fields:
            schema["additionalProperties"] = False
        return schema


def enumeration(cls: type[Enum]) -> dict[str, Any]:
    """Numbers as JSON Schema wants them, with their names beside them for the reader."""
    told = COMMENTS.get(cls.__name__, {})
    lines = [
        f"{member.value} {member.name}" + (f": {told[member.name]}" if member.name in told else "") for member in cls
    ]
    text = explanation(cls)
    return {
        "description": "\n".join([*([text, ""] if text else []), *lines]).replace("``", ""),
        "type": "integer",
        "enum": Items(member.value for member in cls),
        "x-enum-varnames": Items(member.name for member in cls),
    }


# --- the document --------------------------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    """The whole contract as plain values."""
    schemas = Schemas()
    parameters = {
        "participant": {"description": f"A member firm, equal to its login: {PARTICIPANT_PATTERN}"},
        "instrument": {"description": f"The token's code: {INSTRUMENT_PATTERN}"},
        "part": {"description": "Number of a part of a snapshot, from 0"},
        "operator": {"description": f"An operator, equal to its login: {PARTICIPANT_PATTERN}"},
        "login": {"description": f"The reader of a copy, equal to its login: {PARTICIPANT_PATTERN}"},
    }
    channels: dict[str, Any] = {}
    known_messages: dict[str, Any] = {}
    for name, (address, about, payload) in CHANNELS.items():
        channel: dict[str, Any] = {"address": address, "description": about, "messages": {}}
        used = re.findall(r"{(\w+)}", address)
        if used:
            channel["parameters"] = {each: Line({"$ref": f"#/components/parameters/{each}"}) for each in used}
        for struct in get_args(payload) or (payload,):
            channel["messages"][struct.__name__] = Line({"$ref": f"#/components/messages/{struct.__name__}"})
            known_messages[struct.__name__] = {
                "name": struct.__name__,
                "contentType": "application/msgpack",
                "payload": schemas.of(shape.type_info(struct)),
            }
        channels[name] = channel
    operations = {
        name: {
            "action": action,
            "channel": Line({"$ref": f"#/channels/{channel}"}),
            "bindings": {"mqtt": Line(qos=qos, retain=retain)},
        }
        for name, (action, channel, qos, retain) in OPERATIONS.items()
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Dojima",
            "version": topics.ROOT.rpartition("/")[2].removeprefix("v") + ".0.0",
            "license": Line(name="Apache-2.0"),
            "description": INTRODUCTION,
        },
        "defaultContentType": "application/msgpack",
        "servers": {
            "broker": {
                "host": "localhost:1883",
                "protocol": "mqtt",
                "description": "mosquitto (deploy/mosquitto) or the embedded broker; MQTT 3.1.1 or 5.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"parameters": parameters, "messages": known_messages, "schemas": schemas.by_name},
    }


class _Dumper(yaml.SafeDumper):
    """Lists indented under their key, as people write them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


def _line(dumper: yaml.SafeDumper, value: Line) -> yaml.Node:
    """On one line only what the eye takes in as one."""
    short = len(str(dict(value))) <= LINE_MAX
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=short)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(Line, _line)
_Dumper.add_representer(
    Items, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def text() -> str:
    """The document as it stands in ``docs/asyncapi.yaml``."""
    body = yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=LINE_MAX)
    # A blank line before each entry of the second level lets the eye find them.
    body = re.sub(r"\n(?=(?:channels|operations|components|servers|info):)", "\n\n", body)
    body = re.sub(r"\n(?=  (?:schemas|messages):\n)", "\n\n", body)
    body = re.sub(r"(?<!:)\n(?=    [A-Z]\w+:\n)", "\n\n", body)
    return f"# Written by `make contract` from the code; tests compare the two. Change the code, not this file.\n{body}"


if __name__ == "__main__":
    sys.stdout.write(text())
