"""``dojima export``: a log as tables, for whoever studies the market.

The log is replayed and verified on the way, so the tables say what happened or the command fails. Rows are written as
they arise: a trade is never kept, an order only while it lives, a book as it stands. Prices are whole price units of
the instrument (``instruments`` has their decimals), quantities token units, times nanoseconds since the epoch (UTC);
a price of 0 is none (an order without a limit, an auction without a result). CSV and Parquet hold the same.

=============== ====================================================================================================
``trades``      one row per match, in order; ``maker`` says which side rested, or ``auction``
``orders``      one row per accepted order with its whole life, in the order in which they ended; those still open last
``book``        all levels of a book, best first, at each moment that ``cause`` names; level 1 of price 0 holds the
                orders without a limit; a book without orders has no row
``auctions``    one row per auction held, in order
``instruments`` one row per instrument listed
=============== ====================================================================================================

Causes are ``before_auction`` and ``after_auction`` (the same command), ``phase`` for any other change of phase, and
``every`` where ``--depth-every`` asks for it.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Shown

from engine.commands import Command
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    Cancelled,
    DayStarted,
    Event,
    InstrumentListed,
    PhaseChanged,
    TradeBusted,
    Traded,
)
from engine.faults import EngineFault, InvariantBroken
from engine.log.replay import open_log, replay
from engine.types import CancelReason, OrderType, Phase, Side, TimeInForce
from gateway.cli.failure import leave

DIFFERS: Final = 1
USAGE: Final = 2
#: Rows of a Parquet row group: enough to compress well, few enough to hold.
ROW_GROUP: Final = 65_536
ADVICE: Final = "pip install 'dojima[research]' brings pyarrow; --format csv needs nothing"

#: Columns of each table. ``str`` columns are text, all others whole numbers of 64 bits.
COLUMNS: Final[dict[str, dict[str, type]]] = {
    "trades": {
        "trade_id": int, "sequence": int, "time_ns": int, "date": int, "instrument": str, "price": int,
        "quantity": int, "maker": str, "buyer": str, "buy_order_id": int, "seller": str, "sell_order_id": int,
        "settlement_date": int,
    },
    "busts": {
        "trade_id": int, "sequence": int, "time_ns": int, "date": int, "instrument": str, "price": int,
        "quantity": int,
    },
    "orders": {
        "order_id": int, "participant": str, "client_order_id": str, "account": str, "instrument": str, "side": str,
        "order_type": str, "time_in_force": str, "quantity": int, "price": int, "accepted_sequence": int,
        "accepted_ns": int, "quantity_last": int, "price_last": int, "amends": int, "fills": int, "filled": int,
        "open": int, "state": str, "reason": str, "ended_sequence": int, "ended_ns": int,
    },
    "book": {
        "sequence": int, "time_ns": int, "date": int, "instrument": str, "phase": str, "cause": str, "side": str,
        "level": int, "price": int, "quantity": int, "orders": int,
    },
    "auctions": {
        "sequence": int, "time_ns": int, "date": int, "instrument": str, "phase": str, "price": int, "volume": int,
        "surplus": int, "trades": int,
    },
    "instruments": {
        "instrument": str, "profile": str, "lot": int, "price_decimals": int, "reference_price": int,
        "settlement_days": int, "ledger": str, "listed_ns": int,
    },
}  # fmt: skip


class Format(StrEnum):
    """Which files are written."""

    CSV = "csv"
    PARQUET = "parquet"
    BOTH = "both"


# --- files -------------------------------------------------------------------------------------------------------


class _Csv:
    def __init__(self, path: Path, columns: dict[str, type]) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        self._writer.writerows(rows)

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, columns: dict[str, type]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._arrow = pa
        self._schema = pa.schema([(name, pa.string() if kind is str else pa.int64()) for name, kind in columns.items()])
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        arrays = [
            self._arrow.array(column, field.type)
            for column, field in zip(zip(*rows, strict=True), self._schema, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class Table:
    """One table on its way into its files. They get their names when all is written: a half export is none."""

    def __init__(self, name: str, out: Path, formats: Format) -> None:
        columns = COLUMNS[name]
        self.rows = 0
        self.paths: dict[str, Path] = {}
        self._buffer: list[tuple[Any, ...]] = []
        self._files: list[_Csv | _Parquet] = []
        for kind, writer in ((Format.CSV, _Csv), (Format.PARQUET, _Parquet)):
            if formats in (kind, Format.BOTH):
                self.paths[kind.value] = out / f"{name}.{kind.value}"
                self._files.append(writer(_part(self.paths[kind.value]), columns))

    def add(self, *values: Any) -> None:
        """One row; values in the order of the columns."""
        self._buffer.append(values)
        self.rows += 1
        if len(self._buffer) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            for file in self._files:
                file.write(self._buffer)
            self._buffer.clear()

    def finish(self) -> None:
        """Write what is left and give the files their names."""
        self._flush()
        for file in self._files:
            file.close()
        for path in self.paths.values():
            _part(path).replace(path)

    def discard(self) -> None:
        """Leave nothing behind."""
        for file in self._files:
            file.close()
        for path in self.paths.values():
            _part(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


# --- the fold ----------------------------------------------------------------------------------------------------


class _Order:
    """An order while it lives."""

    __slots__ = ("accepted", "amends", "filled", "fills", "now", "open", "price", "quantity", "sequence")

    def __init__(self, accepted: Accepted, sequence: int, now: int) -> None:
        self.accepted = accepted
        self.sequence = sequence
        self.now = now
        self.quantity = accepted.quantity
        self.price = accepted.price
        self.open = accepted.quantity
        self.amends = self.fills = self.filled = 0


class _Book:
    """One instrument's levels: by side and price the quantity and the number of orders."""

    __slots__ = ("levels", "phase")

    def __init__(self) -> None:
        self.phase = Phase.CLOSED
        self.levels: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})

    def add(self, side: int, price: int, quantity: int, orders: int) -> None:
        level = self.levels[side].setdefault(price, [0, 0])
        level[0] += quantity
        level[1] += orders
        if level[0] < 0 or level[1] < 0 or (level[0] == 0) != (level[1] == 0):
            raise InvariantBroken(f"events left {level[1]} orders of {level[0]} in all at level {price}")
        if not level[0]:
            del self.levels[side][price]

    def best_first(self, side: int) -> list[int]:
        """Orders without a limit (price 0) stand before all."""
        return sorted(self.levels[side], key=lambda price: (price != 0, -price if side == Side.BUY else price))


