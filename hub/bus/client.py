"""nats-py's client, changed where it would talk to a stranger or stop without a word."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import nats.errors
from nats.aio.client import Client as NatsClient

from hub.bus.errors import ForeignServerError, NoServerError

if TYPE_CHECKING:
    from nats.aio.client import Srv

GARBLED = "Hub-Garbled"
"""The only header of a message that arrived with a subject or headers that are no text."""
_GARBLED_HEADERS = f"NATS/1.0\r\n{GARBLED}: 1\r\n\r\n".encode()
_CLOSED_WITHIN_S = 1.0


class Client(NatsClient):
    """The only one who knows what nats-py keeps to itself."""

    server_name = ""
    """That of the server we mean; "" accepts every one."""
    server_id = ""
    over = False
    """Whoever has it wants no connection any more."""

    def drop_transport(self) -> None:
        """Close the socket of an attempt that failed: nats-py forgets it at the next one."""
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]

    @property
    def has_begun(self) -> bool:
        """Whether it ever tried to connect, without which it cannot be closed."""
        return self._flush_queue is not None

    async def end(self) -> None:
        """Close it for good, however the connection is."""
        for _ in range(2):
            try:
                async with asyncio.timeout(_CLOSED_WITHIN_S):
                    await self.close()
                break
            except (OSError, RuntimeError):  # a timeout too; uvloop's word for a closed socket
                # It had something to send and nobody to send it to, and stopped half way. What
                # it wanted to send is gone now, so the second time it gets to its end.
                self._status = self.DISCONNECTED  # else it does nothing
        # Cancelled while it closed a connection that was refused, it takes that for done.
        self.drop_transport()

    async def _connect_to_server(self, s: Srv) -> None:
        """Connect, rid of an attempt that failed after it had begun to read and write.

        nats-py forgets it: its tasks would go on, over the next connection, and its socket stay.
        """
        self._let_go()
        await super()._connect_to_server(s)

    def _connect_command(self) -> bytes:
        """Log in; to a server of another name than *server_name* say nothing.

        A copied workspace has our keys, so its server would let us in.
        """
        info = self._server_info
        if self.server_name and info.get("server_name") != self.server_name:
            raise ForeignServerError(f"a server named {info.get('server_name')}")
        self.server_id = str(info.get("server_id", ""))
        return super()._connect_command()

    async def _process_connect_init(self) -> None:
        """Exchange greetings; whatever a stranger says is an error that is tried again.

        Any other exception would end nats-py's reconnecting without a word to anybody. And a
        cancellation it may miss (asyncio.wait_for of Python 3.11 drops one that comes with the
        result), and then it would try for ever.
        """
        try:
            if not self.over:
                await super()._process_connect_init()
        except (OSError, nats.errors.Error) as error:
            if "expecting INFO" not in str(error) and "json parse error" not in str(error):
                raise
            raise NoServerError("the responder does not speak NATS") from error
        except RuntimeError as error:  # uvloop's word for a socket that is closed already
            raise ConnectionResetError(str(error)) from error
        except Exception as error:
            raise NoServerError(f"the responder does not speak NATS: {error}") from error
        if self.over:
            self._let_go()
            raise asyncio.CancelledError

    def _let_go(self) -> None:
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        self.drop_transport()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """Take a message; if its subject or headers are no text, say so in place of the headers.

        An exception here would end nats-py's reading without a word to anybody.
        """
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (UnicodeError, IndexError):
            text = subject.decode("utf-8", "replace").encode()
            await super()._process_msg(sid, text, reply, data, _GARBLED_HEADERS)
