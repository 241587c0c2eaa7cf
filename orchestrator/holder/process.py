"""A holder's process, from its launch to its exit."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from foundation.errors import HubError
from foundation.failpoint import hit
from orchestrator.holder.bound import ParentWatch
from orchestrator.holder.holder import Holder
from orchestrator.holder.launch import read_launch
from orchestrator.holder.log import complain, note

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.holder.launch import Launch
    from orchestrator.holder.parts import Parts

    Assemble = Callable[[Launch], Awaitable[Parts]]


def run(assemble: Assemble | None = None) -> int:
    """Be the holder that this process was launched as, to its end; return the exit status.

    *assemble* makes what it is put together from; without it, QEMU and our network. No variable and
    no setting selects another: a program that wants one is another program.
    """
    try:
        launch = read_launch()
        os.chdir("/")  # where it was launched from may be a slot, which is to be removed some time
        # Before anything slow: a client that dies now must not be missed.
        watch = ParentWatch(launch.parent) if launch.parent else None
        if watch is not None and watch.gone:
            note("parent-gone", parent=launch.parent)
            return 0
        for descriptors in (launch.clusters, launch.locks, launch.listeners):
            for fd in descriptors.values():
                os.set_inheritable(fd, False)
        hit("holder.began")
        return asyncio.run(_live(launch, watch, assemble or _ours))
    except HubError as error:
        note("failed", message=str(error), reason=error.reason)
        return error.exit_code
    except OSError as error:
        note("failed", message=str(error), reason="system")
        return 1


async def _live(launch: Launch, watch: ParentWatch | None, assemble: Assemble) -> int:
    parts = await assemble(launch)
    holder = Holder(launch, parts, watch, complain)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, holder.end)
    try:
        note("began", members=list(launch.names), bound=bool(launch.parent))
        holder.begin()
        if parts.bus is not None:
            parts.bus.serve(holder)
        await holder.live()
    finally:
        if parts.bus is not None:
            await parts.bus.close()
        await parts.backend.close()
        parts.network.close()
        note("ended")
    return 0


async def _ours(launch: Launch) -> Parts:
    # Here: a test's holder of fakes needs no QEMU, and half the time to start.
    from orchestrator.holder.ours import assemble  # noqa: PLC0415

    return await assemble(launch)
