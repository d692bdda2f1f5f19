"""All benchmarks on one page: how long one waits, what a growing book costs, and how we stand beside the peers.

Runs the benchmarks one after the other, keeps each answer as JSON in a directory, and writes one HTML page from what
is there: drawings are SVG in the page, nothing is fetched, so it can be mailed and kept. What could not be measured is
named, not left out.

    python -m benchmarks.report                       # run all (some 20 minutes), write build/benchmarks/report.html
    python -m benchmarks.report --quick               # small sizes: to see that everything works, not to quote
    python -m benchmarks.report --only durable,bus    # run these again, keep the other answers
    python -m benchmarks.report --only none           # only write the page
    python -m benchmarks.report --only none --against OTHER   # and print before and after, for HISTORY.md
"""

from __future__ import annotations

import argparse
import html
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, peers

DIRECTORY = machine.ROOT / "build" / "benchmarks" / "report"
#: What is run, in this order: module, arguments in full, arguments of a quick run.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "peers": ("--commands 20000", "--commands 2000 --rounds 1 --repeats 1 --seconds 2"),
    "command_path": ("", "--commands 10000 --rounds 2"),
    "durable": ("", "--commands 5000 --rates 1000,5000 --seconds 1 --rounds 1"),
    "bus": ("", "--commands 4000 --messages 300 --seconds 1 --rounds 1"),
    "large": (
        "--commands 10000000 --rounds 3",
        "--orders 20000 --cancels 5000 --commands 20000 --sizes 1000,10000,100000 --probes 10000 --rounds 1",
    ),
}
OURS, FLOOR, OTHER = "#1f6feb", "#8a8f98", "#c9ccd1"
PALETTE = ("#1f6feb", "#c2571a", "#2f855a", "#8250df", "#8a8f98")

Spread = Mapping[str, float]


# --- running -----------------------------------------------------------------------------------------------------


def run(name: str, arguments: Sequence[str], directory: Path) -> str:
    """Run one benchmark and keep its answer; "" or what went wrong."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--json", *arguments],
        cwd=machine.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return f"{name} ended with {done.returncode}: {done.stderr.strip()[-400:] or 'no answer'}"
    answer["measured"] = time.strftime("%Y-%m-%d %H:%M %Z")
    answer["status"] = done.returncode
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    return f"{name}: {done.stderr.strip()[-400:]}" if done.returncode else ""


def collect(directory: Path) -> dict[str, dict[str, Any]]:
    """The answers kept in a directory, by benchmark."""
    found = {}
    for name in BENCHMARKS:
        path = directory / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


# --- figures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One number to follow over time."""

    unit: str
    median: float
    least: float
    most: float

    def __str__(self) -> str:
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)}-{number(self.most)})"


