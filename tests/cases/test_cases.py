"""The open order-matching cases (FORMAT.md), each one a test, against the real engine.

``run_cases.py`` is the runner as published and runs from a shell as well:
``python tests/cases/run_cases.py --adapter tests.case_adapter:Adapter``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.case_adapter import Adapter
from tests.cases import run_cases

CASES: list[dict[str, Any]] = list(run_cases.load([str(Path(__file__).parent / "open_cases.jsonl")]))
#: Cases that need what the engine does not have. Any other skip is a failure.
LACKING = {"invariant/reuse-id-after-cancel", "invariant/reuse-id-after-fill"}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    try:
        run_cases.run_case(case, Adapter)
    except run_cases.Unsupported as missing:
        if case["id"] not in LACKING:
            raise
        pytest.skip(f"the engine has no {missing}")


def test_the_runner_notices_an_engine_that_trades_at_the_wrong_price() -> None:
    """Proof that a case can fail: the same engine, every trade reported one tick too high."""

    class OneTickTooHigh(Adapter):
        def new(self, step: dict[str, Any]) -> Any:
            result = super().new(step)
            for trade in result.trades:
                trade.price += self.tick
            return result

    failed = 0
    for case in CASES:
        try:
            run_cases.run_case(case, OneTickTooHigh)
        except (run_cases.Mismatch, run_cases.Unsupported) as error:
            failed += isinstance(error, run_cases.Mismatch)
    assert failed >= len(CASES) // 4


def test_every_case_names_its_source() -> None:
    assert len(CASES) >= 40
    assert len({case["id"] for case in CASES}) == len(CASES)
    assert all(case["source"] and case["steps"] and case["expect"] for case in CASES)
