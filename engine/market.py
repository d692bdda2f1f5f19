"""What the engine knows about each instrument, and what it shows of it.

``Instrument`` is one listed book with its state. The views are what queries return: values, detached from the engine.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from engine.identities import encode
from engine.matching.book import Book
from engine.profiles import PhaseRules, Rules
from engine.tables import LimitTable, TickTable
from engine.turns import Turns
from engine.types import SIDES, CancelReason, OrderType, Phase, QuoteKind, SelfTrade, Side, TimeInForce

#: ``Instrument.guards``: what orders of few instruments have to pass, so that all others pay one test for all of it.
PROTECTED: Final = 1  #: a kill switch or limits of this book (``engine/protection.py``)
ASIDE: Final = 2  #: it is set aside (``engine/rebuild.py``)
FUNDED: Final = 4  #: orders lock cash or units (``engine/funding.py``)
RESTRICTED: Final = 8  #: not everybody may trade or hold it, or not always (``engine/eligibility.py``)


class OrderView(NamedTuple):
    """An order as it stands now."""

    order_id: int
    participant: str
    client_order_id: str
    instrument: str
    side: Side
    price: int  #: 0: no limit
    quantity: int  #: total, filled part included
    open_quantity: int  #: still to trade; 0 once it is filled or gone
    order_type: OrderType
    time_in_force: TimeInForce
    account: str
    waiting: bool  #: outside the book for now
    displayed: int  #: what of ``open_quantity`` the book shows


class InstrumentView(NamedTuple):
    """An instrument as it stands now. Prices are in its price units, 0 where there is none."""

    code: str
    profile: str
    phase: Phase
    suspended: bool
    reference_price: int
    base_price: int  #: of the day
    lower_limit: int
    upper_limit: int
    last_price: int
    last_quantity: int
    lot: int
    price_decimals: int
    settlement_days: int
    settlement_date: int  #: of today's trades, YYYYMMDD; 0 without a calendar
    ledger: str
    rules: dict[str, int | str]  #: every parameter of its profile, with this instrument's values
    until_ns: int = 0  #: when the present phase is due to end; 0: not said
    dropped: bool = False  #: a halt has dropped the auction of this phase, or the one ahead
    set_aside: bool = False  #: out of the market until it is rebuilt
    frozen: bool = False  #: and cancels have to wait for that
    quote: QuoteKind = QuoteKind.NONE  #: what keeps it from trading, see ``QuoteChanged``
    quote_side: Side = Side.BUY
    quote_price: int = 0
    quote_due_ns: int = 0
    in_window: bool = False  #: a record date, a distribution or a freeze: it takes no orders
    supervision: bool = False
    termination: bool = False


class Options:
    """What few orders carry. Kept beside the columns of the order table, so that the others do not pay for it."""

    def __init__(
        self,
        display: int = 0,
        stop_price: int = 0,
        minimum: int = 0,
        post_only: bool = False,
        self_trade: int = 0,
        expire_date: int = 0,
        confirmed: bool = False,
    ) -> None:
        self.display: Final = display  #: an iceberg's peak; 0: it shows everything
        self.stop_price: Final = stop_price
        self.minimum: Final = minimum
        self.post_only: Final = post_only
        self.self_trade: Final = self_trade  #: ``SelfTrade``; 0: as the instrument has it
        self.expire_date: Final = expire_date
        self.confirmed: Final = confirmed  #: a large share of the units outstanding, and its member means it
        self.shown: int = 0  #: what the iceberg last showed before it was shown whole

    def key(self) -> list[int]:
        """All of it, for the digest."""
        return [
            self.display,
            self.stop_price,
            self.minimum,
            int(self.post_only),
            self.self_trade,
            self.expire_date,
            int(self.confirmed),
        ]


class Quote:
    """A special or sequential trade quote in force: orders meet, and the next price is too far away (market-rules 6).

    While it stands the book collects. ``base`` is the price around which one width may be traded, on the side away from
    the quote; ``expires`` are the validities that end with it: of an auction that it holds up.
    """

    def __init__(self, kind: int, side: int, price: int, base: int, due_ns: int, expires: int) -> None:
        self.kind: Final = kind
        self.side: Final = side  #: that presses: 0 for a bid quote
        self.price: Final = price
        self.base: Final = base
        self.due_ns: Final = due_ns  #: when it may be renewed; 0: it stands at the day's limit
        self.expires: int = expires

    def key(self) -> list[int]:
        """All of it, for the digest."""
        return [self.kind, self.side, self.price, self.base, self.due_ns, self.expires]


class DeferredMassCancel:
    """A member's mass cancel that a non-cancel period holds up until orders may be cancelled again (market-rules 1).

    ``newest`` is the last order that existed when it was asked for: later orders are not meant. A lost connection waits
    in the same way, with a ``reason`` of its own.
    """

    def __init__(
        self,
        participant: int,
        request_id: str,
        side: int,
        low: int,
        high: int,
        account: str,
        newest: int,
        reason: CancelReason = CancelReason.MASS_CANCEL,
    ) -> None:
        self.participant: Final = participant
        self.request_id: Final = request_id
        self.side: Final = side  #: -1: both
        self.low: Final = low  #: 0: unbounded
        self.high: Final = high
        self.account: Final = account
        self.newest: Final = newest
        self.reason: Final = reason

    def key(self) -> list[int | str]:
        """All of it, for the digest."""
        return [
            self.participant,
            self.request_id,
            self.side,
            self.low,
            self.high,
            self.account,
            self.newest,
            int(self.reason),
        ]


class Instrument:
    """One listed instrument: what it is, what its book is doing, what holds for it today."""

    def __init__(
        self,
        index: int,
        code: str,
        rules: Rules,
        book: Book,
        ticks: TickTable,
        *,
        reference: int,
        lot: int,
        price_decimals: int,
        tick_table: str,
        limit_table: str,
        settlement_days: int,
        ledger: str,
        units_outstanding: int,
    ) -> None:
        self.index: Final = index
        self.code: Final = code
        self.rules: Final = rules
        self.book: Book = book  #: another one after ``RebuildInstrument``
        self.guards: int = FUNDED if rules.funding else 0  #: a mask of ``PROTECTED`` …
        self.set_aside: bool = False  #: its book contradicts itself, see ``engine/rebuild.py``
        self.frozen: bool = False  #: and its queues cannot be trusted
        self.in_window: bool = False  #: a record date, a distribution or a freeze: it takes no orders
        self.supervision: bool = False  #: START's attention flag, shown
        self.termination: bool = False  #: START's termination flag, shown
        self.lot: Final = lot
        self.price_decimals: Final = price_decimals
        self.tick_table: Final = tick_table
        self.limit_table: Final = limit_table
        self.settlement_days: Final = settlement_days
        self.ledger: Final = ledger
        self.units_outstanding: Final = units_outstanding
        #: All that never changes, for the digest.
        self._listing: Final = encode(
            [
                [code, rules.profile.name, sorted((name, str(value)) for name, value in rules.settings.items())],
                [lot, price_decimals, settlement_days, units_outstanding],
                [tick_table, limit_table, ledger],
            ]
        )

        self.day: int = 0  #: trading day it was prepared for, YYYYMMDD; 0: listed, its first day has not begun
        self.ticks: TickTable = ticks
        self.phase: Phase = Phase.CLOSED
        self.phase_rules: PhaseRules = rules.phases[Phase.CLOSED]
        self.suspended: bool = False
        self.reference: int = reference  #: last auction price, or as listed or set
        self.base: int = 0
        self.lower: int = 0
        self.upper: int = 0
        self.last_price: int = 0
        self.last_quantity: int = 0
        self.settlement_date: int = 0
        self.until_ns: int = 0  #: when the present phase is due to end, nanoseconds since the epoch; 0: not said
        self.dropped: bool = False  #: a halt has dropped the auction of this phase, or the one ahead
        #: Whether trades have to lie in a band.
        self.volatile: bool = rules.volatility_band > 0
        #: Numbers of orders bound to an auction (on-open, on-close), ascending, dead ones included until the day ends.
        self.bound: list[int] = []
        self.deferred: Final[list[DeferredMassCancel]] = []
        self.deferred_by: Final[dict[int, int]] = {}  #: how many of them each participant has
        #: Whether self-trades may have to be prevented: the rule says so, or an order has said so.
        self.prevents: bool = rules.self_trade > SelfTrade.NONE
        #: What icebergs in the book do not show, by order; only those that hide something.
        self.reserves: Final[dict[int, int]] = {}
        #: Untriggered stops; and where they are looked for: heaps of (stop price, priority, order), the price negated
        #: for sells. Entries of stops that have left stay in the heaps.
        self.stops: Final[dict[int, bool]] = {}
        self.buy_stops: Final[list[tuple[int, int, int]]] = []
        self.sell_stops: Final[list[tuple[int, int, int]]] = []

        #: Imbalance-only orders, which stay outside the book.
        self.imbalance: Final[dict[int, bool]] = {}
        self.limits: LimitTable | None = None  #: the day's table of limit widths
        self.widths: LimitTable | None = None  #: the day's table of special-quote widths
        self.quote: Quote | None = None
        #: Where members take turns: among whom, and where they stand.
        self.turns: Final[Turns | None] = Turns() if rules.in_turns else None
        self.run_base: int = 0  #: last price before the present run of trades, see ``engine/quotes.py``; 0: none
        self.run_since_ns: int = 0
        #: Whether orders need more than zaraba's own rules: special quotes, or limits that the first price brings.
        self.special: bool = False
        self.stuck_days: int = 0  #: days in a row stuck at the upper limit; negative: at the lower one
        self.pressed: int = 0  #: 1: at the last auction buyers stood at the day's upper limit, unopposed; -1: sellers …
        self.moved: bool = False  #: it has traded today other than by the allocation at a limit

    def defer(self, request: DeferredMassCancel) -> None:
        self.deferred.append(request)
        self.deferred_by[request.participant] = self.deferred_by.get(request.participant, 0) + 1

    @property
    def cancels(self) -> bool:
        """Whether members' cancels are taken now."""
        return self.phase_rules.cancel and not self.frozen

    def enter(self, phase: Phase, until_ns: int = 0) -> None:
        self.phase = phase
        self.phase_rules = self.rules.phases[phase]
        self.until_ns = until_ns

    def view(self) -> InstrumentView:
        return InstrumentView(
            self.code,
            self.rules.profile.name,
            self.phase,
            self.suspended,
            self.reference,
            self.base,
            self.lower,
            self.upper,
            self.last_price,
            self.last_quantity,
            self.lot,
            self.price_decimals,
            self.settlement_days,
            self.settlement_date,
            self.ledger,
            dict(self.rules.settings),
            self.until_ns,
            self.dropped,
            self.set_aside,
            self.frozen,
            QuoteKind(self.quote.kind) if self.quote is not None else QuoteKind.NONE,
            SIDES[self.quote.side] if self.quote is not None else Side.BUY,
            self.quote.price if self.quote is not None else 0,
            self.quote.due_ns if self.quote is not None else 0,
            self.in_window,
            self.supervision,
            self.termination,
        )

    def key(self) -> list[object]:
        """Its state apart from the book, for the digest."""
        return [
            self._listing,
            self.ticks.rows,
            [self.day, int(self.phase), int(self.suspended), self.settlement_date, self.until_ns, int(self.dropped)],
            [self.reference, self.base, self.lower, self.upper, self.last_price, self.last_quantity],
            [deferred.key() for deferred in self.deferred],
            *([["set aside", int(self.frozen)]] if self.set_aside else []),
            self.quote.key() if self.quote is not None else [],
            self.limits.rows if self.limits is not None else [],
            self.widths.rows if self.widths is not None else [],
            [self.run_base, self.run_since_ns, self.stuck_days, self.pressed, int(self.moved)],
            *(self.turns.key() if self.turns is not None else []),
        ]