class Exporter:
    """Folds a market into tables. Give ``fold`` to ``replay`` as ``on_events``, then call ``finish``."""

    def __init__(self, out: Path, formats: Format, depth_every: int = 0) -> None:
        self.tables: dict[str, Table] = {}
        self._depth_every = depth_every
        self._orders: dict[int, _Order] = {}
        self._books: dict[str, _Book] = {}
        self._changed: dict[str, None] = {}  # books that changed since the last state by --depth-every
        self._date = 0
        try:
            for name in COLUMNS:
                self.tables[name] = Table(name, out, formats)
        except BaseException:
            self.discard()
            raise

    def fold(self, sequence: int, time_ns: int, participant: str, command: Command, events: list[Event]) -> None:
        """Take in what one command led to."""
        auction: AuctionUncrossed | None = None
        moved = ""
        for event in events:
            if isinstance(event, Traded):
                self._traded(event, sequence, time_ns)
            elif isinstance(event, Accepted | Cancelled | Amended | Activated):
                self._order(event, sequence, time_ns)
            elif isinstance(event, PhaseChanged):
                self._books[event.instrument].phase = event.phase
                moved = event.instrument
            elif isinstance(event, AuctionUncrossed):
                # Its trades follow, so here the book is still as the auction found it.
                auction = event
                self._state(event.instrument, "before_auction", sequence, time_ns)
                values = (event.price, event.volume, event.surplus, event.trades)
                self.tables["auctions"].add(
                    *(sequence, time_ns, self._date, event.instrument, Phase(event.phase).label), *values
                )
            elif isinstance(event, TradeBusted):
                self.tables["busts"].add(
                    *(event.trade_id, sequence, time_ns, event.trade_date, event.instrument),
                    *(event.price, event.quantity),
                )
            elif isinstance(event, DayStarted):
                self._date = event.date
            elif isinstance(event, InstrumentListed):
                self._books[event.instrument] = _Book()
                self.tables["instruments"].add(
                    *(event.instrument, event.profile, event.lot, event.price_decimals, event.reference_price),
                    *(event.settlement_days, event.ledger, time_ns),
                )
        if auction is not None:
            self._state(auction.instrument, "after_auction", sequence, time_ns)
        elif moved:
            self._state(moved, "phase", sequence, time_ns)
        if self._depth_every and sequence % self._depth_every == 0:
            for instrument in self._changed:
                self._state(instrument, "every", sequence, time_ns)
            self._changed.clear()

    def finish(self) -> None:
        """Orders that are still open, and the end of all files."""
        for order in self._orders.values():
            self._row(order, "open", "", 0, 0)
        for table in self.tables.values():
            table.finish()

    def discard(self) -> None:
        """Leave no file behind."""
        for table in self.tables.values():
            table.discard()

    def _level(self, instrument: str, side: int, price: int, quantity: int, orders: int) -> None:
        self._books[instrument].add(side, price, quantity, orders)
        self._changed[instrument] = None

    def _order(self, event: Accepted | Cancelled | Amended | Activated, sequence: int, time_ns: int) -> None:
        if isinstance(event, Activated):
            self._level(event.instrument, event.side, event.price, event.open_quantity, 1)
            return
        if event.repeat:
            return
        if isinstance(event, Accepted):
            self._orders[event.order_id] = _Order(event, sequence, time_ns)
            if not event.waiting:
                self._level(event.instrument, event.side, event.price, event.quantity, 1)
        elif isinstance(event, Amended):
            order = self._orders[event.order_id]
            order.amends += 1
            order.quantity, order.price, order.open = event.quantity, event.price, event.open_quantity
            if not event.waiting:
                self._level(event.instrument, event.side, event.price_before, -event.open_before, -1)
                self._level(event.instrument, event.side, event.price, event.open_quantity, 1)
        else:
            order = self._orders.pop(event.order_id)
            if not event.waiting:
                self._level(event.instrument, event.side, event.price, -event.quantity, -1)
            self._row(order, "cancelled", CancelReason(event.reason).name.lower(), sequence, time_ns)

    def _traded(self, event: Traded, sequence: int, time_ns: int) -> None:
        maker = "auction" if event.maker < 0 else Side(event.maker).name.lower()
        self.tables["trades"].add(
            *(
                event.trade_id,
                sequence,
                time_ns,
                event.trade_date,
                event.instrument,
                event.price,
                event.quantity,
                maker,
            ),
            *(event.buyer, event.buy_order_id, event.seller, event.sell_order_id, event.settlement_date),
        )
        for side, order_id, left, limit in (
            (Side.BUY, event.buy_order_id, event.buy_open, event.buy_limit),
            (Side.SELL, event.sell_order_id, event.sell_open, event.sell_limit),
        ):
            order = self._orders[order_id]
            order.fills += 1
            order.filled += event.quantity
            order.open = left
            self._level(event.instrument, side, limit, -event.quantity, 0 if left else -1)
            if not left:
                del self._orders[order_id]
                self._row(order, "filled", "", sequence, time_ns)

    def _row(self, order: _Order, state: str, reason: str, sequence: int, time_ns: int) -> None:
        a = order.accepted
        self.tables["orders"].add(
            *(a.order_id, a.participant, a.client_order_id, a.account, a.instrument, Side(a.side).name.lower()),
            *(OrderType(a.order_type).name.lower(), TimeInForce(a.time_in_force).name.lower(), a.quantity, a.price),
            *(order.sequence, order.now, order.quantity, order.price, order.amends, order.fills, order.filled),
            *(order.open if state == "open" else 0, state, reason, sequence, time_ns),
        )

    def _state(self, instrument: str, cause: str, sequence: int, time_ns: int) -> None:
        book = self._books[instrument]
        for side in Side:
            for level, price in enumerate(book.best_first(side), 1):
                quantity, orders = book.levels[side][price]
                self.tables["book"].add(
                    *(sequence, time_ns, self._date, instrument, book.phase.label, cause, side.name.lower()),
                    *(level, price, quantity, orders),
                )


