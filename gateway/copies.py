"""Drop copies: who else reads a member's reports.

A clearer or a risk desk logs in under a name of its own and reads what the member reads, message for message under the
same numbers, so it notices a hole as the member does and asks again. It can send questions, and no command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway import config as settings
from gateway.bus import topics


class Copies:
    """Where copies go: ``by_member`` has the addresses (``topics.copy``) of each member that is copied."""

    def __init__(self, config: Sequence[settings.DropCopy]) -> None:
        self.by_member: Final[dict[str, list[str]]] = {}
        self._members: Final[dict[str, str]] = {}  # by address
        for copy in config:
            for participant in copy.members:
                address = topics.copy(copy.login, participant)
                if address not in self._members:
                    self._members[address] = participant
                    self.by_member.setdefault(participant, []).append(address)

    def member(self, address: str) -> str | None:
        """Whose reports are read at an address; None: nobody's."""
        return self._members.get(address)

    def all(self) -> list[tuple[str, str]]:
        """Every member with each address that reads a copy."""
        return [(participant, address) for address, participant in self._members.items()]
