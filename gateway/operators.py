"""The operators' desk: the exchange's own people, over a topic of their own.

An operator is a login that ``dojima.toml`` names. What it asks for goes the way of every command, through sequencer and
log, with the operator's name in it, taken from the login. What must not hang on one person's slip waits for a second
operator: ``at_once`` below is the one place that says which commands that are. Everything about the wait itself is the
engine's (``engine/operators.py``), so it replays.

Reports are one row for all operators, so each sees what the others do: numbered, kept whole, and derived from the log
like members' reports. Besides the operators' own acts they hold what the exchange did to the market (days, phases,
auctions, halts), as far as it is not one member's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from engine.commands import (
    Command,
    Disconnected,
    ExchangeCommand,
    Kill,
    OperatorConfirm,
    OperatorDecline,
    OperatorRequest,
    ResumeInstrument,
    SetPhase,
    SuspendInstrument,
)
from engine.core import Engine
from engine.events import DayLimitsSet, DisplayChanged, Event, HolderSet
from engine.log import encode_commands
from gateway import config as settings
from gateway.bus import codec, topics
from gateway.bus.messages import (
    ControlReport,
    ControlReports,
    Hello,
    MessageError,
    OperatorInbound,
    RequestCommand,
    WaitingRequests,
)
from gateway.bus.port import Bus, Delivery
from gateway.clock import SECOND_NS, Clock
from gateway.sequencer import Entry
from gateway.throttle import Share, TokenBucket

#: Most reports in one message, and in one answer to ``resend_from``; an operator's program asks on.
MESSAGE_MAX: Final = 200
RESEND_MAX: Final = 5_000
#: What an operator is told to wait when the exchange itself is full.
FULL_RETRY_MS: Final = 200

#: Public data and reference data, one for each order, book or holder: read elsewhere.
_BULK: Final = (DisplayChanged, DayLimitsSet, HolderSet)

_encode: Final = msgspec.msgpack.Encoder().encode


def at_once(command: ExchangeCommand) -> bool:
    """Whether one operator is enough.

    So it is for what stops trading in a part of the market or lets it go on, and can be taken back the same minute.
    Everything else takes two: it moves the whole market, past trades, prices, or what holds for days; and so does any
    command that is not named here.
    """
    if isinstance(command, Kill):
        return bool(command.participant or command.instrument)
    return isinstance(command, SuspendInstrument | ResumeInstrument | SetPhase | Disconnected)


class Desk:
    """The operators of one exchange. ``bus`` and ``offer`` (to the sequencer) are set before the first message."""

    bus: Bus
    offer: Callable[[Entry], None]

    def __init__(self, config: settings.Operators, engine: Engine, clock: Clock, share: Share) -> None:
        self._names: Final = tuple(dict.fromkeys(config.names))
        self._engine: Final = engine
        self._clock: Final = clock
        self._share: Final = share
        self._confirm_ns: Final = config.confirm_seconds * SECOND_NS
        self._rate: Final = config.rate
        self._buckets: Final = {name: TokenBucket(config.rate, 2 * config.rate) for name in self._names}
        self._reports: Final[list[ControlReport]] = []
        self._said = 0  # how many of them
        self.has_news = False  #: ``flush`` has something to say

    # --- reports ---------------------------------------------------------------------------------------------------

    def fold(self, sequence: int, time_ns: int, event: Event) -> None:
        """Take in an event that is no member's business alone."""
        if not isinstance(event, _BULK):
            self._reports.append(ControlReport(sequence, time_ns, event))
            self.has_news = True

    def discard(self) -> None:
        """After a replay: all of it was said before."""
        self._said = len(self._reports)
        self.has_news = False

    def flush(self) -> None:
        """Tell every operator what happened since the last time."""
        for payload in self._messages(self._said, len(self._reports), resent=False):
            for name in self._names:
                self.bus.send(topics.operator(name), payload)
        self.discard()

    def greet(self) -> None:
        """The broker is there (again): everybody is told where the row stands."""
        for name in self._names:
            self.bus.send(topics.operator(name), self._hello())

    def _messages(self, start: int, end: int, *, resent: bool) -> list[bytes]:
        """The reports from index ``start`` up to ``end``."""
        return [
            _encode(ControlReports(first + 1, self._reports[first : min(first + MESSAGE_MAX, end)], resent))
            for first in range(start, end, MESSAGE_MAX)
        ]

    def _hello(self) -> bytes:
        return _encode(Hello(len(self._reports) + 1, self._engine.sequence))

    # --- what operators send ---------------------------------------------------------------------------------------

    def receive(self, delivery: Delivery) -> str:
        """One message on an operator's topic. Answers it, or takes it in; says why it was turned away, if it was."""
        name = delivery.participant.removeprefix(topics.OPERATOR)
        bucket = self._buckets.get(name)
        if bucket is None:
            text = "Expected an operator of this market, got another login"
            return self._refuse(delivery, MessageError("UNKNOWN_MEMBER", text))
        if delivery.retained:
            text = "Expected a message that was not retained: its age is unknown, nothing of it was done; send it anew"
            return self._refuse(delivery, MessageError("RETAINED", text))
        wait = bucket.take(1, self._clock.monotonic_ns())
        if wait:
            text = f"Expected at most {self._rate} messages a second; nothing of this message was taken"
            return self._refuse(delivery, MessageError("THROTTLED", text, retry_after_ms=wait))
        try:
            message = codec.decode_operator(delivery.payload)
        except codec.Refused as refused:
            return self._refuse(delivery, refused.answer)
        commands = self._commands(name, message)
        if commands:
            raw = encode_commands(commands)
            full = self._share.enter("", len(commands), len(raw))
            if full:
                text = f"Expected {full}; nothing of this message was taken"
                answer = MessageError("THROTTLED", text, "$", message.message_id, FULL_RETRY_MS)
                return self._refuse(delivery, answer)
            self.offer(Entry("", commands, raw, len(raw), delivery))
        self._answer(topics.operator(name), message)
        if not commands:
            self.bus.acknowledge((delivery,))
        return ""

    def _commands(self, name: str, message: OperatorInbound) -> list[Command]:
        """As they stand in the log: under the name that the login says."""
        commands: list[Command] = []
        for wish in message.commands:
            if isinstance(wish, RequestCommand):
                confirm_ns = 0 if at_once(wish.command) else self._confirm_ns
                commands.append(OperatorRequest(name, wish.request_id, wish.command, confirm_ns))
            else:
                kind = OperatorConfirm if wish.__struct_config__.tag == "confirm" else OperatorDecline
                commands.append(kind(name, wish.request_id, wish.operator, wish.requested_id))
        return commands

    def _answer(self, address: str, message: OperatorInbound) -> None:
        if message.waiting:
            waiting = self._engine.waiting_requests(self._clock.now_ns())
            self.bus.send(address, _encode(WaitingRequests(self._said + 1, waiting, message.message_id)))
        if message.resend_from is not None:
            start = message.resend_from - 1
            for payload in self._messages(start, min(start + RESEND_MAX, len(self._reports)), resent=True):
                self.bus.send(address, payload)
            self.bus.send(address, self._hello())

    def _refuse(self, delivery: Delivery, answer: MessageError) -> str:
        self.bus.send(delivery.participant, _encode(answer))
        self.bus.acknowledge((delivery,))
        return answer.code