# --- the command -------------------------------------------------------------------------------------------------


def export(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="An order log, or the directory of an exchange.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the tables go; made if it is not there.")],
    formats: Annotated[
        Format | None,
        typer.Option("--format", help="What to write.", show_default="both with pyarrow, csv without"),
    ] = None,
    depth_every: Annotated[
        int,
        typer.Option("--depth-every", min=0, metavar="N", help="Also the changed books after every N commands; 0: no."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write trades, orders, books and auctions of a log as CSV and Parquet.

    Replays and verifies the log; may look at a running exchange. Tables of an earlier export in DIR are replaced.
    Leaves 0 when all is written, 1 when the log is damaged or differs (then nothing is), 2 if there is no such log.
    """
    errors = Console(stderr=True, highlight=False, markup=False)
    arrow = importlib.util.find_spec("pyarrow") is not None
    if formats is None:
        formats = Format.BOTH if arrow else Format.CSV
    elif formats is not Format.CSV and not arrow:
        leave(f"Expected pyarrow for --format {formats.value}, found none. {ADVICE}", USAGE, as_json=as_json)
    exporter: Exporter | None = None
    try:
        reader = open_log(log)
        out.mkdir(parents=True, exist_ok=True)
        exporter = Exporter(out, formats, depth_every)
        with _bar(errors, disable=as_json or not sys.stderr.isatty()) as bar:
            task = bar.add_task("exporting", total=None)
            result = replay(
                reader,
                on_events=exporter.fold,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        reader.close()
        exporter.finish()
    except BaseException as error:
        if exporter is not None:
            exporter.discard()
        if isinstance(error, EngineFault):
            leave(f"{log}: {error}", DIFFERS, as_json=as_json)
        if isinstance(error, OSError):
            leave(str(error), USAGE, as_json=as_json)
        raise
    if as_json:
        tables = {
            name: {"rows": table.rows, **{kind: str(path) for kind, path in table.paths.items()}}
            for name, table in exporter.tables.items()
        }
        print(
            json.dumps({"log": str(log), "sequence": result.sequence, "tables": tables}, ensure_ascii=False, indent=2)
        )
        return
    console = Console(highlight=False, markup=False)
    shown = Shown(title=f"{log}: {result.sequence:,} commands", title_justify="left")
    shown.add_column("table")
    shown.add_column("rows", justify="right")
    shown.add_column(f"files in {os.path.relpath(out)}")
    for name, table in exporter.tables.items():
        shown.add_row(name, f"{table.rows:,}", ", ".join(path.name for path in table.paths.values()))
    console.print(shown)
    if not arrow:
        console.print(f"No Parquet: {ADVICE}.", style="yellow", soft_wrap=True)


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
