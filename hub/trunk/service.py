"""The trunk process itself: its loop, its life, its words.

stdin   one byte or more per append to the outbox; EOF means that the supervisor is gone
stdout  one line, ``trunk ready``: the streams exist and the outbox was drained once
stderr  one JSON object a line: ``{"time","level","event",…}``
SIGTERM exit at once: what is not published yet is published at the next start
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, Literal, NoReturn

# nats-py imports some of its parts when it first needs them; an upgrade under a running hub
# must not load new modules into old code, so all are loaded before we are ready.
import nats.js.api
import nats.js.client
import nkeys
import uvloop

from foundation import codec
from foundation.atomic import write_all
from foundation.clock import utc_now
from foundation.errors import HubError, Refused
from foundation.workspace import Workspace
from hub.bus import Bus, connect
from hub.trunk.announcer import Announcer
from hub.trunk.streams import CONFIGS, EVENTS, Mark, StreamState, ensure, state

LOADED = (nats.js.api, nats.js.client, nkeys)

READY = b"trunk ready\n"
RETRY_S = 0.1
RETRY_AT_MOST_S = 5.0
AUDIT_EVERY_S = 60.0

_STDIN, _STDOUT, _STDERR = 0, 1, 2

Level = Literal["info", "warning", "error"]


def main(root: str) -> NoReturn:
    """Serve the workspace *root* until SIGTERM or the end of stdin."""
    uvloop.run(Trunk(Workspace(root)).serve())
    os._exit(0)


def log(level: Level, event: str, **fields: Any) -> None:
    """Write one line for the log. A log that cannot be written is no reason to stop."""
    line = codec.dumps({"time": utc_now(), "level": level, "event": event, **fields})
    try:
        write_all(_STDERR, line.encode() + b"\n")
    except OSError:
        pass


class Trunk:
    """One workspace's trunk. All its state belongs to one event loop."""

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to serve *workspace*; :meth:`serve` begins."""
        self._workspace = workspace
        self._mark = Mark(workspace)
        self._woken = asyncio.Event()
        self._ready = False
        self._working = False
        self._failing = ""

    async def serve(self) -> NoReturn:
        """Publish what the outbox holds, whatever becomes of the server; never return."""
        loop = asyncio.get_running_loop()
        # Nothing here needs an orderly end: each step may be killed.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, os._exit, 0)
        os.set_blocking(_STDIN, False)
        loop.add_reader(_STDIN, self._listen)
        wait_s = RETRY_S
        while True:
            try:
                async with await connect(self._workspace, "hub") as bus:
                    await self._serve(bus)
            except (HubError, OSError) as error:
                self._complain(error)
            wait_s = RETRY_S if self._working else min(wait_s * 2, RETRY_AT_MOST_S)
            self._working = False
            await asyncio.sleep(wait_s)

    async def _serve(self, bus: Bus) -> None:
        """Publish over *bus* until it is closed for good."""
        for config in CONFIGS.values():
            await ensure(bus, config)
        announcer = Announcer(bus, self._workspace.outbox)
        while not bus.closed.is_set():
            self._woken.clear()
            # Before publishing: what the store forgot must not be hidden by what it learns.
            held = await state(bus, EVENTS)
            await self._audit(announcer, held)
            await announcer.drain()
            self._note(held.replace(last_seq=max(held.last_seq, announcer.last_in_stream)))
            self._working = True
            self._failing = ""
            if not self._ready:
                self._ready = True
                write_all(_STDOUT, READY)
            try:
                async with asyncio.timeout(AUDIT_EVERY_S):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _audit(self, announcer: Announcer, held: StreamState) -> None:
        """Tell everyone if the store lost what it had; go on with what there is."""
        damage = self._mark.damage(held)
        if damage is None:
            return
        log("error", "store-damaged", stream=EVENTS, **damage)
        name = f"damaged-{held.created}-{held.last_seq}-{held.deleted}"
        await announcer.announce_own("store-damaged", {"stream": EVENTS, **damage}, name=name)
        self._note(held)

    def _note(self, held: StreamState) -> None:
        try:
            self._mark.note(held)
        except OSError as error:
            log("warning", "mark-not-written", error=str(error))

    def _listen(self) -> None:
        """Note that there is something to publish; leave with the supervisor."""
        try:
            woken = os.read(_STDIN, 65_536)
        except BlockingIOError:
            return
        if not woken:
            os._exit(0)
        self._woken.set()

    def _complain(self, error: HubError | OSError) -> None:
        """Log *error*, once while it lasts."""
        if str(error) != self._failing:
            self._failing = str(error)
            reason = error.reason if isinstance(error, HubError) else "os"
            level: Level = "error" if isinstance(error, Refused | OSError) else "warning"
            log(level, "bus-failed", reason=reason, error=str(error))
