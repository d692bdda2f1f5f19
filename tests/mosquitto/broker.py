"""A real mosquitto for tests: the deployed configuration, in a directory and on a port of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.require import require

SETUP = Path(__file__).parents[2] / "deploy" / "mosquitto" / "setup.py"


class Mosquitto:
    """Use as a context manager. ``url`` has no login; ``password(name)`` is what ``setup.py`` made."""

    def __init__(self, directory: Path, *members: str, extra: str = "", options: tuple[str, ...] = ()) -> None:
        """``extra`` is put behind the deployed configuration, ``options`` are of ``setup.py``."""
        self._binary = require("mosquitto")
        require("mosquitto_passwd", part_of="mosquitto")
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        subprocess.run(
            [sys.executable, SETUP, str(directory), *members, "--port", str(self.port), *options],
            check=True,
            capture_output=True,
        )
        configuration = directory / "mosquitto.conf"
        configuration.write_text(configuration.read_text() + extra)
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def password(self, name: str) -> str:
        return (self.directory / "secrets" / name).read_text().strip()

    @property
    def exchange_url(self) -> str:
        return f"mqtt://exchange:{self.password('exchange')}@127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.directory / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._binary, "-c", str(self.directory / "mosquitto.conf")], stderr=log, stdout=log
            )
        until = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            text = (self.directory / "mosquitto.log").read_text()
            assert self.process.poll() is None, f"mosquitto ended: {text}"
            assert time.monotonic() < until, f"mosquitto does not listen: {text}"
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
