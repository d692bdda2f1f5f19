"""Draw a market from its exported tables: prices, depth, and the curves of each auction, on one HTML page.

    dojima export LOG --out tables
    python docs/examples/explore.py tables --out market.html [--instrument CODE]

Reads Parquet where pyarrow is installed, CSV otherwise; needs nothing else. The page has everything in it (SVG, no
scripts), so it can be mailed. Take it as a start for studies of your own: ``load`` gives plain columns, as pandas or
polars would (``pandas.read_parquet("tables/trades.parquet")`` and ``polars.scan_parquet`` read the same files).
"""

from __future__ import annotations

import argparse
import csv
import html
import importlib.util
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

JAPAN = timezone(timedelta(hours=9), "JST")
TEXT = {"instrument", "maker", "buyer", "seller", "participant", "client_order_id", "account", "side", "order_type",
        "time_in_force", "state", "reason", "phase", "cause", "profile", "ledger"}  # fmt: skip
BUY, SELL, MARK = "#2563a8", "#b8452c", "#3d7d4e"
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 260, 64, 34

Row = dict[str, Any]
Point = tuple[float, float]


def load(directory: Path, table: str) -> list[Row]:
    """One table as rows; numbers are numbers. Raises FileNotFoundError that says what was expected where."""
    parquet, text = directory / f"{table}.parquet", directory / f"{table}.csv"
    if parquet.exists() and importlib.util.find_spec("pyarrow"):
        from pyarrow.parquet import read_table

        rows: list[Row] = read_table(parquet).to_pylist()
        return rows
    if not text.exists():
        raise FileNotFoundError(f"Expected {text} (dojima export LOG --out {directory}), found none")
    with text.open(encoding="utf-8", newline="") as lines:
        return [
            {name: value if name in TEXT else int(value) for name, value in row.items()}
            for row in csv.DictReader(lines)
        ]


# --- what the market did -----------------------------------------------------------------------------------------


def curves(levels: Iterable[Row]) -> tuple[list[Point], list[Point]]:
    """Demand and supply of a call: at each price, what would buy at it or above, what would sell at it or below.

    ``levels`` are the rows of one book state. Orders without a limit (price 0) want to trade at any price.
    """
    quantities: dict[str, dict[int, int]] = {"buy": defaultdict(int), "sell": defaultdict(int)}
    for row in levels:
        quantities[row["side"]][row["price"]] += row["quantity"]
    prices = sorted({price for side in quantities.values() for price in side if price})
    demand: list[Point] = []
    supply: list[Point] = []
    bought = quantities["buy"].get(0, 0)
    for price in reversed(prices):
        bought += quantities["buy"].get(price, 0)
        demand.append((price, bought))
    sold = quantities["sell"].get(0, 0)
    for price in prices:
        sold += quantities["sell"].get(price, 0)
        supply.append((price, sold))
    return demand[::-1], supply


def states(book: Iterable[Row]) -> dict[tuple[int, str], list[Row]]:
    """Book states in order: the rows of each, by (sequence, cause)."""
    found: dict[tuple[int, str], list[Row]] = {}
    for row in book:
        found.setdefault((row["sequence"], row["cause"]), []).append(row)
    return found


# --- drawing -----------------------------------------------------------------------------------------------------


