"""Tools outside Python that some tests need, such as mosquitto: skip without them, unless they were promised.

A test that skips where it should run looks like a test that passes. So whoever prepares a machine says what it has:
``DOJIMA_REQUIRE=mosquitto,node`` turns the absence of a named tool from a skip into a failure. ``deploy/ci-setup``
installs the tools, ``.ci/run`` sets the variable.
"""

from __future__ import annotations

import os
import shutil

import pytest

#: Where system services live; not on every user's PATH.
ALSO_LOOK_IN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


def promised() -> set[str]:
    """The tools this machine is said to have."""
    return {name.strip() for name in os.environ.get("DOJIMA_REQUIRE", "").split(",") if name.strip()}


def require(tool: str, *, part_of: str = "") -> str:
    """The path of ``tool``. Absent: skips the test and says why, or fails it when the tool was promised.

    ``part_of`` names the promise that covers it: ``require("mosquitto_pub", part_of="mosquitto")``.
    """
    path = shutil.which(tool, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *ALSO_LOOK_IN]))
    if path:
        return path
    if {tool, part_of} & promised():
        pytest.fail(f"{tool} is absent, yet DOJIMA_REQUIRE={os.environ['DOJIMA_REQUIRE']} promises it", pytrace=False)
    pytest.skip(f"{tool} is not installed (deploy/ci-setup installs it)")
