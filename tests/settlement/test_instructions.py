"""From trade to instruction, and the moves an instruction may make."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from gateway.settlement.adapter import ENDS, NEXT, IllegalMove, Instruction, Kind, State, check_move, way
from gateway.settlement.instructions import NotWholeYen, account_id, content_hash, entries, from_trade, opening
from tests.settlement.world import instruction, traded


def test_a_trade_becomes_the_same_instruction_every_time() -> None:
    trade = traded(7, quantity=3, price=1005, sell_account="f-1")
    first, second = from_trade("DOJIMA", trade, 0), from_trade("DOJIMA", trade, 0)
    assert first == second
    assert (first.id, first.seller, first.buyer) == ("DOJIMA-20261124-7-1", "alpha/f-1", "bravo")
    assert (first.quantity, first.cash, first.trade_date, first.settle_date) == (3, 3015, 20261124, 20261126)


def test_the_hash_is_a_written_down_value_because_ledgers_keep_it_for_years() -> None:
    assert content_hash(from_trade("DOJIMA", traded(7), 0)) == (
        "8e1e037f1ee91b7a96347b31ecc015eedd5f8433d0b45605ecfb5acd7d17ef37"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "other"),
        ("version", 2),
        ("trade_ids", (1, 2)),
        ("seller", "x"),
        ("buyer", "x"),
        ("asset", "X"),
        ("quantity", 11),
        ("cash", 1001),
        ("currency", "USD"),
        ("trade_date", 20261125),
        ("settle_date", 20261127),
        ("kind", Kind.FOP),
        ("partial_ok", True),
    ],
)
def test_every_field_is_under_the_hash(field: str, value: object) -> None:
    ins = instruction()
    assert content_hash(msgspec.structs.replace(ins, **{field: value})) != ins.hash


def test_no_field_is_left_out_of_the_hash_test() -> None:
    (mark,) = test_every_field_is_under_the_hash.pytestmark  # type: ignore[attr-defined]
    assert {field for field, _ in mark.args[1]} | {"hash"} == {
        each.name for each in msgspec.structs.fields(Instruction)
    }


def test_cash_is_exact_in_whole_yen_at_every_number_of_decimals() -> None:
    assert from_trade("M", traded(price=100_050, quantity=20), 2).cash == 20_010
    assert from_trade("M", traded(price=2**48, quantity=2**13), 0).cash == 2**61
    with pytest.raises(NotWholeYen, match="100051 x 20"):
        from_trade("M", traded(price=100_051, quantity=20), 3)


def test_no_member_reaches_the_account_of_another_by_its_choice_of_reference() -> None:
    ids = {account_id(*pair) for pair in [("a", ""), ("a", "b"), ("a", "b/c"), ("ab", ""), ("a-b", "c"), ("a", "@x")]}
    assert len(ids) == 6
    assert all(each.split("/")[0] in ("a", "ab", "a-b") for each in ids)


def test_entries_sum_to_nought_per_asset_for_every_kind() -> None:
    for ins, count in [
        (instruction(), 4),
        (instruction(kind=Kind.FOP, cash=0), 2),
        (instruction(kind=Kind.CASH, quantity=0), 2),
        (opening("alpha", "@JPY", 5, "r"), 2),
    ]:
        postings = entries(ins)
        assert len(postings) == count
        for asset in {asset for _, asset, _ in postings}:
            assert sum(amount for _, of, amount in postings if of == asset) == 0


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_a_move_outside_the_table_raises(before: State, after: State) -> None:
    if after in NEXT[before]:
        check_move(before, after)
    else:
        with pytest.raises(IllegalMove, match=after):
            check_move(before, after)


def test_nothing_leads_out_of_an_end_and_only_two_states_lead_back() -> None:
    assert {State.SETTLED, State.CANCELLED, State.REJECTED, State.ABORTED, State.EXPIRED} == ENDS
    order = list(State)
    back = {before for before, after in NEXT.items() for each in after if order.index(each) < order.index(before)}
    # PENDING_APPROVAL is written behind the states it leads on to: approved, an instruction goes on as PRECHECKED.
    assert back - {State.PENDING_APPROVAL} == {State.UNKNOWN, State.FAILED_TODAY}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_a_way_consists_of_legal_moves(before: State, after: State) -> None:
    try:
        steps = way(before, after)
    except IllegalMove:
        assert after not in NEXT[before]
        return
    for one, next_ in itertools.pairwise([before, *steps]):
        check_move(one, next_)
    assert (steps[-1] if steps else before) is after
    # UNKNOWN and FAILED_TODAY are facts of their own and never filled in.
    assert not {State.UNKNOWN, State.FAILED_TODAY, State.PARTIAL, State.PENDING_APPROVAL} & set(steps[:-1])


def test_steps_that_nobody_saw_are_filled_in() -> None:
    assert way(State.SUBMITTED, State.AFFIRMED) == (State.HELD, State.AFFIRMED)
    assert way(State.NEW, State.SUBMITTED) == (State.PRECHECKED, State.SUBMITTED)
    assert way(State.FAILED_TODAY, State.SETTLED) == (State.SUBMITTED, State.SETTLED)
    assert way(State.UNKNOWN, State.SETTLED) == (State.SETTLED,)