def round_numbers(low: float, high: float) -> list[float]:
    """Four to eight numbers of the kind 1, 2, 5 times a power of ten, or whole hours and minutes of times in ns."""
    steps = [10.0**power * part for power in range(-8, 12) for part in (1, 2, 5)]
    if low > 1e17:
        steps = [
            seconds * 1e9 for seconds in (1e-3, 1e-2, 0.1, 1, 5, 15, 60, 300, 900, 1800, 3600, 14400, 86400, 604800)
        ]
    step = next((step for step in steps if (high - low) / step <= 6), steps[-1])
    return [count * step for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


class Chart:
    """A small SVG chart: axes with a few round numbers, lines, steps, dots, marks."""

    def __init__(self, title: str, x_label: str, y_label: str) -> None:
        self.title, self.x_label, self.y_label = title, x_label, y_label
        self.series: list[tuple[str, str, str, list[Point]]] = []  # kind, colour, name, points

    def add(self, kind: str, colour: str, name: str, points: Iterable[Point]) -> None:
        """``kind``: ``line``, ``falling`` or ``rising`` steps, ``dots``, ``mark`` (a cross through both axes)."""
        points = list(points)
        if points:
            self.series.append((kind, colour, name, points))

    def svg(self, x_text: Any = None) -> str:
        """The chart; ``x_text`` turns a number on the x axis into words."""
        if not self.series:
            return ""
        every = [point for *_, points in self.series for point in points]
        x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
        y_low, y_high = min(y for _, y in every), max(y for _, y in every)
        if self.y_label == "quantity":
            y_low = 0
        x_span, y_span = (x_high - x_low) or 1, (y_high - y_low) or 1
        x_low, y_high = x_low - 0.03 * x_span, y_high + 0.06 * y_span
        x_span, y_span = 1.06 * x_span, (y_high - y_low) or 1

        def at(point: Point) -> tuple[float, float]:
            x = LEFT + (point[0] - x_low) / x_span * (WIDTH - LEFT - 12)
            y = HEIGHT - BOTTOM - (point[1] - y_low) / y_span * (HEIGHT - BOTTOM - 34)
            return round(x, 1), round(y, 1)

        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(self.title)}">']
        parts.append(f'<text x="{LEFT}" y="16" class="title">{html.escape(self.title)}</text>')
        left, base = LEFT, HEIGHT - BOTTOM
        for value in round_numbers(y_low, y_high):
            y = at((x_low, value))[1]
            parts.append(f'<path class="grid" d="M{left} {y}H{WIDTH - 12}"/>')
            parts.append(f'<text class="tick" x="{left - 6}" y="{y + 3}" text-anchor="end">{value:,.10g}</text>')
        for value in round_numbers(x_low, x_low + x_span):
            words = x_text(value) if x_text else f"{value:,.10g}"
            x = at((value, y_low))[0]
            parts.append(f'<text class="tick" x="{x}" y="{base + 14}" text-anchor="middle">{words}</text>')
        axes = f"{html.escape(self.x_label)} / {html.escape(self.y_label)}"
        parts.append(f'<text class="tick" x="{WIDTH - 12}" y="{HEIGHT - 4}" text-anchor="end">{axes}</text>')
        name_at = WIDTH - 12
        for kind, colour, name, points in self.series:
            parts.append(self._draw(kind, colour, [at(point) for point in points], base))
            if name:
                parts.append(
                    f'<text x="{name_at}" y="30" text-anchor="end" class="tick" style="fill:{colour}">'
                    f"{html.escape(name)}</text>"
                )
                name_at -= 7 * len(name) + 10
        return "".join([*parts, "</svg>"])

    def _draw(self, kind: str, colour: str, points: Sequence[Point], base: float) -> str:
        if kind == "dots":
            return "".join(f'<circle cx="{x}" cy="{y}" r="1.8" fill="{colour}"/>' for x, y in points)
        if kind == "mark":
            return "".join(
                f'<path d="M{LEFT} {y}H{x}V{base}" stroke="{colour}" stroke-dasharray="4 3" fill="none"/>'
                f'<circle cx="{x}" cy="{y}" r="4" fill="none" stroke="{colour}" stroke-width="2"/>'
                for x, y in points
            )
        path = f"M{points[0][0]} {points[0][1]}"
        for x, y in points[1:]:
            if kind == "rising":  # holds from its price on
                path += f"H{x}V{y}"
            elif kind == "falling":  # holds up to its price
                path += f"V{y}H{x}"
            else:
                path += f"L{x} {y}"
        return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2rem 0 .3rem;border-bottom:1px solid #ddd}p{color:#555;margin:.2rem 0}
