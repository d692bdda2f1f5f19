"""Settlement: from a trade in the log to a transfer on a ledger. Knows nothing of the bus.

How the service uses it::

    settlement = await Settlement.open(directory, market="DOJIMA", adapters={}, clock=clock.now_ns)
    ...                                              # ``adapters`` by ledger name; "embedded" is always there
    for every command, in order, replayed ones too:
        settlement.take(sequence, time_ns, events)   # synchronous, cheap; what is at or below the cursor is ignored
    settlement.verify_log(last_sequence)             # once after the replay: the log must not end before the cursor
    task = asyncio.create_task(settlement.run())     # flushes and relays; never returns; an exception is a fault
    ...
    await settlement.close()                         # cancel the task first; flushes what was taken

``take`` wants *every* sequence, with whatever events it had, and only after the command is durable; a hole raises. It
keeps ``InstrumentListed`` (which ledger, how many decimals), ``DayStarted`` (the business date) and ``Traded``.
``settlement.cursor`` is the last sequence that is durable in the outbox; a service that need not rebuild anything else
may replay from ``cursor + 1``.

The settlement day: ``DayStarted`` in the log moves the business date forward by itself. ``await advance(date)`` does
the same for a date on which no market opens (the demo walks to T+2 that way) and returns when all due was tried.
``await cut_off()`` ends the settlement day: what is still short becomes FAILED_TODAY and is tried on the next.
``advance`` and ``DayStarted`` include the cut-off of the day before.

Further: ``await fund(account, asset, quantity, reference)`` opening balances, idempotent by reference, ``asset`` an
instrument code or ``YEN``; ``account_id(participant, account)`` the ledger account of a member's client; ``await
summary()`` counts by state; ``await reconcile()``; ``await cancel(instruction_id, reason)``.

Files in ``directory``: ``outbox.sqlite`` and ``ledger.sqlite``.
"""

from __future__ import annotations

from gateway.settlement.adapter import YEN, LedgerAdapter, LedgerError, State
from gateway.settlement.instructions import account_id
from gateway.settlement.outbox import OutboxFault
from gateway.settlement.reconcile import Break, Report
from gateway.settlement.relay import EMBEDDED, Options, Settlement, Summary

__all__ = [
    "EMBEDDED",
    "YEN",
    "Break",
    "LedgerAdapter",
    "LedgerError",
    "Options",
    "OutboxFault",
    "Report",
    "Settlement",
    "State",
    "Summary",
    "account_id",
]
