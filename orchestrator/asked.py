"""What a holder is asked over the bus: JSON in, an answer or an error out, whatever happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.errors import HubError, Refused, Unavailable, to_wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias

    Handler: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

VERSION = 1


class Asked:
    """Requests, answered by a handler that may come later."""

    def __init__(self, whom: str) -> None:
        """Answer for *whom*, in words; that nothing is answered yet until there is a handler."""
        self.handler: Handler | None = None
        self._whom = whom

    async def answer(self, subject: str, payload: bytes, _headers: Mapping[str, str]) -> bytes:
        """Return ``{"v":1,"data":…}`` or ``{"v":1,"error":…}``; *subject* ends with the verb."""
        verb = subject.rpartition(".")[2]
        try:
            data = await self._answered(verb, payload)
        except HubError as error:
            return _encoded(error=to_wire(error))
        except Exception as error:  # noqa: BLE001 - told to whoever asked, and to the loop
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the request {verb} met a bug", "exception": error}
            )
            bug = HubError(f"a bug in the holder: {error!r}", reason="bug")
            return _encoded(error=to_wire(bug))
        return data

    async def _answered(self, verb: str, payload: bytes) -> bytes:
        if self.handler is None:
            raise Unavailable(f"{self._whom} answers nothing yet", reason="starting")
        try:
            request = codec.loads_object(payload) if payload else {}
        except ValueError as error:
            raise Refused(f"{verb}: {error}", reason="protocol") from None
        return _encoded(data=await self.handler(verb, request))


def _encoded(**answer: Any) -> bytes:
    return codec.dumps({"v": VERSION, **answer}).encode()