def number(value: float) -> str:
    """Three digits or so: what such a measurement can bear."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def key_figures(answers: Mapping[str, dict[str, Any]]) -> dict[str, Figure]:
    """The figures that ``HISTORY.md`` follows, by name, from whatever was measured."""
    found: dict[str, Figure] = {}

    def add(name: str, unit: str, value: Spread) -> None:
        found[name] = Figure(unit, value["median"], value["min"], value["max"])

    for workload, result in answers.get("peers", {}).get("workloads", {}).items():
        for row in result["rows"]:
            if row["program"] == peers.OURS and row["ns"]:
                each = [one["ns_median"] for one in row["rounds"]]
                found[f"book, {workload}"] = Figure("ns per command", row["ns"], min(each), max(each))
                if row["times_floor"]:
                    ratio = row["times_floor"]
                    found[f"book, {workload}, against the floor"] = Figure("times", ratio, ratio, ratio)
    for stage, value in answers.get("command_path", {}).get("ns_per_command", {}).items():
        add("whole path" if stage == "path" else f"stage: {stage}", "ns per command", value)
    durable = answers.get("durable", {})
    for batch, value in durable.get("commands_per_second", {}).items():
        add(f"durable, batches of {batch}", "commands/s", value)
    for answer in durable.get("latency_us", {}).values():
        for percentile in ("p50", "p99"):
            kept = "" if answer["sustained"] else ", not kept up"
            name = f"durable at {answer['offered']:,}/s{kept}, {percentile}"
            add(name, "µs", answer["percentiles"][percentile])
    for row in answers.get("bus", {}).get("rows", ()):
        what = f"{row['broker']}, batches of {row['batch']}"
        if row["rate"]:
            kept = "" if row["sustained"] else ", not kept up"
            for percentile in ("p50", "p99"):
                add(f"{row['broker']} at {row['rate']:,}/s{kept}, {percentile}", "µs", row["latency_us"][percentile])
        else:
            add(what, "commands/s", row["commands_per_second"])
            if "cpu_us_gateway" in row:
                add(f"{what}, gateway", "µs of CPU per command", row["cpu_us_gateway"])
    large = answers.get("large", {})
    named = {
        "auction_ms": ("itayose of {orders:,}", "ms"),
        "mass_cancel_ms": ("mass cancel of {cancels:,}", "ms"),
        "replay_s": ("replay of {commands:,}", "s"),
        "row_bytes": ("bare book, memory", "bytes per order"),
        "row_longest_us": ("bare book, longest order", "µs"),
    }
    for values in large.get("figures", {}).values():
        for key, value in values.items():
            if key in named:
                add(named[key][0].format(**large["workload"]), named[key][1], value)
    for size, values in large.get("book_size", {}).items():
        add(f"{int(size):,} resting", "ns per command", values["ns_per_command"])
        add(f"{int(size):,} resting, memory", "bytes per order", values["bytes_per_order"])
        add(f"{int(size):,} resting, longest command", "µs", values["longest_us"])
    return found


def markdown(after: Mapping[str, Figure], before: Mapping[str, Figure] | None = None) -> str:
    """The key figures as a table for ``HISTORY.md``; with ``before``, those both have."""
    if before is None:
        lines = ["| figure | unit | median (least-most) |", "| --- | --- | --- |"]
        lines += [f"| {name} | {figure.unit} | {figure} |" for name, figure in after.items()]
    else:
        lines = ["| figure | unit | before | after | ratio |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {name} | {figure.unit} | {before[name]} | {figure} | {figure.median / before[name].median:.2f} |"
            for name, figure in after.items()
            if name in before and before[name].median
        ]
    return "\n".join(lines)


# --- drawing -----------------------------------------------------------------------------------------------------


@dataclass
class Bar:
    label: str
    value: float
    low: float = 0
    high: float = 0
    colour: str = OURS
    note: str = ""


@dataclass
class Line:
    name: str
    points: list[tuple[float, float]]  #: place on the x axis, value
    band: list[tuple[float, float]] = field(default_factory=list)  #: least and most of each point


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Round numbers from about ``low`` to about ``high``."""
    if log:
        steps = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [10.0**step for step in steps]
    step = 10 ** math.floor(math.log10(high or 1))
    step = next(part * step for part in (0.2, 0.5, 1, 2) if high / (part * step) <= 6)
    return [step * count for count in range(math.ceil(high / step) + 1)]


def short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def bars(title: str, unit: str, rows: Sequence[Bar], *, log: bool = False) -> str:
    """Horizontal bars with their least and most as a whisker. Logarithmic bars begin at a power of ten."""
    if not rows:
        return ""
    left, width, step = 150, 560, 26
    told = [number(row.value) + (f" {row.note}" if row.note else "") for row in rows]
    room = 16 + 6.4 * max(map(len, told))  # behind the longest bar, for its figure
    height = 46 + step * len(rows)
    smallest = min(row.low or row.value for row in rows)
    ticks = _ticks(max(smallest, 1e-3), max(row.high or row.value for row in rows), log=log)
    begin, end = (math.log10(ticks[0]), math.log10(ticks[-1])) if log else (0.0, ticks[-1])
    if end == begin:
        end = begin + 1

    def x(value: float) -> float:
        place = math.log10(max(value, 10**begin)) if log else value
        return round(left + (place - begin) / (end - begin) * (width - left - room), 1)

    parts = [_open(title, width, height), f'<text x="0" y="14" class="h">{_e(title)}</text>']
    parts.append(f'<text class="t" x="{width}" y="14" text-anchor="end">{_e(unit)}</text>')
    for tick in ticks:
        parts.append(f'<path class="g" d="M{x(tick)} 24V{height - 18}"/>')
        parts.append(f'<text class="t" x="{x(tick)}" y="{height - 6}" text-anchor="middle">{short(tick)}</text>')
    for place, row in enumerate(rows):
        y = 30 + step * place
        parts.append(f'<text class="l" x="{left - 8}" y="{y + 13}" text-anchor="end">{_e(row.label)}</text>')
        long = max(1, x(row.value) - left)
        parts.append(f'<rect x="{left}" y="{y + 1}" width="{long:.1f}" height="16" rx="2" fill="{row.colour}"/>')
        if row.high > row.low > 0:
            low, high, middle = x(row.low), x(row.high), y + 9
            parts.append(f'<path class="w" d="M{low} {middle}H{high}M{low} {y + 5}v8M{high} {y + 5}v8"/>')
        parts.append(f'<text class="v" x="{max(x(row.value), x(row.high)) + 6}" y="{y + 13}">{_e(told[place])}</text>')
    return "".join([*parts, "</svg>"])


