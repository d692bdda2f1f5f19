"""``dojima replay``: whoever doubts a trade runs the log again and watches.

It opens the log read-only and takes no lock, so it may look at a running exchange. It leaves 0 when the log agrees with
itself and with the market it gives, 1 when it does not (and says where, and what to do), 2 when asked for what is not
there. A torn tail, which a crash leaves and the next start cuts, is reported and is no disagreement.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine.commands import Command
from engine.events import Event
from engine.faults import DigestMismatch, EngineFault, LogDamaged
from engine.log.explain import OrderLife, Summary, date_text, price_text
from engine.log.replay import ReplayResult, open_log
from engine.log.replay import replay as replay_log
from gateway.cli.failure import leave

JAPAN: Final = timezone(timedelta(hours=9), "JST")

AGREES: Final = 0
DIFFERS: Final = 1
USAGE: Final = 2
NOT_REPLAYED: Final = "not replayed"


def replay(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="An order log, or the directory of an exchange.")],
    order: Annotated[
        str,
        typer.Option(
            "--order",
            metavar="ORDER",
            help="Explain one order's life: PARTICIPANT/CLIENT_ORDER_ID, or the engine's order number.",
        ),
    ] = "",
    until: Annotated[
        int | None, typer.Option("--until", min=1, metavar="SEQUENCE", help="Stop after this command.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Rebuild the market from an order log, verify it, explain an order.

    Checks every record (checksum, chain, numbers, stamps) and compares events and state with each digest mark.
    Leaves 0 if all agrees, 1 at the first difference or damage, 2 if there is no such log or order.
    """
    console = Console(highlight=False, markup=False)
    errors = Console(stderr=True, highlight=False, markup=False)
    summary = Summary()
    life = _life(order, as_json)

    def on_events(sequence: int, time_ns: int, participant: str, command: Command, events: list[Event]) -> None:
        summary.fold(sequence, time_ns, participant, command, events)
        if life is not None:
            life.fold(sequence, time_ns, participant, command, events)

    result: ReplayResult | None = None
    fault: EngineFault | None = None
    try:
        reader = open_log(log)
        # A bar only where somebody watches.
        with _bar(errors, disable=as_json or not sys.stderr.isatty()) as bar:
            task = bar.add_task("replaying", total=None)
            result = replay_log(
                reader,
                on_events=on_events,
                until=until,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except OSError as error:
        leave(str(error), USAGE, as_json=as_json, verdict=NOT_REPLAYED)
    except EngineFault as error:
        fault = error
    applied = sum(summary.commands.values())
    if until is not None and result is not None and result.sequence < until:
        text = f"Expected a sequence of at most {result.sequence}, got --until {until}"
        leave(text, USAGE, as_json=as_json, verdict=NOT_REPLAYED)
    if life is not None and not life.found and fault is None:
        leave(_no_such_order(order, life, summary), USAGE, as_json=as_json, verdict=NOT_REPLAYED)

    if as_json:
        print(json.dumps(_as_dict(log, result, fault, summary, life, applied), ensure_ascii=False, indent=2))
        if fault is not None:
            errors.print(str(fault), style="red", soft_wrap=True)
    else:
        if life is None:
            _print_summary(console, summary)
        elif life.found:
            _print_life(console, life)
        _print_verdict(console, log, result, fault, applied)
    if fault is not None:
        raise typer.Exit(DIFFERS)


def _life(order: str, as_json: bool) -> OrderLife | None:
    if not order:
        return None
    participant, slash, client_order_id = order.partition("/")
    if slash and participant and client_order_id:
        return OrderLife(participant, client_order_id)
    if not (order.isdecimal() and int(order)):
        text = f"Expected PARTICIPANT/CLIENT_ORDER_ID or an order number, got {order!r} - at --order"
        leave(text, USAGE, as_json=as_json, verdict=NOT_REPLAYED)
    return OrderLife(order_id=int(order))


def _no_such_order(order: str, life: OrderLife, summary: Summary) -> str:
    if life.order_id and not life.client_order_id:
        accepted = sum(instrument.orders for instrument in summary.instruments.values())
        return f"Expected an order number from 1 to {accepted}, got {order}"
    if life.participant not in summary.participants:
        known = ", ".join(sorted(summary.participants)[:8]) or "nobody"
        return f"Expected an order of a member in this log ({known}), got {order}"
    return (
        f"{life.participant} sent no order {life.client_order_id} (but for instance {', '.join(life.seen) or 'none'})"
    )


def _bar(errors: Console, *, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=disable,
    )


# --- for programs ----------------------------------------------------------------------------------------------------


def _as_dict(
    log: Path,
    result: ReplayResult | None,
    fault: EngineFault | None,
    summary: Summary,
    life: OrderLife | None,
    applied: int,
) -> dict[str, Any]:
    shown: dict[str, Any] = {"verdict": _verdict(fault), "log": str(log), "sequence": applied}
    if result is not None:
        header, torn = result.reader.header, result.reader.torn
        shown |= {
            "complete": result.complete,
            "build": header.build,
            "market_id": header.market_id.hex(),
            "configuration_digest": header.configuration_digest.hex(),
            "created": iso(header.created_ns),
            "bytes": result.reader.end,
            "torn_tail": None if torn is None else {"offset": torn.offset, "bytes": torn.size, "why": torn.why},
            "durable_mark": result.reader.mark_problem or "agrees",
            "chain": result.reader.chain.hex(),
            "digest_marks": result.marks,
            "digest_marks_of_other_states": result.other_states,
            "marked_sequence": result.marked,
            "events_digest": result.digest.value().hex(),
            "state_digest": result.engine.digest().hex(),
        }
    if fault is not None:
        shown["error"] = {"what": getattr(fault, "what", str(fault)), "text": str(fault)}
        for name in ("offset", "sequence", "advice"):
            if hasattr(fault, name):
                shown["error"][name] = getattr(fault, name)
    shown |= {
        "first": iso(summary.first_ns),
        "last": iso(summary.last_ns),
        "commands": summary.commands,
        "events": summary.events,
        "rejections": summary.rejections,
        "repeats": summary.repeats,
        "participants": sorted(summary.participants),
        "days": summary.days,
        "trades": summary.trades,
        "volume": summary.volume,
        "value_yen": summary.value,
        "busted": {
            "trades": summary.busted_trades,
            "volume": summary.busted_volume,
            "value_yen": summary.busted_value,
        },
        "instruments": {
            code: {
                "orders": instrument.orders,
                "trades": instrument.trades,
                "volume": instrument.volume,
                "value_yen": instrument.value,
                "last_price": instrument.last_price,
                "price_decimals": instrument.price_decimals,
                "auctions": [
                    {**line._asdict(), "phase": line.phase.label, "time": iso(line.time_ns)}
                    for line in instrument.auctions
                ],
            }
            for code, instrument in summary.instruments.items()
        },
    }
    if life is not None and life.found:
        shown["order"] = {
            "participant": life.participant,
            "client_order_id": life.client_order_id,
            "order_id": life.order_id,
            "filled": life.filled,
            "open_quantity": life.open_quantity,
            "steps": [
                {
                    **step._asdict(),
                    "time": iso(step.time_ns),
                    "phase": step.phase.label if step.phase is not None else None,
                }
                for step in life.steps
            ],
        }
    return shown


def _verdict(fault: EngineFault | None) -> str:
    if fault is None:
        return "agrees"
    return "damaged" if isinstance(fault, LogDamaged) else "differs"


def japan(time_ns: int) -> datetime:
    """Japanese time, to the microsecond."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, JAPAN).replace(microsecond=time_ns // 1000 % 1_000_000)


def iso(time_ns: int) -> str:
    """Japanese time, or nothing for no time."""
    return japan(time_ns).isoformat() if time_ns else ""


# --- for people ------------------------------------------------------------------------------------------------------


def _print_summary(console: Console, summary: Summary) -> None:
    if summary.first_ns:
        first, last = japan(summary.first_ns), japan(summary.last_ns)
        console.print(f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} JST, {_days(summary)}")
    counts = Table(title="Commands", title_justify="left")
    counts.add_column("kind")
    counts.add_column("number", justify="right")
    for kind, count in sorted(summary.commands.items(), key=lambda item: -item[1]):
        counts.add_row(kind, f"{count:,}")
    if summary.repeats:
        counts.add_row("of these repeats, without effect", f"{summary.repeats:,}")
    console.print(counts)
    if summary.rejections:
        refused = Table(title="Refused", title_justify="left")
        refused.add_column("reason")
        refused.add_column("number", justify="right")
        for reason, count in sorted(summary.rejections.items(), key=lambda item: -item[1]):
            refused.add_row(reason, f"{count:,}")
        console.print(refused)
    if summary.instruments:
        console.print(_instruments(summary))


def _days(summary: Summary) -> str:
    if not summary.days:
        return "no trading day"
    if len(summary.days) == 1:
        return f"trading day {date_text(summary.days[0])}"
    return f"{len(summary.days)} trading days, {date_text(summary.days[0])} to {date_text(summary.days[-1])}"


def _instruments(summary: Summary) -> Table:
    last_auction = max((line.date for i in summary.instruments.values() for line in i.auctions), default=0)
    table = Table(title="Instruments", title_justify="left")
    table.add_column("instrument")
    for name in ("orders", "trades", "volume", "value, yen"):
        table.add_column(name, justify="right")
    table.add_column(f"auctions of {date_text(last_auction)}: volume @ price" if last_auction else "auctions")
    for code, instrument in summary.instruments.items():
        auctions = [
            f"{line.phase.label.removesuffix('Auction')} "
            + (f"{line.volume:,} @ {price_text(line.price, instrument.price_decimals)}" if line.price else "no price")
            for line in instrument.auctions
            if line.date == last_auction
        ]
        table.add_row(
            code,
            f"{instrument.orders:,}",
            f"{instrument.trades:,}",
            f"{instrument.volume:,}",
            f"{instrument.value:,}",
            ", ".join(auctions),
        )
    table.add_section()
    orders = sum(instrument.orders for instrument in summary.instruments.values())
    table.add_row("all", f"{orders:,}", f"{summary.trades:,}", f"{summary.volume:,}", f"{summary.value:,}", "")
    if summary.busted_trades:
        busted = (summary.busted_trades, summary.busted_volume, summary.busted_value)
        table.add_row("of these busted", "", *(f"{each:,}" for each in busted), "")
    return table


def _print_life(console: Console, life: OrderLife) -> None:
    number = f", order {life.order_id}" if life.order_id else ", never accepted"
    console.print(f"{life.participant}/{life.client_order_id}{number}", style="bold")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("sequence", justify="right")
    table.add_column("Japanese time", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    table.add_column("open", justify="right")
    table.add_column("what happened, and why", overflow="fold")
    date = ""
    for step in life.steps:
        when = japan(step.time_ns)
        if f"{when:%Y-%m-%d}" != date:
            date = f"{when:%Y-%m-%d}"
            table.add_row("", date)
        table.add_row(
            str(step.sequence),
            f"{when:%H:%M:%S.%f}",
            step.phase.label if step.phase is not None else "",
            f"{step.open_quantity:,}",
            step.text,
        )
    console.print(table)
    console.print(f"Filled {life.filled:,}, open {life.open_quantity:,}.")


def _print_verdict(
    console: Console, log: Path, result: ReplayResult | None, fault: EngineFault | None, applied: int
) -> None:
    if result is not None:
        reader = result.reader
        if reader.torn is not None:
            console.print(
                f"A torn write of {reader.torn.size:,} bytes at byte {reader.torn.offset:,} was never acknowledged; "
                f"the next start cuts it ({reader.torn.why}).",
                style="yellow",
            )
        if reader.mark_problem:
            console.print(f"The durable mark says nothing: {reader.mark_problem}.", style="yellow")
        marks = f"{result.marks:,} digest mark{'' if result.marks == 1 else 's'}"
        if result.other_states:
            console.print(
                f"Of {marks}, {result.other_states:,} tell the state in the terms of another build: there only the "
                "events were compared.",
                style="yellow",
            )
        console.print(f"events digest {result.digest.value().hex()}")
        console.print(f"state digest  {result.engine.digest().hex()}")
        replayed = f"{applied:,} commands replayed{'' if result.complete else ' as asked'}"
        console.print(f"{log}: {replayed}, {marks} compared, all agrees.", style="bold green")
    elif fault is not None:
        verb = "differs" if isinstance(fault, DigestMismatch) else "is damaged"
        console.print(f"{log} {verb}, after {applied:,} commands that check out.", style="bold red")
        console.print(str(fault))
