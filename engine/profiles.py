"""Market models as data: which phases a book has, what each allows, and the switches between published variants.

START, the hybrid of the Tokyo Stock Exchange and a continuous market differ in tables, not in code: the core asks the
phase it is in. A new market model is a new table here; only a new *mechanism* is new code.

What an order's validity means in each phase is the column ``new`` (accepted) and ``waits`` (accepted, but kept outside
the book); which orders come and go with a phase are ``joins`` and ``expires``. Sources are market-rules 1, 2 and 7;
what START does not publish is an assumption there and a parameter here.

Parameters, by ``ListInstrument.rules``, the first value being the usual default:

=============================== =============================== ====================================================
``auction_price``               ``jpx_ose`` …                   price rule, ``engine.matching.itayose.PRICE_RULES``
``allocation``                  ``PRICE_TIME`` …                who trades at the price, ``ALLOCATION_RULES``
``fill_order``                  ``priority``                    the fills of an auction are told in priority order
                                ``remainder_first``             … first those at the price that has a remainder, then
                                                                buys from the lowest, under each sells from the highest
``market_orders_must_all_fill`` 0, 1                            1: an auction that leaves a market order has no price
``restriction_of_market_order`` 0, 1                            1: market orders are refused
``halt_orders``                 ``reject``, ``queue``           new and amend while the book is suspended
``halt_resting``                ``keep``, ``purge``             what a halt does with the orders that are there
``reopen_call_seconds``         0 to 86400                      how long a call re-opens a halted book; 0: none does
``cancel_on_disconnect``        0, 1                            1: a member's orders go with its last connection
``invalid_replace``             ``keep``                        an amend below what is filled is refused
                                ``cancel_filled``               … ends the order; other invalid details are refused
                                ``cancel_live``                 any invalid detail ends the order (ODX equities)
``break_new``                   0, 1                            1: START's Break takes new orders
``call_ncp``                    0, 1                            1: calls may end in a non-cancel period, as START's do
``self_trade``                  ``none``, ``cancel_newest`` …   ``SELF_TRADE_MODES``; an order may name another one
``self_trade_group``            ``participant``, ``account``    who must not trade with itself; no account: no group
``qty_up_keeps_priority``       0, 1                            1: more quantity at the same price keeps the place
``funding``                     ``off``, ``cash`` …             what orders lock, ``FUNDING``; see ``engine/funding.py``
``market_rests``                0, 1                            1: the rest of a market order stays in the book
``mtl_needs_limit``             1, 0                            0: market-to-limit is taken without an opposite limit
``iceberg_entry``               ``fresh_peak``                  after trading on entry a whole peak shows
                                ``rest_of_peak``                … what is left of the peak that traded
``iceberg_uncross``             ``whole``, ``peak``             what of it has time priority in an auction
``volatility_band``             0 to 10000                      basis points around the last price outside which no
                                                                order trades: a call follows instead; 0: anywhere
``volatility_call_seconds``     300, 1 to 86400                 how long that call is
``imbalance_only``              0, 1                            1: imbalance-only orders are offered
``quote_width_table``           ``none``, a table's name        widths of special quotes; none: no such quotes
``special_quote_seconds``       180, 1 to 86,400                how long a special quote stands before it is renewed
``sequential_quote_seconds``    60, 1 to 86,400                 how long a sequential trade quote stands, and in what
                                                                time several orders count as one run
``sequential_opposite``         ``wait``, ``at_once``           when orders against a sequential trade quote trade
``first_price_limits``          ``none``                        an instrument without a base price has no limits today
                                ``at_limit``                    … has limits from its first price on; orders beyond
                                                                them count as at the limit
                                ``lapse``                       … and orders beyond them are cancelled
``limit_widening``              1, 1 to 100                     factor on the limit at which two days in a row stuck
=============================== =============================== ====================================================

An amend to exactly what is filled is accepted and ends the order under each of the three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from engine.matching.itayose import ALLOCATION_RULES, PRICE_RULES, SIMULTANEOUS_RR
from engine.types import OrderType, Phase, SelfTrade, TimeInForce

#: What a phase does with the book.
COLLECT: Final = 0  #: orders queue, nothing trades
TRADE: Final = 1  #: zaraba: an incoming order trades at once
AUCTION: Final = 2  #: an instant: on entry one itayose is held

# Sets of validities and of order types are bit masks: one integer per phase, one test per order.
DAY: Final = 1 << TimeInForce.DAY
IOC: Final = 1 << TimeInForce.IOC
FOK: Final = 1 << TimeInForce.FOK
GTC: Final = 1 << TimeInForce.GTC
GTD: Final = 1 << TimeInForce.GTD
ON_OPEN: Final = 1 << TimeInForce.ON_OPEN
ON_CLOSE: Final = 1 << TimeInForce.ON_CLOSE
FUNARI: Final = 1 << TimeInForce.FUNARI
#: Validities that outlive the day.
OVERNIGHT: Final = GTC | GTD
#: Validities that never rest, so they have no meaning where orders only collect.
IMMEDIATE: Final = IOC | FOK

LIMIT: Final = 1 << OrderType.LIMIT
MARKET: Final = 1 << OrderType.MARKET
MARKET_TO_LIMIT: Final = 1 << OrderType.MARKET_TO_LIMIT
IMBALANCE_ONLY: Final = 1 << OrderType.IMBALANCE_ONLY
STOP: Final = 1 << OrderType.STOP
STOP_LIMIT: Final = 1 << OrderType.STOP_LIMIT
STOPS: Final = STOP | STOP_LIMIT
#: Types that name no limit.
UNPRICED: Final = MARKET | MARKET_TO_LIMIT | STOP

# What an order may carry besides, as a mask too.
ICEBERG: Final = 1
POST_ONLY: Final = 2
MINIMUM: Final = 4
SELF_TRADE: Final = 8  #: its own mode of self-trade prevention

# What goes with what, in every market model; what is offered at all is the profile's to say. Together with the phases
# of a profile this is the table of docs/order-types.md: ``meaning`` reads it for the page, the checks for each order.
_ANY: Final = -1
#: Validities that a type may have; others may have all but FUNARI, which is a limit that will be given up.
VALIDITIES_OF: Final[dict[int, int]] = {LIMIT: _ANY, IMBALANCE_ONLY: ~(FUNARI | IMMEDIATE)}
#: Types and validities with which an option may be asked for.
GOES_WITH: Final[dict[int, tuple[int, int]]] = {
    ICEBERG: (LIMIT | STOP_LIMIT, _ANY),
    POST_ONLY: (LIMIT, ~IMMEDIATE),
    MINIMUM: (~IMBALANCE_ONLY, IOC),
    SELF_TRADE: (_ANY, _ANY),
}

# What an order means in a phase, in one word.
NOT_OFFERED: Final = "–"  #: refused, here and always
REFUSED: Final = "refused"  #: by this phase
TRADES: Final = "trades"  #: at once as far as it can
QUEUES: Final = "queues"  #: until an auction
WAITS: Final = "waits"  #: outside the book

_SECOND_NS: Final = 1_000_000_000

REPLACE_KEEP: Final = "keep"
REPLACE_CANCEL_FILLED: Final = "cancel_filled"
REPLACE_CANCEL_LIVE: Final = "cancel_live"


class PhaseRules:
    """What one phase allows, and what entering it does.

    ``new``, ``waits``, ``joins`` and ``expires`` are masks of validities: accepted; kept outside the book when
    accepted; taken into the book on entry, before the auction of an auction phase; ended on entry (in an auction phase:
    after the auction, if it was held). What joins as FUNARI is in the book already, and gives up its limit.
    ``following`` are the phases that may come next. ``widths`` says how many special-quote widths from the last price
    an auction's price may be, where the instrument has such quotes; ``closes``, that what matches nowhere within them
    trades at the edge instead of becoming a quote (market-rules 6). Where a call is collected they say what is shown.
    """

    def __init__(
        self,
        following: tuple[Phase, ...],
        *,
        matching: int = COLLECT,
        new: int = 0,
        amend: bool = False,
        cancel: bool = False,
        indicative: bool = False,
        waits: int = 0,
        joins: int = 0,
        expires: int = 0,
        widths: int = 1,
        closes: bool = False,
    ) -> None:
        self.following: Final = following
        self.matching: Final = matching
        self.new: Final = new
        self.amend: Final = amend
        self.cancel: Final = cancel
        self.indicative: Final = indicative
        self.waits: Final = waits
        self.joins: Final = joins
        self.expires: Final = expires
        #: A non-cancel period: orders are fixed until the auction.
        self.is_frozen: Final = matching == COLLECT and new != 0 and not cancel
        self.widths: Final = widths
        self.closes: Final = closes


class Profile:
    """A market model: its phases, the order types it offers, its parameters with their defaults.

    ``break_new`` is the mask of validities that the phase BREAK takes where the parameter of that name is 1.
    """

    def __init__(
        self,
        name: str,
        phases: Mapping[Phase, PhaseRules],
        order_types: int,
        parameters: Mapping[str, int | str],
        break_new: int = 0,
        options: int = 0,
    ) -> None:
        self.name: Final = name
        self.phases: Final = dict(phases)
        self.order_types: Final = order_types
        self.parameters: Final = dict(parameters)
        self.break_new: Final = break_new
        self.options: Final = options


#: Modes of self-trade prevention by the name of the parameter's value.
SELF_TRADE_MODES: Final[dict[int | str, SelfTrade]] = {
    mode.name.lower(): mode for mode in SelfTrade if mode != SelfTrade.DEFAULT
}

_UP_TO_A_DAY: Final = range(86_400 + 1)

# What has to be there before an order is taken, as a mask.
FUNDS_CASH: Final = 1  #: yen, for buys
FUNDS_UNITS: Final = 2  #: units, for sells
#: The same by the name of the parameter's value.
FUNDING: Final[dict[int | str, int]] = {
    "off": 0,
    "cash": FUNDS_CASH,
    "units": FUNDS_UNITS,
    "both": FUNDS_CASH | FUNDS_UNITS,
}

#: A table of this name is none: no daily limits, no special quotes.
NO_TABLE: Final = "none"

#: Every parameter and its allowed values. The names of tables are not known here; the core asks whether they exist.
CHOICES: Final[dict[str, Sequence[int | str]]] = {
    "auction_price": PRICE_RULES,
    "allocation": ALLOCATION_RULES,
    "fill_order": ("priority", "remainder_first"),
    "market_orders_must_all_fill": (0, 1),
    "restriction_of_market_order": (0, 1),
    "halt_orders": ("reject", "queue"),
    "halt_resting": ("keep", "purge"),
    "reopen_call_seconds": _UP_TO_A_DAY,
    "cancel_on_disconnect": (0, 1),
    "invalid_replace": (REPLACE_KEEP, REPLACE_CANCEL_FILLED, REPLACE_CANCEL_LIVE),
    "break_new": (0, 1),
    "call_ncp": (0, 1),
    "self_trade": tuple(SELF_TRADE_MODES),
    "self_trade_group": ("participant", "account"),
    "qty_up_keeps_priority": (0, 1),
    "funding": tuple(FUNDING),
    "market_rests": (0, 1),
    "mtl_needs_limit": (1, 0),
    "iceberg_entry": ("fresh_peak", "rest_of_peak"),
    "iceberg_uncross": ("whole", "peak"),
    "volatility_band": range(10_000 + 1),
    "volatility_call_seconds": _UP_TO_A_DAY[1:],
    "imbalance_only": (0, 1),
    "special_quote_seconds": _UP_TO_A_DAY[1:],
    "sequential_quote_seconds": _UP_TO_A_DAY[1:],
    "sequential_opposite": ("wait", "at_once"),
    "first_price_limits": ("none", "at_limit", "lapse"),
    "limit_widening": range(1, 101),
}

_COMMON: Final[dict[str, int | str]] = {
    "auction_price": "jpx_ose",
    "allocation": "PRICE_TIME",
    "fill_order": "priority",
    "market_orders_must_all_fill": 0,
    "restriction_of_market_order": 0,
    "halt_orders": "reject",
    "halt_resting": "keep",
    "reopen_call_seconds": 0,
    "cancel_on_disconnect": 0,
    "invalid_replace": REPLACE_KEEP,
    "self_trade": "none",
    "self_trade_group": "participant",
    "qty_up_keeps_priority": 0,
    "funding": "off",
    "imbalance_only": 0,
    "first_price_limits": "none",
}

#: START's eight states in their order (market-rules 1). A call outside the two follows a halt that dropped an auction.
START: Final = Profile(
    "START",
    {
        Phase.CLOSED: PhaseRules((Phase.PRE_OPEN,), expires=~OVERNIGHT),
        Phase.PRE_OPEN: PhaseRules(
            (Phase.PRE_OPEN_NCP,),
            new=DAY | ON_OPEN | ON_CLOSE,
            amend=True,
            cancel=True,
            indicative=True,
            waits=ON_CLOSE,
        ),
        Phase.PRE_OPEN_NCP: PhaseRules(
            (Phase.OPENING_AUCTION,), new=DAY | ON_OPEN | ON_CLOSE, indicative=True, waits=ON_CLOSE
        ),
        Phase.OPENING_AUCTION: PhaseRules((Phase.BREAK, Phase.CALL), matching=AUCTION, expires=ON_OPEN),
        Phase.BREAK: PhaseRules((Phase.PRE_CLOSE, Phase.CALL), cancel=True, waits=ON_CLOSE),
        Phase.CALL: PhaseRules((Phase.CALL_AUCTION,), new=DAY, amend=True, cancel=True, indicative=True),
        Phase.CALL_AUCTION: PhaseRules((Phase.BREAK, Phase.CALL, Phase.CLOSED), matching=AUCTION, expires=ON_OPEN),
        Phase.PRE_CLOSE: PhaseRules(
            (Phase.PRE_CLOSE_NCP,),
            new=DAY | ON_CLOSE,
            amend=True,
            cancel=True,
            indicative=True,
            joins=ON_CLOSE,
            expires=ON_OPEN,
        ),
        Phase.PRE_CLOSE_NCP: PhaseRules((Phase.CLOSING_AUCTION,), new=DAY | ON_CLOSE, indicative=True),
        Phase.CLOSING_AUCTION: PhaseRules((Phase.CLOSED, Phase.CALL), matching=AUCTION, expires=ON_CLOSE),
    },
    LIMIT | MARKET,
    {**_COMMON, "break_new": 0, "cancel_on_disconnect": 1, "limit_widening": 1},
    break_new=DAY | ON_CLOSE,
)

#: START's orders and rules in any number of calls a day. How many there are, and how long the non-cancel period of each
#: is, says the timetable; in place of one the gateway may draw a random end for each call.
N_CALLS: Final = Profile(
    "N_CALLS",
    {
        Phase.CLOSED: PhaseRules((Phase.CALL,), expires=~OVERNIGHT),
        # A call that re-opens a halted book may do without a non-cancel period.
        Phase.CALL: PhaseRules((Phase.CALL_NCP, Phase.CALL_AUCTION), new=DAY, amend=True, cancel=True, indicative=True),
        Phase.CALL_NCP: PhaseRules((Phase.CALL_AUCTION,), new=DAY, indicative=True),
        Phase.CALL_AUCTION: PhaseRules((Phase.CALL, Phase.BREAK, Phase.CLOSED), matching=AUCTION),
        Phase.BREAK: PhaseRules((Phase.CALL, Phase.CLOSED), cancel=True),
    },
    LIMIT | MARKET,
    {**_COMMON, "break_new": 0, "call_ncp": 0, "cancel_on_disconnect": 1, "limit_widening": 1},
    break_new=DAY,
)

#: Two sessions a day, each opened and closed by an itayose; pre-closing before the day's last (market-rules 2 and 6).
#: An on-open or on-close order belongs to the next such itayose, the morning's or the afternoon's.
TSE_HYBRID: Final = Profile(
    "TSE_HYBRID",
    {
        Phase.CLOSED: PhaseRules((Phase.PRE_OPEN,), expires=~OVERNIGHT),
        Phase.PRE_OPEN: PhaseRules(
            (Phase.OPENING_AUCTION,),
            new=DAY | ON_OPEN | ON_CLOSE | FUNARI,
            amend=True,
            cancel=True,
            indicative=True,
            waits=ON_CLOSE,
        ),
        Phase.OPENING_AUCTION: PhaseRules((Phase.CONTINUOUS, Phase.CALL), matching=AUCTION, expires=ON_OPEN),
        Phase.CONTINUOUS: PhaseRules(
            (Phase.PRE_CLOSE, Phase.CLOSING_AUCTION, Phase.CALL),
            matching=TRADE,
            new=DAY | IOC | ON_CLOSE | FUNARI,
            amend=True,
            cancel=True,
            waits=ON_CLOSE,
        ),
        Phase.PRE_CLOSE: PhaseRules(
            (Phase.CLOSING_AUCTION, Phase.CALL),
            new=DAY | ON_CLOSE,
            amend=True,
            cancel=True,
            indicative=True,
            joins=ON_CLOSE | FUNARI,
            widths=2,
            closes=True,
        ),
        Phase.CLOSING_AUCTION: PhaseRules(
            (Phase.CLOSED, Phase.BREAK, Phase.CALL),
            matching=AUCTION,
            joins=ON_CLOSE | FUNARI,
            expires=ON_CLOSE | FUNARI,
            widths=2,
            closes=True,
        ),
        Phase.BREAK: PhaseRules((Phase.PRE_OPEN, Phase.CALL), cancel=True),
        Phase.CALL: PhaseRules(
            (Phase.CALL_AUCTION,),
            new=DAY | ON_CLOSE | FUNARI,
            amend=True,
            cancel=True,
            indicative=True,
            waits=ON_CLOSE,
        ),
        Phase.CALL_AUCTION: PhaseRules(
            (Phase.CONTINUOUS, Phase.BREAK, Phase.CALL, Phase.CLOSED), matching=AUCTION, expires=ON_OPEN
        ),
    },
    LIMIT | MARKET,
    {
        **_COMMON,
        "allocation": "SIMULTANEOUS_RR",
        "fill_order": "remainder_first",
        "market_orders_must_all_fill": 1,
        "self_trade": "cancel_newest",
        "reopen_call_seconds": 300,
        "quote_width_table": "tse",
        "special_quote_seconds": 180,
        "sequential_quote_seconds": 60,
        "sequential_opposite": "wait",
        "first_price_limits": "at_limit",
        "limit_widening": 4,
    },
)

#: One book that trades as orders come; a call re-opens it after a halt (market-rules 2).
CONTINUOUS: Final = Profile(
    "CONTINUOUS",
    {
        Phase.CLOSED: PhaseRules((Phase.CONTINUOUS, Phase.CALL), expires=~OVERNIGHT),
        Phase.CONTINUOUS: PhaseRules(
            (Phase.CALL, Phase.CLOSED), matching=TRADE, new=DAY | IOC | FOK | GTC | GTD, amend=True, cancel=True
        ),
        Phase.CALL: PhaseRules(
            (Phase.CALL_AUCTION, Phase.CLOSED), new=DAY | GTC | GTD, amend=True, cancel=True, indicative=True
        ),
        Phase.CALL_AUCTION: PhaseRules((Phase.CONTINUOUS, Phase.CALL, Phase.CLOSED), matching=AUCTION),
    },
    LIMIT | MARKET | MARKET_TO_LIMIT | STOP | STOP_LIMIT,
    {
        **_COMMON,
        "invalid_replace": REPLACE_CANCEL_FILLED,
        "self_trade": "cancel_newest",
        "market_rests": 0,
        "mtl_needs_limit": 1,
        "iceberg_entry": "fresh_peak",
        "iceberg_uncross": "whole",
        "volatility_band": 0,
        "volatility_call_seconds": 300,
    },
    options=ICEBERG | POST_ONLY | MINIMUM | SELF_TRADE,
)

PROFILES: Final[dict[str, Profile]] = {profile.name: profile for profile in (START, CONTINUOUS, TSE_HYBRID, N_CALLS)}


def _wrong(name: str, value: int | str) -> str:
    """What is wrong with the value of a parameter; "" if nothing is."""
    choices = CHOICES.get(name)
    if choices is None:
        return "" if isinstance(value, str) else f"Expected a table's name, got {value!r}"
    if type(value) is not type(choices[0]) or value not in choices:
        if isinstance(choices, range):
            return f"Expected {choices[0]} to {choices[-1]}, got {value!r}"
        return f"Expected one of {', '.join(str(choice) for choice in choices)}, got {value!r}"
    return ""


class Rules:
    """A profile with one instrument's deviations: what the core asks, order by order.

    Raises ``ValueError`` for a parameter that the profile does not have or a value that the parameter does not take.
    """

    def __init__(self, profile: Profile, deviations: Mapping[str, int | str]) -> None:
        settings = dict(profile.parameters)
        for name, value in deviations.items():
            if name not in settings:
                raise ValueError(
                    f"Expected a parameter of profile {profile.name}: {', '.join(settings)}, "
                    f"got {name!r} - at `$.rules`"
                )
            wrong = _wrong(name, value)
            if wrong:
                raise ValueError(f"{wrong} - at `$.rules.{name}`")
            settings[name] = value
        if settings.get("market_rests") == 1 and FUNDING[settings["funding"]] & FUNDS_CASH:
            # It trades at the last price, and nothing bounds that.
            text = "Expected no market orders that rest where cash is pre-funded, got 1"
            raise ValueError(f"{text} - at `$.rules.market_rests`")
        self.profile: Final = profile
        self.settings: Final = settings
        self.funding: Final = FUNDING[settings["funding"]]
        self.phases: Final = dict(profile.phases)
        if settings.get("break_new") == 1:
            rest = self.phases[Phase.BREAK]
            self.phases[Phase.BREAK] = PhaseRules(
                rest.following, new=profile.break_new, cancel=rest.cancel, waits=rest.waits
            )
        if settings.get("call_ncp") == 0:
            call = self.phases[Phase.CALL]
            following = tuple([phase for phase in call.following if phase != Phase.CALL_NCP])
            self.phases[Phase.CALL] = PhaseRules(following, new=call.new, amend=True, cancel=True, indicative=True)
        validities = 0
        for phase in self.phases.values():
            validities |= phase.new
        offered = IMBALANCE_ONLY if settings.get("imbalance_only") == 1 else 0
        self.order_types: Final = profile.order_types | offered
        self.validities: Final = validities
        self.auction_price: Final = str(settings["auction_price"])
        self.allocation: Final = str(settings["allocation"])
        self.in_turns: Final = self.allocation == SIMULTANEOUS_RR
        self.remainder_first: Final = settings["fill_order"] == "remainder_first"
        self.market_orders_must_all_fill: Final = settings["market_orders_must_all_fill"] == 1
        self.restriction_of_market_order: Final = settings["restriction_of_market_order"] == 1
        self.queue_in_halt: Final = settings["halt_orders"] == "queue"
        self.purges_in_halt: Final = settings["halt_resting"] == "purge"
        self.reopen_call_seconds: Final = int(settings["reopen_call_seconds"])
        self.cancel_on_disconnect: Final = settings["cancel_on_disconnect"] == 1
        self.volatility_band: Final = int(settings.get("volatility_band", 0))
        self.volatility_call_seconds: Final = int(settings.get("volatility_call_seconds", 0))
        self.invalid_replace: Final = str(settings["invalid_replace"])
        self.options: Final = profile.options
        self.self_trade: Final = int(SELF_TRADE_MODES[settings["self_trade"]])
        self.self_trade_by_account: Final = settings["self_trade_group"] == "account"
        self.qty_up_keeps_priority: Final = settings["qty_up_keeps_priority"] == 1
        self.market_rests: Final = settings.get("market_rests") == 1
        #: Whether an order that comes in zaraba may meet others than the first of the best price.
        self.chooses: Final = self.market_rests or self.in_turns
        self.mtl_needs_limit: Final = settings.get("mtl_needs_limit", 1) == 1
        self.rest_of_peak: Final = settings.get("iceberg_entry") == "rest_of_peak"
        self.peak_priority: Final = settings.get("iceberg_uncross") == "peak"
        self.quote_table: Final = str(settings.get("quote_width_table", NO_TABLE))
        self.special_quote_ns: Final = int(settings.get("special_quote_seconds", 0)) * _SECOND_NS
        self.sequential_quote_ns: Final = int(settings.get("sequential_quote_seconds", 0)) * _SECOND_NS
        self.sequential_at_once: Final = settings.get("sequential_opposite") == "at_once"
        self.first_price_limits: Final = str(settings["first_price_limits"])
        self.limit_widening: Final = int(settings.get("limit_widening", 1))
        if self.quote_table != NO_TABLE and not self.market_orders_must_all_fill:
            raise ValueError(
                "Expected 1 where special quotes wait until market orders fill, got 0"
                " - at `$.rules.market_orders_must_all_fill`"
            )


def may_have(order_type: int, validity: int, options: int) -> bool:
    """Whether a type, a validity and options go with one another; all are masks, one bit each for the first two."""
    if VALIDITIES_OF.get(order_type, ~FUNARI) & validity == 0:
        return False
    for option, (types, validities) in GOES_WITH.items():
        if options & option and (types & order_type == 0 or validities & validity == 0):
            return False
    return True


def meaning(rules: Rules, phase: Phase, order_type: OrderType, validity: TimeInForce, options: int = 0) -> str:
    """What such an order means in a phase: ``NOT_OFFERED``, ``REFUSED``, ``TRADES``, ``QUEUES`` or ``WAITS``."""
    phase_rules = rules.phases[phase]
    type_bit = 1 << order_type
    validity_bit = 1 << validity
    offered = rules.order_types & type_bit and rules.validities & validity_bit and options & ~rules.options == 0
    if not offered or not may_have(type_bit, validity_bit, options):
        return NOT_OFFERED
    if phase_rules.new & validity_bit == 0:
        return REFUSED
    if type_bit & (STOPS | IMBALANCE_ONLY) or phase_rules.waits & validity_bit:
        return WAITS
    return TRADES if phase_rules.matching == TRADE else QUEUES
