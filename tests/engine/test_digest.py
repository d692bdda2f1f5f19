"""What a digest mark says of the state: the same for the same state, and at a cost that does not grow with the log."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine import (
    AmendOrder,
    CancelOrder,
    Deposit,
    Engine,
    ListInstrument,
    NewOrder,
    OperatorRequest,
    OrderType,
    Phase,
    Reason,
    Rejected,
    SetCalendar,
    SetHolder,
    SetPhase,
    SetRiskLimits,
    SetTickTable,
    Side,
    StartDay,
    TickRow,
    TimeInForce,
)
from engine.core import BOOKS, MARK_ROWS
from engine.identities import BLOCK, KEPT_BLOCK, Identities, newest
from engine.matching.book import GONE
from engine.names import Names, name_of
from tests.market import CODE, TODAY, zaraba

FUNDED = "FUNDED"
CALLS = "CALLS"
#: Orders of the large market: more than a mark takes in, and some blocks of everything that is hashed by blocks.
ORDERS = 2 * MARK_ROWS + 3_000
FREELY: dict[str, int | str] = {"self_trade": "none"}


def large(book: str = "", *, asked: bool = False) -> Engine:
    """A market with more of everything than a mark takes in, built with marks on its way or without."""
    engine = Engine(book)
    for command in (
        ListInstrument(CODE, "CONTINUOUS", reference_price=100, rules=FREELY),
        ListInstrument(FUNDED, "CONTINUOUS", reference_price=100, rules={**FREELY, "funding": "both"}),
        ListInstrument(CALLS, "TSE_HYBRID", reference_price=100),
        StartDay(TODAY),
        SetPhase(CODE, Phase.CONTINUOUS),
        SetPhase(CALLS, Phase.PRE_OPEN),
        SetRiskLimits("alpha", CODE, messages_max=2**30, interval_ms=1_000),
        SetHolder(CODE, "alpha", "x"),
        OperatorRequest("olga", "r-1", SetPhase(FUNDED, Phase.CONTINUOUS)),
        Deposit("d-1", "alpha", "x", 1_000_000),
    ):
        engine.apply(command)
    for n in range(ORDERS):
        side = Side.BUY if n % 2 else Side.SELL
        price = (90 - n % 5 if side == Side.BUY else 110 + n % 5) if n % 7 else 100
        engine.apply(NewOrder(f"o-{n}", CODE, side, 1 + n % 3, price, account="x"), "alpha" if n % 4 else "beta", n)
        if n % 3 == 0:
            engine.apply(CancelOrder(f"c-{n}", f"o-{n // 2}"), "alpha" if n // 2 % 4 else "beta", n)
        if n % 20 == 0:
            engine.apply(CancelOrder(f"d-{n}", "nothing"), "alpha", n)
        if asked and n % 1_500 == 0:
            engine.mark_digest()
            engine.digest()
    engine.apply(NewOrder("stop", CODE, Side.BUY, 5, 130, OrderType.STOP_LIMIT, stop_price=120), "alpha")
    engine.apply(NewOrder("iceberg", CODE, Side.SELL, 50, 119, display_quantity=10), "alpha")
    engine.apply(NewOrder("close", CALLS, Side.SELL, 50, 119, time_in_force=TimeInForce.ON_CLOSE), "alpha")
    engine.apply(NewOrder("funded", FUNDED, Side.BUY, 5, 100, account="x"), "alpha")
    engine.apply(AmendOrder("a-1", "iceberg", 40), "alpha")
    return engine


@pytest.fixture(scope="module")
def market() -> Engine:
    return large()


def test_a_mark_of_a_market_that_fits_is_the_whole_digest() -> None:
    engine = Engine()
    engine.apply(ListInstrument(CODE, "CONTINUOUS", rules=FREELY))
    for n in range(100):
        engine.apply(NewOrder(f"o-{n}", CODE, Side.BUY, 1, 100), "alpha")

    assert engine.mark_digest() == engine.digest()


def test_a_mark_does_not_depend_on_the_book_nor_on_what_was_asked_before(market: Engine) -> None:
    right = market.mark_digest()

    assert right != market.digest()
    assert market.mark_digest() == right
    for book in BOOKS:
        other = large(book, asked=True)
        assert (other.mark_digest(), other.digest()) == (right, market.digest())


def answer(n: int) -> Rejected:
    return Rejected("alpha", f"c-{n}", Reason.UNKNOWN_ORDER, "", CODE)


def in_window(engine: Engine, newer: bool = False) -> int:
    """An open order that the next mark takes in."""
    first, behind = engine._windows(MARK_ROWS)[newer]
    return next(order for order in range(first, behind) if engine._orders.is_open(order))


def set_row(engine: Engine, column: str, newer: bool, change: int) -> None:
    order = in_window(engine, newer)
    values = getattr(engine._orders, column)
    values[order] = values[order] + change


def swap_first(engine: Engine) -> None:
    """The first in a queue goes to its end: no row of a mark's windows says so."""
    book = engine._instruments[0].book
    first = book.first(0)
    book.remove(first)
    book.add(first)


