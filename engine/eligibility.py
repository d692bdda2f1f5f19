"""Who may trade and hold a token, and when: permissions, whitelist, caps, lock-ups, status, windows (market-rules 8).

All of it is set by commands of the exchange, per instrument, from what issuers and members say; the venue knows account
ids, not names. An instrument of which nothing was said has no ``Policy``, and its orders pay nothing for it.

A check passed at entry is advice, not a promise. It is asked again

* at the freeze of an auction: orders of members who may not trade any more, or of a token that may not be transferred,
  leave before it is priced, so that price and fills come from one set;
* where trading is continuous, by the command that takes a permission away: those orders leave at once;
* each morning, of what rested overnight;
* before settlement (``check_settlement``): by then the trade is made, so it waits until nothing stands in its way.

Where a window is open, or a token is paused, nothing is entered and so nothing trades; stops are not triggered, and an
auction is not held in a window. Caps and lock-ups count what ``engine/funding.py`` knows an account to have, so they go
with pre-funded units. A buyer counts with all that its open orders may yet buy: no cap is exceeded by trading. Tags and
caps bind who comes to hold a token; whoever holds it may always sell, but for what is locked up.
"""

from __future__ import annotations

from typing import Final

from engine.checks import (
    Refusal,
    is_account,
    is_date,
    is_id,
    is_participant,
    number,
    plain,
    unknown_instrument,
)
from engine.commands import (
    ApproveTransfer,
    PermitMember,
    SetEligibility,
    SetHolder,
    SetTokenStatus,
    SetWindow,
)
from engine.events import (
    EligibilitySet,
    Event,
    HolderSet,
    MemberPermitted,
    TokenStatusSet,
    TransferDecided,
    WindowBegan,
    WindowSet,
)
from engine.faults import InvariantBroken
from engine.funding import Funding
from engine.identities import newest
from engine.market import RESTRICTED, Instrument
from engine.profiles import FUNDS_UNITS, TRADE
from engine.protection import Protection
from engine.types import QUANTITY_MAX, Approval, CancelReason, Reason, Side, WindowKind

_TAGS_MAX: Final = 1000
_COUNT_MAX: Final = 2**31


class Window:
    """Days on which an instrument takes no orders."""

    def __init__(self, kind: WindowKind, first: int, last: int, purge: bool) -> None:
        self.kind: Final = kind
        self.first: Final = first  #: YYYYMMDD
        self.last: Final = last
        self.purge: Final = purge
        self.began: bool = False

    def key(self) -> list[int]:
        """All of it, for the digest."""
        return [int(self.kind), self.first, self.last, int(self.purge), int(self.began)]


class Policy:
    """What was said of one instrument."""

    def __init__(self, instrument: str) -> None:
        self.rules: SetEligibility = SetEligibility(instrument)
        self.status: SetTokenStatus = SetTokenStatus(instrument)
        self.permitted: Final[dict[str, bool]] = {}
        self.holders: Final[dict[tuple[str, str], SetHolder]] = {}
        self.windows: Final[list[Window]] = []

    def key(self, most: int) -> list[object]:
        """All of it, for the digest; at most ``most`` of what can be many, and how many there are."""
        return [
            self.rules,
            self.status,
            [len(self.permitted), newest(self.permitted, most)],
            [len(self.holders), newest(self.holders, most)],
            [window.key() for window in self.windows],
        ]