def lines(title: str, unit: str, places: Sequence[str], series: Sequence[Line], *, log: bool = True) -> str:
    """Lines over named places on the x axis, with the band between least and most behind them."""
    series = [line for line in series if line.points]
    if not series:
        return ""
    left, width, height, base = 56, 560, 300, 262
    every = [value for line in series for _, value in line.points]
    every += [value for line in series for pair in line.band for value in pair if value > 0]
    ticks = _ticks(max(min(every), 1e-3), max(every), log=log)
    begin, end = (math.log10(ticks[0]), math.log10(ticks[-1])) if log else (0.0, ticks[-1])
    if end == begin:
        end = begin + 1

    def x(place: float) -> float:
        return round(left + 20 + place / max(1, len(places) - 1) * (width - left - 40), 1)

    def y(value: float) -> float:
        at = math.log10(max(value, 10**begin)) if log else value
        return round(base - (at - begin) / (end - begin) * (base - 44), 1)

    parts = [_open(title, width, height), f'<text x="0" y="14" class="h">{_e(title)}</text>']
    parts.append(f'<text class="t" x="{width}" y="14" text-anchor="end">{_e(unit)}</text>')
    for tick in ticks:
        parts.append(f'<path class="g" d="M{left} {y(tick)}H{width}"/>')
        parts.append(f'<text class="t" x="{left - 6}" y="{y(tick) + 3}" text-anchor="end">{short(tick)}</text>')
    for place, name in enumerate(places):
        parts.append(f'<text class="t" x="{x(place)}" y="{base + 16}" text-anchor="middle">{_e(name)}</text>')
    legend = left
    for colour, line in zip(PALETTE * 3, series, strict=False):
        if line.band:
            there = [f"{x(place)} {y(high)}" for (place, _), (_, high) in zip(line.points, line.band, strict=True)]
            back = [f"{x(place)} {y(low)}" for (place, _), (low, _) in zip(line.points, line.band, strict=True)]
            parts.append(f'<path d="M{"L".join([*there, *reversed(back)])}Z" fill="{colour}" opacity=".13"/>')
        path = "L".join(f"{x(place)} {y(value)}" for place, value in line.points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(place)}" cy="{y(value)}" r="3" fill="{colour}"/>' for place, value in line.points]
        parts.append(f'<path d="M{legend} 30h14" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text class="l" x="{legend + 19}" y="34">{_e(line.name)}</text>')
        legend += 34 + round(6.6 * len(line.name))
    return "".join([*parts, "</svg>"])


def _open(title: str, width: int, height: int) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_e(title)}">'


def _e(text: str) -> str:
    return html.escape(text)


def spread_bar(label: str, value: Spread, colour: str = OURS, note: str = "") -> Bar:
    return Bar(label, value["median"], value["min"], value["max"], colour, note)


# --- the page ----------------------------------------------------------------------------------------------------

PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")
STYLE = """:root{color-scheme:light}body{font:15px/1.55 system-ui,sans-serif;color:#1f2328;max-width:1180px;
margin:2rem auto;padding:0 1.2rem}h1{font-size:1.7rem;margin:0}h2{font-size:1.2rem;margin:2.4rem 0 .2rem}
p{margin:.3rem 0;max-width:75ch}p.c{color:#6b7178;font-size:13px}.a{display:grid;gap:1.4rem 2rem;margin-top:.8rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}svg{width:100%;height:auto;align-self:start}
.h{font-size:14px;font-weight:600}.t{font-size:10.5px;fill:#7b828a}.l{font-size:12px;fill:#3d444c}
.v{font-size:11.5px;fill:#1f2328}.g{stroke:#e7e9ec}.w{stroke:#1f2328;stroke-opacity:.55;fill:none}
.bad{background:#fff1f0;border-left:4px solid #cf222e;padding:.4rem .8rem}
table{border-collapse:collapse;font-size:13.5px}td:nth-child(2){text-align:right}
td,th{padding:.18rem .9rem .18rem 0;text-align:left;border-bottom:1px solid #eceef0}"""


