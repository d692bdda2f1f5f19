"""The operator's client: the control of a market in the hands of a Python program.

    async with OperatorClient("mqtts://broker", "olga", "…") as olga:
        await olga.request(SuspendInstrument("KDX-2107"))              # done, or Refused
        asked = await olga.request(SetReferencePrice("KDX-2107", 99_000))
        if isinstance(asked, OperatorRequested):                       # weighty: waits for a second operator
            acted = await olga.outcome(asked)

    async with OperatorClient("mqtts://broker", "omar", "…") as omar:
        for asked in await omar.waiting():
            await omar.confirm(asked.operator, asked.request_id)

As in ``gateway.client``, what a program asks for is sent under an id until it is answered, and the exchange does
nothing twice; reports are numbered without holes, and what is missing is asked for again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import Struct

from engine.commands import PARTICIPANT_PATTERN, ExchangeCommand
from engine.events import Event, OperatorActed, OperatorDeclined, OperatorRefused, OperatorRequested
from engine.types import Reason
from gateway.bus import topics
from gateway.bus.client import Address
from gateway.bus.link import Link, connect, keep_connected
from gateway.bus.messages import (
    Confirm,
    ControlReport,
    ControlReports,
    Decline,
    Hello,
    MessageError,
    OperatorInbound,
    OperatorOutbound,
    RequestCommand,
    WaitingRequests,
)
from gateway.client import (
    RESEND_AFTER,
    RESEND_AFTER_MAX,
    AnotherMarket,
    BadCommand,
    CannotConnect,
    ClientError,
    Closed,
    MessageRefused,
    NotAnswering,
    Stream,
    failure_of,
)

log = logging.getLogger("dojima.operator")

#: Messages of reports kept while a hole before them is open; more are dropped and come with the resend.
AHEAD_MAX: Final = 1_000

Outcome = OperatorActed | OperatorRefused | OperatorDeclined
"""How a request ends that waited for a second operator. It may also end by waiting too long, which nobody says."""


class RequestRefused(ClientError):
    """The exchange refused what an operator asked for: ``reason``, ``text``, ``event``."""

    def __init__(self, event: OperatorRefused) -> None:
        super().__init__(f"{event.reason.name}: {event.text}")
        self.event = event
        self.reason: Reason = event.reason
        self.text = event.text


class NumberedControl(Struct, frozen=True, gc=False):
    """A report with its number in the operators' row, dense from 1."""

    number: int
    sequence: int  #: of the command it follows from
    time_ns: int
    event: Event


class _Ask:
    """Something that is sent until it is answered."""

    def __init__(self, message: OperatorInbound, wait: float) -> None:
        self.message = message
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.due = 0.0
        self.wait = wait


