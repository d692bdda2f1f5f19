"""What a member firm wants to do in a day: a list of commands, each at its moment, drawn from one seed.

Every token has a value of the day that nobody knows; each firm has an opinion of its own around it, and sends orders
around that opinion, changes its mind, withdraws, and now and then blunders. So the indicative price wanders while
orders gather, and both auctions find a price. The same seed gives the same commands with the same ids, whatever happens
to the processes that send them; only the order in which firms reach the exchange is left to the day.

Whole numbers throughout: opinions are in hundredths of a percent of the reference price.
"""

from __future__ import annotations

from random import Random
from typing import Final

from msgspec import Struct

from engine.commands import AmendOrder, CancelOrder, MassCancel, MemberCommand, NewOrder
from engine.tables import TICK_TABLES, TickTable
from engine.types import OrderType, Phase, Side, TimeInForce
from gateway.demo.tokens import Token

#: The eight member firms.
FIRMS: Final = ("asagiri", "hinode", "kawasemi", "minato", "momiji", "sakura", "tsubame", "yuzuki")
#: Tables of the demo's instruments: with a tick above one yen there is something to be off.
TICK_TABLE: Final = "tse"
LIMIT_TABLE: Final = "tse"
#: What each firm brings to the ledger: units of every token, and yen.
OPENING_UNITS: Final = 5_000
OPENING_YEN: Final = 50_000_000_000

_BASIS: Final = 10_000
_GRID: Final = TickTable(TICK_TABLES[TICK_TABLE])


class Step(Struct, frozen=True):
    """A command at its moment."""

    phase: Phase
    permille: int  #: of the phase's length
    command: MemberCommand


def plan(firm: str, tokens: list[Token], seed: int, busy: int = 100) -> list[Step]:
    """The firm's day, in time order. ``busy`` is the number of orders in percent of the usual."""
    rng = Random(f"{seed}/{firm}")
    return _Planner(firm, rng, seed, busy).day(tokens)


def opinion_of_the_day(token: Token, seed: int) -> int:
    """Where the token's value lies today, in price units: within 6 % of its reference price."""
    return token.reference_price * (_BASIS + Random(f"{seed}/{token.code}").randint(-600, 600)) // _BASIS


class _Planner:
    def __init__(self, firm: str, rng: Random, seed: int, busy: int) -> None:
        self.firm = firm
        self.rng = rng
        self.seed = seed
        self.busy = busy
        self.count = 0
        self.steps: list[Step] = []

    def day(self, tokens: list[Token]) -> list[Step]:
        for token in tokens:
            if self.rng.randrange(100) < 85:  # a firm does not deal in everything
                value = opinion_of_the_day(token, self.seed)
                opinion = value * (_BASIS + self.rng.randint(-150, 150)) // _BASIS
                self.call(token, opinion, Phase.PRE_OPEN, Phase.PRE_OPEN_NCP)
                drift = value * self.rng.randint(-100, 100) // _BASIS
                self.call(token, opinion + drift, Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP)
        self.blunders(tokens)
        # Stable: steps of the same moment stay in the order in which they were thought of.
        return sorted(self.steps, key=lambda step: (step.phase, step.permille))

    def call(self, token: Token, opinion: int, collect: Phase, ncp: Phase) -> None:
        """One collection of orders in one token, and a few in the non-cancel period."""
        rng = self.rng
        for _ in range(max(1, rng.randint(2, 5) * self.busy // 100)):
            # Impatient early orders are far from the opinion, later ones nearer: so the indicative price moves.
            moment = rng.randint(20, 900)
            side = Side(rng.randrange(2))
            spread = rng.randint(-60, 260) * (1_100 - moment) // 1_000
            price = opinion * (_BASIS + (-spread if side == Side.BUY else spread)) // _BASIS
            if rng.randrange(100) < 12:
                price = 0
            order_id = self.new(collect, moment, token, side, rng.randint(1, 30), price)
            fate = rng.randrange(100)
            if fate < 12:
                self.add(collect, rng.randint(moment, 950), CancelOrder(self.id(), order_id))
            elif fate < 30 and price:
                better = opinion * (_BASIS + rng.randint(-40, 40)) // _BASIS
                self.add(collect, rng.randint(moment, 950), AmendOrder(self.id(), order_id, 0, grid(better)))
            elif fate < 36:
                self.add(collect, rng.randint(moment, 950), AmendOrder(self.id(), order_id, rng.randint(1, 40)))
            elif fate < 39:
                self.add(ncp, rng.randint(100, 800), CancelOrder(self.id(), order_id))  # too late, and told so
        if rng.randrange(100) < 15:
            side = Side(rng.randrange(2))
            self.new(ncp, rng.randint(100, 800), token, side, rng.randint(1, 5), opinion)

    def blunders(self, tokens: list[Token]) -> None:
        """Each firm makes the mistakes that an exchange has to live with."""
        rng = self.rng
        for token in rng.sample(tokens, min(3, len(tokens))):
            price = grid(token.reference_price)
            for wrong in (price + 7, price * 3, price // 4 // 100 * 100):  # off tick, above and below the day's limits
                self.new(Phase.PRE_OPEN, rng.randint(50, 900), token, Side(rng.randrange(2)), 5, wrong, exact=True)
        self.new(Phase.PRE_OPEN, rng.randint(50, 900), Token("NO-SUCH", "", "", "", 0, 100_000), Side.BUY, 1, 100_000)
        self.add(Phase.PRE_OPEN, rng.randint(50, 900), CancelOrder(self.id(), f"{self.firm}-never"))
        self.new(Phase.BREAK, rng.randint(100, 800), rng.choice(tokens), Side.BUY, 1, 100_000)
        if rng.randrange(100) < 40:  # withdraws altogether from one token in the break
            self.add(Phase.BREAK, rng.randint(100, 800), MassCancel(self.id(), rng.choice(tokens).code))

    def new(
        self, phase: Phase, moment: int, token: Token, side: Side, quantity: int, price: int, *, exact: bool = False
    ) -> str:
        order_id = self.id()
        if price and not exact:
            price = grid(price)
        kind = OrderType.LIMIT if price else OrderType.MARKET
        command = NewOrder(order_id, token.code, side, quantity, price, kind, TimeInForce.DAY)
        self.add(phase, moment, command)
        return order_id

    def add(self, phase: Phase, moment: int, command: MemberCommand) -> None:
        self.steps.append(Step(phase, moment, command))

    def id(self) -> str:
        self.count += 1
        return f"{self.firm}-{self.count}"


def grid(price: int) -> int:
    """The nearest valid price at or below."""
    return _GRID.floor(price)