def latencies(answers: Sequence[tuple[str, Mapping[str, Spread]]]) -> list[Line]:
    return [
        Line(
            name,
            [(place, found[percentile]["median"]) for place, percentile in enumerate(PERCENTILES)],
            [(found[percentile]["min"], found[percentile]["max"]) for percentile in PERCENTILES],
        )
        for name, found in answers
    ]


def peers_section(answer: dict[str, Any]) -> list[str]:
    drawn = []
    for workload, result in answer["workloads"].items():
        rows = []
        for row in sorted((row for row in result["rows"] if row["ns"]), key=lambda row: row["ns"]):
            each = [one["ns_median"] for one in row["rounds"]]
            colour = {peers.OURS: OURS, peers.FLOOR: FLOOR}.get(row["program"], OTHER)
            note = (
                f"· {number(row['times_floor'])} × floor"
                if row["times_floor"] and row["program"] != peers.FLOOR
                else ""
            )
            rows.append(Bar(row["program"], row["ns"], min(each), max(each), colour, note))
        title = f"{workload}, {result['commands']:,} commands"
        drawn.append(bars(title, "ns per command, logarithmic", rows, log=True))
    return drawn


def command_path_section(answer: dict[str, Any]) -> list[str]:
    ns = answer["ns_per_command"]
    stages = [spread_bar(name, value, OURS if name == "path" else OTHER) for name, value in ns.items()]
    memory = [
        Bar(name, value["bytes"], colour=OTHER, note=f"· {value['blocks']:.1f} blocks")
        for name, value in answer["kept_per_command"].items()
        if value["bytes"] >= 1
    ]
    return [
        bars(f"Whole path ({answer['commands_per_second']:,} commands/s) and stages", "ns per command", stages),
        bars("What stays in memory", "bytes per command", memory),
    ]


def durable_section(answer: dict[str, Any]) -> list[str]:
    rates = [spread_bar(f"batches of {batch}", value) for batch, value in answer["commands_per_second"].items()]
    told = [
        (f"{one['offered']:,}/s{'' if one['sustained'] else ' not kept up'}", one["percentiles"])
        for one in answer["latency_us"].values()
    ]
    alone = answer["workload"]["sync_alone_us"]
    curves = latencies(told)
    curves.append(Line("fdatasync alone", [(place, alone[name]) for place, name in enumerate(PERCENTILES)]))
    return [
        bars("Durable commands a second", "commands/s", rates),
        lines("From intended sending to durable events", "µs, logarithmic", PERCENTILES, curves),
    ]


def bus_section(answer: dict[str, Any]) -> list[str]:
    fast = [row for row in answer["rows"] if not row["rate"]]
    colours = {"mosquitto": OURS}
    rates, used = [], []
    for row in fast:
        colour = colours.get(row["broker"], OTHER)
        label = f"{row['broker']}, {row['batch']}"
        rates.append(spread_bar(label, row["commands_per_second"], colour))
        if "cpu_us_gateway" in row:
            note = f"· broker {number(row['cpu_us_broker']['median'])}"
            used.append(spread_bar(label, row["cpu_us_gateway"], colour, note))
    told = [
        (f"{row['broker']} {row['rate']:,}/s{'' if row['sustained'] else ' not kept up'}", row["latency_us"])
        for row in answer["rows"]
        if row["rate"]
    ]
    return [
        bars("Commands a second by batch", "commands/s", rates),
        bars("Gateway's processor time by batch", "µs per command, logarithmic", used, log=True),
        lines("Single commands: intended sending to answer", "µs, logarithmic", PERCENTILES, latencies(told)),
    ]


