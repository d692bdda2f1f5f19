"""Which orders of an instrument are simultaneous, and whose turn it is among them (market-rules 3.3).

Orders entered while a book collects for an itayose have no time priority over one another: nobody gains by being fast
in the first millisecond of the morning. That stays so afterwards: what the itayose leaves of them stands before all
that comes in zaraba, and members take turns there too, one lot each, from where the itayose stopped.

So an order belongs to the *period* in which it was entered:

* What a session leaves, and what is entered before the next opening has a price, is one period: at the Tokyo Stock
  Exchange all orders from before the opening of a session count as simultaneous.
* What is entered from a halt, or from pre-closing, until the itayose behind it is a period of its own, behind all that
  was there before. On-close and funari orders belong to the period in which they join the book.
* What is entered in zaraba, under a quote too, has its place in time.

A period is a stretch of the sequence of commands, and needs no mark on its orders: the number of the command that gave
an order its place says which one it is in. A *group* is a run of neighbours in one queue that are of one period.
"""

from __future__ import annotations

from typing import Final


class Turns:
    """The periods of one instrument, and where the turns of its groups stand."""

    def __init__(self) -> None:
        #: The present period is what comes behind this command; -1: there is none, the book trades.
        self.since: int = 0
        self.joined: int = 0  #: the command with which orders that wait for the close last joined the book
        #: Behind which command each period begins, and with which one it ends, in turn.
        self.periods: Final[list[int]] = []
        #: By side and price: period of the group, and its members in the order of their turns, the next one first.
        self.rotations: Final[dict[tuple[int, int], tuple[int, list[int]]]] = {}

    def collect(self, since: int) -> None:
        """The book collects what comes behind command ``since``; one that collects already may do so for longer."""
        if self.since < 0 or since == 0:
            self.since = since

    def end(self, sequence: int) -> None:
        """An itayose was held: what has come until now, with command ``sequence``, is simultaneous."""
        if self.since == 0:
            self.periods.clear()
            self.rotations.clear()
        if self.since >= 0:
            self.periods.extend((self.since, sequence))
            self.since = -1

    def period(self, entered: int, now: int) -> int:
        """The period of an order that command ``entered`` gave its place, by its end; 0: it has its place in time.

        ``now`` is the command that holds an itayose, which ends the present period; 0: none does.
        """
        if now and (entered == now or 0 <= self.since < entered):
            return now
        for i in range(0, len(self.periods), 2):
            if self.periods[i] < entered <= self.periods[i + 1]:
                return self.periods[i + 1]
        return 0

    def keep(self, side: int, price: int, period: int, members: list[int]) -> None:
        """A group is filled in part: ``members`` take turns in this order. Nobody: it is filled whole."""
        if members:
            self.rotations[side, price] = (period, members)
        else:
            self.rotations.pop((side, price), None)

    def resume(self, side: int, price: int, period: int) -> list[int]:
        """How the turns of the group of ``period`` go on; nobody: it has had none."""
        kept = self.rotations.get((side, price))
        return kept[1] if kept is not None and kept[0] == period else []

    def key(self) -> list[object]:
        """All of it, for the digest."""
        rotations = sorted((side, price, *kept) for (side, price), kept in self.rotations.items())
        return [self.since, self.joined, self.periods, rotations]