div{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1rem}svg{width:100%}
.title{font-weight:600;font-size:13px}.tick{font-size:10px;fill:#777}.grid{stroke:#eee}"""


def clock(time_ns: float) -> str:
    return f"{datetime.fromtimestamp(time_ns / 1e9, JAPAN):%H:%M:%S}"


def draw_instrument(code: str, decimals: int, tables: dict[str, list[Row]]) -> str:
    """One instrument's charts, as HTML."""
    unit: float = 10**decimals
    trades = [row for row in tables["trades"] if row["instrument"] == code]
    auctions = [row for row in tables["auctions"] if row["instrument"] == code]
    books = states(row for row in tables["book"] if row["instrument"] == code)
    charts = []

    prices = Chart("Trades", "Japanese time", "yen")
    prices.add("line", "#bbb", "", [(row["time_ns"], row["price"] / unit) for row in trades])
    for maker, colour, name in (
        ("sell", BUY, "buyer took"),
        ("buy", SELL, "seller took"),
        ("auction", MARK, "auction"),
    ):
        chosen = [(row["time_ns"], row["price"] / unit) for row in trades if row["maker"] == maker]
        prices.add("dots", colour, name, chosen)
    charts.append(prices.svg(clock))

    full = [key for key, rows in books.items() if len({row["side"] for row in rows}) == 2]
    if full:
        rows = books[full[-1]]
        depth = Chart(f"Depth after command {full[-1][0]:,} ({full[-1][1].replace('_', ' ')})", "yen", "quantity")
        for side, kind, colour in (("buy", "falling", BUY), ("sell", "rising", SELL)):
            total, points = 0, []
            for row in sorted((row for row in rows if row["side"] == side and row["price"]), key=lambda r: r["level"]):
                total += row["quantity"]
                points.append((row["price"] / unit, total))
            depth.add(kind, colour, side, points[::-1] if side == "buy" else points)
        charts.append(depth.svg())

    for row in auctions:
        demand, supply = curves(books.get((row["sequence"], "before_auction"), []))
        chart = Chart(f"{row['phase']} {row['date']}: {row['volume']:,} at {row['price'] / unit:,g}", "yen", "quantity")
        chart.add("falling", BUY, "demand", [(price / unit, quantity) for price, quantity in demand])
        chart.add("rising", SELL, "supply", [(price / unit, quantity) for price, quantity in supply])
        if row["price"]:
            chart.add("mark", MARK, "price", [(row["price"] / unit, row["volume"])])
        charts.append(chart.svg())

    volume = sum(row["quantity"] for row in trades)
    fate: dict[str, int] = defaultdict(int)
    for row in tables["orders"]:
        if row["instrument"] == code:
            fate[row["state"]] += 1
    orders = ", ".join(f"{count:,} {state}" for state, count in sorted(fate.items())) or "none"
    told = f"{len(trades):,} trades of {volume:,} in all; orders: {orders}"
    return f"<h2>{html.escape(code)}</h2><p>{told}</p><div>{''.join(charts)}</div>"


def page(directory: Path, only: str = "") -> str:
    """The whole page. Raises FileNotFoundError without tables, ValueError for an instrument that is not in them."""
    tables = {name: load(directory, name) for name in ("instruments", "trades", "orders", "book", "auctions")}
    listed = [row["instrument"] for row in tables["instruments"]]
    if only and only not in listed:
        raise ValueError(f"Expected an instrument of {', '.join(listed) or 'none'}, got {only!r}")
    drawn = [
        draw_instrument(row["instrument"], row["price_decimals"], tables)
        for row in tables["instruments"]
        if not only or row["instrument"] == only
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>Market</title><style>{STYLE}</style><h1>Market</h1>'
    return head + "".join(drawn)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tables", type=Path, help="directory that `dojima export` wrote")
    parser.add_argument("--out", type=Path, default=Path("market.html"))
    parser.add_argument("--instrument", default="")
    options = parser.parse_args(arguments)
    try:
        options.out.write_text(page(options.tables, options.instrument), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.out}: open it in a browser")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