def large_section(answer: dict[str, Any]) -> list[str]:
    sizes = list(answer["book_size"])
    found = answer["book_size"]

    def line(name: str, key: str) -> Line:
        return Line(
            name,
            [(place, found[size][key]["median"]) for place, size in enumerate(sizes)],
            [(found[size][key]["min"], found[size][key]["max"]) for size in sizes],
        )

    named = [short(float(size)) for size in sizes]
    cost = [line("cost", "ns_per_command")]
    pauses = [line("longest command", "longest_us"), line("collector", "collector_longest_us")]
    pauses.append(line("idle loop", "idle_longest_us"))
    figures = key_figures({"large": answer})
    rows = "".join(
        f"<tr><td>{_e(name)}</td><td>{_e(str(figure))}</td><td>{_e(figure.unit)}</td></tr>"
        for name, figure in figures.items()
    )
    return [
        lines("Cost against book size", "ns per command, by resting orders", named, cost, log=False),
        lines("Pauses against book size", "µs, logarithmic, by resting orders", named, pauses),
        f"<div><table><tr><th>figure<th>median (least-most)<th>unit</tr>{rows}</table></div>" if rows else "",
    ]


SECTIONS: dict[str, tuple[str, str, Callable[[dict[str, Any]], list[str]]]] = {
    "peers": (
        "The book beside its peers",
        "One Python call per command on neutral streams; shorter is faster.",
        peers_section,
    ),
    "command_path": (
        "A whole command",
        "From a member's bytes to encoded events, on one core.",
        command_path_section,
    ),
    "durable": (
        "Durable",
        "Through sequencer, log and fdatasync; nobody is told before the disk has it.",
        durable_section,
    ),
    "bus": (
        "Over the bus",
        "From a member through broker and gateway to its report.",
        bus_section,
    ),
    "large": (
        "Large",
        "Auctions, cancels and books of a size that a market reaches on its worst day.",
        large_section,
    ),
}


def page(answers: Mapping[str, dict[str, Any]], problems: Sequence[str] = ()) -> str:
    """The whole page. ``problems`` are told at the top."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Dojima, measured</title><style>{STYLE}</style>',
        "<h1>Dojima, measured</h1><p>Bars and points are medians over rounds, whiskers and bands the least and the",
        " most. What a figure leaves out stands in <code>benchmarks/README.md</code>.</p>",
    ]
    parts += [f'<p class="bad">{_e(problem)}</p>' for problem in problems]
    for name, (title, about, draw) in SECTIONS.items():
        parts.append(f"<h2>{_e(title)}</h2><p>{_e(about)}</p>")
        answer = answers.get(name)
        if answer is None:
            parts.append('<p class="bad">Not measured.</p>')
            continue
        workload = answer.get("workload", {}).get("about", "")
        around = [workload, *machine.banner(answer["environment"]).splitlines(), answer.get("measured", "")]
        if answer.get("status"):
            parts.append('<p class="bad">This run was wrong; its figures mean nothing.</p>')
        for broker, reason in answer.get("absent", {}).items():
            parts.append(f'<p class="bad">{_e(f"{broker}: {reason}, not measured")}</p>')
        parts.append(f'<div class="a">{"".join(draw(answer))}</div>')
        parts.append(f'<p class="c">{"<br>".join(_e(line) for line in around if line)}</p>')
    return "".join([*parts, "</html>\n"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="run these; none: only write the page")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--answers", type=Path, default=DIRECTORY, help="directory of the answers")
    parser.add_argument("--out", type=Path, help="the page; beside the directory of the answers when not given")
    parser.add_argument("--against", type=Path, help="directory of earlier answers: print before and after")
    options = parser.parse_args(arguments)
    names = [] if options.only == "none" else options.only.split(",")
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"expected some of {', '.join(BENCHMARKS)} or none, got {', '.join(unknown)} - at --only")
    console = Console(stderr=True, highlight=False)
    problems = []
    for name in names:
        full, quick = BENCHMARKS[name]
        console.print(f"{name} …")
        problem = run(name, (quick if options.quick else full).split(), options.answers)
        if problem:
            console.print(problem, style="red", soft_wrap=True, markup=False)
            problems.append(problem)
    answers = collect(options.answers)
    out = options.out or options.answers.with_suffix(".html")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(answers, problems), encoding="utf-8")
    console.print(f"{out}: open it in a browser", soft_wrap=True)
    figures = key_figures(answers)
    print(markdown(figures, key_figures(collect(options.against)) if options.against else None))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
