"""``dojima demo``: the main job on real input, in well under a minute, with a verdict at its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gateway.cli.failure import leave
from gateway.demo.day import SESSIONS, SHOWN, Day, DemoFailed, Options, Summary

#: Exit statuses: the checks agree; one does not; the day could not be played.
AGREES, DIFFERS, FAILED = 0, 1, 2
#: Ended by a signal, as a shell says it.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_SPARKS = "▁▂▃▄▅▆▇█"


def demo(
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where everything is kept; default: a new temporary directory.")
    ] = None,
    crash_at: Annotated[
        list[str] | None,
        typer.Option(
            "--crash-at",
            metavar="PERCENT",
            help="Kill the exchange with SIGKILL at this point of the day, for instance 30%. Several: 30%,60%.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output; progress on standard error.")
    ] = False,
    broker: Annotated[
        str, typer.Option(help="mqtt://HOST:PORT of a broker that runs already; default: one of our own.")
    ] = "",
    secrets: Annotated[
        Path | None,
        typer.Option(help="Directory with a file per login holding its password, for a broker that asks for them."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another day.")] = 1,
    seconds: Annotated[int, typer.Option(min=4, max=21_600, help="Real length of the trading day.")] = 24,
    tokens: Annotated[int, typer.Option(min=0, help="Only the first so many tokens; 0: all.")] = 0,
) -> None:
    """Let eight member firms trade an accelerated START day over MQTT, settle it at T+2, and replay it.

    Broker, exchange and firms are processes of their own. At the end the log is replayed, every report that a firm
    wrote down is compared with it, and exchange and ledger are reconciled. Exit status: 0 all agrees, 1 something does
    not, 2 the day could not be played, 130 ended by Ctrl-C, 143 by SIGTERM.
    """
    logging.getLogger("gateway.settlement").setLevel(logging.ERROR)  # its notices are in the summary
    console = Console(stderr=as_json, highlight=False)
    try:
        crashes = [percent(text) for value in crash_at or [] for text in value.split(",")]
    except ValueError as error:
        leave(str(error), FAILED, as_json=as_json, title="dojima demo")
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="dojima-demo-"))
    options = Options(directory.absolute(), seed, seconds, crashes, broker, secrets, tokens)
    console.print(f"Everything is kept in [bold]{options.directory}[/]", soft_wrap=True)
    try:
        summary = asyncio.run(play(options, console))
    except (DemoFailed, OSError, ValueError) as error:
        leave(str(error), FAILED, as_json=as_json, title="dojima demo")
    except KeyboardInterrupt:
        leave("ended before its time, by SIGINT", INTERRUPTED, as_json=as_json, title="dojima demo")
    except asyncio.CancelledError:
        leave("ended before its time, by SIGTERM", TERMINATED, as_json=as_json, title="dojima demo")
    if as_json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    else:
        show(summary, console)
    raise typer.Exit(AGREES if summary.agrees else DIFFERS)


def percent(text: str) -> int:
    number = text.strip().removesuffix("%")
    if not (number.isascii() and number.isdigit() and int(number) <= 100):
        raise ValueError(f"Expected a point of the day as 0% to 100%, got {text!r} - at --crash-at")
    return int(number)


async def play(options: Options, console: Console) -> Summary:
    screen = Screen(console) if console.is_terminal else Lines(console)
    day = Day(options, screen.tell)
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # where a loop has no signals, the children's own watch must do
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    with screen.showing(day):
        return await day.play()


# --- while it runs ---------------------------------------------------------------------------------------------------


def sentence(event: str, fields: dict[str, Any]) -> str:
    """What happened, for a person; "" for what the picture shows anyway."""
    match event:
        case "prepared":
            return f"{fields['tokens']} tokens listed, {len(fields['firms'])} firms funded with units and yen"
        case "broker":
            return f"broker at {fields['url']}"
        case "exchange_ready":
            if fields["restarts"]:
                return f"exchange is back (process {fields['pid']}): {fields['sequence']:,} commands replayed"
            return f"exchange is up (process {fields['pid']}); it may be killed at any time"
        case "phase":
            return f"{fields['phase']}"
        case "day":
            date = str(fields["date"])
            return f"business day {date[:4]}-{date[4:6]}-{date[6:]}"
        case "crash":
            return f"kill -9 of the exchange at {fields['percent']} % of the day, in {fields['phase']}"
        case "exchange_ended":
            if fields["status"] == -signal.SIGKILL:
                return "the exchange was killed; starting it again"
            return f"the exchange ended with status {fields['status']}; starting it again"
    return ""


class Lines:
    """For logs and pipes: a line for each thing that happens, and now and then how far it is."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.monotonic()
        self.shown: dict[str, float] = {}

    @contextlib.contextmanager
    def showing(self, day: Day) -> Any:
        self.day = day
        yield

    def tell(self, event: str, **fields: Any) -> None:
        if event == "indicative":
            last = self.shown.get(fields["instrument"], 0.0)
            if time.monotonic() - last < 3:
                return
            self.shown[fields["instrument"]] = time.monotonic()
            text = f"  {fields['instrument']} indicative {fields['price']:,} yen x {fields['volume']:,}"
        else:
            text = sentence(event, fields)
            if event == "phase":
                orders = sum(firm.accepted for firm in self.day.firms.values())
                fills = sum(firm.fills for firm in self.day.firms.values())
                text = f"{text:15} {orders:,} orders accepted, {fills:,} fills so far"
        if text:
            self.console.print(f"{time.monotonic() - self.began:6.1f} s  {text}", markup=False, soft_wrap=True)