def change_last(values: list[object], value: object) -> None:
    values[-1] = value


def change_last_name(ids: Names) -> None:
    ids.forget()
    ids.append(name_of("one-more"))


#: One change of each part of the state.
CHANGES: dict[str, Callable[[Engine], object]] = {
    "sequence": lambda e: setattr(e, "sequence", e.sequence + 1),
    "stamp": lambda e: setattr(e, "time_ns", 1),
    "date": lambda e: setattr(e, "date", TODAY + 1),
    "trades": lambda e: setattr(e, "trades", e.trades + 1),
    "orders": lambda e: e._orders.append(0, 1, 1, 0, name_of("another")),
    "id of an order": lambda e: change_last_name(e._orders.client_order_id),
    "account of an order": lambda e: (e._orders.account.forget(), e._orders.account.append("one more")),
    "newer price": lambda e: set_row(e, "price", True, 1),
    "newer quantity": lambda e: set_row(e, "quantity", True, 1),
    "newer open": lambda e: set_row(e, "open", True, 1),
    "newer priority": lambda e: set_row(e, "priority", True, 1),
    "newer state": lambda e: set_row(e, "state", True, GONE),
    "newer terms": lambda e: set_row(e, "terms", True, 2),
    "older price": lambda e: set_row(e, "price", False, 1),
    "older open": lambda e: set_row(e, "open", False, 1),
    "older state": lambda e: set_row(e, "state", False, GONE),
    "queue": swap_first,
    "outcome": lambda e: e._identities.remember(e._identities.members[0], name_of("c-x"), 2, 7),
    "id of a request": lambda e: change_last_name(e._identities._ids.requests.ids),
    "kept answer": lambda e: change_last(e._identities._kept, e._identities._kept[0]),
    "kept content": lambda e: change_last(e._identities._contents, b"another"),
    "member": lambda e: e._identities.add("gamma"),
    "phase": lambda e: e._instruments[0].enter(Phase.CALL),
    "halt": lambda e: setattr(e._instruments[0], "suspended", True),
    "reference": lambda e: setattr(e._instruments[0], "reference", 7),
    "set aside": lambda e: setattr(e._instruments[2], "set_aside", True),
    "bound": lambda e: e._instruments[2].bound.clear(),
    "reserve": lambda e: e._instruments[0].reserves.clear(),
    "stops": lambda e: e._instruments[0].stops.clear(),
    "imbalance": lambda e: e._instruments[0].imbalance.update({1: True}),
    "options": lambda e: e._options.popitem(),
    "original": lambda e: e._originals.clear(),
    "limits": lambda e: e._limits.clear(),
    "messages": lambda e: e._intervals.clear(),
    "busted": lambda e: e._busted.update({1: True}),
    "killed": lambda e: e._killed.update({("alpha", ""): True}),
    "trade": lambda e: e._tape.append(1, 2, 3, 4),
    "balance": lambda e: setattr(e._funding.holding("", "alpha", "x"), "total", 7),
    "lock": lambda e: e._funding._locks.clear(),
    "booked": lambda e: e._funding._booked.clear(),
    "reference of a deposit": lambda e: e._funding._references.clear(),
    "holder": lambda e: e._policies[0].holders.clear(),
    "transfer": lambda e: e._decided.update({1: True}),
    "operator": lambda e: e._operators._requests.clear(),
    "calendar": lambda e: e._reference.set_calendar(SetCalendar(20260101, 20261231, []), []),
    "table": lambda e: e._reference.set_tick_table(SetTickTable("other", 0, [TickRow(0, 5)]), []),
}


