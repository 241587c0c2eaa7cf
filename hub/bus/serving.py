"""Answering what arrives on a subject: a task a message, bounded in number."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias

    from nats.aio.msg import Msg

    Handler: TypeAlias = Callable[[str, bytes, Mapping[str, str]], Awaitable[bytes | None]]

INBOX = "_INBOX_"
AT_ONCE = 256
WAITING_BYTES = 64 * 2**20


class Service:
    """One handler at work. What it has no room for waits; what there is no room for is dropped.

    Who asks sends again what was not answered, so dropping is slow, not wrong.
    """

    def __init__(
        self,
        handler: Handler,
        answer: Callable[[str, bytes], Awaitable[None]],
        at_once: int = AT_ONCE,
    ) -> None:
        """Have at most *at_once* calls of *handler* at work; *answer* sends to an inbox."""
        self._handler = handler
        self._answer = answer
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._working: set[asyncio.Task[None]] = set()
        self._waiting: deque[Msg] = deque()
        self._waiting_bytes = 0
        self._ended = False

    def take(self, message: Msg) -> None:
        """Answer *message*, now or later."""
        if len(self._working) < self._at_once:
            self._begin(message)
        elif self._waiting_bytes + len(message.data) <= WAITING_BYTES:
            self._waiting.append(message)
            self._waiting_bytes += len(message.data)

    def cancel(self) -> set[asyncio.Task[None]]:
        """Take no more, give up what is at work and return its tasks."""
        self._ended = True
        self._waiting.clear()
        for task in self._working:
            task.cancel()
        return set(self._working)

    def _begin(self, message: Msg) -> None:
        task = self._loop.create_task(self._serve(message))
        self._working.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        if self._waiting and not self._ended:
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message.data)
            self._begin(message)

    async def _serve(self, message: Msg) -> None:
        try:
            answer = await self._handler(message.subject, message.data, message.headers or {})
            # Whoever asks names where the answer goes; into a stream or to a service it never does.
            if answer is not None and message.reply.startswith(INBOX):
                await self._answer(message.reply, answer)
        except Exception as error:  # noqa: BLE001 - one request's bug is not the others' business
            self._loop.call_exception_handler(
                {"message": f"a request on {message.subject} met a bug", "exception": error}
            )