class Screen(Lines):
    """For a terminal: one picture that moves."""

    @contextlib.contextmanager
    def showing(self, day: Day) -> Any:
        self.day = day
        with Live(get_renderable=lambda: picture(day), console=self.console, refresh_per_second=8, transient=True):
            yield

    def tell(self, event: str, **fields: Any) -> None:
        if event in ("crash", "exchange_ended", "exchange_ready", "broker", "prepared"):
            super().tell(event, **fields)


def picture(day: Day) -> Panel:
    phases = Text()
    for label in dict.fromkeys(label for _, label in SESSIONS):
        phases.append(f" {label} ", "reverse bold" if label == day.phase else "dim")
    bar = ProgressBar(total=100, completed=day.percent, width=60)

    books = Table(box=None, padding=(0, 1), expand=False)
    for name in ("token", "indicative", "moves", "volume", "surplus"):
        books.add_column(name, justify="left" if name in ("token", "moves") else "right", min_width=9)
    for watched in list(day.watched.values())[:SHOWN]:
        price = watched.indicative[-1] if watched.indicative else watched.last
        books.add_row(
            watched.code,
            f"{price:,}" if price else "–",
            Text(spark(watched.indicative[-24:]), "cyan"),
            f"{watched.volume:,}" if watched.volume else "",
            f"{watched.surplus:+,}" if watched.surplus else "",
        )

    firms = Table(box=None, padding=(0, 1), expand=False)
    for name in ("firm", "sent", "accepted", "refused", "cancelled", "fills", "units", "re-sent"):
        firms.add_column(name, justify="left" if name == "firm" else "right")
    for firm in day.firms.values():
        numbers = (firm.sent, firm.accepted, firm.rejected, firm.cancelled, firm.fills, firm.units, firm.resent)
        firms.add_row(
            Text(firm.firm, "green" if firm.done else "" if firm.connected else "dim"),
            *(f"{number:,}" if number else "" for number in numbers),
        )
    state = Text(f"{day.stage}", "bold")
    if day.restarts:
        state.append(f", exchange started again {times(day.restarts)}")
    if day.instructions:
        state.append(f", {day.settled:,} of {day.instructions:,} instructions settled")
    return Panel(
        Group(phases, bar, Text(), books, Text(), firms, Text(), state),
        title=f"a START day, {day.factor:,} times as fast",
        border_style="blue",
        expand=False,
    )


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def spark(prices: list[int]) -> str:
    """Prices as a row of bars between their lowest and highest."""
    if not prices:
        return ""
    low, high = min(prices), max(prices)
    return "".join(_SPARKS[(price - low) * (len(_SPARKS) - 1) // max(1, high - low)] for price in prices)


# --- at the end ------------------------------------------------------------------------------------------------------


def show(summary: Summary, console: Console) -> None:
    table = Table(title="The day by the log", title_justify="left")
    for name in ("token", "opening", "units", "closing", "units", "trades", "value, yen"):
        table.add_column(name, justify="left" if name == "token" else "right")
    for token in summary.tokens:
        table.add_row(
            token.instrument,
            f"{token.opening.price:,}" if token.opening.price else "–",
            f"{token.opening.volume:,}",
            f"{token.closing.price:,}" if token.closing.price else "–",
            f"{token.closing.volume:,}",
            f"{token.trades:,}",
            f"{token.value:,}",
        )
    table.add_section()
    opened, closed = (sum(getattr(token, call).volume for token in summary.tokens) for call in ("opening", "closing"))
    table.add_row(
        f"{len(summary.tokens)} tokens",
        "",
        f"{opened:,}",
        "",
        f"{closed:,}",
        f"{summary.trades:,}",
        f"{summary.value:,}",
    )
    console.print(table)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary.commands.items())
    console.print(f"Commands    {kinds}; {summary.accepted:,} orders accepted", soft_wrap=True)
    refused = ", ".join(f"{count:,} {reason.lower().replace('_', ' ')}" for reason, count in summary.refused.items())
    console.print(f"Refused     {refused or 'nothing'}", soft_wrap=True)
    if summary.restarts:
        console.print(
            f"Crashes     the exchange was started again {times(summary.restarts)}, "
            f"{summary.crashes} of its ends were asked for; "
            f"{summary.resent:,} commands sent again, {summary.repeats:,} answered as repeats",
            soft_wrap=True,
        )
    states = ", ".join(f"{count:,} {state}" for state, count in summary.instructions.items())
    console.print(f"Settlement  instructions: {states or 'none'}", soft_wrap=True)
    if summary.notices:
        console.print(
            f"            {len(summary.notices)} tokens name a ledger for which no adapter is configured; they settled "
            f"on the embedded one",
            soft_wrap=True,
        )
    console.print()
    for check in summary.checks:
        mark = "[green]agrees[/]" if check.agrees else "[bold red]DIFFERS[/]"
        console.print(f"{check.name:14} {mark}  {check.text}", soft_wrap=True)
    for problem in summary.problems:
        console.print(f"  {problem}", style="red", markup=False, soft_wrap=True)
    console.print()
    console.print(f"Files in {summary.directory}. Look for yourself:", soft_wrap=True)
    console.print(f"  dojima replay {summary.log}", soft_wrap=True)
    console.print(f"  dojima ledger {summary.directory}", soft_wrap=True)
    verdict = "[bold green]All agrees[/]" if summary.agrees else "[bold red]Something does not agree[/]"
    console.print(f"{verdict} after {summary.seconds} s.")
