"""The trading client: a market in the hands of a Python program.

    async with Client("mqtt://localhost", participant="alpha", password="…") as client:
        order = await client.buy("KDX-2107", 10, 100_000)
        await order.accepted()                 # on disk at the exchange, or Refused with the reason
        async for fill in order.fills():
            print(fill.quantity, "at", fill.price)

No broker keeps the promise of an order for us, so the client does. Every command carries an id of the client's own, and
is sent again under that id until the exchange answers; the exchange answers a repeat with what it recorded and does
nothing twice. Reports are numbered without holes: the client asks again for those it missed, and drops those it has
seen. So what a program reads here is each fact once, in order, whatever broker, exchange and network do in between.

One task keeps the connection, inside it one reads, one writes. The writer waits for the broker to take a message before
it sends the next, and puts into that one whatever has gathered meanwhile: batches come by themselves.

Prices are whole price units of the instrument, quantities whole token units, times nanoseconds since the epoch (UTC).
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import msgspec
from msgspec import Struct

from engine.checks import is_account, is_code, is_id
from engine.commands import PARTICIPANT_PATTERN, AmendOrder, CancelOrder, MassCancel, MemberCommand, NewOrder
from engine.events import Accepted, Amended, Cancelled, MassCancelled, Rejected
from engine.types import CancelReason, OrderType, Reason, Side, TimeInForce
from gateway.bus import topics
from gateway.bus.client import Address
from gateway.bus.link import Link, LinkDown, LinkRefused, connect, keep_connected
from gateway.bus.messages import (
    BATCH_MAX,
    NOTHING,
    PAYLOAD_MAX,
    Fill,
    Hello,
    Inbound,
    MarketData,
    MessageError,
    OpenOrder,
    OpenOrders,
    OrderData,
    Outbound,
    Presence,
    PrivateEvent,
    Report,
    Reports,
    Status,
)
from gateway.livebook import LiveBook
from gateway.liveorders import LiveOrders
from gateway.position import Position

log = logging.getLogger("dojima.client")

Answer = Accepted | Rejected | Cancelled | Amended | MassCancelled
"""What settles a command. An order's is Accepted or Rejected; a cancel's Cancelled or Rejected; and so on."""

#: First wait before an unanswered command or question is sent again, and the longest, in seconds; doubled each time.
RESEND_AFTER: Final = 2.0
RESEND_AFTER_MAX: Final = 30.0
#: Seconds for the last word of a client to leave.
LEAVE_MAX: Final = 1.0
#: Messages of reports kept while a gap before them is open; more are dropped and come with the resend.
AHEAD_MAX: Final = 1_000

_ID: Final = (is_id, "1 to 36 visible ASCII characters")
#: Texts whose form the engine checks, and the decoder does not: a mistake in them shows before anything is sent.
_TEXTS: Final[dict[str, tuple[Callable[[str], object], str]]] = {
    "client_order_id": _ID,
    "request_id": _ID,
    "instrument": (is_code, "an instrument code as [A-Z0-9-]{1,12}"),
    "account": (is_account, "an account of up to 32 visible ASCII characters"),
}


class ClientError(Exception):
    """What can go wrong for a trading program. Every text says what to do.

    * ClientError
      + CannotConnect     no connection to the broker, or it refuses the login
      + NotAnswering      the broker is there, the exchange did not answer in time
      + BadCommand        not a command of the contract, or not a broker's address; nothing was sent
      + Refused           the exchange declined a command: ``reason``, ``text``, ``event``
      + MessageRefused    the exchange did not take a message as a whole: ``code``
      + AnotherMarket     the exchange has fewer reports than this client has read: another log
      + Closed            the client was closed before the answer came
    """


class CannotConnect(ClientError):
    pass


class NotAnswering(ClientError):
    pass


class BadCommand(ClientError, ValueError):
    pass


class Refused(ClientError):
    def __init__(self, event: Rejected) -> None:
        super().__init__(f"{event.reason.name}: {event.text}")
        self.event = event
        self.reason: Reason = event.reason
        self.text = event.text


class MessageRefused(ClientError):
    def __init__(self, error: MessageError) -> None:
        super().__init__(f"{error.code}: {error.text} - at `{error.place}`")
        self.code = error.code


class AnotherMarket(ClientError):
    pass


class Closed(ClientError):
    pass


def failure_of(error: Exception, name: str) -> ClientError:
    """What ended a client, as its program is told; what nobody foresaw is logged whole."""
    if isinstance(error, ClientError):
        return error
    if isinstance(error, LinkRefused):
        return CannotConnect(str(error))
    log.error("%s: the client stopped", name, exc_info=error)
    return ClientError(f"the client stopped: {type(error).__name__}: {error}")


class NumberedReport(Struct, frozen=True, gc=False):
    """A report with its number: dense from 1 for each member."""

    number: int
    sequence: int  #: of the command it follows from
    time_ns: int
    event: PrivateEvent


class Missed(Struct, frozen=True, gc=False):
    """Reports beyond the exchange's horizon cannot be read any more; ``open_orders`` tells where one stands."""

    first: int
    last: int


class OrderState(StrEnum):
    SENT = "sent"  #: no answer yet
    OPEN = "open"
    FILLED = "filled"
    CANCELLED = "cancelled"  #: by the member, the exchange, or its validity: ``cancel_reason`` says
    REJECTED = "rejected"


T = TypeVar("T")
_Live = TypeVar("_Live", LiveBook, LiveOrders)


