"""The same as :mod:`swarm.slot` for asyncio: a leaf is asked in a thread, the loop goes on.

A leaf answers one verb at a time, so a thread per question is all that concurrency can use. A
task that is cancelled stops waiting; what it asked for is carried out nevertheless.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Self

from swarm import slot as plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from swarm.slot import Change, CheckIn, Closed, Progress, Ran, Result, Update


class Slot:
    """A slot; every method is that of :class:`swarm.slot.Slot`, awaited."""

    def __init__(self, slot: plain.Slot) -> None:
        """Stand for *slot*."""
        self.plain = slot
        self.name = slot.name
        self.root = slot.root
        self.worktree = slot.worktree
        self.info = slot.info

    @classmethod
    async def open(cls, root: str | os.PathLike[str] | None, slot: str) -> Self:
        """Return a slot that somebody has joined."""
        return cls(await asyncio.to_thread(plain.Slot.open, root, slot))

    async def commit(
        self,
        message: str,
        paths: Iterable[str | bytes | os.PathLike[str]] | None = None,
        *,
        timeout_s: float = plain.COMMIT_WITHIN_S,
    ) -> CheckIn:
        """Land what this slot has changed on trunk."""
        return await asyncio.to_thread(self.plain.commit, message, paths, timeout_s=timeout_s)

    async def update(
        self, *, markers: bool = False, timeout_s: float = plain.JOIN_WITHIN_S
    ) -> Update:
        """Bring the worktree to trunk's tip."""
        return await asyncio.to_thread(self.plain.update, markers=markers, timeout_s=timeout_s)

    async def status(self, *, changes: bool = False) -> dict[str, Any]:
        """Return what the leaf says of itself."""
        return await asyncio.to_thread(self.plain.status, changes=changes)

    async def changes(self) -> tuple[Change, ...]:
        """Return what a commit without paths would ask for."""
        return await asyncio.to_thread(self.plain.changes)

    async def close(
        self,
        result: Result = "success",
        *,
        artifact: bool = True,
        summary: str = "",
        timeout_s: float = plain.COMMIT_WITHIN_S,
    ) -> Closed:
        """End the leaf and clean up after it."""
        return await asyncio.to_thread(
            self.plain.close, result, artifact=artifact, summary=summary, timeout_s=timeout_s
        )

    async def run(
        self,
        argv: list[str],
        *,
        environment: Mapping[str, str] | None = None,
        commit_on_exit: bool = False,
        message: str = "",
        detach: bool = False,
        output: Callable[[list[str]], None] | None = None,
    ) -> Ran:
        """Run an agent in the worktree; *output* is called in another thread."""
        return await asyncio.to_thread(
            self.plain.run,
            argv,
            environment=environment,
            commit_on_exit=commit_on_exit,
            message=message,
            detach=detach,
            output=output,
        )


async def join(
    root: str | os.PathLike[str] | None,
    slot: str,
    task: str = "",
    *,
    timeout_s: float = plain.JOIN_WITHIN_S,
    progress: Progress | None = None,
) -> Slot:
    """Join a slot; *progress* is called in another thread."""
    return Slot(
        await asyncio.to_thread(
            plain.join, root, slot, task, timeout_s=timeout_s, progress=progress
        )
    )
