"""What Python does by itself, kept from holding up a running exchange.

*The collector.* A pass over the oldest generation looks at every container there is: modules, classes, the market; 20
ms of a service that has just begun, in which nothing happens. But what outlives a pass here stays for good (ids,
orders, windows of reports), or goes by its count of references: hardly anything is ever part of a cycle. So what has
outlived one is not looked at again, and a pass is as long as what is new since the one before. Cycles that die before
that, such as a failed connection with its traceback, are found as ever; those that die later stay until the process
ends.

*The turn of threads.* The log has a thread of its own, and its sync begins when that thread gets a turn: after 5 ms if
the loop is busy, as Python has it, which is ten syncs. So a thread that waits gets its turn sooner.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any, Final

#: New containers before a pass over the youngest, passes of each generation before one over the next: some 25,000
#: containers in the longest pass, about a millisecond.
THRESHOLDS: Final = (1_000, 5, 5)
#: Seconds after which a thread that waits gets its turn.
TURN: Final = 0.0001


@contextlib.contextmanager
def short_pauses() -> Iterator[None]:
    """As long as it lasts, no pass looks again at what has outlived one or was there before, and turns are short."""
    thresholds, turn = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(_leave_alone)
    sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(turn)
        gc.callbacks.remove(_leave_alone)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _leave_alone(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