class Eligibility(Protection):
    """Whom an instrument is open to. ``Engine`` asks it about orders of instruments that have a policy."""

    def __init__(self) -> None:
        super().__init__()
        self._funding: Final = Funding(self._orders, self._instruments, self._identities)
        self._policies: Final[dict[int, Policy]] = {}  #: by instrument
        self._decided: Final[dict[int, bool]] = {}  #: transfers that issuers have approved or refused, by trade

    # --- orders ------------------------------------------------------------------------------------------------------

    def _check_open_to(self, instrument: Instrument, participant: str) -> Refusal | None:
        """Whether the instrument takes orders of this member now."""
        policy = self._policies[instrument.index]
        status = policy.status
        if status.last_day and self.date > status.last_day:
            text = f"Expected a token that is traded, got {instrument.code}, whose last day was {status.last_day}"
            return Refusal(Reason.TERMINATED, text)
        what = _why_not_transferable(status)
        if what:
            text = f"Expected a token that can be transferred, got {instrument.code}, which is {what}"
            return Refusal(Reason.NOT_TRANSFERABLE, text)
        for window in policy.windows:
            if window.began and self.date <= window.last:
                text = f"Expected {instrument.code} to take orders, got a {_name(window.kind)} up to {window.last}"
                return Refusal(Reason.IN_WINDOW, f"{text}: orders can be cancelled, no more")
        if policy.rules.approval == Approval.REFUSE:
            text = f"Expected transfers without the issuer's approval, got {instrument.code}, which needs it for each"
            return Refusal(Reason.APPROVAL_REQUIRED, text)
        if not self._is_permitted(policy, participant):
            text = f"Expected a member who may trade {instrument.code}, got {participant}"
            return Refusal(Reason.NOT_PERMITTED, text)
        return None

    def _check_holder(
        self, instrument: Instrument, participant: str, account: str, side: int, quantity: int, order: int = 0
    ) -> Refusal | None:
        """Whether an account may have ``quantity`` open, as its new order or as ``order`` after an amend."""
        policy = self._policies[instrument.index]
        who = _account(participant, account)
        holder = policy.holders.get((participant, account))
        if policy.rules.whitelist and (holder is None or not holder.registered):
            text = f"Expected an account that is registered to hold {instrument.code}, got {who}"
            return Refusal(Reason.NOT_REGISTERED, f"{text} - at `$.account`")
        has, locked, buying = self._funding.units(instrument.code, participant, account)
        if side == Side.SELL:
            lock_up = holder.lock_up if holder is not None and self._is_locked_up(holder) else 0
            free = has - lock_up - locked + self._funding.lock_of(order)
            if lock_up and quantity > free:
                text = f"Expected at most the {max(free, 0)} units of {who} that no lock-up and no order holds"
                return Refusal(Reason.LOCKED_UP, f"{text}, got {quantity} - at `$.quantity`")
            return None
        what = _why_not_allowed(policy.rules, holder)
        if what:
            text = f"Expected a buyer who may hold {instrument.code}, got {who}, {what}"
            return Refusal(Reason.HOLDER_NOT_ALLOWED, f"{text} - at `$.account`")
        cap = self._cap(policy, holder)
        comes_to = has + buying - self._funding.buying_of(order) + quantity
        if cap and comes_to > cap:
            text = f"Expected {who} to hold at most {cap} units of {instrument.code}, got an order that may bring it"
            return Refusal(Reason.HOLDING_CAP, f"{text} to {comes_to} - at `$.quantity`")
        most = policy.rules.holders_max
        if most and has <= 0 and buying == 0 and self._funding.holders(instrument.code) >= most:
            text = f"Expected at most {most} holders of {instrument.code}, got {who} as one more"
            return Refusal(Reason.TOO_MANY_HOLDERS, f"{text} - at `$.account`")
        return None

    def _marks(self, instrument: Instrument) -> bool:
        return self._policies[instrument.index].rules.approval == Approval.MARK

    def _is_permitted(self, policy: Policy, participant: str) -> bool:
        return policy.permitted.get(participant, not policy.rules.members_listed)

    def _is_locked_up(self, holder: SetHolder) -> bool:
        return holder.lock_up > 0 and (holder.lock_up_until == 0 or self.date <= holder.lock_up_until)

    def _cap(self, policy: Policy, holder: SetHolder | None) -> int:
        """Most units that an account may hold; 0: any number."""
        return holder.holding_max if holder is not None and holder.holding_max else policy.rules.holding_max

    def _is_closed(self, instrument: Instrument) -> bool:
        if instrument.guards & RESTRICTED == 0:
            return False
        return instrument.in_window or _why_not_transferable(self._policies[instrument.index].status) != ""

    def _leaving(self, instrument: Instrument) -> list[int]:
        if instrument.guards & RESTRICTED == 0:
            return []
        policy = self._policies[instrument.index]
        everybody = _why_not_transferable(policy.status) != ""
        return [
            order
            for order in sorted(self._open_orders(instrument))
            if everybody or not self._is_permitted(policy, self._name_of(order))
        ]

    def _name_of(self, order: int) -> str:
        return self._identities.members[self._orders.participant(order)].name

    def _sweep(self, instrument: Instrument, events: list[Event]) -> None:
        """Where trading is continuous there is no freeze: orders of members who may not trade leave at once."""
        if instrument.guards & RESTRICTED == 0 or instrument.phase_rules.matching != TRADE or instrument.frozen:
            return
        policy = self._policies[instrument.index]
        for order in sorted(self._open_orders(instrument)):
            if not self._is_permitted(policy, self._name_of(order)):
                self._withdraw(order, CancelReason.INELIGIBLE, "", events)

    def _begin_day(self, instrument: Instrument, events: list[Event]) -> None:
        """What rested overnight must still be allowed to; windows begin and end."""
        policy = self._policies[instrument.index]
        over = policy.status.last_day != 0 and self.date > policy.status.last_day
        for order in sorted(self._open_orders(instrument)):
            holder = policy.holders.get((self._name_of(order), self._orders.account[order]))
            if (
                over
                or not self._is_permitted(policy, self._name_of(order))
                or (policy.rules.whitelist and (holder is None or not holder.registered))
            ):
                self._withdraw(order, CancelReason.INELIGIBLE, "", events)
        self._heed_windows(instrument, policy, events)

    def _heed_windows(self, instrument: Instrument, policy: Policy, events: list[Event]) -> None:
        """Begin what begins today."""
        for window in policy.windows:
            if not window.began and window.first <= self.date <= window.last:
                window.began = True
                events.append(WindowBegan(instrument.code, window.kind, window.last, window.purge))
                if window.purge and not instrument.frozen:
                    for order in sorted(self._open_orders(instrument)):
                        self._withdraw(order, CancelReason.WINDOW, "", events)
        instrument.in_window = any(window.began and self.date <= window.last for window in policy.windows)

    # --- settlement --------------------------------------------------------------------------------------------------

    def check_settlement(
        self, code: str, seller: str, sell_account: str, buyer: str, buy_account: str, trade_id: int = 0
    ) -> tuple[str, bool]:
        """Whether a trade of ``code`` may be settled now: why not ("": it may), and if the issuer has yet to approve.

        Raises ``KeyError`` for an instrument that does not exist.
        """
        instrument = self._by_code.get(code)
        if instrument is None:
            raise KeyError(f"Expected a listed instrument, got {code!r}")
        if instrument.guards & RESTRICTED == 0:
            return "", False
        policy = self._policies[instrument.index]
        approval = policy.rules.approval != Approval.NONE and trade_id not in self._decided
        if trade_id in self._decided and not self._decided[trade_id]:
            return f"the issuer has refused the transfer of trade {trade_id}", False
        what = _why_not_transferable(policy.status)
        if what:
            return f"{code} is {what}", approval
        for window in policy.windows:
            if window.began and self.date <= window.last:
                return f"{code} has a {_name(window.kind)} up to {window.last}", approval
        for participant, account in ((seller, sell_account), (buyer, buy_account)):
            holder = policy.holders.get((participant, account))
            if policy.rules.whitelist and (holder is None or not holder.registered):
                return f"{_account(participant, account)} is not registered to hold {code}", approval
        holder = policy.holders.get((seller, sell_account))
        if holder is not None and self._is_locked_up(holder):
            left = self._funding.balance(seller, sell_account, code).total
            if left < holder.lock_up:
                who = _account(seller, sell_account)
                return f"{who} would be left with {left} units of {code}, and {holder.lock_up} are locked up", approval
        holder = policy.holders.get((buyer, buy_account))
        who = _account(buyer, buy_account)
        what = _why_not_allowed(policy.rules, holder)
        if what:
            return f"{who} may not hold {code}, {what}", approval
        cap = self._cap(policy, holder)
        has = self._funding.balance(buyer, buy_account, code).total
        if cap and has > cap:
            return f"{who} would hold {has} units of {code}, more than the {cap} it may", approval
        return "", approval

    # --- what the exchange says --------------------------------------------------------------------------------------

    def _policy(self, instrument: Instrument) -> Policy:
        policy = self._policies.get(instrument.index)
        if policy is None:
            policy = self._policies[instrument.index] = Policy(instrument.code)
            instrument.guards |= RESTRICTED
        return policy

    def _set_eligibility(self, command: SetEligibility, events: list[Event]) -> Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return unknown_instrument(command.instrument)
        for name, tags in (("jurisdictions", command.jurisdictions), ("investor_types", command.investor_types)):
            if len(tags) > _TAGS_MAX or not all(_is_tag(tag) and tag for tag in tags):
                text = f"Expected up to {_TAGS_MAX} words of 1 to 16 printable characters - at `$.{name}`"
                return Refusal(Reason.BAD_REFERENCE_DATA, text)
        refusal = _check_number("holding_max", command.holding_max, QUANTITY_MAX)
        if refusal is None:
            refusal = _check_number("holders_max", command.holders_max, _COUNT_MAX)
        if refusal is None:
            refusal = _check_number("approval", command.approval, len(Approval) - 1)
        if refusal is None and (command.holding_max or command.holders_max):
            refusal = _check_counts(instrument, "holding_max" if command.holding_max else "holders_max")
        if refusal is not None:
            return refusal
        self._policy(instrument).rules = command
        events.append(
            EligibilitySet(
                instrument.code,
                command.members_listed,
                command.whitelist,
                command.jurisdictions,
                command.investor_types,
                command.holding_max,
                command.holders_max,
                Approval(command.approval),
            )
        )
        self._sweep(instrument, events)
        return None

    def _set_token_status(self, command: SetTokenStatus, events: list[Event]) -> Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return unknown_instrument(command.instrument)
        if command.last_day and (not is_date(command.last_day) or command.last_day < self.date):
            text = f"Expected a date from {self.date} on, or 0, got {number(command.last_day)} - at `$.last_day`"
            return Refusal(Reason.BAD_REFERENCE_DATA, text)
        self._policy(instrument).status = command
        instrument.supervision = command.supervision
        instrument.termination = command.termination
        events.append(
            TokenStatusSet(
                instrument.code,
                command.active,
                command.transferable,
                command.paused,
                command.supervision,
                command.termination,
                command.last_day,
            )
        )
        return None

    def _permit(self, command: PermitMember, events: list[Event]) -> Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return unknown_instrument(command.instrument)
        if not is_participant(command.participant):
            text = f"Expected a participant of 1 to 16 characters a-z, 0-9, -, got {plain(command.participant)}"
            return Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.participant`")
        self._policy(instrument).permitted[command.participant] = command.permitted
        events.append(MemberPermitted(command.participant, instrument.code, command.permitted))
        self._sweep(instrument, events)
        return None

    def _set_holder(self, command: SetHolder, events: list[Event]) -> Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return unknown_instrument(command.instrument)
        if not is_participant(command.participant) or not is_account(command.account):
            text = f"Expected a participant and an account, got {plain(command.participant)}, {plain(command.account)}"
            return Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.participant`")
        for name, tag in (("jurisdiction", command.jurisdiction), ("investor_type", command.investor_type)):
            if not _is_tag(tag):
                text = f"Expected a word of up to 16 printable characters, got {plain(tag)} - at `$.{name}`"
                return Refusal(Reason.BAD_REFERENCE_DATA, text)
        refusal = _check_number("holding_max", command.holding_max, QUANTITY_MAX)
        if refusal is None:
            refusal = _check_number("lock_up", command.lock_up, QUANTITY_MAX)
        if refusal is None:
            refusal = _check_date("lock_up_until", command.lock_up_until)
        if refusal is None and (command.holding_max or command.lock_up):
            refusal = _check_counts(instrument, "holding_max" if command.holding_max else "lock_up")
        if refusal is not None:
            return refusal
        self._policy(instrument).holders[(command.participant, command.account)] = command
        events.append(
            HolderSet(
                instrument.code,
                command.participant,
                command.account,
                command.registered,
                command.jurisdiction,
                command.investor_type,
                command.holding_max,
                command.lock_up,
                command.lock_up_until,
            )
        )
        return None

    def _approve_transfer(self, command: ApproveTransfer, events: list[Event]) -> Refusal | None:
        trade = command.trade_id
        if not 1 <= trade <= self.trades:
            text = f"Expected the number of a trade, 1 to {self.trades}, got {number(trade)} - at `$.trade_id`"
            return Refusal(Reason.UNKNOWN_TRADE, text)
        if trade in self._decided:
            text = f"Expected a transfer that is not decided, got that of trade {trade}, which is - at `$.trade_id`"
            return Refusal(Reason.ALREADY_BOOKED, text)
        if not is_id(command.reference):
            text = f"Expected a reference of 1 to 36 printable characters, got {plain(command.reference)}"
            return Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.reference`")
        self._decided[trade] = command.approved
        buy = self._tape.trade(trade)[0]
        code = self._instruments[self._orders.instrument(buy)].code
        events.append(TransferDecided(trade, code, command.approved, command.reference))
        return None

    def _set_window(self, command: SetWindow, events: list[Event]) -> Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return unknown_instrument(command.instrument)
        refusal = _check_number("kind", command.kind, len(WindowKind) - 1)
        if refusal is not None:
            return refusal
        if not is_date(command.first):
            text = f"Expected a date as YYYYMMDD, got {number(command.first)} - at `$.first`"
            return Refusal(Reason.BAD_REFERENCE_DATA, text)
        if command.last and (not is_date(command.last) or command.last < max(command.first, self.date)):
            text = f"Expected a date from {max(command.first, self.date)} on, or 0, got {number(command.last)}"
            return Refusal(Reason.BAD_REFERENCE_DATA, f"{text} - at `$.last`")
        known = self._policies.get(instrument.index)
        windows = known.windows if known is not None else []
        before = [window for window in windows if window.kind == command.kind and window.first == command.first]
        if not command.last and not before:
            text = f"Expected the first day of a {_name(command.kind)} of {instrument.code}, got {command.first}"
            return Refusal(Reason.BAD_REFERENCE_DATA, f"{text} - at `$.first`")
        policy = self._policy(instrument)
        kept = [window for window in policy.windows if window not in before and window.last >= self.date]
        if command.last:
            window = Window(WindowKind(command.kind), command.first, command.last, command.purge)
            window.began = any(each.began and (each.purge or not command.purge) for each in before)
            kept.append(window)
        policy.windows[:] = kept
        kind = WindowKind(command.kind)
        events.append(WindowSet(instrument.code, kind, command.first, command.last, command.purge))
        if instrument.day == self.date:
            self._heed_windows(instrument, policy, events)
        return None

    # --- the whole of it ---------------------------------------------------------------------------------------------

    def _check_eligibility(self) -> None:
        """Raise ``InvariantBroken`` where an order stands in zaraba whose member may not trade."""
        for instrument in self._instruments:
            if instrument.guards & RESTRICTED == 0:
                continue
            policy = self._policies[instrument.index]
            if instrument.in_window and not any(window.began for window in policy.windows):
                raise InvariantBroken(f"{instrument.code} is in a window that has not begun")
            if instrument.phase_rules.matching == TRADE and not instrument.frozen:
                for order in self._open_orders(instrument):
                    if not self._is_permitted(policy, self._name_of(order)):
                        raise InvariantBroken(
                            f"Order {order} stands in {instrument.code}, and its member may not trade"
                        )


def _why_not_transferable(status: SetTokenStatus) -> str:
    """What keeps a token from changing hands; "" if nothing does."""
    if not status.active:
        return "not active"
    if not status.transferable:
        return "not transferable"
    return "paused" if status.paused else ""


def _why_not_allowed(rules: SetEligibility, holder: SetHolder | None) -> str:
    """Why a buyer may not come to hold a token; "" if it may."""
    jurisdiction = holder.jurisdiction if holder is not None else ""
    investor_type = holder.investor_type if holder is not None else ""
    if rules.jurisdictions and jurisdiction not in rules.jurisdictions:
        return f"of jurisdiction {jurisdiction or 'unknown'}"
    if rules.investor_types and investor_type not in rules.investor_types:
        return f"of investor type {investor_type or 'unknown'}"
    return ""


def _account(participant: str, account: str) -> str:
    """An account as ledgers name it."""
    return f"{participant}/{account}" if account else participant


def _name(kind: int) -> str:
    return WindowKind(kind).name.lower().replace("_", " ")


def _is_tag(text: str) -> bool:
    return len(text) <= 16 and is_account(text)


def _check_number(name: str, value: int, most: int) -> Refusal | None:
    if 0 <= value <= most:
        return None
    return Refusal(Reason.BAD_REFERENCE_DATA, f"Expected 0 to {most}, got {number(value)} - at `$.{name}`")


def _check_date(name: str, date: int) -> Refusal | None:
    if date == 0 or is_date(date):
        return None
    text = f"Expected a date as YYYYMMDD, or 0, got {number(date)} - at `$.{name}`"
    return Refusal(Reason.BAD_REFERENCE_DATA, text)


def _check_counts(instrument: Instrument, name: str) -> Refusal | None:
    """Caps and lock-ups need to know what an account has."""
    if instrument.rules.funding & FUNDS_UNITS:
        return None
    text = f"Expected an instrument whose units are pre-funded for a {name}, got {instrument.code}, of which nobody"
    return Refusal(Reason.BAD_REFERENCE_DATA, f"{text} knows who holds them - at `$.{name}`")
