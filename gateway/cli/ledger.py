"""``dojima ledger``: who owns what, what is still owed, and whether exchange and ledger agree.

Reads the files of an exchange directory and changes nothing, so it may run while the exchange does.
"""

from __future__ import annotations

import asyncio
import datetime
import sqlite3
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli.failure import leave
from gateway.settlement.adapter import YEN, NotFound, State
from gateway.settlement.database import WrongFile
from gateway.settlement.outbox import Entry, Listed, Move, Outbox, Progress
from gateway.settlement.reconcile import Break, Report, reconcile
from gateway.settlement.relay import EMBEDDED, LEDGER_FILE, OUTBOX_FILE, notices
from gateway.settlement.sqlite import SqliteLedger

_JST = datetime.timezone(datetime.timedelta(hours=9))


class _Picture(Struct):
    progress: Progress
    counts: dict[tuple[str, State], int]
    alerts: list[Entry]
    notices: list[str]
    instruments: list[Listed]
    report: Report


def ledger(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the exchange.")],
    instruction: Annotated[
        str | None, typer.Option("--instruction", metavar="ID", help="Show one instruction and every move it made.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show balances, instructions by state, and a reconciliation that names any break.

    Exit status 0 when exchange and ledger agree, 1 on a break, 2 when there is nothing that can be read.
    """
    console = Console(highlight=False)
    try:
        if instruction is not None:
            entry, moves = asyncio.run(_find(directory, instruction))
            if as_json:
                print(msgspec.json.encode(_entry_json(entry, moves)).decode())
            else:
                _show_instruction(console, entry, moves)
            return
        picture = asyncio.run(_look(directory))
    except NotFound:
        leave(f"Expected the id of an instruction of {directory}, got {instruction!r}", 2, as_json=as_json)
    except (FileNotFoundError, WrongFile) as error:
        leave(str(error), 2, as_json=as_json)
    except sqlite3.Error as error:
        leave(f"Expected a whole outbox and ledger in {directory}, got: {error}", 2, as_json=as_json)
    if as_json:
        print(msgspec.json.encode(_json(picture)).decode())
    else:
        _show(console, picture)
    raise typer.Exit(0 if picture.report.agrees else 1)


async def _find(directory: Path, ins_id: str) -> tuple[Entry, list[Move]]:
    outbox = await Outbox.open_read_only(directory / OUTBOX_FILE)
    try:
        return await outbox.find(ins_id)
    finally:
        await outbox.close()


async def _look(directory: Path) -> _Picture:
    outbox = await Outbox.open_read_only(directory / OUTBOX_FILE)
    try:
        # Only the embedded ledger is a file here; instructions on others are shown as the outbox last heard of them.
        book = await SqliteLedger.open(directory / LEDGER_FILE, time.time_ns, read_only=True)
        try:
            report = await reconcile(outbox, {EMBEDDED: book})
        finally:
            await book.close()
        return _Picture(
            await outbox.progress(),
            await outbox.counts(),
            await outbox.alerts(),
            await notices(outbox),
            await outbox.instruments(),
            report,
        )
    finally:
        await outbox.close()


# --- for people ------------------------------------------------------------------------------------------------------


def _show(console: Console, picture: _Picture) -> None:
    progress = picture.progress
    day = _date(progress.business_date) + ("" if progress.is_open else ", after the cut-off")
    console.print(f"Market [bold]{progress.market}[/], business date {day}, log read up to {progress.cursor:,}")

    for each in picture.report.ledgers:
        balances = Table(title=f"Balances on {each.ledger!r} (whole token units, whole yen)", title_justify="left")
        for column in ("account", "asset"):
            balances.add_column(column)
        for column in ("available", "held", "total"):
            balances.add_column(column, justify="right")
        account = ""
        for position in sorted(each.positions, key=lambda position: (position.account, position.asset)):
            if not position.total:
                continue
            balances.add_row(
                escape(position.account) if position.account != account else "",
                position.asset.removeprefix("@"),
                f"{position.available:,}",
                f"{position.held:,}" if position.held else "",
                f"{position.total:,}",
            )
            account = position.account
        console.print(balances)

    states = Table(title="Instructions", title_justify="left")
    states.add_column("ledger")
    states.add_column("state")
    states.add_column("count", justify="right")
    for (name, state), count in sorted(picture.counts.items(), key=lambda item: (item[0][0], _ORDER[item[0][1]])):
        states.add_row(name, state.value, f"{count:,}")
    console.print(states)

    for notice in picture.notices:
        console.print(f"[yellow]Note:[/] {escape(notice)}", soft_wrap=True)
    for entry in picture.alerts:
        console.print(f"[red]Look at[/] {entry.id}: {escape(entry.alert)}", soft_wrap=True)
    if picture.report.breaks:
        breaks = Table(title="Breaks", title_justify="left")
        for column in ("class", "ledger", "subject", "what", "age"):
            breaks.add_column(column, overflow="fold")
        for each_break in picture.report.breaks:
            breaks.add_row(
                each_break.kind.value,
                each_break.ledger,
                escape(each_break.subject.replace(YEN, "JPY")),
                escape(each_break.text),
                _age(each_break),
            )
        console.print(breaks)
    compared = ", ".join(
        f"{each.settled:,} of {each.instructions:,} settled, {each.openings:,} openings,"
        f" {len(each.positions):,} positions"
        for each in picture.report.ledgers
    )
    verdict = "[green]agrees[/]" if picture.report.agrees else "[red]does not agree[/]"
    console.print(f"Reconciliation {verdict}: {compared}", soft_wrap=True)


def _show_instruction(console: Console, entry: Entry, moves: list[Move]) -> None:
    ins = entry.instruction
    console.print(
        f"[bold]{ins.id}[/]  {ins.kind}  {ins.quantity:,} {ins.asset}"
        f" from {escape(ins.seller)} to {escape(ins.buyer)}"
        f" against {ins.cash:,} {ins.currency}",
        soft_wrap=True,
    )
    console.print(
        f"traded {_date(ins.trade_date)}, settles {_date(ins.settle_date)} on {entry.ledger!r};"
        f" trade {', '.join(str(trade) for trade in ins.trade_ids)}"
    )
    console.print(f"content hash {ins.hash}", soft_wrap=True)
    now = f"[bold]{entry.state}[/]" + (f", {escape(entry.reason)}" if entry.reason else "")
    console.print(now + (f", ledger reference {entry.ledger_ref}" if entry.ledger_ref else ""), soft_wrap=True)
    if entry.alert:
        console.print(f"[red]Look at this:[/] {escape(entry.alert)}", soft_wrap=True)
    table = Table(title="Moves", title_justify="left")
    for column in ("at (Japan)", "business date", "from", "to", "reason", "ledger reference"):
        table.add_column(column, overflow="fold")
    for move in moves:
        table.add_row(
            _time(move.at),
            _date(move.business_date),
            move.before,
            move.after,
            escape(move.reason),
            escape(move.ledger_ref),
        )
    console.print(table)


_ORDER = {state: place for place, state in enumerate(State)}


def _date(date: int) -> str:
    return f"{date // 10000:04}-{date // 100 % 100:02}-{date % 100:02}" if date else "not set"


def _time(at: int) -> str:
    seconds, rest = divmod(at, 10**9)
    moment = datetime.datetime.fromtimestamp(seconds, _JST)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{rest // 10**6:03}"


def _age(each: Break) -> str:
    """Since when, in Japan; an age by this machine's clock would mislead where the market's own clock runs faster."""
    return f"since {_time(each.since)}" if each.since else ""


# --- for programs ----------------------------------------------------------------------------------------------------


def _json(picture: _Picture) -> dict[str, Any]:
    states: dict[str, dict[str, int]] = {}
    for (name, state), count in picture.counts.items():
        states.setdefault(name, {})[state.value] = count
    return {
        "market": picture.progress.market,
        "cursor": picture.progress.cursor,
        "business_date": picture.progress.business_date,
        "day_is_open": picture.progress.is_open,
        "balances": [
            {
                "ledger": each.ledger,
                "account": position.account,
                "asset": position.asset.removeprefix("@"),
                "available": position.available,
                "held": position.held,
                "total": position.total,
            }
            for each in picture.report.ledgers
            for position in each.positions
        ],
        "instructions": states,
        "notices": picture.notices,
        "alerts": [{"instruction": entry.id, "text": entry.alert} for entry in picture.alerts],
        "reconciliation": {
            "agrees": picture.report.agrees,
            "breaks": [
                {
                    "class": each.kind,
                    "ledger": each.ledger,
                    "subject": each.subject,
                    "text": each.text,
                    "since": each.since,
                }
                for each in picture.report.breaks
            ],
            "ledgers": [
                {
                    "ledger": each.ledger,
                    "height": each.height,
                    "instructions": each.instructions,
                    "settled": each.settled,
                    "events": each.events,
                    "openings": each.openings,
                }
                for each in picture.report.ledgers
            ],
        },
    }


def _entry_json(entry: Entry, moves: list[Move]) -> dict[str, Any]:
    return {
        "instruction": entry.instruction,
        "ledger": entry.ledger,
        "state": entry.state,
        "on_ledger": entry.on_ledger.name,
        "reason": entry.reason,
        "alert": entry.alert,
        "ledger_ref": entry.ledger_ref,
        "fails": entry.fails,
        "moves": moves,
    }
