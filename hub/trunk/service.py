"""The trunk process itself: its loop, its writer's thread, its life, its words.

stdin   one byte or more per append to the outbox; EOF means that the supervisor is gone
stdout  one line, ``trunk ready``: the streams exist and the outbox was drained once; or the
        streams cannot be had, and commits are taken all the same
stderr  one JSON object a line: ``{"time","level","event",…}``
SIGTERM exit at once: what is not finished is finished at the next start

Commits and events share a connection and nothing else: where the events cannot be stored, commits
go on, and the other way round.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Literal, NoReturn

# nats-py imports some of its parts when it first needs them; an upgrade under a running hub
# must not load new modules into old code, so all are loaded before we are ready.
import nats.js.api
import nats.js.client
import nkeys
import uvloop

from foundation import codec
from foundation.atomic import write_all
from foundation.clock import utc_now
from foundation.errors import HubError, Refused, Unavailable
from foundation.workspace import Workspace
from hub.bus import Bus, connect
from hub.commits import STARTED
from hub.trunk import contract, requests
from hub.trunk.accounts import Accounts
from hub.trunk.announcer import Announcer
from hub.trunk.checkins import Checkins
from hub.trunk.gate import Gate
from hub.trunk.guests import Guests
from hub.trunk.streams import CONFIGS, EVENTS, Mark, StreamState, ensure, state
from hub.trunk.writer import Reports, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LOADED = (nats.js.api, nats.js.client, nkeys)

READY = b"trunk ready\n"
RETRY_S = 0.1
RETRY_AT_MOST_S = 5.0
AUDIT_EVERY_S = 60.0

_STDIN, _STDOUT, _STDERR = 0, 1, 2

Level = Literal["info", "warning", "error"]


def main(root: str) -> NoReturn:
    """Serve the workspace *root* until SIGTERM or the end of stdin."""
    uvloop.run(_serve(Workspace(root)))
    os._exit(0)


async def _serve(workspace: Workspace) -> NoReturn:
    await Trunk(workspace).serve()


def log(level: Level, event: str, **fields: Any) -> None:
    """Write one line for the log. A log that cannot be written is no reason to stop."""
    line = codec.dumps({"time": utc_now(), "level": level, "event": event, **fields})
    try:
        write_all(_STDERR, line.encode() + b"\n")
    except OSError:
        pass


class Trunk:
    """One workspace's trunk. Its state belongs to one event loop, but for the writer's own."""

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to serve *workspace*; :meth:`serve` begins. There is a running loop."""
        self._workspace = workspace
        self._mark = Mark(workspace)
        self._woken = asyncio.Event()
        self._streams = asyncio.Event()
        self._ready = False
        self._writing = False
        self._working = False
        self._failing: dict[str, str] = {}
        self._refusing = ""
        self._loop = asyncio.get_running_loop()
        self._accounts: Accounts | None = None
        self._users = requests.Users(workspace.repository, log)
        self._guests = Guests(workspace.repository, log)
        self._commits = requests.Commits(self._loop, workspace)
        self._checkins = Checkins(workspace.repository, self._loop)
        reports = Reports(
            log=log,
            opened=self._opened,
            answered=self._commits.answered,
            arrived=self._checkins.arrived,
            forked=self._checkins.forked,
        )
        self._writer = Writer(
            workspace,
            reports,
            fence=requests.fence(lambda: self._accounts),
            gate=Gate(workspace),
        )
        self._commits.writer = self._writer

    async def serve(self) -> NoReturn:
        """Serve, whatever becomes of the servers; never return."""
        # Nothing here needs an orderly end: each step may be killed.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, os._exit, 0)
        os.set_blocking(_STDIN, False)
        self._loop.add_reader(_STDIN, self._listen)
        self._loop.set_exception_handler(_report_bug)
        threading.Thread(target=self._write, name="writer", daemon=True).start()
        wait_s = RETRY_S
        while True:
            try:
                async with (
                    await connect(self._workspace, "hub") as bus,
                    await connect(self._workspace, "sys") as sys,
                ):
                    await self._serve(bus, sys)
            except (HubError, OSError) as error:
                self._complain("bus", error)
            wait_s = RETRY_S if self._working else min(wait_s * 2, RETRY_AT_MOST_S)
            self._working = False
            await asyncio.sleep(wait_s)

    def _write(self) -> None:
        """Be the writer's thread."""
        try:
            while not self._may_write():
                time.sleep(RETRY_AT_MOST_S)
            self._writer.run()
        except BaseException:  # noqa: BLE001 - a trunk that does not write is none
            log("error", "writer-ended", trace=traceback.format_exc())
        os._exit(1)

    def _may_write(self) -> bool:
        try:
            contract.ensure(self._workspace, log)
        except (HubError, OSError, sqlite3.Error) as error:
            if str(error) != self._refusing:
                self._refusing = str(error)
                log("error", "no-commits", error=str(error))
            reason = error.reason if isinstance(error, HubError) else "repository"
            self._writer.refuse(Unavailable(f"trunk takes no commits: {error}", reason=reason))
            return False
        return True

    def _opened(self) -> None:
        self._checkins.opened()
        self._loop.call_soon_threadsafe(self._now_writing)

    def _now_writing(self) -> None:
        self._writing = True
        if "events" in self._failing:
            self._say_ready()

    async def _serve(self, bus: Bus, sys: Bus) -> None:
        """Serve over *bus* until one of the two is closed for good."""
        accounts = Accounts(self._workspace, sys, ended=self._commits.ended)
        if accounts.damage:
            log("error", "accounts-damaged", error=accounts.damage)
        try:
            self._accounts = accounts  # before the first commit arrives: it is the fence
            await requests.serve(bus, self._commits, accounts, self._users, self._guests)
            await bus.send(STARTED, b"")
            closed = [asyncio.create_task(one.closed.wait()) for one in (bus, sys)]
            parts = [
                asyncio.create_task(self._keep("events", lambda: self._serve_events(bus))),
                asyncio.create_task(self._keep("checkins", lambda: self._serve_checkins(bus))),
            ]
            sweep = asyncio.create_task(self._guests.sweep(accounts))
            try:
                await asyncio.wait([*closed, *parts], return_when=asyncio.FIRST_COMPLETED)
            finally:
                tasks = (*closed, *parts, sweep)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            for one in (bus, sys):
                if one.closed_because is not None:
                    raise one.closed_because
        finally:
            await accounts.close()

    async def _keep(self, what: str, part: Callable[[], Coroutine[Any, Any, None]]) -> NoReturn:
        """Have *part* done, again and again: the other parts go on without it, bugs included."""
        wait_s = RETRY_S
        while True:
            began_s = self._loop.time()
            try:
                await part()
            except Exception as error:  # noqa: BLE001 - one part's bug is not the others' business
                self._complain(what, error)
                if self._writing:
                    self._say_ready()
            if self._loop.time() > began_s + RETRY_AT_MOST_S:
                wait_s = RETRY_S
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_AT_MOST_S)

    async def _serve_events(self, bus: Bus) -> None:
        """Publish the outbox over *bus* until that is closed for good."""
        for config in CONFIGS.values():
            await ensure(bus, config)
        self._streams.set()
        announcer = Announcer(bus, self._workspace.outbox)
        while not bus.closed.is_set():
            self._woken.clear()
            # Before publishing: what the store forgot must not be hidden by what it learns.
            held = await state(bus, EVENTS)
            await self._audit(announcer, held)
            await announcer.drain()
            self._note(held.replace(last_seq=max(held.last_seq, announcer.last_in_stream)))
            self._working = True
            self._failing.clear()
            self._say_ready()
            try:
                async with asyncio.timeout(AUDIT_EVERY_S):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _serve_checkins(self, bus: Bus) -> None:
        await self._streams.wait()
        await self._checkins.serve(bus)

    def _say_ready(self) -> None:
        if not self._ready:
            self._ready = True
            write_all(_STDOUT, READY)

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

    def _complain(self, what: str, error: Exception) -> None:
        """Log *error*, which stopped *what*, once while it lasts."""
        if str(error) == self._failing.get(what):
            return
        self._failing[what] = str(error)
        if isinstance(error, HubError | OSError):
            reason = error.reason if isinstance(error, HubError) else "os"
            level: Level = "error" if isinstance(error, Refused | OSError) else "warning"
            log(level, f"{what}-failed", reason=reason, error=str(error))
        else:
            trace = "".join(traceback.format_exception(error))
            log("error", "bug", message=f"{what} met a bug", trace=trace)


def _report_bug(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    trace = "" if error is None else "".join(traceback.format_exception(error))
    log("error", "bug", message=str(context.get("message")), trace=trace)
