"""The rule about absent tools, tested on a tool that no machine has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import MARK, wait_until_gone
from tests.require import require

NOWHERE = "dojima-no-such-tool"


def test_an_absent_tool_skips_its_test_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJIMA_REQUIRE", "mosquitto")

    with pytest.raises(pytest.skip.Exception, match=f"{NOWHERE} is not installed"):
        require(NOWHERE)


@pytest.mark.parametrize("promise", [NOWHERE, f"mosquitto, {NOWHERE}"])
def test_an_absent_tool_that_was_promised_fails_its_test(monkeypatch: pytest.MonkeyPatch, promise: str) -> None:
    monkeypatch.setenv("DOJIMA_REQUIRE", promise)

    with pytest.raises(pytest.fail.Exception, match="promises it"):
        require(NOWHERE)


def test_a_promise_covers_what_comes_with_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJIMA_REQUIRE", "mosquitto")

    with pytest.raises(pytest.fail.Exception):
        require(NOWHERE, part_of="mosquitto")


def test_a_present_tool_is_found_by_its_path() -> None:
    assert require("sh").endswith("/sh")


def test_a_process_that_outlives_its_parent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grandchild whose parent is gone is nobody's child any more; its environment still tells where it came from."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    monkeypatch.setenv(MARK, "the-one-of-this-test")
    grandchild = "import sys; sys.stdin.read()"
    parent = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {grandchild!r}]).pid)"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.wait()

        left = wait_until_gone(f"{MARK}=the-one-of-this-test", seconds=0)

        assert list(left) == [pid]
        assert process.stdin is not None
        process.stdin.close()
    assert wait_until_gone(f"{MARK}=the-one-of-this-test") == {}
