"""``dojima book``: one instrument live in the terminal: depth, phase, indicative price, tape.

What is shown as whole is whole: a hole in the numbers of the market data or a digest that does not agree dims the
picture until the snapshot has made it good.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine.types import PHASE_LABELS, Phase, Side
from gateway.cli.client import DEFAULT_URL, Directory, Json, Password, Timeout, Url, broker_of, console, errors, run
from gateway.client import Client, LiveBook

#: Tokyo's time of day; Japan has no summer time.
JST = timedelta(hours=9)
BAR = 18


def price_text(price: int, decimals: int) -> str:
    """A price in yen: whole price units with the instrument's decimals, by integer arithmetic."""
    if not price:
        return "market"
    whole, part = divmod(price, 10**decimals)
    return f"{whole:,}.{part:0{decimals}d}" if decimals else f"{whole:,}"


def time_text(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC) + JST
    return f"{moment:%H:%M:%S}"


def as_json(book: LiveBook, depth: int, tape: int) -> dict[str, Any]:
    bids, asks = book.ladder(depth)
    return {
        "instrument": book.instrument,
        "n": book.n,
        "time_ns": book.time_ns,
        "whole": book.is_whole,
        "phase": book.phase,
        "suspended": book.suspended,
        "trading_date": book.trading_date,
        "price_decimals": book.price_decimals,
        "reference_price": book.reference_price,
        "lower_limit": book.lower_limit,
        "upper_limit": book.upper_limit,
        "last_price": book.last_price,
        "last_quantity": book.last_quantity,
        "volume": book.volume,
        "indicative_price": book.indicative_price,
        "indicative_volume": book.indicative_volume,
        "indicative_surplus": book.indicative_surplus,
        "quote": book.quote,
        "quote_side": book.quote_side.name.lower(),
        "quote_price": book.quote_price,
        "quote_due_ns": book.quote_due_ns,
        "supervision": book.supervision,
        "termination": book.termination,
        "in_window": book.in_window,
        "set_aside": book.set_aside,
        "bids": [[level.price, level.quantity] for level in bids],
        "asks": [[level.price, level.quantity] for level in asks],
        "trades": [[trade.trade_id, trade.price, trade.quantity] for trade in list(book.tape)[-tape:]] if tape else [],
    }


def picture(book: LiveBook, depth: int) -> Panel:
    bids, asks = book.ladder(depth)
    most = max([level.quantity for level in (*bids, *asks)], default=1)
    ladder = Table(box=None, padding=(0, 1), expand=False)
    for name in ("", "bid", "price", "ask", ""):
        ladder.add_column(name, justify="right" if name != "" else "left", min_width=BAR if name == "" else 8)
    for level in reversed(asks):
        bar = Text("▇" * max(1, level.quantity * BAR // most), style="red")
        ladder.add_row("", "", price_text(level.price, book.price_decimals), f"{level.quantity:,}", bar)
    middle = book.indicative_price or book.last_price
    word = "indicative" if book.indicative_price else "last"
    ladder.add_row("", word if middle else "", Text(price_text(middle, book.price_decimals) if middle else "–", "bold"))
    for level in bids:
        bar = Text("▇" * max(1, level.quantity * BAR // most), style="green", justify="right")
        ladder.add_row(bar, f"{level.quantity:,}", price_text(level.price, book.price_decimals), "", "")

    tape = Table(box=None, padding=(0, 1))
    for name in ("time", "price", "quantity"):
        tape.add_column(name, justify="right")
    for trade in list(book.tape)[: -depth - 1 : -1]:
        tape.add_row(time_text(trade.time_ns), price_text(trade.price, book.price_decimals), f"{trade.quantity:,}")

    head = Text()
    calls = {PHASE_LABELS[p] for p in (Phase.PRE_OPEN, Phase.PRE_OPEN_NCP, Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP)}
    head.append(f" {book.phase} ", "black on yellow" if book.phase in calls else "black on cyan")
    if book.suspended:
        head.append(" suspended ", "white on red")
    for word in ("set_aside", "in_window", "supervision", "termination"):
        if getattr(book, word):
            head.append(f" {word.replace('_', ' ')} ", "white on red")
    head.append(f"  {time_text(book.time_ns)}  {book.trading_date or ''}")
    if book.indicative_price:
        surplus = book.indicative_surplus
        left = f"{abs(surplus):,} more to {'buy' if surplus > 0 else 'sell'}" if surplus else "balanced"
        head.append(f"\nindicative {price_text(book.indicative_price, book.price_decimals)}", "bold")
        head.append(f" x {book.indicative_volume:,}, {left}")
    if book.quote != "none":
        side = "bid" if book.quote_side == Side.BUY else "ask"
        due = f", until {time_text(book.quote_due_ns)}" if book.quote_due_ns else ", at the day's limit"
        price = price_text(book.quote_price, book.price_decimals)
        head.append(f"\n{book.quote} {side} quote at {price}{due}", "bold")
    head.append(f"\nreference {price_text(book.reference_price, book.price_decimals)}")
    if book.upper_limit:
        low, high = (price_text(price, book.price_decimals) for price in (book.lower_limit, book.upper_limit))
        head.append(f", limits {low} to {high}")
    head.append(f", volume today {book.volume:,}")

    state = "" if book.is_whole else "  something was lost, waiting for the snapshot"
    foot = Text(f"message {book.n:,}, {book.proofs} digests agreed, {book.gaps} gaps{state}", "dim")
    body = Table.grid(padding=(0, 3))
    body.add_row(ladder, tape)
    return Panel(
        Group(head, Text(), body, Text(), foot),
        title=book.instrument,
        border_style="blue" if book.is_whole else "dim",
        expand=False,
    )


def book(
    instrument: Annotated[str, typer.Argument(help="The token's code, for instance KDX-2107.")],
    url: Url = DEFAULT_URL,
    directory: Directory = None,
    participant: Annotated[
        str, typer.Option("--participant", "-p", envvar="DOJIMA_PARTICIPANT", help="The login at the broker.")
    ] = "viewer",
    password: Password = "",
    depth: Annotated[int, typer.Option(min=1, help="Levels a side, and trades on the tape.")] = 10,
    once: Annotated[bool, typer.Option("--once", help="Show the present state and leave.")] = False,
    json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Watch one instrument live: depth, phase, quote, indicative price, tape. Ctrl-C ends."""

    async def work() -> int:
        async with Client(
            broker_of(url, directory), participant, password, timeout=timeout, market_data_only=True
        ) as client:
            found = await client.book(instrument)
            if once:
                show_once(found)
            elif json:
                async for _ in found.changes():
                    show_once(found)
            else:
                with Live(picture(found, depth), console=console, refresh_per_second=8, screen=False) as live:
                    async for _ in found.changes():
                        live.update(picture(found, depth))
                        await asyncio.sleep(0.05)  # a terminal needs no more; changes meanwhile are one
                errors.print("the market data ended")
        return 0

    def show_once(found: LiveBook) -> None:
        if json:
            typer.echo(msgspec.json.encode(as_json(found, depth, depth)).decode())
        else:
            console.print(picture(found, depth))

    run(work, json, title="dojima book")
