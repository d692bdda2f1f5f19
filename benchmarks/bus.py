"""What does the whole way cost, from a member's command over the bus to its report?

A real exchange (``dojima run``, a process of its own, its log synced on disk) behind a real broker, and members on
plain connections (``mqtt_load.py``) that send the steady flow: one command per message, and 16, 64 and 256.

* *rate*: each case as fast as it goes with ``--window`` messages unanswered at a time; and what a command then costs
  the processor, in the gateway and in the broker, as the kernel counts it.
* *latency*: single commands at a stated rate, from the moment one **was to be sent** to the arrival of its answer. The
  schedule waits for nobody (no coordinated omission). A rate that is not kept up is said not to be.

Both with mosquitto as deployed (``deploy/mosquitto``), where it is installed, and with the embedded broker. Included:
market data, which goes out beside the reports although nobody subscribes. On two cores, members, broker and gateway
share what there is.

After every run: each command answered once; reports dense, and the same as the log gives when it is replayed; trades
the same as the plain matcher makes of the commands in the log's order.

    python -m benchmarks.bus [--brokers mosquitto,embedded] [--batches 1,16,64,256] [--rate N] [--json]
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from benchmarks import figures, flow, machine
from benchmarks.mqtt_load import Connection, LoadFailed, publish, turn
from engine import Accepted, Cancelled, Command, Event, NewOrder, Rejected
from engine.log.replay import replay
from engine.types import CancelReason
from gateway.bus import topics
from gateway.bus.embedded import EmbeddedBroker
from gateway.bus.messages import Outbound, Report, Reports
from gateway.reports import ReportBook

MEMBERS = 8
BROKERS = ("mosquitto", "embedded")
SETUP = machine.ROOT / "deploy" / "mosquitto" / "setup.py"
#: A market that trades whatever day it is, and limits that do not stand in the way of a load.
SETTINGS = f"""
[clock]
start = "2026-11-24T10:00:00+09:00"
[settlement]
enabled = false
[limits]
waiting_commands = 1000000
waiting_bytes = 1000000000
member_waiting_commands = 1000000
member_waiting_bytes = 1000000000
member_rate = 10000000
member_burst = 10000000
[[instrument]]
instrument = "{flow.CODE}"
profile = "CONTINUOUS"
rules = {{ self_trade = "none" }}
reference_price = 10000
"""
#: Seconds without any answer after which a run has failed.
PATIENCE = 30.0
_decode = msgspec.msgpack.Decoder(Outbound).decode


class Absent(Exception):
    """A broker is not installed."""


class Broker:
    """A running broker: where it listens, who may log in how, and its process."""

    def __init__(self, pid: int, port: int, exchange_url: str, passwords: dict[str, str]) -> None:
        self.pid = pid
        self.port = port
        self.exchange_url = exchange_url
        self.passwords = passwords


@contextlib.contextmanager
def mosquitto(directory: Path) -> Iterator[Broker]:
    """Mosquitto with the deployed settings. Raises ``Absent``."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])
    program = shutil.which("mosquitto", path=search)
    if program is None or shutil.which("mosquitto_passwd", path=search) is None:
        raise Absent("mosquitto is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    members = [flow.member_name(number) for number in range(MEMBERS)]
    subprocess.run(
        [sys.executable, str(SETUP), str(directory), *members, "--port", str(port)],
        check=True, capture_output=True, env={**os.environ, "PATH": search},
    )  # fmt: skip
    passwords = {name: (directory / "secrets" / name).read_text().strip() for name in ("exchange", *members)}
    with (directory / "broker.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(directory / "mosquitto.conf")], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise LoadFailed(f"mosquitto does not listen: {(directory / 'broker.log').read_text()}")
            time.sleep(0.02)
        yield Broker(process.pid, port, f"mqtt://exchange:{passwords['exchange']}@127.0.0.1:{port}", passwords)
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def embedded(directory: Path) -> Iterator[Broker]:
    """The broker that comes along."""
    broker = EmbeddedBroker.start_blocking()
    try:
        yield Broker(broker.process.pid, broker.port, broker.exchange_url, {})
    finally:
        broker.stop()


class Exchange:
    """``dojima run`` on a broker, open for trading."""

    def __init__(self, directory: Path, broker: Broker) -> None:
        directory.mkdir()
        (directory / "dojima.toml").write_text(SETTINGS, encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli.main", "run", "--dir", str(directory), "--json",
             "--broker", broker.exchange_url],
            stdout=subprocess.PIPE, text=True, cwd=machine.ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        missing = {"ready", "phase"}
        for line in self.process.stdout:
            missing.discard(json.loads(line)["event"])
            if not missing:
                return
        raise LoadFailed(f"the exchange ended with status {self.process.wait()} before it was open")

    def stop(self) -> None:
        """End it in order; what it says meanwhile is read, so that it never waits for us."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise LoadFailed("the exchange did not end within 30 s") from None
        if self.process.returncode:
            raise LoadFailed(f"the exchange ended with status {self.process.returncode}")


def cpu_seconds(pid: int) -> float | None:
    """Processor time a process has used so far, all threads; None where the system does not tell (no /proc)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Member:
    """One member's connection and all it was told."""

    def __init__(self, broker: Broker, name: str, load: Load) -> None:
        self.name = name
        self.sent = 0
        self.reports: list[Report] = []
        self.wrong: list[str] = []
        self._load = load
        password = broker.passwords.get(name, "")
        self.connection = Connection(broker.port, name, password, topics.outbound(name), self._receive)

    def send(self, payload: bytes) -> None:
        self.connection.send(publish(topics.inbound(self.name), self.sent, payload))
        self.sent += 1

    def _receive(self, payload: bytes, now: int) -> None:
        message = _decode(payload)
        if not isinstance(message, Reports):
            if not hasattr(message, "next_report"):  # a greeting may come at any time
                self.wrong.append(f"{self.name}: expected reports, got {message}")
            return
        if message.first != len(self.reports) + 1:
            self.wrong.append(f"{self.name}: expected report {len(self.reports) + 1}, got {message.first}")
        self.reports.extend(message.reports)
        for report in message.reports:
            event = report.event
            if isinstance(event, Accepted | Rejected):
                self._load.answered(self.name, event.client_order_id, now)
            elif isinstance(event, Cancelled) and event.reason == CancelReason.MEMBER:
                self._load.answered(self.name, event.request_id, now)


class Load:
    """The flow on its way: which commands wait for an answer, and since when they were due."""

    def __init__(self, broker: Broker, messages: list[flow.Message]) -> None:
        self.messages = messages
        self.total = sum(len(message.commands) for message in messages)
        self.waits: list[int] = []  #: ns, in the order of the answers
        self.twice: list[str] = []
        self.last_ns = 0
        self._due: dict[tuple[str, str], int] = {}
        self._left: dict[tuple[str, str], int] = {}  # message of each command
        self._open = [len(message.commands) for message in messages]
        self.unanswered = 0  #: messages
        names = [flow.member_name(number) for number in range(MEMBERS)]
        self.members = {name: Member(broker, name, self) for name in names}
        self._connections = [member.connection for member in self.members.values()]
        self._payloads = [message.payload() for message in messages]

    def send(self, index: int, due: int) -> None:
        message = self.messages[index]
        for command in message.commands:
            key = (
                message.participant,
                command.client_order_id if isinstance(command, NewOrder) else request_id(command),
            )
            self._due[key] = due
            self._left[key] = index
        self.unanswered += 1
        self.members[message.participant].send(self._payloads[index])

    def answered(self, participant: str, name: str, now: int) -> None:
        due = self._due.pop((participant, name), 0)
        if not due:
            self.twice.append(f"{participant}/{name}")
            return
        self.waits.append(now - due)
        self.last_ns = now
        index = self._left.pop((participant, name))
        self._open[index] -= 1
        self.unanswered -= not self._open[index]

    def fast(self, window: int) -> float:
        """Everything as fast as it is answered; commands a second."""
        begin = time.perf_counter_ns()
        patience = time.monotonic() + PATIENCE
        index = done = 0
        while len(self.waits) < self.total:
            while index < len(self.messages) and self.unanswered < window:
                self.send(index, time.perf_counter_ns())
                index += 1
            turn(self._connections, 0.1)
            done, patience = self._patient(done, patience)
        return self.total / (self.last_ns - begin) * 1e9

    def paced(self, rate: int) -> float:
        """One command every 1/rate seconds, come what may; commands a second done."""
        begin = time.perf_counter_ns() + 1_000_000
        patience = time.monotonic() + PATIENCE
        index = count = done = 0
        due = begin
        while len(self.waits) < self.total:
            now = time.perf_counter_ns()
            while index < len(self.messages) and due <= now:
                self.send(index, due)
                count += len(self.messages[index].commands)
                index += 1
                due = begin + count * 1_000_000_000 // rate
            ahead = due - time.perf_counter_ns() if index < len(self.messages) else 100_000_000
            turn(self._connections, max(0, min(ahead, 100_000_000)) / 1e9)
            done, patience = self._patient(done, patience)
        return self.total / (self.last_ns - begin) * 1e9

    def _patient(self, done: int, patience: float) -> tuple[int, float]:
        if len(self.waits) != done:
            return len(self.waits), time.monotonic() + PATIENCE
        if time.monotonic() > patience:
            raise LoadFailed(f"no answer for {PATIENCE:g} s: {done:,} of {self.total:,} commands were answered")
        return done, patience

    def settle(self, expected: dict[str, int]) -> None:
        """Wait for the reports that are no answers: fills of orders that rested."""
        until = time.monotonic() + PATIENCE
        while any(len(member.reports) < expected.get(name, 0) for name, member in self.members.items()):
            if time.monotonic() > until:
                return  # the comparison says what is missing
            turn(self._connections, 0.1)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def request_id(command: Command) -> str:
    return str(getattr(command, "request_id"))  # noqa: B009 (the union has no common base that names it)


def told(directory: Path) -> tuple[flow.Truth, flow.Truth, dict[str, list[Report]]]:
    """From the log: what is right of its commands in their order, what came of them, and all reports by member."""
    judge, events = flow.Judge(), []
    book = ReportBook(window=0)

    def fold(sequence: int, time_ns: int, participant: str, command: Command, answer: list[Event]) -> None:
        if participant:
            judge.take(participant, command)
            events.append(answer)
            book.fold(sequence, time_ns, participant, answer)

    replay(directory, on_events=fold).reader.close()
    reports: dict[str, list[Report]] = {}
    for name, payload in book.flush():
        message = _decode(payload)
        assert isinstance(message, Reports)
        reports.setdefault(name, []).extend(message.reports)
    return judge.truth, flow.found(events), reports


class Case(msgspec.Struct, frozen=True):
    """One run. ``rate`` 0: as fast as it goes."""

    broker: str
    batch: int
    rate: int = 0


def run(case: Case, commands: int, window: int, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """One exchange, one broker, one load; figures and what was wrong. Raises ``Absent`` and ``LoadFailed``."""
    messages = list(flow.messages(commands, case.batch, flow.Judge(), MEMBERS))
    with tempfile.TemporaryDirectory(dir=scratch) as place, contextlib.ExitStack() as stack:
        directory = Path(place)
        start = mosquitto if case.broker == "mosquitto" else embedded
        broker = stack.enter_context(start(directory / "broker"))
        exchange = Exchange(directory / "exchange", broker)
        try:
            load = Load(broker, messages)
            stack.callback(load.close)
            pids = {"gateway": exchange.process.pid, "broker": broker.pid, "members": os.getpid()}
            before = {name: cpu_seconds(pid) for name, pid in pids.items()}
            achieved = load.paced(case.rate) if case.rate else load.fast(window)
            after = {name: cpu_seconds(pid) for name, pid in pids.items()}
        finally:
            exchange.stop()
        right, got, reports = told(directory / "exchange")
        load.settle({name: len(found) for name, found in reports.items()})  # the broker has them, if not we
        wrong = [*flow.differences(right, got), *(f"answered twice: {name}" for name in load.twice[:5])]
        if right.commands != commands:
            wrong.append(f"log: expected {commands} commands, got {right.commands}")
        for name, member in load.members.items():
            wrong += member.wrong[:5]
            if member.reports != reports.get(name, []):
                wrong.append(f"{name}: the {len(member.reports)} reports that came are not those of the log")
        used = {
            f"cpu_us_{name}": round((after[name] - value) / commands * 1e6, 2)  # type: ignore[operator]
            for name, value in before.items()
            if value is not None
        }
        answer = {"commands": commands, "messages": len(messages), "achieved": achieved, **used}
        return answer | {"percentiles": figures.percentiles(load.waits)}, wrong


def measure(
    brokers: list[str], batches: list[int], rates: dict[str, int], messages: int, commands: int, window: int,
    seconds: float, rounds: int, scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    """All figures as one JSON object."""
    wrong: list[str] = []
    absent: dict[str, str] = {}
    cases = [Case(broker, batch) for broker in brokers for batch in batches]
    cases += [Case(broker, 1, rates[broker]) for broker in brokers if seconds]
    answers: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            if case.broker in absent:
                continue
            number = round(case.rate * seconds) if case.rate else min(messages * case.batch, commands)
            try:
                answer, problems = run(case, max(1, number), window, scratch)
            except Absent as reason:
                absent[case.broker] = str(reason)
                continue
            except LoadFailed as failure:
                wrong.append(f"{case}: {failure}")
                continue
            answers[case].append(answer)
            wrong += [f"{case}: {line}" for line in problems]
    rows = []
    for case, found in answers.items():
        if found:
            row: dict[str, Any] = {
                **msgspec.structs.asdict(case),
                "commands": found[0]["commands"],
                "messages": found[0]["messages"],
                "commands_per_second": figures.spread([answer["achieved"] for answer in found], 0),
                "latency_us": figures.percentiles_over([answer["percentiles"] for answer in found]),
            }
            for name in ("gateway", "broker", "members"):
                if f"cpu_us_{name}" in found[0]:
                    row[f"cpu_us_{name}"] = figures.spread([answer[f"cpu_us_{name}"] for answer in found], 2)
            if case.rate:
                row["sustained"] = min(answer["achieved"] for answer in found) >= 0.98 * case.rate
            rows.append(row)
    return {
        "benchmark": "bus",
        "environment": machine.environment(),
        "workload": {
            "about": f"steady flow of {MEMBERS} members, MQTT 3.1.1 at QoS 1; rate: {window} messages unanswered at "
            f"a time; latency: {seconds:g} s of single commands",
            "members": MEMBERS,
            "window": window,
            "seconds": seconds,
        },
        "absent": absent,
        "rows": rows,
        "checked": "every run: each command answered once, reports dense and those of the log, trades right",
        "wrong": wrong,
    }


def show(console: Console, result: dict[str, Any]) -> None:
    def cpu(row: dict[str, Any]) -> list[str]:
        names = (f"cpu_us_{name}" for name in ("gateway", "broker"))
        return [f"{row[name]['median']:,.1f}" if name in row else "-" for name in names]

    rows = [
        [row["broker"], str(row["batch"]), *figures.cells(row["commands_per_second"]), *cpu(row)]
        for row in result["rows"]
        if not row["rate"]
    ]
    columns = ["broker", "batch", "commands/s", "least", "most", "gateway µs", "broker µs"]
    console.print(figures.table("As fast as it goes; processor time per command", columns, rows))
    names = ("p50", "p90", "p99", "p99.9", "max")
    rows = []
    for row in result["rows"]:
        if row["rate"]:
            waits = [f"{row['latency_us'][name]['median']:,.0f}" for name in names]
            rate = f"{row['rate']:,}/s{'' if row['sustained'] else ' !'}"
            rows.append([row["broker"], rate, f"{row['commands_per_second']['median']:,.0f}", *waits, *cpu(row)])
    columns = ["broker", "offered", "done/s", *names, "gateway µs", "broker µs"]
    console.print(figures.table("Single commands: µs from intended sending to the answer", columns, rows))
    console.print("Medians over rounds.  !: not kept up", soft_wrap=True)
    for broker, reason in result["absent"].items():
        console.print(f"{broker}: {reason}, not measured", style="yellow")


def main(arguments: list[str] | None = None) -> int:
    parser = figures.parser("bus", __doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--brokers", default=",".join(BROKERS), help="some of " + ",".join(BROKERS))
    parser.add_argument("--batches", type=figures.numbers, default=[1, 16, 64, 256], help="commands in a message")
    parser.add_argument("--messages", type=figures.positive, default=10_000, help="at most, in each run for the rate")
    parser.add_argument("--commands", type=figures.positive, default=200_000, help="at most, in each run for the rate")
    parser.add_argument("--window", type=figures.positive, default=256, help="messages unanswered, for the rate")
    parser.add_argument("--rate", type=figures.positive, default=2_000, help="single commands a second, mosquitto")
    parser.add_argument("--embedded-rate", type=figures.positive, default=500, help="the same, embedded broker")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run for the latency; 0: none")
    parser.add_argument("--directory", type=Path, default=machine.ROOT / "build", help="on the disk to measure")
    options = parser.parse_args(arguments)
    brokers = options.brokers.split(",")
    if unknown := [name for name in brokers if name not in BROKERS]:
        parser.error(f"expected brokers of {', '.join(BROKERS)}, got {', '.join(unknown)} - at --brokers")
    options.directory.mkdir(parents=True, exist_ok=True)
    rates = {"mosquitto": options.rate, "embedded": options.embedded_rate}
    result = measure(
        *(brokers, options.batches, rates, options.messages, options.commands, options.window),
        *(options.seconds, options.rounds, options.directory),
    )
    return figures.finish(result, show, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
