"""The verb ``events``: the history printed, and followed until its reader has seen enough."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from hub.event_words import line
from hub.events import address, read
from hub.output import envelope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from typing import TextIO

    from foundation.workspace import Workspace
    from hub.events import Event

VERB = "hub.events"


def print_events(
    workspace: Workspace,
    *,
    after: int,
    follow: bool,
    as_json: bool,
    out: TextIO | None,
    find: Callable[[Workspace], str] = address,
) -> None:
    """Print the events after sequence *after*, a line each; with *follow* until interrupted.

    With *as_json* it prints one envelope whose data is ``{"events": [EVENT, …]}``; with *follow*
    as well, an envelope a line whose data is an EVENT itself: ``{"seq","time","subject","kind",
    "data"}``. A reader that has seen enough ends it without a word; *out* is None where there is
    no stdout, and then nothing is printed or followed.

    Raises:
        KeyboardInterrupt: it was interrupted.
        OSError: *out* cannot be written.

        And as :func:`read`.
    """
    if out is None:
        with open(os.devnull, "w", encoding="ascii") as nowhere:
            print_events(
                workspace, after=after, follow=False, as_json=as_json, out=nowhere, find=find
            )
        return
    events = read(workspace, after, follow=follow, find=find)
    try:
        asyncio.run(_print(events, follow=follow, as_json=as_json, out=out))
        out.flush()
    except (BrokenPipeError, asyncio.CancelledError):
        # The reader has seen enough. The interpreter flushes once more at its end.
        if out is sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


async def _print(
    events: AsyncGenerator[Event], *, follow: bool, as_json: bool, out: TextIO
) -> None:
    collected: list[dict[str, Any]] = []
    task = asyncio.current_task()
    assert task is not None
    async with aclosing(events):
        with _watched(out, task.cancel):
            async for event in events:
                if as_json and not follow:
                    collected.append(event.as_dict())
                    continue
                out.write(envelope(VERB, event.as_dict()) if as_json else f"{line(event)}\n")
                if follow:
                    out.flush()
    if as_json and not follow:
        out.write(envelope(VERB, {"events": collected}))


@contextmanager
def _watched(out: TextIO, leave: Callable[[], object]) -> Generator[None]:
    """Call *leave* when whoever reads *out* goes away: the next event may take for ever.

    Source: epoll_ctl(2): without any event asked for, EPOLLERR and EPOLLHUP are reported.
    """
    loop = asyncio.get_running_loop()
    with select.epoll() as errors:
        try:
            errors.register(out, 0)
        except (OSError, ValueError):  # a plain file, or none at all
            yield
            return
        loop.add_reader(errors, leave)
        try:
            yield
        finally:
            loop.remove_reader(errors)
