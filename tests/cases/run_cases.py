#!/usr/bin/env python3
"""Runs order-matching cases (FORMAT.md) against the engine.

    python run_cases.py --adapter tests.case_adapter:Adapter
    python run_cases.py --adapter tests.case_adapter:Adapter --tags auction -v

Run it from the project's root.  The adapter subclasses `run_cases.EngineAdapter`; a method without a counterpart
in the engine raises `Unsupported`, and such a case counts as skipped.  Standard library only.
"""

from __future__ import annotations

import argparse
import collections
import glob
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


class Unsupported(Exception):
    """The engine has no such feature: the case is skipped, not failed."""


@dataclass
class Trade:
    maker: str
    taker: str
    price: Decimal
    qty: int


@dataclass
class Auction:
    price: Decimal | None  # None: nothing crosses
    volume: int
    surplus: int = 0  # buy minus sell left at the price (signed)


@dataclass
class Result:
    accepted: bool = True
    trades: list[Trade] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)  # in the order they went
    auction: Auction | None = None
    fills: dict[str, int] = field(default_factory=dict)  # auction: filled per order
    reason: str = ""


class EngineAdapter:
    """One instance per case.  Prices arrive as Decimal, quantities as int."""

    def __init__(self, case: dict[str, Any]):
        self.case = case
        self.rules = case.get("rules", {})
        self.tick = Decimal(case.get("tick", "1"))

    def new(self, step: dict[str, Any]) -> Result:
        raise NotImplementedError

    def cancel(self, step: dict[str, Any]) -> Result:
        raise NotImplementedError

    def replace(self, step: dict[str, Any]) -> Result:
        raise NotImplementedError

    def mass_cancel(self, step: dict[str, Any]) -> Result:
        raise Unsupported("mass_cancel")

    def set_reference(self, price: Decimal) -> None:
        raise Unsupported("reference price")

    def open_call(self) -> None:
        raise Unsupported("call phase")

    def indicative(self) -> Auction:
        raise Unsupported("indicative price")

    def uncross(self) -> Result:
        raise Unsupported("uncross")

    def book(self) -> dict[str, list[tuple[Decimal, int]]]:
        """{'bids': [(price, displayed quantity)], 'asks': [...]}, best level first."""
        raise NotImplementedError

    def order(self, oid: str) -> dict[str, int] | None:
        """{'open': n, 'displayed': n} while resting (or a waiting stop), else None."""
        raise NotImplementedError

    def queue(self, side: str) -> list[str]:
        """Resting ids of one side in matching priority."""
        raise Unsupported("queue view")


# --------------------------------------------------------------------------
# Runner
# --------------------------------------------------------------------------
class Mismatch(Exception):
    pass


def _need(cond, text):
    if not cond:
        raise Mismatch(text)


def _levels(rows):
    return [(Decimal(p), int(q)) for p, q in rows]


def apply_step(eng: EngineAdapter, step: dict[str, Any]) -> Result:
    op = step["op"]
    if op == "new":
        return eng.new(step)
    if op == "cancel":
        return eng.cancel(step)
    if op == "replace":
        return eng.replace(step)
    if op == "mass_cancel":
        return eng.mass_cancel(step)
    if op == "reference":
        eng.set_reference(Decimal(step["price"]))
        return Result()
    if op == "open_call":
        eng.open_call()
        return Result()
    if op == "indicative":
        return Result(auction=eng.indicative())
    if op == "uncross":
        return eng.uncross()
    raise Mismatch("unknown op " + op)


