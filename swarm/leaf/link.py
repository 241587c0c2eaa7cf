"""A leaf's way to trunk: the link of a slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hub.link import Link as AnyLink
from hub.link import Registrant

if TYPE_CHECKING:
    from collections.abc import Callable

    from foundation.errors import LeaseLost
    from foundation.workspace import Workspace

SUBJECT = "slots.request"


class Link(AnyLink):
    """The connection of one slot's leaf."""

    def __init__(
        self,
        workspace: Workspace,
        slot: str,
        *,
        on_change: Callable[[str], None],
        on_superseded: Callable[[LeaseLost], None],
    ) -> None:
        """Connect nothing yet; *on_superseded* is told that trunk knows a later leaf."""
        super().__init__(
            workspace,
            Registrant(slot, f"slot {slot}", SUBJECT, slot, "slot"),
            on_change=on_change,
            on_superseded=on_superseded,
        )