def test_each_part_of_the_state_changes_a_mark() -> None:
    """Each change on top of the others: not one may leave the mark as it was."""
    engine = large()
    marks = [engine.mark_digest()]
    same = []
    for name, change in CHANGES.items():
        change(engine)
        marks.append(engine.mark_digest())
        if marks[-1] == marks[-2]:
            same.append(name)

    assert same == []


@pytest.mark.parametrize("price", [1, 2**20])
@pytest.mark.parametrize("quantity", [2**15 - 1, 2**15, 2**40 - 1])
def test_a_digest_takes_in_what_an_amended_order_was_however_large(quantity: int, price: int) -> None:
    """Quantity and price in one number are more than 64 bits, which MessagePack does not know."""
    digests = []
    for first in (quantity, quantity - 1):
        market = zaraba()
        market.run(NewOrder("a-1", CODE, Side.BUY, first, price), "alpha")
        accepted = market.engine.digest()
        market.run(AmendOrder("r-1", "a-1", 5, 0), "alpha")
        digests += [market.engine.digest(), market.engine.mark_digest()]
        assert accepted not in digests

    assert len(set(digests)) == 2


def test_a_mark_takes_in_no_more_orders_however_many_there_are() -> None:
    engine = Engine()
    for count in (0, 1, 2 * MARK_ROWS, 2 * MARK_ROWS + 1, 1_000_000, 10**9):
        engine._orders.count = count
        for sequence in (0, 1, 99_999, 10**12):
            engine.sequence = sequence
            windows = engine._windows(MARK_ROWS)

            orders = [order for start, end in windows for order in range(start, end)]
            assert min(count, MARK_ROWS) <= len(orders) == len(set(orders)) <= 2 * MARK_ROWS
            assert orders[-MARK_ROWS:] == list(range(max(1, count - MARK_ROWS + 1), count + 1))
            assert not orders or orders[0] >= 1


def test_one_mark_after_the_other_looks_at_every_order() -> None:
    engine = Engine()
    engine._orders.count = 200_000
    seen = bytearray(200_001)
    for number in range(1_000):
        engine.sequence = 100_000 * number
        for start, end in engine._windows(MARK_ROWS):
            seen[start:end] = b"1" * (end - start)

    assert seen.count(0) == 1  # there is no order 0


def test_of_a_queue_no_more_is_walked_than_asked_for(market: Engine) -> None:
    instrument = market._instruments[0]
    for side in (0, 1):
        whole = market._queue(instrument, side)
        assert len(whole) > 2_000
        for most in (0, 1, 17, 1_500, len(whole), len(whole) + 1):
            assert market._queue(instrument, side, most) == whole[:most]


def test_of_a_dictionary_the_newest_keys_are_taken_once_it_is_large() -> None:
    entries = {f"k-{n * 7 % 100:02}": n for n in range(100)}

    assert newest(entries, 100) == sorted(entries.items())
    assert newest(entries, 3) == [("k-93", 99), ("k-86", 98), ("k-79", 97)]


def test_what_is_never_changed_is_hashed_as_it_comes(market: Engine) -> None:
    """So a mark has at most a block of each left to hash."""
    identities = market._identities
    assert market._orders.count > BLOCK
    assert len(identities._outcomes) <= BLOCK
    assert len(identities._kept) > KEPT_BLOCK
    assert len(identities._kept) - identities._kept_hashed <= KEPT_BLOCK


def test_an_answer_that_is_taken_back_at_the_end_of_a_block_leaves_no_trace() -> None:
    def digest(taken_back: bool) -> bytes:
        identities = Identities(Names())
        member = identities.add("alpha")
        for n in range(BLOCK + 1):
            command = CancelOrder(f"c-{n}", f"o-{n}")
            if taken_back:
                identities.keep(member, name_of(f"c-{n}"), CancelOrder("another", "one"), answer(0))
                identities.forget(member, name_of(f"c-{n}"))
            identities.keep(member, name_of(f"c-{n}"), command, answer(n))
        return identities.digest()

    assert digest(True) == digest(False)
