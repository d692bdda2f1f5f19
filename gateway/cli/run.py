"""``dojima run``: the exchange, in the foreground, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import os
import queue
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from engine.faults import EngineFault
from engine.log import DirectoryInUse
from gateway import config as settings
from gateway.bus.embedded import BrokerFailed
from gateway.cli.failure import leave
from gateway.exchange import Stopped
from gateway.service import serve
from gateway.settlement import OutboxFault
from gateway.settlement.database import CommitUnknown, WrongFile

#: Exit statuses: 0 asked to end, 2 wrong settings, 3 directory in use, 4 the exchange cannot vouch for its state.
WRONG_SETTINGS, IN_USE, FAULT = 2, 3, 4


def run(
    directory: Annotated[Path, typer.Option("--dir", help="Everything the exchange keeps: log, ledger, settings.")],
    config: Annotated[
        Path | None, typer.Option(help="Settings; default: dojima.toml in the directory, or the built-in ones.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(help="embedded://, mqtt://host, mqtts://host; overrides the settings.")
    ] = None,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End when the schedule's last day is over and settled (schedule.days).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log to standard error what happens inside.")
    ] = False,
) -> None:
    """Run the exchange of a directory: start a new one, or resume what is there after whatever ended it.

    Stop it with Ctrl-C or SIGTERM: what was taken in is answered first. Nothing is lost by kill -9 either: the next
    start replays the log, and members ask again for what they missed.

    Exit status: 0 ended as asked, 2 wrong settings, 3 another exchange runs in the directory, 4 a fault, which
    the text on standard error explains, and under --json the last line on standard output ("event": "failed") too.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        loaded = settings.load(config) if config is not None else settings.load_directory(directory)
        if broker is not None:
            loaded = msgspec.structs.replace(loaded, broker=msgspec.structs.replace(loaded.broker, url=broker))
            loaded = settings.parse(settings.to_toml(loaded), "--broker")
        with _Aside(_say_json if as_json else _Screen()) as say, asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(directory, loaded, say=say, until_done=until_done))
    except settings.ConfigError as error:
        leave(str(error), WRONG_SETTINGS, as_json=as_json, title="Settings", event="failed")
    except DirectoryInUse as error:
        leave(str(error), IN_USE, as_json=as_json, title="In use", event="failed")
    except (EngineFault, OutboxFault, WrongFile, CommitUnknown, sqlite3.Error, BrokerFailed, Stopped, OSError) as error:
        logging.getLogger("dojima").debug("stopped by a fault", exc_info=error)
        leave(str(error), FAULT, as_json=as_json, title="Stopped", event="failed")


def _loop_factory() -> Any:
    """uvloop where it exists: a message costs half of what it costs on the loop of the standard library."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


class _Aside:
    """Tells from a thread of its own, so that the exchange never waits for whoever reads, nor ends with them."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._lines: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(10_000)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __call__(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(queue.Full):  # nobody has read the last 10,000 lines
            self._lines.put_nowait((event, fields))

    def _run(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                self._tell(line[0], **line[1])
        except OSError:
            # Whoever read has gone; what Python would still write at its end goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def __enter__(self) -> _Aside:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(2)


def _say_json(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}, ensure_ascii=False), flush=True)


class _Screen:
    """What a person wants to read, one line each."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._phase = ("", 0)

    def __call__(self, event: str, **fields: Any) -> None:
        line = self._line(event, fields)
        if line:
            self._console.print(f"[dim]{datetime.datetime.now():%H:%M:%S}[/] {line}", soft_wrap=True)

    def _line(self, event: str, fields: dict[str, Any]) -> str:
        match event:
            case "torn_tail":
                return f"[yellow]cut {fields['size']} bytes that were never confirmed[/] ({fields['why']})"
            case "replaying":
                return f"reading the log: {100 * fields['bytes'] // max(fields['of'], 1)} %"
            case "replayed":
                return f"resumed at command {fields['sequence']:,}" if fields["sequence"] else "a new market"
            case "listening":
                return f"broker [bold]{fields['url']}[/], directory {fields['dir']}"
            case "ready":
                return "[green]open to members[/]"
            case "connected":
                return "connected to the broker again"
            case "day":
                date = str(fields["date"])
                return f"[bold]trading day {date[:4]}-{date[4:6]}-{date[6:]}[/]"
            case "phase":
                # All books of a profile move together: one line says it.
                seen = (fields["phase"], fields["time_ns"] // 1_000_000_000)
                if seen == self._phase:
                    return ""
                self._phase = seen
                return f"{fields['instrument']} and its like: {fields['phase']}"
            case "auction":
                if not fields["price"]:
                    return ""
                return (
                    f"{fields['instrument']} {fields['phase']}: {fields['volume']:,} at {fields['price']:,} yen"
                    f" in {fields['trades']} trades"
                )
            case "operator":
                kind, by, request_id, *rest = fields["answer"]
                command = " ".join(str(word) for part in rest if isinstance(part, list) for word in part)
                told = rest[1] if kind == "refused" else command
                return escape(f"operator {by}, {request_id}: {kind}: {told}")
            case "refused":
                return f"[yellow]refused[/] {fields['reason']}: {escape(fields['text'])}"
            case "alarm":
                return f"[red]alarm[/] {escape(fields['text'])}"
            case "status":
                return (
                    f"command {fields['sequence']:,}, {fields['messages']:,} messages,"
                    f" {fields['throttled']:,} throttled, {fields['malformed']:,} malformed"
                )
            case "schedule_ended":
                return "the schedule has come to its end"
            case "stopped":
                return f"stopped after command {fields['sequence']:,}"
        return escape(f"{event} {fields}")