def check(eng, step, res, exp):
    oid = step.get("id")
    if "result" in exp:
        want = exp["result"]
        if want == "accepted":
            _need(res.accepted, "should be accepted, was refused: " + res.reason)
        elif want == "rejected":
            _need(not res.accepted, "should be rejected, was accepted")
        elif want == "killed":  # refused, or accepted and at once cancelled: both pass
            _need(not res.accepted or oid in res.cancelled, "should be killed")
            _need(eng.order(oid) is None, "killed order still rests")
    if "trades" in exp:
        got = [(t.maker, t.taker, t.price, t.qty) for t in merge(res.trades)]
        want = [(t["maker"], t["taker"], Decimal(t["price"]), t["qty"]) for t in exp["trades"]]
        want = [(t.maker, t.taker, t.price, t.qty) for t in merge([Trade(*w) for w in want])]
        _need(got == want, f"trades {show(got)} wanted {show(want)}")
    if "cancelled" in exp:
        _need(sorted(res.cancelled) == sorted(exp["cancelled"]), f"cancelled {res.cancelled} wanted {exp['cancelled']}")
    if "auction" in exp:
        a, w = res.auction, exp["auction"]
        _need(a is not None, "no auction result")
        wp = Decimal(w["price"]) if w["price"] is not None else None
        _need(a.price == wp, f"auction price {a.price} wanted {wp}")
        if "volume" in w:
            _need(a.volume == w["volume"], f"auction volume {a.volume} wanted {w['volume']}")
        if "surplus" in w:
            _need(a.surplus == w["surplus"], f"surplus {a.surplus} wanted {w['surplus']}")
    if "fills" in exp:
        got = {k: v for k, v in res.fills.items() if v}
        _need(got == exp["fills"], f"fills {got} wanted {exp['fills']}")
    if "book" in exp:
        got = eng.book()
        for name in ("bids", "asks"):
            if name in exp["book"]:
                have = [(Decimal(p), int(q)) for p, q in got[name]]
                if exp.get("depth"):
                    have = have[: exp["depth"]]
                _need(
                    have == _levels(exp["book"][name]), f"{name} {show(have)} wanted {show(_levels(exp['book'][name]))}"
                )
    for k, v in exp.get("orders", {}).items():
        o = eng.order(k)
        if v is None:
            _need(o is None, f"{k} still live")
        else:
            _need(o is not None, f"{k} not live")
            for f, n in v.items():
                _need(o[f] == n, f"{k} {f}={o[f]} wanted {n}")
    for side, ids in exp.get("queue", {}).items():
        try:
            got = eng.queue(side)
        except Unsupported:
            continue
        _need(got == ids, f"queue {side} {got} wanted {ids}")


def merge(trades):
    """Consecutive fills of one pair at one price count as one."""
    out: list[Trade] = []
    for t in trades:
        if out and (out[-1].maker, out[-1].taker, out[-1].price) == (t.maker, t.taker, t.price):
            out[-1] = Trade(t.maker, t.taker, t.price, out[-1].qty + t.qty)
        else:
            out.append(Trade(t.maker, t.taker, t.price, t.qty))
    return out


def show(rows):
    return "[" + ", ".join("(" + ",".join(str(x) for x in r) + ")" for r in rows) + "]"


def run_case(case, cls) -> None:
    eng = cls(case)
    exp = collections.defaultdict(list)
    for e in case["expect"]:
        exp[e["after_step"]].append(e)
    for i, step in enumerate(case["steps"]):
        res = apply_step(eng, step)
        for e in exp.get(i, ()):
            try:
                check(eng, step, res, e)
            except Mismatch as m:
                raise Mismatch(f"step {i} {json.dumps(step)}: {m}") from None


def load(paths: Sequence[str]):
    for path in paths:
        with open(path, encoding="utf-8") as fh:
            for line in fh:
                if line.strip():
                    case = json.loads(line)
                    case["_file"] = os.path.relpath(path, HERE)
                    yield case


def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--adapter", required=True, help="module:Class of an EngineAdapter")
    ap.add_argument("--files", nargs="*")
    ap.add_argument("--tags", default="", help="a case needs all of these")
    ap.add_argument("--exclude", default="", help="a case may have none of these")
    ap.add_argument("--only", default="", help="substring of the case id")
    ap.add_argument("--rule", default="", help="auction cases: only those whose answer this rule variant shares")
    ap.add_argument("-v", "--verbose", action="store_true")
    a = ap.parse_args(argv)
    mod, name = a.adapter.split(":")
    cls = getattr(importlib.import_module(mod), name)
    files = a.files or sorted(glob.glob(os.path.join(HERE, "*.jsonl")))
    want, ban = set(filter(None, a.tags.split(","))), set(filter(None, a.exclude.split(",")))
    n = collections.Counter()
    by = collections.defaultdict(collections.Counter)
    for case in load(files):
        tags = set(case["tags"])
        if not want <= tags or ban & tags or a.only not in case["id"]:
            continue
        if a.rule and "auction" in tags and a.rule not in case.get("agree", []):
            continue
        try:
            run_case(case, cls)
            verdict = "pass"
        except Unsupported as u:
            verdict = "skip"
            if a.verbose:
                print("SKIP", case["id"], u)
        except Mismatch as m:
            verdict = "FAIL"
            print("FAIL", case["id"], "-", m)
        except Exception as e:  # an engine crash is a failure
            verdict = "FAIL"
            print("FAIL", case["id"], "- exception", type(e).__name__, e)
        n[verdict] += 1
        for t in tags:
            by[t][verdict] += 1
    if a.verbose:
        for t in sorted(by):
            print(f"  {t:28s} {dict(by[t])}")
    print("cases:", sum(n.values()), dict(n))
    return 1 if n["FAIL"] else 0


if __name__ == "__main__":
    # one module object only: adapters import run_cases, so run that one
    sys.path.insert(0, HERE)
    sys.path.insert(0, os.getcwd())
    sys.exit(importlib.import_module("run_cases").main())
