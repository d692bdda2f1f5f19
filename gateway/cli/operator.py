"""``dojima operator``: control the market from a shell, one act at a time.

A weighty command waits for a second operator: ``request`` then says until when, ``waiting`` shows it to the other one,
``confirm`` lets it happen. Exit status 0: done, or waiting; 1: the exchange refused it; 2: not reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from engine.commands import ExchangeCommand
from engine.events import Event, OperatorActed, OperatorDeclined, OperatorRefused, OperatorRequested
from engine.types import PHASE_LABELS, Phase
from gateway.cli.book import time_text
from gateway.cli.client import DEFAULT_URL, Directory, Json, Password, Timeout, Url, as_dict, broker_of
from gateway.cli.client import run as run_to_exit
from gateway.cli.client import sentence as member_sentence
from gateway.cli.failure import leave
from gateway.operator_client import OperatorClient, Outcome, RequestRefused
from gateway.operators import at_once

app = typer.Typer(
    help="Control the market as an operator: suspend, kill, set prices, list; weighty commands take a second operator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
console = Console(highlight=False)

Operator = Annotated[
    str, typer.Option("--operator", "-o", envvar="DOJIMA_OPERATOR", help="The operator, which is the login.")
]
COMMANDS: Final[dict[str, type[ExchangeCommand]]] = {
    str(struct.__struct_config__.tag): struct for struct in get_args(ExchangeCommand)
}


def parse(name: str, settings: list[str]) -> ExchangeCommand:
    """A command of the exchange from ``field=value`` texts. Raises ``ValueError`` saying what was expected."""
    kind = COMMANDS.get(name)
    if kind is None:
        raise ValueError(f"Expected one of {', '.join(COMMANDS)}, got {name!r}")
    values: dict[str, Any] = {}
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for setting in settings:
        field, separator, text = setting.partition("=")
        if not separator or field not in types:
            raise ValueError(f"Expected FIELD=VALUE with a field of {', '.join(types)}, got {setting!r}")
        values[field] = _value(types[field], field, text)
    missing = [field.name for field in msgspec.structs.fields(kind) if field.required and field.name not in values]
    if missing:
        raise ValueError(f"Expected {', '.join(f'{field}=…' for field in missing)} for {name}, got none")
    # A Struct's constructor does not check; the decoder that the exchange uses does.
    try:
        command = msgspec.msgpack.decode(msgspec.msgpack.encode(kind(**values)), type=kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from None
    return command


def _value(kind: Any, field: str, text: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        words: dict[str, IntEnum] = {label.lower(): phase for phase, label in PHASE_LABELS.items()}
        words = (words if kind is Phase else {}) | {member.name.lower(): member for member in kind}
        if text.lower() in words:
            return words[text.lower()]
        raise ValueError(f"Expected {field} as one of {', '.join(words)}, got {text!r}")
    try:
        if text[:1] in ("[", "{"):
            return msgspec.json.decode(text, type=kind)
        return msgspec.convert(text, kind, strict=False)
    except msgspec.DecodeError as error:
        raise ValueError(f"{field}: {error}, got {text!r}") from None


def sentence(event: Event) -> str:
    """A report as one line for a person."""
    if isinstance(event, OperatorRequested):
        until = f"until {time_text(event.until_ns)} Japanese time"
        return f"waits      {event.operator} {event.request_id}: {_spelled(event.command)}, {until}"
    if isinstance(event, OperatorActed):
        second = f", confirmed by {event.confirmed_by}" if event.confirmed_by else ""
        return f"done       {event.operator} {event.request_id}: {_spelled(event.command)}{second}"
    if isinstance(event, OperatorRefused):
        return f"refused    {event.operator} {event.request_id}: {event.reason.name}: {event.text}"
    if isinstance(event, OperatorDeclined):
        return f"declined   {event.requested_by} {event.requested_id}: {_spelled(event.command)}, by {event.operator}"
    return member_sentence(event)


def _spelled(command: Struct) -> str:
    """A command as it is typed: ``request`` takes these words."""
    words = as_dict(command)
    told = [words.pop("event")]
    for name, value in words.items():
        if value not in ("", None):
            told.append(f"{name}={value if isinstance(value, str) else msgspec.json.encode(value).decode()}")
    return " ".join(told)


def show(event: Event, json: bool, **more: Any) -> None:
    if json:
        typer.echo(msgspec.json.encode(more | {"event": str(event.__struct_config__.tag)} | _fields(event)).decode())
    else:
        console.print(sentence(event), soft_wrap=True, markup=False)


def _fields(event: Struct) -> dict[str, Any]:
    """Like ``as_dict``; a command inside keeps its place."""
    words = as_dict(event)
    inside = {name: getattr(event, name) for name in event.__struct_fields__}
    return {name: as_dict(value) if isinstance(value, Struct) else words[name] for name, value in inside.items()}


def client_of(
    url: str, directory: Path | None, operator: str, password: str, timeout: float, start_at: int = 0
) -> OperatorClient:
    """Of an operator; at the embedded broker of an exchange on this machine with the password that lies there."""
    secret = directory / "secrets" / operator if directory is not None else None
    if not password and secret is not None and secret.exists():
        password = secret.read_text(encoding="utf-8").strip()
    return OperatorClient(broker_of(url, directory), operator, password, timeout=timeout, start_at=start_at)


def run(work: Callable[[], Coroutine[Any, Any, int]], json: bool) -> None:
    """As a member's command runs; what the exchange refuses an operator is a report of its own."""

    async def told() -> int:
        try:
            return await work()
        except RequestRefused as refused:
            show(refused.event, json)
            return 1

    run_to_exit(told, json, title="dojima operator")