class Stream(Generic[T]):
    """A row of values for one reader, from the moment it was opened. Nothing is dropped: read it or close it."""

    def __init__(
        self, on_read: Callable[[], None] | None = None, on_close: Callable[[Stream[T]], None] | None = None
    ) -> None:
        self._values: deque[T] = deque()
        self._news = asyncio.Event()
        self._end: BaseException | None = None
        self._in_hand = False
        self._on_read = on_read
        self._on_close = on_close

    def push(self, value: T) -> None:
        self._values.append(value)
        self._news.set()

    def end(self, error: BaseException | None = None) -> None:
        """No more values; a reader gets ``error`` behind the last one."""
        self._end = error or StopAsyncIteration()
        self._news.set()

    def close(self) -> None:
        self.end()
        if self._on_close is not None:
            self._on_close(self)

    @property
    def waiting(self) -> int:
        """Values that can be read without waiting."""
        return len(self._values)

    @property
    def unread(self) -> int:
        """Values that wait, and the one that the reader is working on."""
        return len(self._values) + self._in_hand

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._in_hand = False
        if self._on_read is not None:
            self._on_read()
        while not self._values:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        self._in_hand = True
        return self._values.popleft()


class Order:
    """One order of ours, kept up to date by its reports."""

    def __init__(self, client: Client, command: NewOrder) -> None:
        self._client = client
        self._answer: asyncio.Future[Answer] | None = None
        self._changed = asyncio.Event()
        self.client_order_id = command.client_order_id
        self.instrument = command.instrument
        self.side = command.side
        self.quantity = command.quantity  #: total, filled part included
        self.price = command.price  #: 0: no limit
        self.order_type = command.order_type
        self.time_in_force = command.time_in_force
        self.account = command.account
        self.order_id = 0  #: the engine's number; 0 until accepted
        self.state = OrderState.SENT
        self.open_quantity = command.quantity
        self.filled_quantity = 0
        self.filled_value = 0  #: sum of price times quantity of the fills seen here, in price units
        self.fills_seen: list[Fill] = []
        self.rejection: Rejected | None = None
        self.cancel_reason: CancelReason | None = None

    def __repr__(self) -> str:
        price = self.price or "market"
        return (
            f"<Order {self.client_order_id} {self.side.name.lower()} {self.quantity} {self.instrument} at {price}: "
            f"{self.state}, {self.filled_quantity} filled, {self.open_quantity} open>"
        )

    @property
    def is_done(self) -> bool:
        return self.state in (OrderState.FILLED, OrderState.CANCELLED, OrderState.REJECTED)

    async def outcome(self) -> Answer:
        """``Accepted`` or ``Rejected``, as the exchange says. Raises ``MessageRefused``, ``Closed``."""
        if self._answer is None:  # not sent by this client: found in the market
            raise ClientError(
                f"{self.client_order_id} was in the market before this client: it has no outcome to wait for"
            )
        return await asyncio.shield(self._answer)

    async def accepted(self) -> Accepted:
        """Wait until the order is in the market, and durable. Raises ``Refused`` with the exchange's reason."""
        answer = await self.outcome()
        if isinstance(answer, Rejected):
            raise Refused(answer)
        assert isinstance(answer, Accepted), answer
        return answer

    async def done(self) -> Order:
        """Wait until nothing of the order is left in the market: filled, cancelled, expired or rejected."""
        while not self.is_done:
            await self._change()
        return self

    async def fills(self) -> AsyncIterator[Fill]:
        """The order's fills from its first one on; ends when the order is done."""
        read = 0
        while True:
            while read < len(self.fills_seen):
                read += 1
                yield self.fills_seen[read - 1]
            if self.is_done:
                return
            await self._change()

    async def cancel(self) -> Cancelled:
        return await self._client.cancel(self)

    async def amend(self, *, quantity: int = 0, price: int = 0, confirmed: bool = False) -> Amended | Cancelled:
        return await self._client.amend(self, quantity=quantity, price=price, confirmed=confirmed)

    async def _change(self) -> None:
        self._client._check()
        self._changed.clear()
        await self._changed.wait()
        self._client._check()


class _Pending:
    """A command without an answer."""

    __slots__ = ("after", "attempts", "command", "command_id", "due", "future", "message_id", "number", "raw")

    def __init__(
        self, number: int, command_id: str, command: MemberCommand, raw: bytes, future: asyncio.Future[Answer]
    ) -> None:
        self.number = number  #: order of sending, kept when sent again
        self.command_id = command_id
        self.command = command
        self.raw = raw
        self.future = future
        self.attempts = 0
        self.due = 0.0  #: when to send (again), by the loop's clock
        self.message_id = ""  #: of the message it was last sent in
        self.after = ""  #: the id of the order that has to be answered first


