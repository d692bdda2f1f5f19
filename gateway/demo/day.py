"""The demo's story: a whole START day on real processes, and the proof at its end.

Broker, exchange and eight firms are processes of their own; this one starts them, watches, kills the exchange where it
was asked to (and starts it again whenever it dies, whoever killed it), and at the end believes nobody: it replays the
log, compares it with what each firm wrote down, and reconciles exchange and ledger.

Everything lies in one directory, which stays: the exchange's own files, ``firms/`` with each firm's journal, and what
every process said on standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import ctypes
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from engine.faults import EngineFault
from engine.log import LOG_NAME
from engine.log.replay import replay
from gateway import config as settings
from gateway.bus import link
from gateway.bus.client import Address
from gateway.bus.embedded import EXCHANGE_LOGIN, EmbeddedBroker
from gateway.client import Client, ClientError, LiveBook
from gateway.demo.audit import Audit, TokenDay
from gateway.demo.member import Progress, Start
from gateway.demo.strategy import FIRMS, LIMIT_TABLE, OPENING_UNITS, OPENING_YEN, TICK_TABLE
from gateway.demo.tokens import Token, load_tokens
from gateway.settlement import EMBEDDED, YEN, Settlement, State, account_id
from gateway.settlement.outbox import Outbox
from gateway.settlement.relay import OUTBOX_FILE

#: The day that is played, a Tuesday; T+2 is Thursday the 26th.
START_OF_DAY: Final = "2026-11-24T08:59:00+09:00"
TRADING_DATE: Final = 20261124
OPENS: Final = 9 * 3600
CLOSES: Final = 15 * 3600
#: START's eight states at made-up hours: non-cancel periods long enough to be seen at this speed.
SESSIONS: Final = [
    ("09:00:00", "PreOpen"),
    ("11:10:00", "PreOpenNCP"),
    ("11:30:00", "OpeningAuction"),
    ("11:30:00", "Break"),
    ("12:10:00", "PreClose"),
    ("14:40:00", "PreCloseNCP"),
    ("15:00:00", "ClosingAuction"),
    ("15:00:00", "Closed"),
]
SETTLEMENT_DATES: Final = 3  #: the trading day, T+1 and T+2
#: Tokens whose indicative price is shown while it moves.
SHOWN: Final = 4
#: Ends of the exchange by its own will, one after the other, after which it is not started again.
FAILURES_MAX: Final = 3
#: Seconds in which a broker that runs already answers.
KNOCK_MAX: Final = 10
_JST_NS: Final = 9 * 3600 * 1_000_000_000


class Options(Struct):
    directory: Path
    seed: int = 1
    seconds: int = 24  #: real length of the trading day
    crash_at: list[int] = []  #: percent of the day
    broker: str = ""  #: URL with the exchange's login; "": an embedded one
    secrets: Path | None = None  #: a file per login with its password, when the broker wants one
    tokens: int = 0  #: so many of the file's tokens; 0: all
    busy: int = 100  #: orders in percent of the usual


class Check(Struct):
    """One of the things that must be true at the end."""

    name: str
    agrees: bool
    text: str


class Summary(Struct):
    agrees: bool
    checks: list[Check]
    tokens: list[TokenDay]
    commands: dict[str, int]
    accepted: int
    refused: dict[str, int]
    repeats: int
    trades: int
    units: int
    value: int  #: yen
    instructions: dict[str, int]
    settled: int
    crashes: int
    restarts: int
    resent: int
    late: int
    sequence: int
    seconds: float
    directory: str
    log: str
    problems: list[str]
    notices: list[str]  #: tokens that do not settle where their register is kept


class DemoFailed(Exception):
    """The day could not be played to its end. Says what happened and where to look."""


class Watched(Struct):
    """What is known of one token while the day runs."""

    code: str
    indicative: list[int] = []  #: prices as they moved
    volume: int = 0
    surplus: int = 0
    phase: str = ""
    last: int = 0


Tell = Callable[..., None]
"""``tell(event, **fields)``: what happens, for whoever shows it."""


class Day:
    """One run. ``play`` does everything; the attributes say how far it is."""

    def __init__(self, options: Options, tell: Tell = lambda event, **fields: None) -> None:
        self.options = options
        self.tell = tell
        self.tokens: list[Token] = load_tokens()[: options.tokens or None]
        self.factor = max(1, (CLOSES - OPENS) // options.seconds)
        self.phase = "Closed"
        self.percent = 0  #: of the trading day
        self.firms: dict[str, Progress] = {firm: Progress(firm) for firm in FIRMS}
        self.watched: dict[str, Watched] = {}
        self.auctions: dict[str, list[tuple[int, int]]] = {}
        self.settled = 0
        self.instructions = 0
        self.crashes = 0  #: asked for
        self.restarts = 0
        self.stage = "preparing"
        self._up = asyncio.Event()
        self._ended = asyncio.Event()  # the schedule has nothing more to do
        self._finishing = False
        self._market: tuple[int, float] = (0, 0.0)  # market time last heard of, and when
        self._frozen = True  # no exchange, no market time
        self._exchange: asyncio.subprocess.Process | None = None
        self._crashes = sorted(options.crash_at)
        self._began = time.monotonic()

    # --- the story ---------------------------------------------------------------------------------------------------

    async def play(self) -> Summary:
        """Raises ``DemoFailed``; what it started has ended when it returns or raises."""
        options = self.options
        directory = options.directory
        if (directory / LOG_NAME).exists():
            raise DemoFailed(
                f"Expected a directory without a market, {directory} has one: name another with --dir, or look at it "
                f"with `dojima replay {directory}` and `dojima ledger {directory}`"
            )
        (directory / "firms").mkdir(parents=True, exist_ok=True)
        await self._prepare()
        async with contextlib.AsyncExitStack() as stack:
            url, exchange_url = options.broker, options.broker
            if not options.broker:
                self.stage = "starting the broker"
                broker = await stack.enter_async_context(await EmbeddedBroker.start())
                url, exchange_url = broker.url, broker.exchange_url
            address = Address.parse(exchange_url)
            if not address.user:
                address = msgspec.structs.replace(address, user=EXCHANGE_LOGIN)
            if not address.password:
                address = msgspec.structs.replace(address, password=self._password(address.user))
            if options.broker:
                await self._knock(address)
            self.tell("broker", url=url if not options.broker else str(address))
            members_url = str(msgspec.structs.replace(address, user="", password=""))
            self.stage = "starting the firms"
            firms = [await stack.enter_async_context(self._firm(firm, members_url)) for firm in FIRMS]
            await self._until(lambda: all(self.firms[firm].connected for firm in FIRMS), firms)
            self.stage = "starting the exchange"
            exchange = asyncio.create_task(self._keep_exchange(address), name="exchange")
            stack.push_async_callback(self._end_task, exchange)
            viewer = asyncio.create_task(self._view(members_url), name="viewer")
            stack.push_async_callback(self._end_task, viewer)
            clock = asyncio.create_task(self._follow_clock(), name="clock")
            stack.push_async_callback(self._end_task, clock)
            waiting = [*firms, exchange, viewer]
            self.stage = "trading"
            await self._until(lambda: all(progress.done for progress in self.firms.values()), waiting)
            self.stage = "settling"
            await self._until(self._ended.is_set, waiting)
            await self._until_settled(waiting)
            self._finishing = True
            await self._end_exchange()
        self.stage = "checking"
        return await self._check()

    async def _prepare(self) -> None:
        """Configuration, instruments, and what each firm brings to the ledger."""
        self.stage = "preparing"
        directory = self.options.directory
        with (directory / "instruments.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["instrument", "description", "reference_price", "units_outstanding", "ledger"])
            for token in self.tokens:
                ledger = token.ledger_platform.lower().replace(" / ", "-").replace(" ", "-") or EMBEDDED
                row = [token.code, token.description, token.reference_price, token.units_outstanding, ledger]
                writer.writerow(row)
        config = settings.Config(
            clock=settings.Clock(factor=self.factor, start=START_OF_DAY, skip_idle=True),
            schedule=settings.Schedule(sessions={"START": SESSIONS}, open_days=1, days=SETTLEMENT_DATES),
            instruments=settings.Instruments(file="instruments.csv", tick_table=TICK_TABLE, limit_table=LIMIT_TABLE),
        )
        (directory / settings.CONFIG_NAME).write_text(settings.to_toml(config), encoding="utf-8")
        begin = settings.start_ns(START_OF_DAY)
        settlement = await Settlement.open(directory, market=config.market, clock=lambda: begin)
        try:
            openings = [
                (account_id(firm, ""), asset, quantity, f"demo-{firm}-{asset}")
                for firm in FIRMS
                for asset, quantity in [(YEN, OPENING_YEN), *((token.code, OPENING_UNITS) for token in self.tokens)]
            ]
            await settlement.fund_all(openings)
        finally:
            await settlement.close()
        self.tell("prepared", directory=str(directory), tokens=len(self.tokens), firms=list(FIRMS))

    async def _knock(self, address: Address) -> None:
        """A broker of somebody else's: better one word now than nine processes that look for it for a minute."""
        try:
            url = str(msgspec.structs.replace(address, user=""))
            async with asyncio.timeout(KNOCK_MAX), link.connect(url, address.user, address.password):
                pass
        except TimeoutError:
            raise DemoFailed(f"Expected a broker at {address}, got no answer within {KNOCK_MAX} s") from None
        except (link.LinkDown, link.LinkRefused) as error:
            raise DemoFailed(
                f"Expected a broker that lets {address.user!r} in, got: {error}. Is it running, and does --secrets "
                f"name the directory with the passwords? Without --broker the demo starts one of its own"
            ) from None

    def _password(self, login: str) -> str:
        if self.options.secrets is None:
            return ""
        return (self.options.secrets / login).read_text(encoding="utf-8").strip()

    async def _until(self, condition: Callable[[], bool], tasks: list[asyncio.Task[None]]) -> None:
        """Wait for something to become true; a process that ends before its time ends the demo."""
        while not condition():
            _raise_ended(tasks)
            if time.monotonic() - self._began > 120 + 4 * self.options.seconds:
                raise DemoFailed(f"The demo hangs while {self.stage}: see the *.err files in {self.options.directory}")
            await asyncio.sleep(0.02)

    async def _end_task(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    # --- the firms ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _firm(self, firm: str, url: str) -> AsyncIterator[asyncio.Task[None]]:
        folder = self.options.directory / "firms"
        start = Start(
            firm=firm,
            url=url,
            seed=self.options.seed,
            codes=[token.code for token in self.tokens],
            journal=str(folder / f"{firm}.journal"),
            busy=self.options.busy,
            phase_seconds=self._phase_seconds(),
            parent=os.getpid(),
        )
        with (folder / f"{firm}.err").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gateway.demo.member",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "DOJIMA_PASSWORD": self._password(firm)},
                start_new_session=True,  # Ctrl-C is for the demo, which ends its children
            )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(start) + b"\n")
        listening = asyncio.create_task(self._listen(firm, process), name=f"firm {firm}")
        try:
            yield listening
        finally:
            await self._end_task(listening)
            await end(process)

    async def _listen(self, firm: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.firms[firm] = msgspec.json.decode(line, type=Progress)
        status = await process.wait()
        if not self.firms[firm].done:
            path = self.options.directory / "firms" / f"{firm}.err"
            raise DemoFailed(f"Firm {firm} ended before the day did, with status {status}: {tail(path)}")
        await asyncio.Event().wait()

    def _phase_seconds(self) -> dict[str, float]:
        times = [(settings.seconds_of_day(at), label) for at, label in SESSIONS]
        return {label: (after - at) / self.factor for (at, label), (after, _) in itertools.pairwise(times)}

    # --- the exchange ------------------------------------------------------------------------------------------------

    async def _keep_exchange(self, address: Address) -> None:
        """Run ``dojima run``; whenever it dies, whoever killed it, start it again."""
        directory = self.options.directory
        failures = 0
        while not self._finishing:
            with (directory / "exchange.err").open("ab") as errors:
                process = self._exchange = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "gateway.cli.main",
                    "run",
                    "--dir",
                    str(directory),
                    "--broker",
                    str(address),
                    "--json",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    # By the environment, not by arguments: those every user of the machine can read.
                    env={**os.environ, settings.PASSWORD_VARIABLE: address.password},
                    start_new_session=True,
                    preexec_fn=ends_with_parent(),
                )
            try:
                await self._follow_exchange(process)
                status = await process.wait()
            finally:
                self._down()
                await end(process)
            if self._finishing:
                return
            if status > 0:
                failures += 1
                if failures >= FAILURES_MAX:
                    raise DemoFailed(
                        f"The exchange ended {failures} times by itself, last with status {status}: "
                        f"{tail(directory / 'exchange.err')}"
                    )
            self.restarts += 1
            self.tell("exchange_ended", status=status, percent=self.percent, phase=self.phase)

    async def _follow_exchange(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said: dict[str, Any] = json.loads(line)
            kind = said.get("event")
            if kind == "ready":
                self._market = (self._market[0], time.monotonic())
                self._frozen = False
                self._up.set()
                self.tell("exchange_ready", sequence=said["sequence"], pid=process.pid, restarts=self.restarts)
            elif kind == "phase":
                self._heard(said["time_ns"])
                if said["phase"] != self.phase:
                    self.phase = said["phase"]
                    self.tell("phase", phase=self.phase, percent=self.percent)
            elif kind == "auction":
                self.auctions.setdefault(said["phase"], []).append((said["price"], said["volume"]))
            elif kind == "day":
                self.tell("day", date=said["date"])
            elif kind == "schedule_ended":
                self._ended.set()

    def _down(self) -> None:
        self._market = (self._market_ns(), time.monotonic())
        self._frozen = True
        self._up.clear()
        self._exchange = None

    async def _end_exchange(self) -> None:
        process = self._exchange
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(20):
                    await process.wait()
            except TimeoutError:
                raise DemoFailed("The exchange did not end within 20 s of being asked to") from None
            if (process.returncode or 0) > 0:  # a kill from outside at this moment costs nothing any more
                path = self.options.directory / "exchange.err"
                raise DemoFailed(f"The exchange ended with status {process.returncode}: {tail(path)}")

    # --- time --------------------------------------------------------------------------------------------------------

    def _heard(self, time_ns: int) -> None:
        if time_ns > self._market_ns():
            self._market = (time_ns, time.monotonic())

    def _market_ns(self) -> int:
        """Market time now, as well as one can tell from outside."""
        time_ns, at = self._market
        return time_ns if self._frozen or not time_ns else time_ns + int((time.monotonic() - at) * 1e9) * self.factor

    async def _follow_clock(self) -> None:
        """The percent of the day that has passed; at those that were named the exchange is killed."""
        while True:
            if self._market[0] and self.percent < 100:
                now = self._market_ns() + _JST_NS
                second = now // 1_000_000_000 % 86_400 if now // 86_400_000_000_000 == _DAY else 86_400
                share = max(0, min(99, (second - OPENS) * 100 // (CLOSES - OPENS)))
                self.percent = max(self.percent, share)
                if self.phase == "Closed" and self.auctions.get("ClosingAuction"):
                    self.percent = 100
            if self._crashes and self._up.is_set() and self.percent >= self._crashes[0]:
                self._crashes.pop(0)
                self._kill()
            await asyncio.sleep(0.01)

    def _kill(self) -> None:
        process = self._exchange
        if process is not None:
            self._up.clear()
            self.crashes += 1
            self.tell("crash", percent=self.percent, phase=self.phase, pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)

    # --- what is shown -----------------------------------------------------------------------------------------------

    async def _view(self, url: str) -> None:
        """Follow a few tokens as anybody can who reads the market data."""
        shown = sorted(self.tokens, key=lambda token: -token.size)[:SHOWN]
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                # Any login reads the market data; this one exists on a broker with passwords as well.
                Client(url, FIRMS[0], self._password(FIRMS[0]), market_data_only=True, timeout=60.0)
            )
            async with asyncio.TaskGroup() as group:
                for token in shown:
                    group.create_task(self._watch(client, token.code))

    async def _watch(self, client: Client, code: str) -> None:
        try:
            book: LiveBook = await client.book(code)
        except ClientError as error:
            raise DemoFailed(f"The market data of {code} did not come: {error}") from error
        watched = self.watched[code] = Watched(code)
        async for _ in book.changes():
            self._heard(book.time_ns)
            if book.indicative_price and [book.indicative_price] != watched.indicative[-1:]:
                watched.indicative.append(book.indicative_price)
                self.tell("indicative", instrument=code, price=book.indicative_price, volume=book.indicative_volume)
            watched.volume, watched.surplus = book.indicative_volume, book.indicative_surplus
            watched.phase, watched.last = book.phase, book.last_price
        await asyncio.Event().wait()

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _until_settled(self, tasks: list[asyncio.Task[None]]) -> None:
        """T+2 has come: wait until no instruction is under way any more."""
        outbox = await Outbox.open_read_only(self.options.directory / OUTBOX_FILE)
        try:
            while True:
                counts = await outbox.counts()
                progress = await outbox.progress()
                self.instructions = sum(counts.values())
                self.settled = sum(count for (_, state), count in counts.items() if state == State.SETTLED)
                if progress.business_date > TRADING_DATE + 1 and all(state in _FINAL for _, state in counts):
                    return
                _raise_ended(tasks)
                if time.monotonic() - self._began > 120 + 4 * self.options.seconds:
                    raise DemoFailed(f"Settlement hangs: {counts}; see `dojima ledger {self.options.directory}`")
                await asyncio.sleep(0.1)
        finally:
            await outbox.close()

    async def _check(self) -> Summary:
        directory = self.options.directory
        audit = Audit()
        checks: list[Check] = []
        sequence = 0
        try:
            result = await asyncio.to_thread(replay, directory, None, audit.take)
            result.reader.close()
            sequence = result.sequence
            checks.append(
                Check("replay", True, f"{sequence:,} commands, {result.marks} digest marks, the same market again")
            )
        except EngineFault as error:
            checks.append(Check("replay", False, str(error)))
        compared = sum(audit.compare(firm, directory / "firms" / f"{firm}.journal") for firm in FIRMS)
        checks.append(
            Check(
                "reports",
                audit.found == 0,
                f"{compared:,} reports that {len(FIRMS)} firms wrote down are the log's, none missing, none double"
                if audit.found == 0
                else f"{audit.found} differences between what firms were told and the log",
            )
        )
        settlement = await Settlement.open(directory, market=settings.Config().market, clock=self._market_ns)
        try:
            settlement.verify_log(sequence)
            report = await settlement.reconcile()
            summary = await settlement.summary()
        finally:
            await settlement.close()
        trades = sum(token.trades for token in audit.tokens.values())
        settled = summary.count(State.SETTLED)
        checks.append(
            Check(
                "settlement",
                settled == trades and trades > 0,
                f"{settled:,} of {trades:,} trades settled on the ledger, delivery versus payment",
            )
        )
        positions = sum(len(each.positions) for each in report.ledgers)
        checks.append(
            Check(
                "reconciliation",
                report.agrees,
                f"{positions} positions of exchange and ledger agree"
                if report.agrees
                else f"{len(report.breaks)} breaks: " + "; ".join(each.text for each in report.breaks[:5]),
            )
        )
        states: dict[str, int] = {}
        for counts in summary.states.values():
            for state, count in counts.items():
                states[str(state)] = states.get(str(state), 0) + count
        return Summary(
            agrees=all(check.agrees for check in checks),
            checks=checks,
            tokens=sorted(audit.tokens.values(), key=lambda token: -token.value),
            commands=dict(audit.commands),
            accepted=sum(len(orders) for orders in audit.accepted.values()),
            refused=dict(audit.refused.most_common()),
            repeats=audit.repeats,
            trades=trades,
            units=sum(token.volume for token in audit.tokens.values()),
            value=sum(token.value for token in audit.tokens.values()),
            instructions=states,
            settled=settled,
            crashes=self.crashes,
            restarts=self.restarts,
            resent=sum(progress.resent for progress in self.firms.values()),
            late=sum(progress.late for progress in self.firms.values()),
            sequence=sequence,
            seconds=round(time.monotonic() - self._began, 1),
            directory=str(directory),
            log=str(directory / LOG_NAME),
            problems=audit.problems,
            notices=summary.notices,
        )


_FINAL: Final = frozenset({State.SETTLED, State.CANCELLED, State.REJECTED, State.ABORTED, State.EXPIRED})
#: The trading date in days since the epoch.
_DAY: Final = (settings.start_ns(START_OF_DAY) + _JST_NS) // 86_400_000_000_000

_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork
_PR_SET_PDEATHSIG: Final = 1


def ends_with_parent() -> Callable[[], None] | None:
    """For ``preexec_fn``: the kernel kills the child when this process dies, however it dies (Linux)."""
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died between fork and here
            os._exit(1)

    return ask_the_kernel


def _raise_ended(tasks: list[asyncio.Task[None]]) -> None:
    """None of these ends by itself but by what it raises."""
    for task in tasks:
        if task.done():
            task.result()


async def end(process: asyncio.subprocess.Process) -> None:
    """See that a child is gone."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()


def tail(path: Path, lines: int = 12) -> str:
    """The end of what a process said on standard error."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return str(error)
    return "\n".join(text.strip().splitlines()[-lines:]) or f"it said nothing in {path}"
