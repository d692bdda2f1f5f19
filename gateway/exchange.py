"""The gateway around one engine, with log, bus and clock handed in.

Tests, notebooks and the simulator run an ``Exchange`` in one process on a ``MemoryBus``; ``service.serve`` runs it on
files and a real broker. It admits and answers members, carries what they want to the sequencer and what became of it
back, and lets the schedule move the phases.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal, Protocol

import msgspec

from engine.commands import (
    PARTICIPANT_PATTERN,
    Command,
    Disconnected,
    ExchangeCommand,
    ListInstrument,
    MassCancel,
    SetCalendar,
    SetLimitTable,
    SetQuoteTable,
    SetTickTable,
)
from engine.core import Engine
from engine.events import (
    AuctionUncrossed,
    DayStarted,
    Event,
    InstrumentSetAside,
    OperatorActed,
    OperatorDeclined,
    OperatorRefused,
    OperatorRequested,
    PhaseChanged,
    ReferenceDataSet,
    Rejected,
)
from engine.log import Header, Log, Storage
from engine.log.replay import replay
from engine.wire import WrittenEvent, plain
from gateway import config as settings
from gateway.bus import codec, topics
from gateway.bus.messages import MessageError, OpenOrder, OpenOrders, Status
from gateway.bus.port import Bus, Delivery
from gateway.clock import Clock, Draw, draw
from gateway.config import Config, ConfigError
from gateway.copies import Copies
from gateway.holidays import business_calendar
from gateway.journal import DiskJournal
from gateway.marketdata import MarketDataBook, Message
from gateway.operators import Desk
from gateway.orderfeed import OrderFeed
from gateway.presence import SESSIONS_MAX, Sessions
from gateway.reports import ReportBook, derive, hello
from gateway.schedule import Schedule
from gateway.sequencer import Entry, Sequencer
from gateway.settlement.adapter import Instruction
from gateway.settlement.instructions import owner
from gateway.throttle import Share, TokenBucket

logger = logging.getLogger("dojima")

#: Most open orders in one message.
OPEN_ORDERS_MAX: Final = 1_000
#: Of so many open orders a mass cancel takes as long to look at each as one order takes to carry out.
WALKED_PER_COMMAND: Final = 10
#: Longest message in which a session says that it is here or gone, in bytes.
PRESENCE_MAX: Final = 200
#: How often held-back snapshots and the waiting schedule are looked at, in seconds.
TICK: Final = 0.1
#: Seconds between two words about how much was done.
STATUS_EVERY: Final = 10
#: What a member is told to wait when the exchange itself is full.
FULL_RETRY_MS: Final = 200
#: Bytes of log between two words about the progress of a replay.
PROGRESS_BYTES: Final = 8 * 1024 * 1024
#: Bytes that take as long to read, be they ever so odd, as a command takes to carry out.
COMMAND_BYTES: Final = 32
#: Refusals that one sender is told of, a second and at once: each is a message at QoS 1 behind which others' reports
#: wait, and too many of them cost the connection. Beyond that a message goes unanswered, as if the network had lost it.
REFUSALS: Final = 1_000
REFUSALS_BURST: Final = 2_000
#: A message that is refused is read once more for its id: each further so many bytes count as a refusal more.
REFUSAL_BYTES: Final = 1_024
#: What a member is told to wait when its old reports could not be read.
DERIVE_RETRY_MS: Final = 1_000
#: Old reports derived from the log at the same time, in all.
DERIVING_MAX: Final = 2

Say = Callable[..., None]
"""``say(event, **fields)``: tells the person or program that watches. Fields are values that JSON knows."""
Derive = Callable[[str, int, int], Awaitable[list[bytes]]]
"""(participant, first, count): messages with old reports."""

_is_participant: Final = re.compile(PARTICIPANT_PATTERN).fullmatch  # match lets "alfa\n" through
_encode: Final = msgspec.msgpack.Encoder().encode


def open_log(config: Config, storage: Storage, clock: Clock) -> Log:
    """The order log of a place, locked; a new one if there is none.

    Raises ``engine.log.DirectoryInUse`` and ``engine.faults.LogDamaged``.
    """
    header = Header(
        build=_version(),
        configuration_digest=blake2b(settings.to_toml(config).encode(), digest_size=32).digest(),
        market_id=blake2b(config.market.encode(), digest_size=16).digest(),
        created_ns=clock.now_ns(),
    )
    return Log.open(storage, header)


class SettlementPort(Protocol):
    """What the exchange asks of settlement (``gateway.settlement.Settlement``)."""

    def take(self, sequence: int, time_ns: int, events: Iterable[object]) -> None: ...

    def verify_log(self, last_sequence: int) -> None: ...

    def ask_first(self, gate: Callable[[Instruction], tuple[str, bool]]) -> None: ...

    async def run(self) -> None: ...


class Stopped(Exception):
    """The exchange ended although nobody asked it to."""


class Counters:
    """What was turned away, since the start; for whoever watches."""

    def __init__(self) -> None:
        self.messages = 0
        self.malformed = 0
        self.throttled = 0
        self.retained = 0
        self.unknown_member = 0


class _Sender:
    """One member as the intake sees it."""

    __slots__ = ("bucket", "deriving", "questions", "refusals")

    def __init__(self, limits: settings.Limits) -> None:
        self.refusals = TokenBucket(REFUSALS, REFUSALS_BURST)
        self.bucket = TokenBucket(limits.member_rate, limits.member_burst)
        self.questions = TokenBucket(limits.member_questions, 2 * limits.member_questions)
        self.deriving = False


class Exchange:
    """The gateway around one engine.

    ``replay`` (blocking) makes it what the log says; ``run`` serves on a bus until ``stop``.
    """

    def __init__(
        self,
        config: Config,
        *,
        log: Log,
        clock: Clock,
        calendar: SetCalendar,
        reference: Sequence[SetTickTable | SetLimitTable | SetQuoteTable | ListInstrument] = (),
        settlement: SettlementPort | None = None,
        derive_reports: Derive | None = None,
        say: Say = lambda event, **fields: None,
        draw: Draw = draw,
    ) -> None:
        """``reference`` is given to the market as far as it does not know it yet: tables first, then instruments."""
        limits = config.limits
        self.config = config
        self.clock = clock
        self.engine = Engine()
        self.counters = Counters()
        self.market_data = MarketDataBook(
            self.engine,
            clock,
            snapshot_ms=config.market_data.snapshot_ms,
            digest_every=config.market_data.digest_every,
            market=config.market,
        )
        self._share = Share(
            commands=limits.waiting_commands,
            nbytes=limits.waiting_bytes,
            member_commands=limits.member_waiting_commands,
            member_nbytes=limits.member_waiting_bytes,
        )
        self.desk = Desk(config.operators, self.engine, clock, self._share)
        self.reports = ReportBook(config.reports.window, config.reports.retention, self.desk.fold)
        self.copies = Copies(config.drop_copy)
        self.sessions = Sessions(limits.disconnect_after_ms)
        self.order_feed = OrderFeed(
            self.engine,
            clock,
            config.market_data.order_by_order,
            snapshot_ms=config.market_data.orders_ms,
            digest_every=config.market_data.digest_every,
        )
        self.schedule = Schedule.from_config(config.schedule, business_calendar(calendar), draw)
        self.settlement = settlement
        self._log = log
        self._calendar = calendar
        self._reference = reference
        self._derive = derive_reports or self._derive_here
        self._say = say
        self._known: set[tuple[str, str]] = set()  # reference data the market has: (kind, name)
        self._senders: dict[str, _Sender] = {}
        self._strangers = TokenBucket(REFUSALS, REFUSALS_BURST)  # what all of them together are told
        self._members = None if config.members == "any" else frozenset(config.members)
        #: Logins with another part to play; the broker may let them write to a member's topic of their name.
        self._not_members = frozenset(config.operators.names) | {copy.login for copy in config.drop_copy}
        self._mass_cancel = limits.member_mass_cancel - 1  # beyond what any command costs
        self._rate = (
            f"at most {limits.member_rate} commands a second (a mass cancel counts as {limits.member_mass_cancel} "
            f"and one more for each {WALKED_PER_COMMAND} open orders)"
        )
        self._deriving = asyncio.Semaphore(DERIVING_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._stopping = False
        self._live = False  # replay is over: events are news
        self._listed = asyncio.Event()  # reference data is in
        self.ready = asyncio.Event()  #: members are served
        self.schedule_ended = asyncio.Event()

    # --- start -----------------------------------------------------------------------------------------------------

    def replay(self) -> None:
        """Be where the market was. Blocks. Raises ``engine.faults.EngineFault``."""
        last = self._log.sequence
        shown = 0

        def progress(done: int, size: int) -> None:
            nonlocal shown
            if done - shown > PROGRESS_BYTES:
                shown = done
                self._say("replaying", bytes=done, of=size, sequence=self.engine.sequence)

        def replayed(sequence: int, time_ns: int, participant: str, command: Command, events: list[Event]) -> None:
            self._fold(sequence, time_ns, participant, events)

        result = replay(self._log.reader(), self.engine, replayed, progress=progress)
        result.reader.close()
        if result.other_states:
            text = "%d of %d digest marks tell the state in the terms of another build: only their events were compared"
            logger.warning(text, result.other_states, result.marks)
        self.reports.discard()
        self.desk.discard()
        # Never below a number that was used: see marketdata.
        self.market_data.start(self._log.end if last else 0)
        self.order_feed.start(self._log.end if last else 0)
        if last:
            self.clock.resume(self.engine.time_ns)
        if self.settlement is not None:
            self.settlement.verify_log(last)
            self.settlement.ask_first(self._may_settle)
        self._journal = DiskJournal(self._log, self.clock)
        self._sequencer = Sequencer(
            self.engine,
            self._journal,
            result.digest,
            self.clock,
            fold=self._fold,
            committed=self._commit,
            batch_commands=self.config.limits.batch_commands,
            mark_every=self.config.log.mark_every,
            unmarked=result.sequence - result.marked,
        )
        self._live = True
        for code in self.engine.instruments():
            if self.engine.instrument(code).set_aside:
                self.alarm(f"{code} is set aside and waits to be rebuilt")
        self._say("replayed", sequence=last, trading_date=self.engine.date)

    def _may_settle(self, instruction: Instruction) -> tuple[str, bool]:
        """What the market says of a trade by now: what was checked at entry is checked again before it settles."""
        seller, sell_account = owner(instruction.seller)
        buyer, buy_account = owner(instruction.buyer)
        trade = instruction.trade_ids[0]
        return self.engine.check_settlement(instruction.asset, seller, sell_account, buyer, buy_account, trade)

    def _fold(self, sequence: int, time_ns: int, participant: str, events: Sequence[Event | WrittenEvent]) -> None:
        """Everything that follows from one command, in every room. Of the exchange's own, all events are objects."""
        self.reports.fold(sequence, time_ns, participant, events)
        self.market_data.fold(sequence, time_ns, participant, events)
        if self._live and (self.order_feed.books or not participant):
            self.order_feed.fold(time_ns, events)
        if self.settlement is not None:
            self.settlement.take(sequence, time_ns, events)
        if not participant:
            said = plain(events)
            self.schedule.fold(said)
            for event in said:
                self._news(event)
            return
        if self.market_data.moved:  # a member's order has opened a call, halted a book, changed a quote, met a fault
            self.schedule.fold(self.market_data.moved)
            for event in self.market_data.moved:
                if isinstance(event, InstrumentSetAside):
                    self._news(event)
            self.market_data.moved.clear()

    def _news(self, event: Event) -> None:
        """What an operator wants to see: of the exchange's own commands, and where a member's command set one aside."""
        if isinstance(event, ReferenceDataSet):
            self._known.add((event.kind, event.name))
        if not self._live:
            return
        if isinstance(event, InstrumentSetAside):
            cancels = "cancels wait too" if event.frozen else "orders can be cancelled"
            self.alarm(f"{event.instrument} is set aside, {cancels}; the others trade on. {event.text}")
        elif isinstance(event, DayStarted):
            self._say("day", date=event.date)
            self._announce("up")
        elif isinstance(event, PhaseChanged):
            self._say("phase", instrument=event.instrument, phase=event.phase.label, time_ns=self.engine.time_ns)
        elif isinstance(event, AuctionUncrossed):
            self._say(
                "auction",
                instrument=event.instrument,
                phase=event.phase.label,
                price=event.price,
                volume=event.volume,
                trades=event.trades,
            )
        elif isinstance(event, OperatorRequested | OperatorActed | OperatorRefused | OperatorDeclined):
            self._say("operator", by=event.operator, request_id=event.request_id, answer=msgspec.to_builtins(event))
        elif isinstance(event, Rejected):
            self._say("refused", reason=event.reason.name, text=event.text, instrument=event.instrument)

    async def submit(self, *commands: ExchangeCommand) -> list[list[Event]]:
        """The exchange's own commands, as an operator gives them. Returns each one's events once they are durable."""
        return await self._sequencer.submit(commands)

    # --- life ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask ``run`` to end: what was taken in is committed and answered first."""
        self._stop.set()

    async def run(self, bus: Bus) -> None:
        """Serve. Returns after ``stop``; raises what makes going on impossible (a failed sync)."""
        self.bus = self.desk.bus = bus
        self.desk.offer = self._sequencer.offer
        sequencer = asyncio.create_task(self._sequencer.run(), name="sequencer")
        door = asyncio.create_task(self._open_door(), name="bus")
        others = [
            asyncio.create_task(self._keep_schedule(), name="schedule"),
            asyncio.create_task(self._keep_snapshots(), name="snapshots"),
            asyncio.create_task(self._keep_sessions(), name="sessions"),
            asyncio.create_task(self._keep_status(), name="status"),
        ]
        if self.settlement is not None:
            others.append(asyncio.create_task(self.settlement.run(), name="settlement"))
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait((door, sequencer, stop, *others), return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # raises what went wrong
                if not self._stop.is_set():
                    raise Stopped(f"{task.get_name()} ended")
            self._stopping = True  # what arrives from here on stays with the broker
            await cancel_all(others)
            self._sequencer.close()
            await sequencer
        finally:
            self._stopping = True
            await cancel_all([*others, *self._tasks, stop, sequencer])
            self._announce("down")
            await bus.close()
            await asyncio.wait((door,), timeout=5)  # what it raised, if anything, was raised above
            await cancel_all([door])
            self._journal.close()

    async def _open_door(self) -> None:
        """Reference data first, so that the first member finds a market."""
        commands: list[ExchangeCommand] = []
        for command in self._reference:
            if isinstance(command, ListInstrument):
                if command.instrument not in self.engine.instruments():
                    commands.append(command)
            elif (_kind(command), command.table) not in self._known:
                commands.append(command)
        if not any(kind == "calendar" for kind, _ in self._known):
            commands.insert(0, self._calendar)
        if commands:
            for given, events in zip(commands, await self._sequencer.submit(commands), strict=True):
                for event in events:
                    if isinstance(event, Rejected):
                        raise ConfigError(f"The market refused reference data: {event.text} - in {given}")
        self._listed.set()
        await self.bus.run(self)

    async def _keep_schedule(self) -> None:
        """Each phase at its time."""
        await self._listed.wait()
        while self.config.schedule.enabled:
            now = self.clock.now_ns()
            due = self.schedule.due(now)
            if due:
                await self._sequencer.submit(due)
                continue
            next_ns = self.schedule.next_ns(now)
            if next_ns is None:
                break
            if next_ns > now and self.schedule.idle and self.clock.skip_to(next_ns):
                continue
            # In short pieces: a clock may be set, and an operator may move a phase.
            await self.clock.sleep(min(max(self.clock.seconds_until(next_ns), 0.001), TICK))
        if self.config.schedule.enabled:
            self.schedule_ended.set()
            self._say("schedule_ended", trading_date=self.engine.date, days=self.schedule.days_started)
        await self._stop.wait()

    async def _keep_snapshots(self) -> None:
        while True:
            await self.clock.sleep(TICK)
            self._publish(self.market_data.overdue())
            self._publish(self.order_feed.overdue())

    async def _keep_sessions(self) -> None:
        """Tell the market which members have lost their last session."""
        while True:
            await self.clock.sleep(TICK)
            for participant, delivery in self.sessions.due(self.clock.monotonic_ns()):
                await self._sequencer.submit([Disconnected(participant)])
                self.bus.acknowledge((delivery,))

    async def _keep_status(self) -> None:
        """A word now and then about how much was done and what was turned away, when anything was."""
        before = 0
        while True:
            counters = self.counters
            if self._live and counters.messages != before:
                before = counters.messages
                self._say(
                    "status",
                    sequence=self.engine.sequence,
                    messages=counters.messages,
                    throttled=counters.throttled,
                    malformed=counters.malformed,
                    retained=counters.retained,
                    unknown_member=counters.unknown_member,
                )
            await self.clock.sleep(STATUS_EVERY)

    # --- the door --------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The broker is there (again). What was said meanwhile is gone: everybody is told where they stand."""
        self._announce("up")
        self._publish(self.market_data.snapshots())
        self._publish(self.order_feed.snapshots())
        known = dict.fromkeys([*(sorted(self._members) if self._members else ()), *self.engine.participants()])
        known.update(dict.fromkeys(name for name in self._senders if _is_participant(name)))
        for participant in known:
            self._greet(participant, participant)
        for participant, address in self.copies.all():
            self._greet(participant, address)
        self.desk.greet()
        self._say("connected" if self.ready.is_set() else "ready", sequence=self.engine.sequence)
        self.ready.set()

    def alarm(self, text: str) -> None:
        logger.error("%s", text)
        self._say("alarm", text=text)

    def receive(self, delivery: Delivery) -> None:
        """One message of a member. Answers it, or takes it in."""
        if self._stopping:
            return
        self.counters.messages += 1
        participant = delivery.participant
        sender = self._senders.get(participant) or self._admit(participant)
        if sender is None:
            self._receive_from_another(delivery)
            return
        payload = delivery.payload
        if delivery.retained:
            self.counters.retained += 1
            text = (
                "Expected a message that was not retained: its age is unknown, nothing of it was executed; send it anew"
            )
            self._refuse(delivery, MessageError("RETAINED", text, message_id=codec.message_id_of(payload)))
            return
        now = self.clock.monotonic_ns()
        wait = sender.bucket.take(1, now)
        # A last will is said once, and by nobody who could wait; what comes with it is small.
        if wait and not (b"presence" in payload and len(payload) < PRESENCE_MAX):
            self._throttle(delivery, self._rate, wait)
            return
        try:
            request = codec.decode(payload)
        except codec.Refused as refused:
            self.counters.malformed += 1
            sender.bucket.owe(len(payload) // COMMAND_BYTES, now)  # as if it had been full of orders
            self._refuse(delivery, refused.answer)
            return
        if wait and (request.presence is None or request.presence.here):  # the word was there, but no last will
            self._throttle(delivery, self._rate, wait)
            return
        count = len(request.commands)
        cost = count
        if b"mass_cancel" in payload:  # rare, so that the others need not be looked at one by one
            sweeps = sum(isinstance(command, MassCancel) for command in request.commands)
            walked = self.engine.most_open(participant) + self._share.waiting(participant) + count
            cost += sweeps * (self._mass_cancel + walked // WALKED_PER_COMMAND)
            if sweeps > 1 and cost > self.config.limits.member_burst:  # a batch this dear is not let through on credit
                text = (
                    f"Expected a message that counts as at most {self.config.limits.member_burst} commands, got one of "
                    f"{cost}: send its {sweeps} mass cancels one by one"
                )
                self._refuse(delivery, MessageError("TOO_LARGE", text, "$.commands", request.message_id))
                return
        if cost > 1:
            wait = sender.bucket.take(cost - 1, now)
            if wait:
                self._throttle(delivery, self._rate, wait)
                return
        if request.presence is not None:
            if request.presence.here and self.sessions.is_full(participant, request.presence.session):
                text = f"Expected at most {SESSIONS_MAX} sessions of one member at a time, got one more"
                self._refuse(delivery, MessageError("NOT_PERMITTED", text, "$.presence", request.message_id))
                return
            self.bus.acknowledge(self.sessions.take(delivery, request.presence, now))
            return
        questions = request.open_orders + (request.resend_from is not None)
        if questions:
            wait = sender.questions.take(questions, now)
            if wait:
                self._throttle(delivery, f"at most {self.config.limits.member_questions} questions a second", wait)
                return
        if count:
            full = self._share.enter(participant, count, len(payload))
            if full:
                self._throttle(delivery, full, FULL_RETRY_MS)
                return
        if request.open_orders:
            self._tell_open_orders(participant, sender, request.message_id, participant)
        if request.resend_from is not None:
            self._resend(participant, sender, request.resend_from, request.message_id, participant)
        if count:
            self._sequencer.offer(Entry(participant, request.commands, request.raw, len(payload), delivery))
        else:
            self.bus.acknowledge((delivery,))

    def _receive_from_another(self, delivery: Delivery) -> None:
        """One message of somebody who is no member: an operator, the reader of a copy, a stranger."""
        address = delivery.participant
        if address.startswith(topics.OPERATOR):
            self._count(self.desk.receive(delivery))
        elif address.startswith(topics.COPY):
            self._count(self._receive_from_reader(delivery))
        elif _is_participant(address):
            text = "Expected a member of this market, got another login"
            self._count(self._refuse(delivery, MessageError("UNKNOWN_MEMBER", text)))
        else:
            self.counters.unknown_member += 1
            logger.warning("a message from %.40r, which is not a member's name", address)
            self.bus.acknowledge((delivery,))

    def _count(self, code: str) -> None:
        """A message was turned away ("": it was not)."""
        counters = self.counters
        counters.unknown_member += code == "UNKNOWN_MEMBER"
        counters.throttled += code == "THROTTLED"
        counters.retained += code == "RETAINED"
        counters.malformed += code in ("MALFORMED", "TOO_LARGE", "NOT_PERMITTED")

    def _receive_from_reader(self, delivery: Delivery) -> str:
        """A question about a copy of a member's reports. Says why it was turned away, if it was."""
        address = delivery.participant
        participant = self.copies.member(address)
        if participant is None:
            return self._refuse(delivery, MessageError("UNKNOWN_MEMBER", "Expected a reader of this member's reports"))
        reader = self._senders.get(address)
        if reader is None:
            reader = self._senders[address] = _Sender(self.config.limits)
        if delivery.retained:
            text = "Expected a question that was not retained: its age is unknown; ask anew"
            return self._refuse(delivery, MessageError("RETAINED", text))
        wait = reader.questions.take(1, self.clock.monotonic_ns())
        if wait:
            text = f"Expected at most {self.config.limits.member_questions} questions a second"
            return self._refuse(delivery, MessageError("THROTTLED", text, retry_after_ms=wait))
        try:
            request = codec.decode(delivery.payload)
        except codec.Refused as refused:
            return self._refuse(delivery, refused.answer)
        if request.commands or request.presence is not None:
            text = f"Expected a question, got {len(request.commands)} commands: this login reads a copy of the reports"
            return self._refuse(delivery, MessageError("NOT_PERMITTED", text, "$.commands", request.message_id))
        if request.open_orders:
            self._tell_open_orders(participant, reader, request.message_id, address)
        if request.resend_from is not None:
            self._resend(participant, reader, request.resend_from, request.message_id, address)
        self.bus.acknowledge((delivery,))
        return ""

    def _admit(self, participant: str) -> _Sender | None:
        """A member heard for the first time; None for a stranger."""
        if not _is_participant(participant) or participant in self._not_members:
            return None
        if self._members is not None:
            if participant not in self._members:
                return None
        elif len(self._senders) >= self.config.limits.members and self.reports.next_report(participant) == 1:
            return None  # whoever has had a report may have orders to cancel: strangers do not shut him out
        sender = self._senders[participant] = _Sender(self.config.limits)
        return sender

    def _throttle(self, delivery: Delivery, bound: str, wait_ms: int) -> None:
        self.counters.throttled += 1
        if self._may_refuse(delivery):  # asked before the message is looked at, for in a flood that costs too much
            answer = MessageError(
                "THROTTLED",
                f"Expected {bound}; nothing of this message was taken",
                message_id=codec.message_id_of(delivery.payload),
                retry_after_ms=wait_ms,
            )
            self.bus.send(delivery.participant, _encode(answer))
        self.bus.acknowledge((delivery,))

    def _refuse(self, delivery: Delivery, answer: MessageError) -> str:
        if self._may_refuse(delivery):
            self.bus.send(delivery.participant, _encode(answer))
        self.bus.acknowledge((delivery,))
        return answer.code

    def _may_refuse(self, delivery: Delivery) -> bool:
        """Whether a sender may be told of one refusal more."""
        sender = self._senders.get(delivery.participant)
        refusals = self._strangers if sender is None else sender.refusals
        return not refusals.take(1 + len(delivery.payload) // REFUSAL_BYTES, self.clock.monotonic_ns())

    # --- answers ---------------------------------------------------------------------------------------------------

    def _commit(self, batch: Sequence[Entry]) -> None:
        """A batch has happened: say so, and only then be done with its messages."""
        copies = self.copies.by_member
        for participant, payload in self.reports.flush():
            self.bus.send(participant, payload)
            if copies:
                for address in copies.get(participant, ()):
                    self.bus.send(address, payload)
        if self.desk.has_news:
            self.desk.flush()
        self._publish(self.market_data.flush())
        if self.order_feed.touched:
            self._publish(self.order_feed.flush())
        deliveries = []
        for entry in batch:
            if entry.delivery is not None:
                self._share.leave(entry.participant, len(entry.commands), entry.nbytes)
                deliveries.append(entry.delivery)
        self.bus.acknowledge(deliveries)

    def _publish(self, messages: Iterable[Message]) -> None:
        for instrument, kind, payload, retain in messages:
            self.bus.publish(instrument, kind, payload, retain=retain)

    def _announce(self, state: Literal["up", "down"]) -> None:
        self.bus.announce(
            _encode(
                Status(state, self.engine.sequence, self.engine.time_ns, self.engine.date, market=self.config.market)
            )
        )

    def _tell_open_orders(self, participant: str, sender: _Sender, message_id: str, address: str) -> None:
        orders = [
            OpenOrder(
                order.client_order_id, order.order_id, order.instrument, order.side, order.price, order.quantity,
                order.open_quantity, order.order_type, order.time_in_force, order.account,
            )
            for order in self.engine.open_orders(participant)
        ]  # fmt: skip
        next_report = self.reports.next_report(participant)
        # Each further part is a question more: else twenty a second about 100,000 orders would be all that is done.
        sender.questions.owe((len(orders) - 1) // OPEN_ORDERS_MAX if orders else 0, self.clock.monotonic_ns())
        for start in range(0, len(orders) or 1, OPEN_ORDERS_MAX):
            part = orders[start : start + OPEN_ORDERS_MAX]
            more = start + OPEN_ORDERS_MAX < len(orders)
            self.bus.send(address, _encode(OpenOrders(next_report, part, message_id, more)))

    def _resend(self, participant: str, sender: _Sender, first: int, message_id: str, address: str) -> None:
        available = self.reports.first_available(participant)
        if first < available:
            text = f"Expected a report number from {available} on, got {first}: older ones are not kept"
            answer = MessageError("NOT_AVAILABLE", text, "$.resend_from", message_id, first_available=available)
            self.bus.send(address, _encode(answer))
            return
        count = self.config.reports.resend
        messages = self.reports.again(participant, first, count)
        if messages is not None:
            self._say_again(participant, messages, address)
            return
        if sender.deriving:
            text = "Expected one question for old reports at a time; the one before is being answered"
            answer = MessageError("THROTTLED", text, "$.resend_from", message_id, retry_after_ms=FULL_RETRY_MS)
            self.bus.send(address, _encode(answer))
            return
        sender.deriving = True
        task = asyncio.create_task(self._resend_old(participant, sender, first, count, message_id, address))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resend_old(
        self, participant: str, sender: _Sender, first: int, count: int, message_id: str, address: str
    ) -> None:
        try:
            async with self._deriving:
                messages = await self._derive(participant, first, count)
            self._say_again(participant, messages, address)
        except Exception:
            # The member asks again; the exchange itself has lost nothing.
            logger.exception("reports of %s from %d on could not be derived from the log", participant, first)
            text = f"Expected to read the reports from {first} on in the log, which failed; ask again"
            answer = MessageError("THROTTLED", text, "$.resend_from", message_id, retry_after_ms=DERIVE_RETRY_MS)
            self.bus.send(address, _encode(answer))
        finally:
            sender.deriving = False

    def _say_again(self, participant: str, messages: Iterable[bytes], address: str) -> None:
        for payload in messages:
            self.bus.send(address, payload)
        self._greet(participant, address)

    def _greet(self, participant: str, address: str) -> None:
        """Say where a member's reports stand, to the member or to whoever reads a copy of them."""
        self.bus.send(address, hello(self.reports.next_report(participant), self.engine.sequence))

    async def _derive_here(self, participant: str, first: int, count: int) -> list[bytes]:
        with contextlib.closing(self._log.reader()) as reader:
            return await asyncio.to_thread(derive, reader, participant, first, count)


def _kind(command: SetTickTable | SetLimitTable | SetQuoteTable) -> str:
    if isinstance(command, SetTickTable):
        return "tick_table"
    return "limit_table" if isinstance(command, SetLimitTable) else "quote_table"


def _version() -> str:
    try:
        return importlib.metadata.version("dojima")
    except importlib.metadata.PackageNotFoundError:
        return "source"


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End tasks; what they raise beyond that was raised before, or does not matter any more."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
