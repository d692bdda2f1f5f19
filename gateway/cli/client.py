"""``dojima client``: trade as a member from a shell, one command at a time.

Each command connects, does one thing, waits for the exchange's answer, and leaves: 0 when it was done, 1 when the
exchange refused it, 2 when the exchange could not be reached. ``--json`` prints one object a line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from engine.commands import AmendOrder, CancelOrder, MassCancel
from engine.events import (
    Accepted,
    Amended,
    CancelFrozen,
    Cancelled,
    ConnectionLost,
    KillSwitched,
    MassCancelled,
    Rejected,
)
from engine.types import OrderType, SelfTrade, Side, TimeInForce
from gateway.bus.messages import Bust, Fill
from gateway.cli.failure import leave
from gateway.client import (
    Client,
    ClientError,
    MessageRefused,
    Missed,
    NumberedReport,
    Order,
    OrderState,
)
from gateway.position import PositionUnusable
from gateway.service import broker_url

app = typer.Typer(
    help="Trade as a member: submit, cancel and amend orders, look at open orders and reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Url = Annotated[
    str, typer.Option("--url", envvar="DOJIMA_URL", help="The broker: mqtt://host:port or mqtts://host:port.")
]
Directory = Annotated[
    Path | None, typer.Option("--dir", help="Directory of an exchange on this machine: its broker is used.")
]
Participant = Annotated[
    str, typer.Option("--participant", "-p", envvar="DOJIMA_PARTICIPANT", help="The member firm, which is the login.")
]
Password = Annotated[str, typer.Option("--password", envvar="DOJIMA_PASSWORD", help="Better in the environment.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait for the exchange.")]

DEFAULT_URL = "mqtt://127.0.0.1:1883"

_Word = TypeVar("_Word", bound=IntEnum)


class SideName(StrEnum):
    BUY = "buy"
    SELL = "sell"


def _one_of(kind: type[_Word]) -> Any:
    """An option whose values are the words of an enumeration of the contract."""
    words = {member.name.lower().replace("_", "-"): member for member in kind}

    def parse(value: str | _Word) -> _Word:
        if isinstance(value, kind):  # the default
            return value
        if str(value).lower() not in words:
            raise typer.BadParameter(f"Expected one of {', '.join(words)}, got {value!r}")
        return words[str(value).lower()]

    return {"parser": parse, "metavar": "|".join(words)}


def broker_of(url: str, directory: Path | None) -> str:
    """Where to connect to. Raises ``ValueError`` for a directory in which no exchange runs."""
    if directory is None:
        return url
    try:
        return broker_url(directory)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"Expected the directory of a running exchange, got {directory} ({error})") from None


# --- words -----------------------------------------------------------------------------------------------------------


def as_dict(value: Struct) -> dict[str, Any]:
    """A message with the names of its fields, numbers of the market's words as those words."""
    tag = value.__struct_config__.tag
    result: dict[str, Any] = {"event": tag} if isinstance(tag, str) else {}
    for name in value.__struct_fields__:
        field = getattr(value, name)
        if isinstance(field, IntEnum):
            result[name] = field.name.lower()
        elif isinstance(field, Struct):
            result |= as_dict(field)
        else:
            result[name] = field
    return result


def price_of(price: int) -> str:
    return f"{price:,}" if price else "market"


def type_of(order_type: OrderType) -> str:
    """What an order is where its price does not say it."""
    return "" if order_type <= OrderType.MARKET else f"{order_type.name.lower().replace('_', '-')} "


def sentence(event: Struct) -> str:
    """A report as one line for a person."""
    repeat = " (as answered before)" if getattr(event, "repeat", False) else ""
    if isinstance(event, Accepted):
        return (
            f"accepted   {event.client_order_id}: {event.side.name.lower()} {event.quantity:,} {event.instrument} at "
            f"{price_of(event.price)}, {type_of(event.order_type)}order {event.order_id}{repeat}"
        )
    if isinstance(event, Rejected):
        return f"rejected   {event.client_order_id}: {event.reason.name}: {event.text}{repeat}"
    if isinstance(event, Cancelled):
        return (
            f"cancelled  {event.client_order_id}: {event.quantity:,} {event.instrument} at {price_of(event.price)}, "
            f"{event.reason.name.lower().replace('_', ' ')}{repeat}"
        )
    if isinstance(event, Amended):
        place = "keeps its place" if event.kept_priority else "goes to the back"
        return (
            f"amended    {event.client_order_id}: {event.quantity:,} {event.instrument} at {price_of(event.price)}, "
            f"{event.open_quantity:,} open, {place}{repeat}"
        )
    if isinstance(event, MassCancelled):
        return f"cancelled  {event.count:,} orders{repeat}"
    if isinstance(event, Fill):
        verb = "bought" if event.side == Side.BUY else "sold"
        return (
            f"{verb:10} {event.client_order_id}: {event.quantity:,} {event.instrument} at {event.price:,} "
            f"{'in the auction ' if event.auction else ''}with {event.counterparty}, {event.open_quantity:,} open, "
            f"settles {event.settlement_date}"
        )
    if isinstance(event, Bust):
        return (
            f"void       {event.client_order_id}: trade {event.trade_id}, {event.quantity:,} {event.instrument} at "
            f"{event.price:,} with {event.counterparty} on {event.trade_date}, was an error"
        )
    if isinstance(event, CancelFrozen):
        return f"frozen     {event.client_order_id or 'all'}: cancels are taken again from {event.until.label} on"
    if isinstance(event, KillSwitched):
        what = f"stopped    by the exchange, {event.count:,} orders cancelled" if event.killed else "free       again"
        return f"{what}: {event.participant} in {event.instrument or 'every instrument'}"
    if isinstance(event, ConnectionLost):
        later = f", in {event.waiting} books after the auction" if event.waiting else ""
        return f"lost       the connection: {event.count:,} orders cancelled{later}"
    words = as_dict(event)
    return f"{words.pop('event'):10} " + ", ".join(f"{name} {value}" for name, value in words.items() if value != "")