class Client:
    """A member's connection to the exchange. See the module for an example.

    Args:
        url: ``mqtt://host[:port]`` or ``mqtts://host[:port]``.
        participant: the member, also the login unless ``username`` says otherwise.
        position: a file that remembers the next report and the unanswered commands, so that a restarted client goes on
            where it was. Without it a client starts at the present.
        id_prefix: first part of the ids made here, at most 24 characters. By default it is drawn from the clock and at
            random, so that ids differ after a restart; who gives a fixed one must see to that himself.
        protocol: 4 for MQTT 3.1.1, 5 for MQTT 5.
        resend_after: seconds without an answer after which a command is sent again (doubling up to 30).
        timeout: seconds that entering may take until the exchange has answered.
        start_at: number of the first report to read when there is no position; 0: the present.
        market_data_only: read books and nothing else; the exchange need not know this login.
        cancel_on_disconnect: when this and every other client of the member that says so is gone, for more than a
            moment, the exchange cancels the member's orders as far as the market's rules have it (instruments' rule
            ``cancel_on_disconnect``, or the member's risk limits). Leaving the client counts as being gone.
        window: most unanswered commands; ``submit`` waits when there are more.
        link: makes a connection; for tests and other transports.
    """

    def __init__(
        self,
        url: str,
        participant: str,
        password: str = "",
        *,
        username: str | None = None,
        position: Path | str | None = None,
        id_prefix: str | None = None,
        protocol: int = 4,
        resend_after: float = RESEND_AFTER,
        timeout: float = 30.0,
        start_at: int = 0,
        market_data_only: bool = False,
        cancel_on_disconnect: bool = False,
        window: int = 20_000,
        link: Callable[[], AbstractAsyncContextManager[Link]] | None = None,
    ) -> None:
        if not re.fullmatch(PARTICIPANT_PATTERN, participant):
            raise BadCommand(f"Expected a participant as {PARTICIPANT_PATTERN}, got {participant!r}")
        prefix = id_prefix or f"{int(time.time() * 1000):x}-{secrets.token_hex(2)}"
        if not re.fullmatch(r"[!-~]{1,24}", prefix):
            raise BadCommand(f"Expected an id_prefix of 1 to 24 visible ASCII characters, got {prefix!r}")
        self.url = url
        self.participant = participant
        self.status: Status | None = None  #: what the exchange last said about itself
        self.connected = False  #: to the broker
        self.orders: dict[str, Order] = {}  #: by client_order_id: those open or not yet answered
        self.resent = 0  #: commands sent again
        self.gaps = 0  #: holes in the reports that were noticed
        if link is None:
            try:
                Address.parse(url)
            except ValueError as error:
                raise BadCommand(str(error)) from None
        self._session = secrets.token_hex(8) if cancel_on_disconnect else ""
        self._announced = False  #: on this connection, to this run of the exchange: that the session is here
        will = (topics.inbound(participant), self._presence(here=False)) if cancel_on_disconnect else None
        self._connect = link or (lambda: connect(url, username or participant, password, protocol=protocol, will=will))
        self._position_path = Path(position) if position is not None else None
        self._position: Position | None = None
        self._prefix = prefix
        self._count = itertools.count(1)
        self._resend_after = resend_after
        self._timeout = timeout
        self._window = window

        self._link: Link | None = None
        self._runner: asyncio.Task[None] | None = None
        self._failure: ClientError | None = None
        self._trouble = ""  #: why there is no connection just now
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._synced = asyncio.Event()

        self._pending: dict[str, _Pending] = {}
        self._numbers = itertools.count(1)
        self._due: list[tuple[float, int, str]] = []
        self._waiting: dict[str, list[str]] = {}  #: order id to the requests that wait for its answer
        self._paused_until = 0.0
        self._throttled = False  #: the next message goes alone: nothing follows it until it has its answer
        self._alone: list[_Pending] = []  #: what that message carried
        #: by its own last word; then nothing is sent but questions, until it is heard again
        self._exchange_down = False

        self._next = start_at  #: number of the next report to handle; 0: not known yet
        self._market_data_only = market_data_only
        self._ahead: dict[int, Reports] = {}
        self._ask_from = 0  #: resend wanted from here; 0: none
        self._ask_due = 0.0  #: when to ask (again), by the loop's clock
        self._ask_wait = resend_after
        self._ask_helped = True  #: reports came since it was last asked
        self._questions: dict[str, _Question] = {}
        self._streams: list[Stream[NumberedReport | Missed]] = []
        self._books: dict[str, LiveBook] = {}
        self._order_books: dict[str, LiveOrders] = {}
        self._decode_outbound = msgspec.msgpack.Decoder(Outbound).decode
        self._decode_market: Callable[[bytes], MarketData] = msgspec.msgpack.Decoder(MarketData).decode
        self._decode_orders: Callable[[bytes], OrderData] = msgspec.msgpack.Decoder(OrderData).decode
        self._decode_status = msgspec.msgpack.Decoder(Status).decode
        self._decode_command = msgspec.msgpack.Decoder(MemberCommand).decode
        self._encode = msgspec.msgpack.Encoder().encode

    # --- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect and catch up. Raises ``CannotConnect``, ``NotAnswering``, ``PositionUnusable``."""
        if self._position_path is not None:
            self._position = Position(self._position_path, self.participant)
            self._next = self._position.next_report or self._next
            for command_id, raw in self._position.unanswered.items():
                self._adopt(command_id, raw)
        if self._market_data_only:
            pass  # nothing to ask
        elif self._next == 0:
            self._question()
        else:
            self._ask_from = self._next
        self._runner = asyncio.create_task(self._run(), name=f"dojima client {self.participant}")
        try:
            async with asyncio.timeout(self._timeout):
                await self._synced.wait()
            self._check()
        except TimeoutError:
            error: ClientError
            if self.connected:
                error = NotAnswering(
                    f"The exchange did not answer {self.participant} within {self._timeout:g} s, though the broker at "
                    f"{self.url} did. Is `dojima run` up, and does it know this participant?"
                )
            else:
                error = CannotConnect(
                    f"No connection to the broker at {self.url} within {self._timeout:g} s: "
                    f"{self._trouble or 'no answer'}. Is a broker running there?"
                )
            await self._stop(error)
            raise error from None
        except BaseException:
            await self._stop(Closed("the client was closed"))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop(Closed("the client was closed; what was unanswered may or may not have reached the market"))

    def _presence(self, *, here: bool) -> bytes:
        return msgspec.msgpack.encode(Inbound(presence=Presence(self._session, here)))

    async def _stop(self, error: ClientError) -> None:
        if self._session and self._link is not None:
            # A broker that is told good-bye keeps the last will to itself.
            with contextlib.suppress(LinkDown, TimeoutError):
                async with asyncio.timeout(LEAVE_MAX):
                    await self._link.publish(topics.inbound(self.participant), self._presence(here=False))
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        self._fail(error)
        if self._position is not None:
            self._position.close()
            self._position = None

    def _fail(self, error: ClientError) -> None:
        """The end: whoever waits for anything gets to know why."""
        if self._failure is None:
            self._failure = error
        ended = None if isinstance(error, Closed) else error
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)
                pending.future.exception()  # nobody has to look at it
        for question in self._questions.values():
            if not question.future.done():
                question.future.set_exception(error)
                question.future.exception()
        for stream in self._streams:
            stream.end(ended)
        for book in self._books.values():
            book.end(ended)
        for orders in self._order_books.values():
            orders.end(ended)
        for order in self.orders.values():
            order._changed.set()
        self._synced.set()
        self._room.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        """Keep a connection; whatever ends that is told to all who wait, and to whoever asks next."""
        try:
            await keep_connected(self._connect, self._begin, self._read, self._write, lost=self._lost)
        except Exception as error:
            self._fail(failure_of(error, self.participant))
        finally:
            self.connected = False
            self._link = None

    async def _begin(self, link: Link) -> None:
        self._link = link
        if not self._market_data_only:
            await link.subscribe(topics.outbound(self.participant), 1)
        await link.subscribe(topics.STATUS, 1)
        for instrument in self._books:
            await link.subscribe(topics.market_data(instrument, "+"), 0)
        for instrument in self._order_books:
            await link.subscribe(topics.by_order(instrument), 0)
        self.connected = True
        self._after_connect()

    def _lost(self, why: str, delay: float) -> None:
        self.connected = False
        self._link = None
        self._trouble = why
        log.warning("%s: no connection to %s (%s); again in %.1f s", self.participant, self.url, why, delay)

    def _after_connect(self) -> None:
        """What was under way may be lost: ask for the reports missed, then everything unanswered goes out again."""
        for book in self._books.values():
            book.resubscribed()
        for orders in self._order_books.values():
            orders.resubscribed()
        if self._market_data_only:
            self._synced.set()
        elif self._next:
            self._want_resend(at_once=True)
        for question in self._questions.values():
            question.due = 0.0
        for pending in self._pending.values():
            if pending.attempts:
                # Not at once: the answers are likely among the reports that were just asked for.
                self._schedule(pending, asyncio.get_running_loop().time() + self._resend_after / 4)
        self._announced = False
        self._wake.set()

    # --- trading -----------------------------------------------------------------------------------------------------

    def next_id(self) -> str:
        """A fresh id for an order or request."""
        return f"{self._prefix}-{next(self._count)}"

    async def buy(self, instrument: str, quantity: int, price: int = 0, **options: Any) -> Order:
        """Send a buy order: limit at ``price``, market without one. ``options`` as in ``NewOrder``. See ``submit``."""
        return (await self.submit(self.new_order(instrument, Side.BUY, quantity, price, **options)))[0]

    async def sell(self, instrument: str, quantity: int, price: int = 0, **options: Any) -> Order:
        """Send a sell order: limit at ``price``, market without one. ``options`` as in ``NewOrder``. See ``submit``."""
        return (await self.submit(self.new_order(instrument, Side.SELL, quantity, price, **options)))[0]

    def new_order(
        self,
        instrument: str,
        side: Side,
        quantity: int,
        price: int = 0,
        *,
        client_order_id: str | None = None,
        order_type: OrderType | None = None,
        **options: Any,
    ) -> NewOrder:
        """A ``NewOrder`` with an id of this client. ``order_type`` is LIMIT with a price and MARKET without one."""
        if order_type is None:
            order_type = OrderType.LIMIT if price else OrderType.MARKET
        return NewOrder(
            client_order_id or self.next_id(), instrument, side, quantity, price, order_type=order_type, **options
        )

    async def submit(self, *orders: NewOrder) -> list[Order]:
        """Hand orders over for sending and return their handles at once; many go out as one message.

        Waits only while more than ``window`` commands are unanswered. Raises ``BadCommand`` (then none was sent).
        """
        futures = await self.send(*orders)
        handles = []
        for command, future in zip(orders, futures, strict=True):
            handle = self.orders[command.client_order_id]
            handle._answer = future
            handles.append(handle)
        return handles

    async def send(self, *commands: MemberCommand) -> list[asyncio.Future[Answer]]:
        """Hand any commands over for sending; the futures bring their answers, ``Rejected`` included.

        The futures raise ``MessageRefused`` or ``Closed``. A request about an order that is still unanswered waits for
        that answer: were the order delayed, the request would meet a market that does not know it.
        """
        self._check()
        if self._market_data_only:
            raise BadCommand(
                "This client was opened for market data only: open one without `market_data_only` to trade"
            )
        encoded = [self._checked(command) for command in commands]
        ids = [_id_of(command) for command in commands]
        if len(set(ids)) < len(ids):
            raise BadCommand(f"Expected ids of their own for {len(ids)} commands, got {len(set(ids))} different ones")
        for command_id in ids:
            if command_id in self._pending or command_id in self.orders:
                raise BadCommand(f"Expected an id that is not in use, got {command_id!r}: next_id() makes one")
        while self._pending and len(self._pending) + len(commands) > self._window:
            self._room.clear()
            await self._room.wait()
            self._check()
        futures = []
        for command, command_id, raw in zip(commands, ids, encoded, strict=True):
            futures.append(self._enqueue(command, command_id, raw))
            if self._position is not None:
                self._position.sent(command_id, raw)
        self._wake.set()
        return futures

    async def cancel(self, order: Order | str) -> Cancelled:
        """Take an order (or its client_order_id) out of the market. Raises ``Refused``: too late, unknown, NCP."""
        target = order.client_order_id if isinstance(order, Order) else order
        answer = await self._request(CancelOrder(self.next_id(), target))
        assert isinstance(answer, Cancelled), answer
        return answer

    async def amend(
        self, order: Order | str, *, quantity: int = 0, price: int = 0, confirmed: bool = False
    ) -> Amended | Cancelled:
        """Change total quantity or limit; 0 leaves it. ``Cancelled`` when the new total is filled already.

        A smaller quantity keeps the place in the queue, anything else loses it. ``confirmed`` means it, although it is
        a large share of the units outstanding. Raises ``Refused``.
        """
        target = order.client_order_id if isinstance(order, Order) else order
        answer = await self._request(AmendOrder(self.next_id(), target, quantity, price, confirmed))
        assert isinstance(answer, Amended | Cancelled), answer
        return answer

    async def mass_cancel(self, instrument: str = "", side: Side | None = None, **conditions: Any) -> MassCancelled:
        """Cancel own open orders that meet every condition (see ``MassCancel``). Raises ``Refused``."""
        answer = await self._request(MassCancel(self.next_id(), instrument, side, **conditions))
        assert isinstance(answer, MassCancelled), answer
        return answer

    async def _request(self, command: MemberCommand) -> Answer:
        answer = await asyncio.shield((await self.send(command))[0])
        if isinstance(answer, Rejected):
            raise Refused(answer)
        return answer

    async def drain(self) -> None:
        """Wait until every command handed over has its answer."""
        while self._pending:
            await asyncio.wait([pending.future for pending in self._pending.values()])
            self._check()

    async def open_orders(self) -> list[Order]:
        """Ask the exchange which orders of ours are open, and return their handles; those from before get one now.

        Raises ``NotAnswering`` after ``timeout`` seconds.
        """
        self._check()
        try:
            async with asyncio.timeout(self._timeout):
                answer = await asyncio.shield(self._question().future)
        except TimeoutError:
            raise NotAnswering(
                f"The exchange did not say within {self._timeout:g} s which orders are open. Is `dojima run` up?"
            ) from None
        return [self.orders[found.client_order_id] for found in answer if found.client_order_id in self.orders]

    @property
    def unanswered(self) -> int:
        """Commands without an answer so far."""
        return len(self._pending)

    @property
    def next_report(self) -> int:
        """Number of the next report this client will handle."""
        return self._next

    # --- reading -----------------------------------------------------------------------------------------------------

    def reports(self) -> Stream[NumberedReport | Missed]:
        """All reports from now on, each once and in order: ``async for report in client.reports()``.

        With a position file, a report counts as read when its reader comes back for the next one; a report that was
        being worked on when the process died is read again. A stream opened before the client is entered also brings
        what happened since that position.
        """
        self._check()
        stream: Stream[NumberedReport | Missed] = Stream(self._note_position, self._streams.remove)
        self._streams.append(stream)
        return stream

    async def book(self, instrument: str) -> LiveBook:
        """The public state of an instrument, kept live: depth, phase, indicative price, trades.

        Returns when it is whole. Raises ``NotAnswering`` when no snapshot comes within ``timeout`` seconds: mostly an
        instrument nobody listed.
        """
        book = self._books.get(instrument) or self._books.setdefault(instrument, LiveBook(_code(instrument)))
        return await self._live(book, topics.market_data(instrument, "+"))

    async def order_book(self, instrument: str) -> LiveOrders:
        """Every order of an instrument by the engine's number, kept live, where the exchange publishes that.

        Returns when it is whole. Raises ``NotAnswering`` as ``book`` does.
        """
        book = self._order_books.get(instrument)
        book = book or self._order_books.setdefault(instrument, LiveOrders(_code(instrument)))
        return await self._live(book, topics.by_order(instrument), "published order by order, ")

    async def _live(self, book: _Live, topic: str, needs: str = "") -> _Live:
        """A book once it is whole; ``needs`` is what an instrument has to be for it, beside being listed."""
        self._check()
        if not book.is_whole and self._link is not None:
            try:
                await self._link.subscribe(topic, 0)
            except LinkDown as error:  # the next connection subscribes
                self._trouble = str(error)
        try:
            async with asyncio.timeout(self._timeout):
                await book.whole()
        except TimeoutError:
            raise NotAnswering(
                f"No snapshot of {book.instrument} came within {self._timeout:g} s. Is it listed, {needs}and is "
                "`dojima run` up?"
            ) from None
        self._check()
        return book

    # --- sending -----------------------------------------------------------------------------------------------------

    def _checked(self, command: MemberCommand) -> bytes:
        """Encode, and read back as the exchange will: a mistake shows here, with its place."""
        for field, (is_well_formed, expected) in _TEXTS.items():
            text = getattr(command, field, "")
            if isinstance(text, str) and text and not is_well_formed(text):  # whether it may be empty the decoder knows
                raise BadCommand(f"Expected {expected}, got {text!r} - at `$.{field}`")
        try:
            raw = self._encode(command)
            self._decode_command(raw)
        except (msgspec.ValidationError, OverflowError, TypeError) as error:
            raise BadCommand(f"{type(command).__name__}: {error}") from None
        return raw

    def _adopt(self, command_id: str, raw: bytes) -> None:
        """A command that an earlier process left unanswered."""
        try:
            command = self._decode_command(raw)
        except msgspec.ValidationError as error:
            raise BadCommand(
                f"{self._position_path}: {command_id}: {error}. Move the file away to start afresh"
            ) from None
        future = self._enqueue(command, command_id, raw)
        if isinstance(command, NewOrder):
            self.orders[command_id]._answer = future

    def _enqueue(self, command: MemberCommand, command_id: str, raw: bytes) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        pending = self._pending[command_id] = _Pending(next(self._numbers), command_id, command, raw, future)
        if isinstance(command, NewOrder):
            self.orders[command_id] = Order(self, command)
        elif isinstance(command, CancelOrder | AmendOrder) and command.client_order_id in self._pending:
            pending.after = command.client_order_id
            self._waiting.setdefault(command.client_order_id, []).append(command_id)
            return future
        self._schedule(pending, 0.0)
        return future

    def _schedule(self, pending: _Pending, due: float) -> None:
        if pending.after:
            return
        pending.due = due
        heapq.heappush(self._due, (due, pending.number, pending.command_id))
        self._wake.set()

    def _take_due(self, now: float) -> list[_Pending]:
        """Commands to send now, in the order in which they were handed over, as many as fit one message."""
        batch: list[_Pending] = []
        size = 200  # the envelope, with room
        while self._due and self._due[0][0] <= now and len(batch) < BATCH_MAX:
            due, _, command_id = self._due[0]
            pending = self._pending.get(command_id)
            if pending is None or pending.due != due:  # answered, or rescheduled: a newer entry stands for it
                heapq.heappop(self._due)
                continue
            if batch and size + len(pending.raw) > PAYLOAD_MAX:
                break
            heapq.heappop(self._due)
            pending.due = -1.0  # taken
            batch.append(pending)
            size += len(pending.raw)
        batch.sort(key=lambda pending: pending.number)
        return batch

    async def _write(self, link: Link) -> None:
        topic = topics.inbound(self.participant)
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            now = loop.time()
            if self._session and not self._announced:
                self._announced = True
                await link.publish(topic, self._presence(here=True))
            if self._ask_from and now >= self._ask_due:
                self._ask_due = now + self._ask_wait
                self._ask_wait = min(self._ask_wait * 2, RESEND_AFTER_MAX)
                self._ask_helped = False
                await link.publish(
                    topic, self._encode(Inbound(message_id=self._message_id(), resend_from=self._ask_from))
                )
            for message_id, question in list(self._questions.items()):
                if question.due <= now:
                    question.due = now + question.wait
                    question.wait = min(question.wait * 2, RESEND_AFTER_MAX)
                    await link.publish(topic, self._encode(Inbound(message_id=message_id, open_orders=True)))
            if now >= self._held_until() and not self._exchange_down and (batch := self._take_due(now)):
                await self._publish(link, topic, batch, now)
                continue
            await self._sleep_until_due(loop)

    def _held_until(self) -> float:
        """When commands may go out: not while a throttle lasts, and none behind a message that may meet it again."""
        self._alone = [pending for pending in self._alone if pending.command_id in self._pending]
        return max(self._paused_until, min((pending.due for pending in self._alone), default=0.0))

    async def _publish(self, link: Link, topic: str, batch: list[_Pending], now: float) -> None:
        message_id = self._message_id()
        self._alone, self._throttled = (batch if self._throttled else []), False
        for pending in batch:
            if pending.attempts:
                self.resent += 1
            pending.message_id = message_id
            pending.attempts += 1
            self._schedule(pending, now + min(self._resend_after * 2 ** (pending.attempts - 1), RESEND_AFTER_MAX))
        if self._position is not None:
            self._position.write()
        commands = msgspec.Raw(self._encode([msgspec.Raw(pending.raw) for pending in batch])) if batch else NOTHING
        await link.publish(topic, self._encode(Inbound(message_id=message_id, commands=commands)))

    async def _sleep_until_due(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        times = [question.due for question in self._questions.values()]
        if self._ask_from:
            times.append(self._ask_due)
        if self._due and not self._exchange_down:
            times.append(max(self._due[0][0], self._held_until()))
        try:
            async with asyncio.timeout(max(0.0, min(times) - now) if times else None):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _message_id(self) -> str:
        return f"{self._prefix[-20:]}.{next(self._numbers)}"

    def _want_resend(self, *, at_once: bool = False) -> None:
        """Ask for the reports from the next one on; if that was asked already, only when the wait is over."""
        if at_once or not self._ask_from:
            self._ask_due = 0.0
            self._ask_wait = self._resend_after
        self._ask_from = self._next
        self._wake.set()

    def _question(self) -> _Question:
        question = _Question(asyncio.get_running_loop().create_future(), self._resend_after, self._next)
        self._questions[self._message_id()] = question
        self._wake.set()
        return question

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def _read(self, link: Link) -> None:
        outbound = topics.outbound(self.participant)
        market = f"{topics.ROOT}/md/"
        async for topic, payload, kept in link.messages():
            try:
                if topic == outbound:
                    self._on_outbound(self._decode_outbound(payload))
                elif topic.startswith(market) and topics.BY_ORDER in topic:
                    await self._on_orders(link, topic, self._decode_orders(payload), kept)
                elif topic.startswith(market):
                    await self._on_market(link, topic, self._decode_market(payload), kept)
                elif topic == topics.STATUS:
                    self._on_status(self._decode_status(payload))
            except msgspec.DecodeError as error:
                # A message of a later version, or somebody else's: it may not end the client, nor go unseen.
                log.error("%s: %s carried something that is not of the contract: %s", self.participant, topic, error)
            if self._position is not None:
                self._note_position()

    def _on_status(self, status: Status) -> None:
        before, self.status = self.status, status
        if before is not None and before.market and status.market and before.market != status.market:
            raise AnotherMarket(
                f"The exchange at this broker says that it is {status.market}, before it was {before.market}: two "
                "markets cannot share a broker's topics"
            )
        if status.state == "down":
            # What is sent now piles up at the broker, or is lost there. The question is asked now and then all the
            # same: a status can be late.
            self._exchange_down = True
            if self._next and not self._market_data_only:
                self._want_resend()
                self._ask_due = asyncio.get_running_loop().time() + self._resend_after
        elif self._exchange_down or before is None:
            self._after_restart()

    def _after_restart(self) -> None:
        """The exchange is back: read on where we were, and send out again now what has no answer."""
        self._exchange_down = False
        self._announced = False
        if self._next and not self._market_data_only:
            self._want_resend(at_once=True)
        for question in self._questions.values():
            question.due = 0.0
        for pending in self._pending.values():
            if pending.attempts:
                pending.attempts = 1
                self._schedule(pending, 0.0)
        self._wake.set()

    async def _on_market(self, link: Link, topic: str, message: MarketData, kept: bool) -> None:
        book = self._books.get(topic.split("/")[3])
        if book is not None and book.take(message, kept):
            await link.subscribe(topics.market_data(book.instrument, "+"), 0)  # brings the retained snapshot again

    async def _on_orders(self, link: Link, topic: str, message: OrderData, kept: bool) -> None:
        book = self._order_books.get(topic.split("/")[3])
        if book is not None and book.take(message, kept):
            await link.subscribe(topics.by_order(book.instrument), 0)

    def _on_outbound(self, message: Outbound) -> None:
        if self._exchange_down:
            self._after_restart()
        if isinstance(message, Reports):
            self._on_reports(message)
        elif isinstance(message, OpenOrders):
            self._on_open_orders(message)
        elif isinstance(message, Hello):
            self._on_hello(message)
        else:
            self._on_error(message)

    def _on_hello(self, hello: Hello) -> None:
        if self._next == 0:
            return  # the answer to open_orders brings the number
        if hello.next_report > self._next:
            self.gaps += not self._ask_from
            # One answer carries a bounded number of reports: when it brought some, the next part is due at once.
            self._want_resend(at_once=self._ask_helped)
        elif hello.next_report < self._next:
            self._question()  # an old Hello, or another market: the answer to a question of now decides
        else:
            self._caught_up()

    def _caught_up(self) -> None:
        self._ask_from = 0
        self._synced.set()

    def _on_reports(self, message: Reports) -> None:
        if self._next == 0 or message.first > self._next:
            if len(self._ahead) < AHEAD_MAX:
                self._ahead[message.first] = message
            if self._next:
                self.gaps += not self._ask_from
                self._want_resend()
            return
        self._take_reports(message)
        while self._ahead and (first := min(self._ahead)) <= self._next:
            self._take_reports(self._ahead.pop(first))
        if self._ask_from and self._ask_from < self._next:
            # Progress: the rest is under way, or will be asked for when the closing Hello shows that it is not.
            self._ask_from = self._next
            self._ask_due = asyncio.get_running_loop().time() + self._resend_after
            self._ask_wait = self._resend_after
            self._ask_helped = True
        self._settle_questions()

    def _take_reports(self, message: Reports) -> None:
        for report in message.reports[self._next - message.first :]:
            self._take(report)

    def _take(self, report: Report) -> None:
        number = self._next
        self._next += 1
        self._apply(report.event)
        for stream in self._streams:
            stream.push(NumberedReport(number, report.sequence, report.time_ns, report.event))

    def _apply(self, event: PrivateEvent) -> None:
        if isinstance(event, Fill):
            order = self.orders.get(event.client_order_id)
            if order is not None:
                order.filled_quantity += event.quantity
                order.filled_value += event.price * event.quantity
                order.open_quantity = event.open_quantity
                order.fills_seen.append(event)
                self._changed(order, OrderState.OPEN if event.open_quantity else OrderState.FILLED)
        elif isinstance(event, Accepted):
            order = self.orders.get(event.client_order_id)
            if order is None and not event.repeat:
                order = self.orders[event.client_order_id] = Order(self, _as_command(event))
            if order is not None and order.state == OrderState.SENT:
                order.order_id = event.order_id
                self._changed(order, OrderState.OPEN)
            self._answered(event.client_order_id, event)
        elif isinstance(event, Rejected):
            order = self.orders.get(event.client_order_id)
            if order is not None and order.state == OrderState.SENT:
                order.rejection = event
                order.open_quantity = 0
                self._changed(order, OrderState.REJECTED)
            self._answered(event.client_order_id, event)
        elif isinstance(event, Cancelled):
            order = self.orders.get(event.client_order_id)
            if order is not None and not event.repeat:
                order.open_quantity = 0
                order.cancel_reason = event.reason
                self._changed(order, OrderState.CANCELLED)
            # A mass cancel has one Cancelled per order before its own answer.
            if event.request_id and event.reason != CancelReason.MASS_CANCEL:
                self._answered(event.request_id, event)
        elif isinstance(event, Amended):
            order = self.orders.get(event.client_order_id)
            if order is not None and not event.repeat:
                order.quantity = event.quantity
                order.price = event.price
                order.open_quantity = event.open_quantity
                self._changed(order, OrderState.OPEN if event.open_quantity else OrderState.FILLED)
            self._answered(event.request_id, event)
        elif isinstance(event, MassCancelled):
            self._answered(event.request_id, event)
        # Activated: the order was open before and is open now.

    def _changed(self, order: Order, state: OrderState) -> None:
        order.state = state
        order._changed.set()
        if order.is_done:
            self.orders.pop(order.client_order_id, None)

    def _answered(self, command_id: str, event: Answer) -> None:
        pending = self._pending.pop(command_id, None)
        if pending is None:
            return
        if not pending.future.done():
            pending.future.set_result(event)
        self._forget(command_id)

    def _refuse(self, pending: _Pending, error: ClientError) -> None:
        del self._pending[pending.command_id]
        order = self.orders.get(pending.command_id)
        if order is not None:
            order.open_quantity = 0
            self._changed(order, OrderState.REJECTED)
        if not pending.future.done():
            pending.future.set_exception(error)
            pending.future.exception()  # nobody has to look at it
        self._forget(pending.command_id)

    def _forget(self, command_id: str) -> None:
        if self._position is not None:
            self._position.answered(command_id)
        for waiting in self._waiting.pop(command_id, ()):
            if waiting in self._pending:
                self._pending[waiting].after = ""
                self._schedule(self._pending[waiting], 0.0)
        self._room.set()
        if self._alone:
            self._wake.set()

    def _on_open_orders(self, message: OpenOrders) -> None:
        question = self._questions.get(message.message_id)
        if question is None:
            return  # another session of this member asked
        question.found += message.orders
        if message.more:
            return
        question.next_report = message.next_report
        if self._next == 0:  # this is where a client without a position begins
            self._next = message.next_report
            for first in sorted(self._ahead):
                self._on_reports(self._ahead.pop(first))
            self._caught_up()
        elif message.next_report < question.asked_at:
            raise AnotherMarket(
                f"The exchange will give {self.participant} report {message.next_report} next, this client has read up "
                f"to {question.asked_at - 1}: that is another market, or its log was lost."
                + (f" To begin anew, move {self._position_path} away" if self._position_path else "")
            )
        elif message.next_report > self._next:
            self._want_resend()
        self._settle_questions()

    def _settle_questions(self) -> None:
        """An answer counts once every report before it has been handled."""
        for message_id, question in list(self._questions.items()):
            if 0 < question.next_report <= self._next:
                del self._questions[message_id]
                for found in question.found:
                    if found.client_order_id not in self.orders and question.next_report == self._next:
                        self.orders[found.client_order_id] = _as_order(self, found)
                if not question.future.done():
                    question.future.set_result(question.found)

    def _on_error(self, error: MessageError) -> None:
        if error.code == "NOT_AVAILABLE":
            first, self._next = self._next, max(self._next, error.first_available)
            if first < self._next:
                log.warning("%s: reports %d to %d cannot be had any more", self.participant, first, self._next - 1)
                for stream in self._streams:
                    stream.push(Missed(first, self._next - 1))
            self._want_resend(at_once=True)
            return
        batch = [
            pending for pending in self._pending.values() if error.message_id and pending.message_id == error.message_id
        ]
        now = asyncio.get_running_loop().time()
        if error.code == "THROTTLED":
            # Everything waits, not only this message: later commands must not overtake earlier ones.
            self._paused_until = max(self._paused_until, now + max(error.retry_after_ms, 10) / 1000)
            self._throttled = True
            for pending in batch:
                self._schedule(pending, 0.0)
        elif error.code == "RETAINED":
            for pending in batch:
                self._schedule(pending, 0.0)
        elif error.code == "UNKNOWN_MEMBER":
            raise MessageRefused(error)
        elif len(batch) == 1:
            self._refuse(batch[0], MessageRefused(error))
        elif batch:
            self._one_by_one(batch, error)
        else:
            log.error("%s: %s: %s - at `%s`", self.participant, error.code, error.text, error.place)

    def _one_by_one(self, batch: list[_Pending], error: MessageError) -> None:
        """One bad command spoils its message. The place names it; the others go out again."""
        place = re.match(r"\$\.commands\[(\d+)\]", error.place)
        if place is not None and int(place[1]) < len(batch):
            self._refuse(batch[int(place[1])], MessageRefused(error))
            for pending in batch:
                if pending.command_id in self._pending:
                    self._schedule(pending, 0.0)
        else:
            for pending in batch:
                self._refuse(pending, MessageRefused(error))

    def _note_position(self) -> None:
        """Called when a reader comes back for the next report, and after each message."""
        if self._position is None or self._next == 0:
            return
        unread = max((stream.unread for stream in self._streams), default=0)
        self._position.reached(max(self._position.next_report, self._next - unread))
        self._position.write()


class _Question:
    """An open ``open_orders``."""

    def __init__(self, future: asyncio.Future[list[OpenOrder]], wait: float, asked_at: int) -> None:
        self.future = future
        self.wait = wait
        self.due = 0.0
        self.asked_at = asked_at  #: the next report when it was asked
        self.next_report = 0  #: of the answer
        self.found: list[OpenOrder] = []


def _code(instrument: str) -> str:
    if not re.fullmatch(r"[A-Z0-9-]{1,12}", instrument):
        raise BadCommand(f"Expected an instrument code as [A-Z0-9-]{{1,12}}, got {instrument!r}")
    return instrument


def _id_of(command: MemberCommand) -> str:
    return command.client_order_id if isinstance(command, NewOrder) else command.request_id


def _as_command(event: Accepted) -> NewOrder:
    """The order behind an ``Accepted`` that another process of this member sent."""
    return NewOrder(
        event.client_order_id,
        event.instrument,
        event.side,
        event.quantity,
        event.price,
        event.order_type,
        event.time_in_force,
        event.account,
        event.display_quantity,
    )


def _as_order(client: Client, found: OpenOrder) -> Order:
    order = Order(
        client,
        NewOrder(
            found.client_order_id,
            found.instrument,
            found.side,
            found.quantity,
            found.price,
            found.order_type,
            found.time_in_force,
            found.account,
        ),
    )
    order.order_id = found.order_id
    order.state = OrderState.OPEN
    order.open_quantity = found.open_quantity
    order.filled_quantity = found.quantity - found.open_quantity
    return order


__all__ = [
    "Accepted",
    "Amended",
    "AnotherMarket",
    "BadCommand",
    "Cancelled",
    "CannotConnect",
    "Client",
    "ClientError",
    "Closed",
    "Fill",
    "LiveBook",
    "LiveOrders",
    "MassCancelled",
    "MessageRefused",
    "Missed",
    "NotAnswering",
    "NumberedReport",
    "Order",
    "OrderState",
    "OrderType",
    "Refused",
    "Rejected",
    "Side",
    "Stream",
    "TimeInForce",
]
