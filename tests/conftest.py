"""What holds for every test: reproducible examples, and no process left behind.

Hypothesis draws the same examples on every run of ``make test``, so that a red build is red for everyone;
``make nightly`` (``DOJIMA_PROFILE=nightly``) draws many fresh ones and prints the blob that repeats a failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import engine
from tests.require import require as _require

# No deadline: a noisy machine is not a bug. The health check on slow data is about speed as well.
settings.register_profile(
    "default", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("quick", settings.get_profile("default"), max_examples=10)  # the other Pythons: the same path
settings.register_profile("nightly", settings.get_profile("default"), derandomize=False, max_examples=2_000)
settings.load_profile(os.environ.get("DOJIMA_PROFILE", "default"))

# A shell starts what runs in the background with Ctrl-C ignored, and a process hands that down: an exchange that a test
# ends with SIGINT would not hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Which engine is tested is said and made sure of: a run that meant the other one proves nothing.
assert os.environ.get("DOJIMA_BACKEND", engine.BACKEND) == engine.BACKEND


def pytest_report_header() -> str:
    return f"engine: {engine.BACKEND}"


MARK = "DOJIMA_TEST_SESSION"
SECONDS_TO_END = 5.0


@pytest.fixture
def require() -> Callable[..., str]:
    """``tests.require.require`` for tests that prefer a fixture."""
    return _require


def processes_with(mark: str) -> dict[int, str]:
    """Processes that carry ``mark`` in their environment, grandchildren and orphans included: pid to command line.

    Reads /proc and is empty where there is none. A finished process that nobody waited for has no environment and is
    not counted.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(folder.name)] = command
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    # multiprocessing keeps one for the life of this process, on purpose.
    return {pid: command for pid, command in found.items() if "multiprocessing.resource_tracker" not in command}


def wait_until_gone(mark: str, seconds: float = SECONDS_TO_END) -> dict[int, str]:
    """What is still there when the time is up; returns early once nothing is."""
    until = time.monotonic() + seconds
    while (left := processes_with(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left_behind() -> Iterator[None]:
    """Fails the session when a process started by a test outlives the tests."""
    mark = f"{MARK}={uuid.uuid4()}"
    os.environ[MARK] = mark.partition("=")[2]
    yield
    left = wait_until_gone(mark)
    for pid in left:  # ours beyond doubt: nobody else has the mark; and the next run shall not suffer from them
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"tests left these processes behind: {left}"