def show(event: Struct, json: bool) -> None:
    if json:
        typer.echo(msgspec.json.encode(as_dict(event)).decode())
    else:
        console.print(sentence(event), soft_wrap=True, markup=False)


def run(work: Callable[[], Coroutine[Any, Any, int]], json: bool, title: str = "dojima client") -> None:
    """Run a command to its exit code; what went wrong is one line with advice, not a trace."""
    try:
        code = asyncio.run(work())
    except KeyboardInterrupt:
        code = 130
    except MessageRefused as error:
        leave(str(error), 1, as_json=json, title=title)
    except (ClientError, PositionUnusable, ValueError, OSError) as error:
        leave(str(error), 2, as_json=json, title=title)
    raise typer.Exit(code)


async def answer(client: Client, command: Any, json: bool) -> int:
    """Send one command and show what came of it."""
    event = await (await client.send(command))[0]
    show(event, json)
    return 1 if isinstance(event, Rejected) else 0


# --- commands --------------------------------------------------------------------------------------------------------


@app.command()
def submit(
    side: Annotated[SideName, typer.Argument(help="buy or sell")],
    instrument: Annotated[str, typer.Argument(help="The token's code, for instance KDX-2107.")],
    quantity: Annotated[int, typer.Argument(help="Whole units.")],
    price: Annotated[int, typer.Argument(help="Limit in the instrument's price units; none: a market order.")] = 0,
    participant: Participant = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    validity: Annotated[
        TimeInForce, typer.Option(help="How long the order lives.", show_default="day", **_one_of(TimeInForce))
    ] = (TimeInForce.DAY),
    order_type: Annotated[
        OrderType | None,
        typer.Option("--type", help="Limit with a price, market without one, or this.", **_one_of(OrderType)),
    ] = None,
    stop_price: Annotated[int, typer.Option(help="The last price that triggers a stop.")] = 0,
    display: Annotated[int, typer.Option(help="An iceberg shows so many units at a time.")] = 0,
    minimum: Annotated[int, typer.Option(help="Trade at least so many units at once, or nothing.")] = 0,
    post_only: Annotated[bool, typer.Option("--post-only", help="Refuse it where it would trade at once.")] = False,
    self_trade: Annotated[
        SelfTrade, typer.Option(help="Where it would meet your own.", show_default="default", **_one_of(SelfTrade))
    ] = SelfTrade.DEFAULT,
    expires: Annotated[int, typer.Option(help="Last day of a gtd order, as YYYYMMDD.")] = 0,
    account: Annotated[str, typer.Option(help="Your own opaque client reference.")] = "",
    order_id: Annotated[str, typer.Option("--id", help="Your client_order_id; none: one is made.")] = "",
    confirmed: Annotated[bool, typer.Option("--confirmed", help="You mean it, however large it is.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the order is done, and show its fills.")] = False,
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Send an order and say what the exchange answered."""

    async def work() -> int:
        async with Client(broker_of(url, directory), participant, password, timeout=timeout) as client:
            reports = client.reports()
            (order,) = await client.submit(
                client.new_order(
                    instrument,
                    Side[side.name],
                    quantity,
                    price,
                    client_order_id=order_id or None,
                    order_type=order_type,
                    time_in_force=validity,
                    account=account,
                    display_quantity=display,
                    stop_price=stop_price,
                    minimum_quantity=minimum,
                    post_only=post_only,
                    self_trade=self_trade,
                    expire_date=expires,
                    confirmed=confirmed,
                )
            )
            event = await order.outcome()
            show(event, json)
            if isinstance(event, Rejected):
                return 1
            if wait:
                await follow(order, reports, json)
            return 0

    run(work, json)


async def follow(order: Order, reports: Any, json: bool) -> None:
    async for report in reports:
        event = report.event if isinstance(report, NumberedReport) else None
        if isinstance(event, Fill | Cancelled | Amended) and event.client_order_id == order.client_order_id:
            show(event, json)
            if order.is_done and not reports.waiting:
                return


@app.command()
def cancel(
    order_id: Annotated[str, typer.Argument(help="The client_order_id of the order.")],
    participant: Participant = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Take an order out of the market."""

    async def work() -> int:
        async with Client(broker_of(url, directory), participant, password, timeout=timeout) as client:
            return await answer(client, CancelOrder(client.next_id(), order_id), json)

    run(work, json)


@app.command()
def amend(
    order_id: Annotated[str, typer.Argument(help="The client_order_id of the order.")],
    quantity: Annotated[int, typer.Option(help="New total, filled part included; 0 leaves it.")] = 0,
    price: Annotated[int, typer.Option(help="New limit; 0 leaves it.")] = 0,
    confirmed: Annotated[bool, typer.Option("--confirmed", help="You mean it, however large it is.")] = False,
    participant: Participant = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Change quantity or price of an order. A smaller quantity keeps its place in the queue."""

    async def work() -> int:
        async with Client(broker_of(url, directory), participant, password, timeout=timeout) as client:
            return await answer(client, AmendOrder(client.next_id(), order_id, quantity, price, confirmed), json)

    run(work, json)


@app.command("mass-cancel")
def mass_cancel(
    instrument: Annotated[str, typer.Option(help="Only orders in this instrument.")] = "",
    side: Annotated[SideName | None, typer.Option(help="Only orders of this side.")] = None,
    participant: Participant = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Take all your open orders out of the market, or those that meet every condition given."""

    async def work() -> int:
        async with Client(broker_of(url, directory), participant, password, timeout=timeout) as client:
            wanted = None if side is None else Side[side.name]
            return await answer(client, MassCancel(client.next_id(), instrument, wanted), json)

    run(work, json)


@app.command()
def orders(
    participant: Participant = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Show your open orders."""

    async def work() -> int:
        async with Client(broker_of(url, directory), participant, password, timeout=timeout) as client:
            found = await client.open_orders()
        if json:
            for order in found:
                typer.echo(msgspec.json.encode(order_dict(order)).decode())
            return 0
        table = Table(title=f"{len(found)} open orders of {participant}", title_justify="left")
        for name in ("client order id", "order", "instrument", "side"):
            table.add_column(name)
        for name in ("open", "filled", "price"):
            table.add_column(name, justify="right")
        for name in ("type", "validity"):
            table.add_column(name)
        for order in found:
            table.add_row(
                order.client_order_id,
                str(order.order_id),
                order.instrument,
                order.side.name.lower(),
                f"{order.open_quantity:,}",
                f"{order.filled_quantity:,}",
                price_of(order.price),
                order.order_type.name.lower().replace("_", "-"),
                order.time_in_force.name.lower().replace("_", "-"),
            )
        console.print(table)
        return 0

    run(work, json)


def order_dict(order: Order) -> dict[str, Any]:
    return {
        "client_order_id": order.client_order_id,
        "order_id": order.order_id,
        "instrument": order.instrument,
        "side": order.side.name.lower(),
        "price": order.price,
        "quantity": order.quantity,
        "open_quantity": order.open_quantity,
        "filled_quantity": order.filled_quantity,
        "order_type": order.order_type.name.lower(),
        "time_in_force": order.time_in_force.name.lower(),
        "account": order.account,
        "state": str(OrderState(order.state)),
    }


@app.command()
def reports(
    first: Annotated[int, typer.Option("--from", min=1, max=2**53, help="Number of the first report.")] = 1,
    participant: Participant = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Show what you were told so far, from a number on."""

    async def work() -> int:
        client = Client(broker_of(url, directory), participant, password, timeout=timeout, start_at=first)
        stream = client.reports()
        async with client:
            while stream.waiting:
                show_report(await anext(stream), json)
        return 0

    run(work, json)


@app.command()
def watch(
    participant: Participant = ...,  # type: ignore[assignment]
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    password: Password = "",
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Show your reports as they come, until Ctrl-C."""

    async def work() -> int:
        async with Client(broker_of(url, directory), participant, password, timeout=timeout) as client:
            if not json:
                errors.print(f"reports of {participant} from number {client.next_report} on; Ctrl-C ends")
            async for report in client.reports():
                show_report(report, json)
        return 0

    run(work, json)


def show_report(report: NumberedReport | Missed, json: bool) -> None:
    if json:
        typer.echo(msgspec.json.encode(as_dict(report)).decode())
    elif isinstance(report, Missed):
        console.print(f"reports {report.first} to {report.last} cannot be had any more", style="yellow")
    else:
        console.print(f"{report.number:>7}  {sentence(report.event)}", soft_wrap=True, markup=False)
