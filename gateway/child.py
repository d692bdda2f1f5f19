"""No child outlives its parent, however the parent ends.

Called in the child. The parent holds the other end of the child's standard input and never closes it before the end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """End when process ``parent`` does: by the end of standard input, and on Linux by the kernel's word as well.

    The kernel's signal comes when the *thread* that forked ends, so it is an addition and never the only means.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we asked
        os._exit(1)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