@app.command()
def request(
    command: Annotated[str, typer.Argument(help="What is wished: see `dojima operator commands`.")],
    settings: Annotated[list[str] | None, typer.Argument(help="FIELD=VALUE …; lists and maps as JSON.")] = None,
    operator: Operator = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    request_id: Annotated[str, typer.Option("--id", help="Your id of the request; none: one is made.")] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until a second operator has answered, or the time is over.")
    ] = False,
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Ask for a command of the exchange, for instance: request suspend instrument=KDX-2107."""

    async def work() -> int:
        wish = parse(command, settings or [])
        async with client_of(url, directory, operator, password, timeout) as client:
            answer = await client.request(wish, request_id)
            show(answer, json)
            if wait and isinstance(answer, OperatorRequested):
                outcome = await answered(client, answer)
                if outcome is None:
                    text = f"{answer.operator} {answer.request_id}: nobody answered in time; ask anew"
                    leave(text, 1, as_json=json, title="dojima operator")
                show(outcome, json)
                return 0 if isinstance(outcome, OperatorActed) else 1
        return 0

    run(work, json)


async def answered(client: OperatorClient, asked: OperatorRequested) -> Outcome | None:
    """How a request ended that waited; None: its time is over, which no report says, only that it waits no more."""
    outcome = asyncio.ensure_future(client.outcome(asked))
    try:
        while not (await asyncio.wait((outcome,), timeout=1))[0]:
            still = [(each.operator, each.request_id) for each in await client.waiting()]
            if (asked.operator, asked.request_id) not in still and not (await asyncio.wait((outcome,), timeout=1))[0]:
                return None
        return outcome.result()
    finally:
        outcome.cancel()


@app.command()
def waiting(
    operator: Operator = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Show what waits for a second operator."""

    async def work() -> int:
        async with client_of(url, directory, operator, password, timeout) as client:
            for asked in await client.waiting():
                show(asked, json)
        return 0

    run(work, json)


@app.command()
def confirm(
    requested_by: Annotated[str, typer.Argument(help="The operator who asked.")],
    requested_id: Annotated[str, typer.Argument(help="The id of the request.")],
    operator: Operator = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Agree to another operator's request, which then happens."""

    async def work() -> int:
        async with client_of(url, directory, operator, password, timeout) as client:
            show(await client.confirm(requested_by, requested_id), json)
        return 0

    run(work, json)


@app.command()
def decline(
    requested_by: Annotated[str, typer.Argument(help="The operator who asked.")],
    requested_id: Annotated[str, typer.Argument(help="The id of the request.")],
    operator: Operator = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Take back your own request, or decline another operator's."""

    async def work() -> int:
        async with client_of(url, directory, operator, password, timeout) as client:
            show(await client.decline(requested_by, requested_id), json)
        return 0

    run(work, json)


@app.command()
def reports(
    operator: Operator = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    first: Annotated[int, typer.Option("--from", min=1, max=2**53, help="Number of the first report.")] = 1,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and show what comes.")] = False,
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Show who did what: the operators' requests, and what the exchange did to the market."""

    async def work() -> int:
        client = client_of(url, directory, operator, password, timeout, start_at=first)
        stream = client.reports()  # before entering: from ``first`` on
        async with client:
            last = client.last_report
            while watch or client.next_report <= last or stream.waiting:
                report = await anext(stream)
                show(report.event, json, number=report.number, sequence=report.sequence, time_ns=report.time_ns)
        return 0

    run(work, json)


@app.command()
def commands(json: Json = False) -> None:
    """Show what can be asked for, with which fields, and what takes a second operator."""
    note = "?: may be left out. Lists and maps as JSON. What a field means: engine/commands.py"
    table = Table(title="Commands of the exchange", title_justify="left", caption=note, caption_justify="left")
    for name in ("command", "fields", "takes"):
        table.add_column(name)
    for tag, kind in COMMANDS.items():
        fields = [field.name + ("" if field.required else "?") for field in msgspec.structs.fields(kind)]
        takes = "one operator" if at_once(kind(**_plain(kind))) else "two"
        if tag == "kill":
            takes = "one operator; two for the whole market"
        if json:
            typer.echo(msgspec.json.encode({"command": tag, "fields": fields, "takes": takes}).decode())
        else:
            table.add_row(tag, " ".join(fields), takes)
    if not json:
        console.print(table)


def _plain(kind: type[Struct]) -> dict[str, Any]:
    return {field.name: "" for field in msgspec.structs.fields(kind) if field.required}
