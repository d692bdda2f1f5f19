"""Who of the exchange's own people asked for what, who agreed, and what became of it.

A command that moves a whole market (a trade bust, a reference price, the kill switch) must not hang on one person's
slip, so it waits until a second operator has confirmed it. Both names are in the commands, so the log says for ever who
asked and who agreed, and the wait is part of the market's state: a crash in between changes nothing about it.

Which commands wait, and how long, is the gateway's to say (``OperatorRequest.confirm_ns``). Everything else is decided
here, from the commands and their stamps alone. Every id that an operator ever used is kept with what was asked and what
was answered, so that asking again is harmless, as it is for members.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.checks import is_id, is_participant, number, plain
from engine.commands import ExchangeCommand, OperatorCommand, OperatorConfirm, OperatorDecline, OperatorRequest
from engine.events import Event, OperatorActed, OperatorDeclined, OperatorRefused, OperatorRequested, Rejected
from engine.identities import encode, newest
from engine.types import Reason

#: Longest wait for a second operator, in nanoseconds: the bound of the wire.
CONFIRM_MAX: Final = 2**62

OperatorAnswer = OperatorRequested | OperatorActed | OperatorRefused | OperatorDeclined


class Request:
    """What was asked under one id, and the answer as it stands now."""

    def __init__(self, operator: str, request_id: str, content: bytes, answer: OperatorAnswer) -> None:
        self.operator: Final = operator
        self.request_id: Final = request_id
        self.content: Final = content
        self.answer: OperatorAnswer = answer

    def key(self) -> list[object]:
        """All of it, for the digest."""
        return [self.operator, self.request_id, self.content, self.answer]


class Operators:
    """Every request so far, and those that wait for a second operator."""

    def __init__(self) -> None:
        self._requests: Final[dict[str, Request]] = {}  #: by operator and id, in the order in which they came
        self._waiting: Final[dict[str, Request]] = {}  #: those that can still be confirmed

    def take(self, command: OperatorCommand, time_ns: int, events: list[Event]) -> ExchangeCommand | None:
        """What takes effect now; whoever carries it out then calls ``settle``. None: the answer is given."""
        for key, request in list(self._waiting.items()):
            waiting = request.answer
            if isinstance(waiting, OperatorRequested) and waiting.until_ns < time_ns:
                del self._waiting[key]
        if not is_participant(command.operator):
            text = f"Expected an operator of 1 to 16 characters a-z, 0-9, -, got {plain(command.operator)}"
            events.append(Rejected("", "", Reason.BAD_IDENTITY, text))
            return None
        if not is_id(command.request_id):
            text = f"Expected an id of 1 to 36 printable characters, got {plain(command.request_id)} - at `$[1]`"
            events.append(OperatorRefused(command.operator, "", Reason.BAD_IDENTITY, text))
            return None
        try:
            content = _content(command)
        except (OverflowError, ValueError):
            text = "Expected numbers of at most 64 bits and texts in UTF-8 - at `$[2]`"
            events.append(OperatorRefused(command.operator, command.request_id, Reason.BAD_REFERENCE_DATA, text))
            return None
        known = self._requests.get(_key(command.operator, command.request_id))
        if known is not None:
            if known.content == content:
                events.append(msgspec.structs.replace(known.answer, repeat=True))
            else:
                text = f"Expected a new id, got {command.request_id}, which was used for another command - at `$[1]`"
                reason = Reason.DUPLICATE_CLIENT_ORDER_ID
                events.append(OperatorRefused(command.operator, command.request_id, reason, text))
            return None
        if isinstance(command, OperatorRequest):
            if not 0 <= command.confirm_ns <= CONFIRM_MAX:
                text = f"Expected up to {CONFIRM_MAX} ns for a second operator, got {number(command.confirm_ns)}"
                refused = OperatorRefused(command.operator, command.request_id, Reason.BAD_REFERENCE_DATA, text)
                self._keep(Request(command.operator, command.request_id, content, refused), events)
                return None
            if command.confirm_ns == 0:
                return command.command
            until_ns = time_ns + command.confirm_ns
            answer = OperatorRequested(command.operator, command.request_id, command.command, until_ns)
            request = Request(command.operator, command.request_id, content, answer)
            self._keep(request, events)
            self._waiting[_key(command.operator, command.request_id)] = request
            return None
        not_waiting = self._check_waiting(command)
        if not_waiting is not None:
            self._keep(Request(command.operator, command.request_id, content, not_waiting), events)
            return None
        request = self._waiting[_key(command.requested_by, command.requested_id)]
        assert isinstance(request.answer, OperatorRequested)
        if isinstance(command, OperatorConfirm):
            return request.answer.command
        declined = OperatorDeclined(
            command.operator, command.request_id, command.requested_by, command.requested_id, request.answer.command
        )
        self._end(request, declined)
        self._keep(Request(command.operator, command.request_id, content, declined), events)
        return None

    def settle(self, command: OperatorCommand, refusal: Rejected | None, events: list[Event]) -> None:
        """What ``take`` gave was carried out, or the market refused it: say so, and keep it as the answer."""
        content = _content(command)
        acted: OperatorAnswer
        if isinstance(command, OperatorRequest):
            by, request_id, wish, second, second_id = command.operator, command.request_id, command.command, "", ""
        else:
            request = self._waiting[_key(command.requested_by, command.requested_id)]
            assert isinstance(request.answer, OperatorRequested)
            by, request_id, wish = request.operator, request.request_id, request.answer.command
            second, second_id = command.operator, command.request_id
        if refusal is None:
            acted = OperatorActed(by, request_id, wish, second, second_id)
        else:
            acted = OperatorRefused(by, request_id, refusal.reason, refusal.text, second, second_id)
        if not isinstance(command, OperatorRequest):
            self._end(self._waiting[_key(command.requested_by, command.requested_id)], acted)
        self._keep(Request(command.operator, command.request_id, content, acted), events)

    def _check_waiting(self, command: OperatorConfirm | OperatorDecline) -> OperatorRefused | None:
        """Whether there is something that this operator may confirm or decline."""
        key = _key(command.requested_by, command.requested_id)
        request = self._requests.get(key)
        name = f"{plain(command.requested_id)} of {plain(command.requested_by)}"
        reason = Reason.UNKNOWN_REQUEST
        if request is None:
            text = f"Expected a request that waits for a second operator, got {name}, which nobody made"
        elif key not in self._waiting:
            if isinstance(request.answer, OperatorRequested):
                reason = Reason.TOO_LATE
                text = f"Expected the answer by {request.answer.until_ns} ns, got one to {name} after it; ask anew"
            else:
                became = str(request.answer.__struct_config__.tag)
                text = f"Expected a request that waits for a second operator, got {name}, which was answered: {became}"
        elif isinstance(command, OperatorConfirm) and command.operator == command.requested_by:
            reason = Reason.NOT_PERMITTED
            text = f"Expected another operator than {command.operator} to confirm {name}, got the same"
        else:
            return None
        return OperatorRefused(command.operator, command.request_id, reason, text)

    def _keep(self, request: Request, events: list[Event]) -> None:
        self._requests[_key(request.operator, request.request_id)] = request
        events.append(request.answer)

    def _end(self, request: Request, answer: OperatorAnswer) -> None:
        request.answer = answer
        del self._waiting[_key(request.operator, request.request_id)]

    def waiting(self, time_ns: int) -> list[OperatorRequested]:
        """What can be confirmed at ``time_ns``, oldest first."""
        found: list[OperatorRequested] = []
        for request in self._waiting.values():
            answer = request.answer
            if isinstance(answer, OperatorRequested) and answer.until_ns >= time_ns:
                found.append(answer)
        return found

    def key(self, most: int) -> list[object]:
        """Its state, for the digest; at most ``most`` requests, and how many there are.

        What still waits follows from the answers and the last stamp.
        """
        return [len(self._requests), [request.key() for _, request in newest(self._requests, most)]]


def _key(operator: str, request_id: str) -> str:
    return f"{operator} {request_id}"  # neither holds a space


def _content(command: OperatorCommand) -> bytes:
    """What was asked, without the time limit: that is the gateway's setting of the day."""
    if isinstance(command, OperatorRequest):
        return encode(command.command)
    return encode([str(command.__struct_config__.tag), command.requested_by, command.requested_id])
