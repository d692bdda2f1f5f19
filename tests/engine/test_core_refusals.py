"""What the market declines: each reason once, in a fixed order of checks, with a text that names what and where."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import (
    Accepted,
    Cancelled,
    CancelReason,
    Command,
    Engine,
    LimitRow,
    ListInstrument,
    NewOrder,
    OrderType,
    Phase,
    Reason,
    Rejected,
    ResumeInstrument,
    SelfTrade,
    SetCalendar,
    SetLimitTable,
    SetPhase,
    SetReferencePrice,
    SetTickTable,
    Side,
    StartDay,
    SuspendInstrument,
    TickRow,
    TimeInForce,
    Traded,
)
from engine.commands import ExchangeCommand
from engine.types import VALUE_MAX, Approval, WindowKind
from tests.market import CODE, TODAY, Market, every, refusal, start, zaraba

PRICE_MAX = 2**48
QUANTITY_MAX = 2**40


def limited() -> Market:
    """A START book in its opening call: tick 5, lot 10, limits 50 to 150."""
    market = Market()
    market.must(
        SetTickTable("five", 0, [TickRow(0, 5)]),
        SetLimitTable("fifty", 0, [LimitRow(0, 50)]),
        ListInstrument(CODE, reference_price=100, lot=10, tick_table="five", limit_table="fifty"),
        StartDay(TODAY),
        SetPhase(CODE, Phase.PRE_OPEN),
    )
    return market


GOOD: dict[str, Any] = {"instrument": CODE, "side": Side.BUY, "quantity": 10, "price": 100}


@pytest.mark.parametrize(
    ("change", "reason", "place"),
    [
        ({"instrument": "NONE"}, Reason.UNKNOWN_INSTRUMENT, "$.instrument"),
        ({"order_type": OrderType.STOP, "stop_price": 100}, Reason.NOT_OFFERED, "$.order_type"),
        ({"order_type": OrderType.MARKET_TO_LIMIT}, Reason.NOT_OFFERED, "$.order_type"),
        ({"time_in_force": TimeInForce.GTC}, Reason.NOT_OFFERED, "$.time_in_force"),
        ({"time_in_force": TimeInForce.IOC}, Reason.NOT_OFFERED, "$.time_in_force"),
        ({"time_in_force": TimeInForce.FUNARI}, Reason.NOT_OFFERED, "$.time_in_force"),
        ({"display_quantity": 5}, Reason.NOT_OFFERED, "$.display_quantity"),
        ({"stop_price": 5}, Reason.NOT_OFFERED, "$.stop_price"),
        ({"minimum_quantity": 5}, Reason.NOT_OFFERED, "$.minimum_quantity"),
        ({"post_only": True}, Reason.NOT_OFFERED, "$.post_only"),
        ({"self_trade": SelfTrade.CANCEL_BOTH}, Reason.NOT_OFFERED, "$.self_trade"),
        ({"expire_date": 20261231}, Reason.NOT_OFFERED, "$.expire_date"),
        ({"quantity": 0}, Reason.BAD_QUANTITY, "$.quantity"),
        ({"quantity": -10}, Reason.BAD_QUANTITY, "$.quantity"),
        ({"quantity": QUANTITY_MAX + 10}, Reason.BAD_QUANTITY, "$.quantity"),
        ({"quantity": 15}, Reason.OFF_LOT, "$.quantity"),
        ({"price": 0}, Reason.BAD_PRICE, "$.price"),
        ({"price": -5}, Reason.BAD_PRICE, "$.price"),
        ({"price": PRICE_MAX + 1}, Reason.BAD_PRICE, "$.price"),
        ({"price": 100, "order_type": OrderType.MARKET}, Reason.BAD_PRICE, "$.price"),
        ({"price": 101}, Reason.OFF_TICK, "$.price"),
        ({"price": 45}, Reason.BELOW_LIMIT, "$.price"),
        ({"price": 155}, Reason.ABOVE_LIMIT, "$.price"),
        # The first check that fails names the reason.
        ({"quantity": 15, "price": 101}, Reason.OFF_LOT, "$.quantity"),
        ({"price": 156}, Reason.OFF_TICK, "$.price"),
    ],
)  # fmt: skip
def test_an_order_is_refused_for_its_own_reason_and_told_where(
    change: dict[str, Any], reason: Reason, place: str
) -> None:
    market = limited()

    event = refusal(market.run(NewOrder("a-1", **{**GOOD, **change}), "alpha"))

    assert event.reason == reason
    assert place in event.text
    assert event.client_order_id == "a-1"
    assert market.engine.depth(CODE) == ([], [])
    assert market.engine.open_orders("alpha") == []


@pytest.mark.parametrize("price", [50, 150])
def test_the_day_s_limits_themselves_are_valid_prices(price: int) -> None:
    market = limited()

    market.run(NewOrder("a-1", **{**GOOD, "price": price}), "alpha")

    assert market.engine.depth(CODE)[0] == [(price, 10)]


def test_a_refusal_names_expectation_value_and_place() -> None:
    market = limited()

    assert refusal(market.buy(10, 103)).text == "Expected a multiple of 5, got 103 - at `$.price`"
    assert refusal(market.buy(15, 100)).text == (
        "Expected a multiple of 10, the lot of KDX-2107, got 15 - at `$.quantity`"
    )


def test_market_orders_are_refused_where_the_book_restricts_them() -> None:
    market = start(Phase.PRE_OPEN, rules={"restriction_of_market_order": 1})

    assert refusal(market.buy(10)).reason == Reason.MARKET_ORDERS_RESTRICTED


def test_an_order_worth_more_than_63_bits_is_refused() -> None:
    market = zaraba()

    assert refusal(market.buy(2**40, 2**22)).reason == Reason.VALUE_TOO_LARGE
    assert not isinstance(market.buy(2**40, 2**22 - 1)[0], Rejected)


def test_what_an_order_may_be_worth_is_bounded_at_the_worst_price_it_can_get() -> None:
    market = Market()
    market.must(
        SetLimitTable("wide", 0, [LimitRow(0, 2**46)]),
        ListInstrument(CODE, reference_price=2**46, limit_table="wide"),
        StartDay(TODAY),
        SetPhase(CODE, Phase.PRE_OPEN),
    )

    assert refusal(market.sell(2**15, 1)).reason == Reason.VALUE_TOO_LARGE
    assert refusal(market.buy(2**15)).reason == Reason.VALUE_TOO_LARGE


def test_without_daily_limits_an_order_without_a_limit_may_cost_the_highest_price_there_is() -> None:
    market = start(Phase.PRE_OPEN)
    most = VALUE_MAX // PRICE_MAX - 1

    for order in (market.buy, market.sell):
        event = refusal(order(most + 1))
        assert event.reason == Reason.VALUE_TOO_LARGE
        assert event.text.startswith(
            f"Expected price times quantity below {VALUE_MAX}, got {most + 1} at up to {PRICE_MAX}"
        )
    market.buy(1, PRICE_MAX)
    market.buy(most)
    market.sell(QUANTITY_MAX, 1)
    market.phase(Phase.PRE_OPEN_NCP)

    trades = every(market.phase(Phase.OPENING_AUCTION), Traded)
    assert trades
    assert all(trade.price * trade.quantity < VALUE_MAX for trade in trades)


def test_a_market_order_that_trades_at_once_is_bounded_by_those_it_meets() -> None:
    market = zaraba()
    market.sell(QUANTITY_MAX, 1)
    market.sell(VALUE_MAX // PRICE_MAX - 1, PRICE_MAX)

    trades = every(market.buy(QUANTITY_MAX), Traded)

    assert [(trade.price, trade.quantity) for trade in trades] == [(1, QUANTITY_MAX)]
    assert refusal(zaraba(rules={"market_rests": 1}).buy(QUANTITY_MAX)).reason == Reason.VALUE_TOO_LARGE


@pytest.mark.parametrize("order_type", [OrderType.MARKET, OrderType.MARKET_TO_LIMIT, OrderType.STOP])
def test_no_kind_of_order_without_a_limit_escapes_the_bound_of_its_value(order_type: OrderType) -> None:
    market = zaraba(rules={"market_rests": 1})
    market.sell(1, PRICE_MAX)
    stop = PRICE_MAX if order_type == OrderType.STOP else 0

    events = market.buy(QUANTITY_MAX, order_type=order_type, stop_price=stop)

    assert refusal(events).reason == Reason.VALUE_TOO_LARGE


def test_a_stop_that_new_limits_make_too_large_ends_with_the_day_on_which_they_hold() -> None:
    market = Market()
    market.must(
        SetLimitTable("day", 0, [LimitRow(0, 2**20)]),
        ListInstrument(CODE, "CONTINUOUS", reference_price=2**21, limit_table="day"),
        StartDay(TODAY),
        SetPhase(CODE, Phase.CONTINUOUS),
    )
    for name, quantity in (("large", 2**39), ("small", 2**15)):
        market.buy(quantity, id=name, order_type=OrderType.STOP, stop_price=2**21 + 1, time_in_force=TimeInForce.GTC)
    market.phase(Phase.CLOSED)

    events = market.must(SetLimitTable("day", 0, [LimitRow(0, 2**40)]), StartDay(TODAY + 1))

    assert [(event.client_order_id, event.reason) for event in every(events, Cancelled)] == [
        ("large", CancelReason.LIMITS)
    ]


@pytest.mark.parametrize("value", [-(2**70), -1, 99, 2**70])
@pytest.mark.parametrize("field", ["side", "order_type", "time_in_force", "self_trade"])
def test_a_number_that_is_no_word_of_the_market_is_refused(field: str, value: int) -> None:
    # The decoder lets none through; whoever calls the library may send any.
    market = zaraba()
    before = market.engine.depth(CODE), market.engine.open_orders("alpha")

    event = refusal(
        market.run(msgspec.structs.replace(NewOrder("a", CODE, Side.BUY, 1, 100), **{field: value}), "alpha")
    )

    assert event.reason == Reason.NOT_OFFERED
    assert event.text.startswith(f"Expected a {field} from 0 to ")
    assert event.text.endswith(f" - at `$.{field}`")
    assert (market.engine.depth(CODE), market.engine.open_orders("alpha")) == before


@pytest.mark.parametrize("value", [-(2**70), -1, 2, 2**70])
def test_a_mass_cancel_of_a_side_that_does_not_exist_is_refused(value: int) -> None:
    market = zaraba()
    market.buy(1, 100)

    event = refusal(market.mass_cancel(side=value))

    assert (event.reason, event.text[-11:]) == (Reason.NOT_OFFERED, "at `$.side`")
    assert len(market.engine.open_orders("alpha")) == 1


@pytest.mark.parametrize("value", [-(2**70), -1, 11, 2**70])
def test_a_phase_that_does_not_exist_is_refused(value: int) -> None:
    market = start(Phase.CLOSED)

    assert refusal(market.run(SetPhase(CODE, value))).reason == Reason.BAD_TRANSITION  # type: ignore[arg-type]


def test_plain_integers_for_the_words_of_the_market_are_as_good() -> None:
    market = start(Phase.CLOSED)
    market.must(SetPhase(CODE, 1))  # type: ignore[arg-type]

    assert isinstance(market.run(NewOrder("a", CODE, 1, 1, 100, 0, 0), "beta")[0], Accepted)  # type: ignore[arg-type]
    assert market.engine.instrument(CODE).phase.label == "PreOpen"
    assert refusal(market.run(NewOrder("b", CODE, 1, 1, 100, 0, 1), "beta")).reason == Reason.NOT_OFFERED  # type: ignore[arg-type]
    assert len(market.mass_cancel("beta", side=1)) == 2


def test_the_phase_is_checked_before_the_halt_and_the_halt_before_the_order() -> None:
    market = start(Phase.BREAK)
    market.must(SuspendInstrument(CODE))
    assert refusal(market.buy(0, 100)).reason == Reason.WRONG_PHASE
    market.phase(Phase.PRE_CLOSE)
    assert refusal(market.buy(0, 100)).reason == Reason.SUSPENDED


@pytest.mark.parametrize(
    ("amend", "reason"),
    [
        ({"quantity": 15}, Reason.OFF_LOT),
        ({"quantity": -1}, Reason.BAD_QUANTITY),
        ({"quantity": QUANTITY_MAX * 2}, Reason.BAD_QUANTITY),
        ({"price": 101}, Reason.OFF_TICK),
        ({"price": 45}, Reason.BELOW_LIMIT),
        ({"price": 155}, Reason.ABOVE_LIMIT),
        ({"price": -1}, Reason.BAD_PRICE),
    ],
)
def test_an_invalid_amend_is_refused_and_leaves_the_order_as_it_was(amend: dict[str, int], reason: Reason) -> None:
    market = limited()
    market.buy(20, 100, id="a-1")

    assert refusal(market.amend("a-1", **amend)).reason == reason
    assert market.engine.depth(CODE)[0] == [(100, 20)]


# --- the exchange's own commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"instrument": "kdx"}, "$.instrument"),
        ({"instrument": "X" * 13}, "$.instrument"),
        ({"profile": "NYSE"}, "$.profile"),
        ({"reference_price": -1}, "$.reference_price"),
        ({"reference_price": PRICE_MAX + 1}, "$.reference_price"),
        ({"lot": 0}, "$.lot"),
        ({"price_decimals": 9}, "$.price_decimals"),
        ({"price_decimals": 2}, "$.lot"),  # a hundredth of a yen times one unit is no whole yen
        ({"tick_table": "none"}, "$.tick_table"),
        ({"limit_table": "narrow"}, "$.limit_table"),
        ({"settlement_days": 31}, "$.settlement_days"),
        ({"ledger": ""}, "$.ledger"),
        ({"units_outstanding": -1}, "$.units_outstanding"),
        ({"rules": {"allocation": "PRO_RATA"}}, "$.rules.allocation"),
        ({"rules": {"market_orders_must_all_fill": "1"}}, "$.rules.market_orders_must_all_fill"),
        ({"rules": {"break_new": True}}, "$.rules.break_new"),
        ({"rules": {"colour": "red"}}, "$.rules"),
        ({"profile": "CONTINUOUS", "rules": {"break_new": 1}}, "$.rules"),
    ],
)
def test_a_listing_that_cannot_be_is_refused_and_told_where(change: dict[str, Any], place: str) -> None:
    market = Market()

    event = refusal(market.run(ListInstrument(**{"instrument": "NEW", **change})))

    assert event.reason == Reason.BAD_REFERENCE_DATA
    assert event.text.endswith(f"at `{place}`")
    assert market.engine.instruments() == []


def test_decimals_are_listed_where_a_lot_is_worth_whole_yen() -> None:
    market = Market()

    market.must(ListInstrument("NEW", lot=100, price_decimals=2))


def test_a_code_is_listed_once() -> None:
    market = start(Phase.PRE_OPEN)

    assert refusal(market.run(ListInstrument(CODE))).reason == Reason.ALREADY_LISTED


@pytest.mark.parametrize(
    "command",
    [
        SetTickTable("", 0, [TickRow(0, 1)]),
        SetTickTable("t", 0, []),
        SetTickTable("t", 0, [TickRow(1, 1)]),
        SetTickTable("t", 0, [TickRow(0, 0)]),
        SetTickTable("t", 0, [TickRow(0, 2**60)]),
        SetTickTable("t", 0, [TickRow(0, 10**5000)]),
        SetTickTable("t", 20261131, [TickRow(0, 1)]),
        SetLimitTable("l", 0, [LimitRow(100, 1)]),
        SetLimitTable("l", -5, [LimitRow(0, 1)]),
        SetLimitTable("none", 0, [LimitRow(0, 1)]),
        SetCalendar(20261231, 20260101, []),
        SetCalendar(20260101, 20261231, [20270101]),
        SetCalendar(20260101, 20261231, [20260230]),
        SetCalendar(0, 10**5000, []),
    ],
)
def test_reference_data_that_cannot_be_is_refused(command: Command) -> None:
    market = Market()
    before = market.engine.digest()

    event = refusal(market.run(command))

    assert event.reason == Reason.BAD_REFERENCE_DATA
    assert "Expected" in event.text
    market.engine.sequence, market.engine.time_ns = 0, 0
    assert market.engine.digest() == before


@pytest.mark.parametrize(
    "command",
    [
        SetPhase("NONE", Phase.PRE_OPEN),
        SetReferencePrice("NONE", 1),
        SuspendInstrument("NONE"),
        ResumeInstrument("\ud800"),
    ],
)
def test_a_command_for_an_instrument_nobody_listed_is_refused(command: Command) -> None:
    event = refusal(Market().run(command))

    assert event.reason == Reason.UNKNOWN_INSTRUMENT
    msgspec.msgpack.encode(event)


def test_the_exchange_s_own_commands_are_not_permitted_to_members() -> None:
    market = start(Phase.PRE_OPEN)

    for command in (StartDay(20261125), ListInstrument("NEW"), SuspendInstrument(CODE), SetReferencePrice(CODE, 5)):
        assert refusal(market.run(command, "alpha")).reason == Reason.NOT_PERMITTED


def test_a_value_that_is_no_command_raises_and_takes_no_sequence() -> None:
    engine = Engine()

    with pytest.raises(TypeError, match=r"Expected a command of engine\.commands, got str"):
        engine.apply("new")  # type: ignore[arg-type]
    assert engine.sequence == 0


# --- no command makes apply raise ------------------------------------------------------------------------------------

integers = st.one_of(
    st.integers(-3, 200), st.integers(), st.sampled_from([2**40, 2**48, 2**62, 2**63, 2**64, -(2**70), 10**5000])
)
texts = st.one_of(st.sampled_from(["", CODE, "a-1", "a-2", "one", "none", "START"]), st.text(max_size=5))
odd = {int: integers, str: texts, bool: st.booleans(), dict: st.dictionaries(texts, st.one_of(integers, texts))}


def commands() -> st.SearchStrategy[Command]:
    """Any command with any well-typed values, within the bounds of the wire or far outside."""
    exchange = st.one_of(*[built(kind, None) for kind in get_args(ExchangeCommand)])
    kinds = [built(kind, exchange) for kind in get_args(Command)]
    assert len(kinds) > 20, kinds
    return st.one_of(*kinds)


def built(kind: type[Any], exchange: st.SearchStrategy[Any] | None) -> st.SearchStrategy[Any]:
    """Any command of one kind; one that holds another holds one of ``exchange``."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in msgspec.structs.fields(kind):
        name = str(field.type)
        if field.name == "command" and exchange is not None:
            fields[field.name] = exchange
        elif "Side | None" in name:
            fields[field.name] = st.sampled_from([None, *Side])
        elif "list[" in name:
            row = {"rows": TickRow if kind is SetTickTable else LimitRow}.get(field.name)
            item = (texts if "str" in name else integers) if row is None else st.builds(row, integers, integers)
            fields[field.name] = st.lists(item, max_size=3)
        elif isinstance(field.type, type) and issubclass(
            field.type, Side | OrderType | TimeInForce | Phase | SelfTrade | WindowKind | Approval
        ):
            fields[field.name] = st.sampled_from(list(field.type))
        elif "dict" in name:
            fields[field.name] = odd[dict]
        elif "bool" in name:
            fields[field.name] = odd[bool]
        else:
            fields[field.name] = odd[str] if "str" in name else odd[int]
    return st.builds(kind, **fields)


@settings(max_examples=150)
@given(st.lists(st.tuples(commands(), st.sampled_from(["", "alpha", "Beta", "\ud800"])), max_size=15), st.booleans())
def test_no_command_however_odd_makes_apply_raise(sent: list[tuple[Command, str]], trading: bool) -> None:
    engine = (zaraba() if trading else start(Phase.PRE_OPEN)).engine

    for command, participant in sent:
        for event in engine.apply(command, participant):
            msgspec.msgpack.encode(event)
    engine.check()
    assert len(engine.digest()) == 32
