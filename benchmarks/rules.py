"""What does a rule cost the plain limit order, which does not use it?

The same flow of plain orders goes through ``Engine.apply`` in markets that differ in one thing: a rule that is switched
on beside it, or orders of other kinds that stand in the same book and never trade. Whatever such a market charges is
paid by everybody, so each is a ratio to the market without it, run right before it or, every other round, right after:
a slow minute does not count as a rule, nor does who comes first. The first line, the plain market beside itself, says
what such a ratio is worth on this machine.

Two groups: what a plain order *does not use* (that should cost next to nothing) and what it *passes* (a limit that is
checked and holds, units that are locked and released: that may cost). Commands are decoded before the clock starts;
events are made, and not encoded. Trades, volume, notional and refusals are checked in every round.

    python -m benchmarks.rules [--commands N] [--rounds N] [--json]
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console

from benchmarks import figures, flow, machine
from engine import (
    Command,
    Deposit,
    Engine,
    Event,
    Kill,
    ListInstrument,
    NewOrder,
    OrderType,
    PermitMember,
    Phase,
    Rejected,
    SetCalendar,
    SetEligibility,
    SetPhase,
    SetRiskLimits,
    Side,
    StartDay,
)

UNUSED, PASSED = "does not use", "passes"
PLAIN: Final = "nothing"
#: A member that sends none of the flow.
OTHER: Final = "other"
NEIGHBOUR: Final = "NEXT"
ENOUGH: Final = 2**40
#: Far from the flow's prices, which stay near 10,000.
LOW, HIGH = 1, 1_000_000


@dataclass(frozen=True)
class Case:
    """A market: the rules of its instrument, and what happens in it before the flow begins."""

    name: str
    group: str
    rules: tuple[tuple[str, int | str], ...] = ()
    before: tuple[tuple[str, Command], ...] = ()


def _iceberg(code: str) -> tuple[str, Command]:
    return OTHER, NewOrder("iceberg", code, Side.BUY, 1_000, LOW, display_quantity=10)


def _stop(code: str) -> tuple[str, Command]:
    return OTHER, NewOrder("stop", code, Side.BUY, 10, order_type=OrderType.STOP, stop_price=HIGH)


CASES: Final = (
    Case(PLAIN, UNUSED),
    Case("a neighbour with icebergs and stops", UNUSED, before=(_iceberg(NEIGHBOUR), _stop(NEIGHBOUR))),
    Case("a neighbour that is killed", UNUSED, before=(("", Kill("", NEIGHBOUR)),)),
    Case("a neighbour with pre-trade limits", UNUSED, before=(("", SetRiskLimits("", NEIGHBOUR, ENOUGH)),)),
    Case("a neighbour with a whitelist", UNUSED, before=(("", SetEligibility(NEIGHBOUR, whitelist=True)),)),
    Case("an iceberg in the book", UNUSED, before=(_iceberg(flow.CODE),)),
    Case("a stop that waits", UNUSED, before=(_stop(flow.CODE),)),
    Case("market orders may rest", UNUSED, rules=(("market_rests", 1),)),
    Case(
        "self-trade prevention by account",
        PASSED,
        rules=(("self_trade", "cancel_newest"), ("self_trade_group", "account")),
    ),
    Case("a volatility band of 100 %", PASSED, rules=(("volatility_band", 10_000),)),
    Case("pre-trade limits", PASSED, before=(("", SetRiskLimits("", flow.CODE, ENOUGH, 2**53)),)),
    Case(
        "permission to trade",
        PASSED,
        before=(
            ("", SetEligibility(flow.CODE, members_listed=True)),
            *(("", PermitMember(flow.member_name(number), flow.CODE)) for number in range(flow.MEMBERS)),
        ),
    ),
    Case(
        "pre-funding of cash and units",
        PASSED,
        rules=(("funding", "both"),),
        before=tuple(
            ("", Deposit(f"{kind or 'yen'}-{number}", flow.member_name(number), "", ENOUGH, kind))
            for number in range(flow.MEMBERS)
            for kind in ("", flow.CODE)
        ),
    ),
)


def opened(case: Case) -> Engine:
    """The market of a case, ready for the flow. Raises ``ValueError`` where it refuses what makes it."""
    engine = Engine()
    rules: dict[str, int | str] = {"self_trade": "none", **dict(case.rules)}
    opening: list[tuple[str, Command]] = [
        ("", SetCalendar(20261101, 20261231, [])),
        ("", ListInstrument(flow.CODE, profile="CONTINUOUS", reference_price=10_000, rules=rules)),
        ("", ListInstrument(NEIGHBOUR, profile="CONTINUOUS", reference_price=10_000)),
        ("", StartDay(20261124)),
        ("", SetPhase(flow.CODE, Phase.CONTINUOUS)),
        ("", SetPhase(NEIGHBOUR, Phase.CONTINUOUS)),
    ]
    for participant, command in (*opening, *case.before):
        for event in engine.apply(command, participant):
            if isinstance(event, Rejected):
                raise ValueError(f"Expected the market with {case.name} to open, got {event.text}")
    return engine


def measure(commands: int, rounds: int) -> dict[str, Any]:
    """All figures as one JSON object."""
    judge = flow.Judge()
    made = list(flow.messages(commands, 1, judge))
    truth = judge.truth
    sent = [(message.participant, command) for message in made for command in message.commands]
    cases = {case.name: case for case in CASES}
    wrong: list[str] = []

    def run(name: str) -> float:
        case = cases[name]
        engine = opened(case)
        answers: list[list[Event]] = []
        stamp = 0
        apply, keep = engine.apply, answers.append
        gc.collect()
        gc.disable()
        try:
            start = time.perf_counter_ns()
            for participant, command in sent:
                stamp += 1
                keep(apply(command, participant, stamp))
            elapsed = time.perf_counter_ns() - start
        finally:
            gc.enable()
        got = flow.found(answers)
        got.checksum = truth.checksum  # made of order numbers, which begin later where orders stand there before
        wrong.extend(f"{case.name}: {line}" for line in flow.differences(truth, got))
        return elapsed / truth.commands

    plain_first = dict.fromkeys(cases, False)

    def run_beside(name: str) -> tuple[float, float]:
        plain_first[name] = not plain_first[name]
        if plain_first[name]:
            plain = run(PLAIN)
            return run(name), plain
        return run(name), run(PLAIN)

    answers = figures.interleaved(list(cases), rounds, run_beside)
    ratios = {name: [value / plain for value, plain in pairs] for name, pairs in answers.items()}
    return {
        "benchmark": "rules",
        "environment": machine.environment(),
        "workload": {
            "about": f"steady flow, {truth.commands:,} plain commands of {flow.MEMBERS} members, "
            f"{truth.trades:,} trades, digest {flow.digest(made)}",
            "commands": truth.commands,
            "members": flow.MEMBERS,
            "digest": flow.digest(made),
        },
        "cases": [
            {
                "name": name,
                "group": cases[name].group,
                "ns_per_command": figures.spread([value for value, _ in pairs]),
                "ratio": figures.spread(ratios[name], 3),
            }
            for name, pairs in answers.items()
        ],
        "unused_median": round(
            statistics.median(
                ratio for name in cases if cases[name].group == UNUSED and name != PLAIN for ratio in ratios[name]
            ),
            3,
        ),
        "checked": "trades, volume, notional and refusals of every market in every round, against the plain matcher",
        "wrong": wrong,
    }


def show(console: Console, result: dict[str, Any]) -> None:
    rows = [
        [
            case["name"],
            case["group"],
            *figures.cells(case["ns_per_command"]),
            *(f"{case['ratio'][name]:.2f}" for name in ("median", "min", "max")),
        ]
        for case in result["cases"]
    ]
    columns = ["beside the plain order", "which it", "ns", "least", "most", "ratio", "least", "most"]
    console.print(figures.table("What rules cost the plain limit order: Engine.apply", columns, rows))
    console.print(f"What it does not use costs {result['unused_median']:.2f} of what it pays alone (median of all).")


def main(arguments: list[str] | None = None) -> int:
    parser = figures.parser("rules", __doc__)
    parser.add_argument("--commands", type=figures.positive, default=50_000)
    options = parser.parse_args(arguments)
    return figures.finish(measure(options.commands, options.rounds), show, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
