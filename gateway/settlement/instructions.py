"""From a trade to an instruction, always the same one.

Id and hash follow from the trade alone, and the trade from the log; so whoever derives an instruction a second time,
after a crash or on a standby, derives the same, and a ledger can tell a repetition from a change.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

from engine.events import Traded
from gateway.settlement.adapter import ISSUANCE, YEN, Conflict, Instruction, Kind, Reason, Rejected

#: Largest quantity or amount of one instruction and of one balance: sums of two still fit a signed 64-bit integer.
AMOUNT_MAX: Final = 2**62
MARKET_PATTERN: Final = re.compile(r"[A-Z0-9]{1,12}")

_encode = msgspec.msgpack.Encoder().encode


class NotWholeYen(ValueError):
    """Price times quantity is a fraction of a yen; the engine lists no instrument for which that can happen."""


def account_id(participant: str, account: str = "") -> str:
    """The ledger account of a member's client: ``alpha/fund-7``, or ``alpha`` where the order named none.

    Participants contain no ``/``, so no member can reach the account of another by its choice of reference.
    """
    return f"{participant}/{account}" if account else participant


def owner(account: str) -> tuple[str, str]:
    """Participant and account reference of what ``account_id`` made."""
    participant, _, reference = account.partition("/")
    return participant, reference


def from_trade(market: str, traded: Traded, price_decimals: int, version: int = 1) -> Instruction:
    """The obligation that a trade leaves: gross, units against yen.

    ``price_decimals``: a price unit is 10**-price_decimals yen. Raises NotWholeYen.
    """
    cash, fraction = divmod(traded.price * traded.quantity, 10**price_decimals)
    if fraction:
        raise NotWholeYen(
            f"Expected whole yen, got {traded.price} x {traded.quantity} x 10**-{price_decimals}"
            f" - in trade {traded.trade_id} of {traded.instrument}"
        )
    return seal(
        Instruction(
            id=f"{market}-{traded.trade_date}-{traded.trade_id}-{version}",
            hash="",
            version=version,
            trade_ids=(traded.trade_id,),
            seller=account_id(traded.seller, traded.sell_account),
            buyer=account_id(traded.buyer, traded.buy_account),
            asset=traded.instrument,
            quantity=traded.quantity,
            cash=cash,
            trade_date=traded.trade_date,
            settle_date=traded.settlement_date,
        )
    )


def reversal(ins: Instruction) -> Instruction:
    """What undoes the instruction of a busted trade once that has settled: the same the other way round.

    It follows from the instruction alone and falls due with it, so that it too is always the same.
    """
    return seal(
        msgspec.structs.replace(
            ins,
            id=f"{ins.id.removesuffix(f'-{ins.version}')}-{ins.version + 1}",
            version=ins.version + 1,
            seller=ins.buyer,
            buyer=ins.seller,
        )
    )


def opening(account: str, asset: str, quantity: int, reference: str) -> Instruction:
    """An opening balance: ``quantity`` of ``asset`` (an instrument code, or YEN) comes onto the ledger."""
    return seal(
        Instruction(
            id=f"opening:{reference}",
            hash="",
            version=1,
            trade_ids=(),
            seller=ISSUANCE,
            buyer=account,
            asset=asset,
            quantity=quantity,
            cash=0,
            trade_date=0,
            settle_date=0,
            kind=Kind.OPENING,
        )
    )


def seal(ins: Instruction) -> Instruction:
    """The instruction with the hash that belongs to its content."""
    return msgspec.structs.replace(ins, hash=content_hash(ins))


def content_hash(ins: Instruction) -> str:
    """SHA-256 over every field but the hash, as 64 hexadecimal digits."""
    fields = (
        "dojima.instruction.1",
        ins.id,
        ins.version,
        ins.trade_ids,
        ins.seller,
        ins.buyer,
        ins.asset,
        ins.quantity,
        ins.cash,
        ins.currency,
        ins.trade_date,
        ins.settle_date,
        ins.kind.value,
        ins.partial_ok,
    )
    return hashlib.sha256(_encode(fields)).hexdigest()


def check(ins: Instruction) -> None:
    """What every ledger asks of an instruction before it looks at balances.

    Raises Rejected(BAD_AMOUNT) for amounts that do not fit the kind, Rejected(NOT_AUTHORISED) for units taken from
    ISSUANCE by anything but an opening balance, and Conflict where the hash does not belong to the content.
    """
    for name, amount in (("quantity", ins.quantity), ("cash", ins.cash)):
        if type(amount) is not int or not 0 <= amount <= AMOUNT_MAX:
            raise Rejected(Reason.BAD_AMOUNT, f"Expected {name} as int from 0 to {AMOUNT_MAX}, got {amount!r}")
    wants = {
        Kind.DVP: (True, True),
        Kind.FOP: (True, False),
        Kind.CASH: (False, True),
        Kind.OPENING: (True, False),
    }[ins.kind]
    if (ins.quantity > 0, ins.cash > 0) != wants:
        raise Rejected(
            Reason.BAD_AMOUNT, f"{ins.kind} does not go with quantity {ins.quantity} and cash {ins.cash} - in {ins.id}"
        )
    if (ins.seller == ISSUANCE) != (ins.kind is Kind.OPENING) or ins.buyer == ISSUANCE:
        raise Rejected(Reason.NOT_AUTHORISED, f"{ISSUANCE} is for opening balances only - in {ins.id}")
    if ins.asset.startswith("@") and not (ins.kind is Kind.OPENING and ins.asset == YEN):
        raise Rejected(Reason.NOT_TRANSFERABLE, f"Expected an instrument, got {ins.asset} - in {ins.id}")
    if ins.hash != content_hash(ins):
        raise Conflict(f"The hash of {ins.id} does not belong to its content")


def entries(ins: Instruction) -> list[tuple[str, str, int]]:
    """The postings of an instruction: (account, asset, amount), summing to nought per asset. Four for a DVP."""
    postings: list[tuple[str, str, int]] = []
    if ins.quantity:
        postings += [(ins.seller, ins.asset, -ins.quantity), (ins.buyer, ins.asset, ins.quantity)]
    if ins.cash:
        money = money_asset(ins.currency)
        postings += [(ins.buyer, money, -ins.cash), (ins.seller, money, ins.cash)]
    return postings


def money_asset(currency: str) -> str:
    """The asset under which a ledger keeps ``currency``."""
    asset = f"@{currency}"
    if asset != YEN:
        raise Rejected(Reason.BAD_AMOUNT, f"Expected JPY, got {currency!r}")
    return asset