class OperatorClient:
    """An operator's connection to the exchange. See the module for an example.

    ``start_at`` is the first report to read; 0: from now on. ``link`` makes a connection, for tests.
    """

    def __init__(
        self,
        url: str,
        operator: str,
        password: str = "",
        *,
        protocol: int = 4,
        resend_after: float = RESEND_AFTER,
        timeout: float = 30.0,
        start_at: int = 0,
        link: Callable[[], AbstractAsyncContextManager[Link]] | None = None,
    ) -> None:
        if not re.fullmatch(PARTICIPANT_PATTERN, operator):
            raise BadCommand(f"Expected an operator as {PARTICIPANT_PATTERN}, got {operator!r}")
        if link is None:
            try:
                Address.parse(url)
            except ValueError as error:
                raise BadCommand(str(error)) from None
        self.url = url
        self.operator = operator
        self.next_report = start_at  #: number of the next report to handle; 0: not known yet
        self.last_report = 0  #: number of the newest report that the exchange is known to have given
        self._connect = link or (lambda: connect(url, operator, password, protocol=protocol))
        self._resend_after = resend_after
        self._timeout = timeout
        self._prefix = f"{int(time.time() * 1000):x}-{secrets.token_hex(2)}"
        self._count = itertools.count(1)
        self._asks: dict[str, _Ask] = {}  # by message id, which for a command is its id
        self._outcomes: dict[tuple[str, str], asyncio.Future[Outcome]] = {}
        self._ahead: dict[int, ControlReports] = {}
        self._streams: list[Stream[NumberedControl]] = []
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._failure: ClientError | None = None
        self._trouble = ""
        self._connected = False
        self._decode = msgspec.msgpack.Decoder(OperatorOutbound).decode
        self._encode = msgspec.msgpack.Encoder().encode

    # --- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect. Raises ``CannotConnect``, ``NotAnswering``, ``MessageRefused`` (not an operator of this market)."""
        self._runner = asyncio.create_task(self._run(), name=f"dojima operator {self.operator}")
        try:
            await self.waiting()  # whoever is answered is known, and knows where the row of reports stands
        except BaseException as error:
            await self._stop()
            if isinstance(error, NotAnswering) and not self._connected:
                raise CannotConnect(
                    f"No connection to the broker at {self.url} within {self._timeout:g} s: "
                    f"{self._trouble or 'no answer'}. Is a broker running there?"
                ) from None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        self._fail(Closed("the client was closed; what was unanswered may or may not have reached the market"))

    def _fail(self, error: ClientError) -> None:
        if self._failure is None:
            self._failure = error
        for future in [*(ask.future for ask in self._asks.values()), *self._outcomes.values()]:
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody has to look at it
        for stream in self._streams:
            stream.end(None if isinstance(error, Closed) else error)

    async def _run(self) -> None:
        """Keep a connection; whatever ends that is told to all who wait, and to whoever asks next."""
        try:
            await keep_connected(self._connect, self._begin, self._read, self._write, lost=self._lost)
        except Exception as error:
            self._fail(failure_of(error, self.operator))

    async def _begin(self, link: Link) -> None:
        await link.subscribe(topics.outbound(topics.operator(self.operator)), 1)
        self._connected = True
        for ask in self._asks.values():
            ask.due = 0.0
        if self.next_report:
            self._want_resend()

    def _lost(self, why: str, delay: float) -> None:
        self._trouble = why
        log.warning("%s: no connection to %s (%s); again in %.1f s", self.operator, self.url, why, delay)

    # --- what an operator does ---------------------------------------------------------------------------------------

    async def request(self, command: ExchangeCommand, request_id: str = "") -> OperatorActed | OperatorRequested:
        """Ask for a command: done (``OperatorActed``), or waiting for a second operator (``OperatorRequested``).

        Raises ``RequestRefused``, ``MessageRefused``, ``NotAnswering``.
        """
        answer = await self._send(RequestCommand(request_id or self.next_id(), command))
        assert isinstance(answer, OperatorActed | OperatorRequested), answer
        return answer

    async def confirm(self, requested_by: str, requested_id: str) -> OperatorActed:
        """Agree to another operator's request. Raises as ``request`` does."""
        answer = await self._send(Confirm(self.next_id(), requested_by, requested_id))
        assert isinstance(answer, OperatorActed), answer
        return answer

    async def decline(self, requested_by: str, requested_id: str) -> OperatorDeclined:
        """Take one's own request back, or decline another operator's. Raises as ``request`` does."""
        answer = await self._send(Decline(self.next_id(), requested_by, requested_id))
        assert isinstance(answer, OperatorDeclined), answer
        return answer

    async def waiting(self) -> list[OperatorRequested]:
        """What a second operator can confirm now, oldest first."""
        found: list[OperatorRequested] = await self._ask(OperatorInbound(message_id=self.next_id(), waiting=True))
        return found

    async def outcome(self, asked: OperatorRequested) -> Outcome:
        """How a request ended that waited. Nobody says that it has waited too long: ``until_ns`` tells when it will."""
        self._check()
        return await asyncio.shield(self._outcome((asked.operator, asked.request_id)))

    def _outcome(self, key: tuple[str, str]) -> asyncio.Future[Outcome]:
        return self._outcomes.setdefault(key, asyncio.get_running_loop().create_future())

    def reports(self) -> Stream[NumberedControl]:
        """All reports from now on (from ``start_at``, if opened before entering), each once and in order."""
        self._check()
        stream: Stream[NumberedControl] = Stream(on_close=self._streams.remove)
        self._streams.append(stream)
        return stream

    def next_id(self) -> str:
        return f"{self._prefix}-{next(self._count)}"

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _send(self, wish: RequestCommand | Confirm | Decline) -> Event:
        message = OperatorInbound(message_id=wish.request_id, commands=[wish])
        try:
            msgspec.msgpack.decode(self._encode(message), type=OperatorInbound)
        except (msgspec.ValidationError, OverflowError, TypeError) as error:
            raise BadCommand(str(error)) from None
        answer: Event = await self._ask(message)
        if isinstance(answer, OperatorRefused):
            raise RequestRefused(answer)
        return answer

    async def _ask(self, message: OperatorInbound) -> Any:
        self._check()
        ask = self._asks[message.message_id] = _Ask(message, self._resend_after)
        self._wake.set()
        try:
            async with asyncio.timeout(self._timeout):
                return await ask.future
        except TimeoutError:
            raise NotAnswering(
                f"The exchange did not answer {self.operator} within {self._timeout:g} s. Is `dojima run` up?"
            ) from None
        finally:
            self._asks.pop(message.message_id, None)

    # --- the wire ----------------------------------------------------------------------------------------------------

    async def _write(self, link: Link) -> None:
        topic = topics.inbound(topics.operator(self.operator))
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            for ask in list(self._asks.values()):
                if ask.due <= loop.time() and not ask.future.done():
                    ask.due = loop.time() + ask.wait
                    ask.wait = min(ask.wait * 2, RESEND_AFTER_MAX)
                    await link.publish(topic, self._encode(ask.message))
            times = [ask.due for ask in self._asks.values() if not ask.future.done()]
            try:
                async with asyncio.timeout_at(min(times) if times else None):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _read(self, link: Link) -> None:
        topic = topics.outbound(topics.operator(self.operator))
        async for name, payload, _ in link.messages():
            if name != topic:
                continue
            try:
                message = self._decode(payload)
            except msgspec.DecodeError as error:
                log.error("%s: %s carried something that is not of the contract: %s", self.operator, topic, error)
                continue
            if isinstance(message, ControlReports):
                self._on_reports(message)
            elif isinstance(message, WaitingRequests):
                self._on_waiting(message)
            elif isinstance(message, Hello):
                if self.next_report and message.next_report > self.next_report:
                    self._want_resend()
                elif message.next_report < self.next_report:
                    raise AnotherMarket(
                        f"The exchange will give report {message.next_report} next, this client has read up to "
                        f"{self.next_report - 1}: that is another market, or its log was lost"
                    )
                else:
                    self._asks.pop("resend", None)
            else:
                self._on_error(message)

    def _want_resend(self) -> None:
        """Ask for the reports from the next one on, unless that is under way."""
        message = OperatorInbound(message_id="resend", resend_from=self.next_report)
        asked = self._asks.get("resend")
        if asked is None or asked.message != message:
            self._asks["resend"] = _Ask(message, self._resend_after)
            self._wake.set()

    def _on_waiting(self, message: WaitingRequests) -> None:
        self.last_report = max(self.last_report, message.next_report - 1)
        if not self.next_report:
            self.next_report = message.next_report
            for first in sorted(self._ahead):
                self._on_reports(self._ahead.pop(first))
        elif message.next_report > self.next_report:
            self._want_resend()
        self._settle(message.message_id, message.requests)

    def _on_reports(self, message: ControlReports) -> None:
        if not self.next_report or message.first > self.next_report:
            if len(self._ahead) < AHEAD_MAX:
                self._ahead[message.first] = message
            if self.next_report:
                self._want_resend()
            return
        for report in message.reports[self.next_report - message.first :]:
            self._take(report)
        while self._ahead and (first := min(self._ahead)) <= self.next_report:
            self._on_reports(self._ahead.pop(first))

    def _take(self, report: ControlReport) -> None:
        event, number = report.event, self.next_report
        self.last_report = max(self.last_report, number)
        self.next_report += 1
        if isinstance(event, OperatorRequested | OperatorActed | OperatorRefused | OperatorDeclined):
            if event.operator == self.operator:
                self._settle(event.request_id, event)
            if isinstance(event, OperatorActed | OperatorRefused) and event.confirmed_by == self.operator:
                self._settle(event.confirm_id, event)
            if isinstance(event, OperatorDeclined):
                self._end((event.requested_by, event.requested_id), event)
            elif not isinstance(event, OperatorRequested):
                self._end((event.operator, event.request_id), event)
        for stream in self._streams:
            stream.push(NumberedControl(number, report.sequence, report.time_ns, event))

    def _settle(self, message_id: str, answer: Any) -> None:
        ask = self._asks.get(message_id)
        if ask is not None and not ask.future.done():
            ask.future.set_result(answer)

    def _end(self, key: tuple[str, str], outcome: Outcome) -> None:
        future = self._outcome(key)
        if not future.done():
            future.set_result(outcome)

    def _on_error(self, error: MessageError) -> None:
        if error.code == "UNKNOWN_MEMBER":
            raise MessageRefused(error)
        ask = self._asks.get(error.message_id)
        if error.code == "THROTTLED":
            for each in self._asks.values():
                each.due = asyncio.get_running_loop().time() + max(error.retry_after_ms, 10) / 1000
            self._wake.set()
        elif error.code == "RETAINED":
            pass  # sent again when it is due
        elif ask is None:
            log.error("%s: %s: %s - at `%s`", self.operator, error.code, error.text, error.place)
        elif not ask.future.done():
            ask.future.set_exception(MessageRefused(error))
