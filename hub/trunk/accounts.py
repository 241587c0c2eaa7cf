"""Who may log in to the bus as which slot: one key per slot and epoch, the older ones revoked.

The registry is written first, then the server's accounts, then the server is told to read them
(``$SYS.REQ.SERVER.<id>.RELOAD``, which answers when it has). A kill anywhere leaves what the
next call completes; what many ask for at once is one write and one reload.

Asked over the bus, ``slots.request.register`` and ``slots.request.leave.<slot>``, with
``{"v":1,"slot":NAME,"epoch":N,"public":"U…"}`` (no key to leave), it answers ``{"v":1}`` or
``{"v":1,"error":…}`` (:func:`foundation.errors.to_wire`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from foundation import codec
from foundation.clock import utc_now
from foundation.errors import HubError, LeaseLost, Refused, Unavailable, to_wire
from foundation.failpoint import hit
from hub import nats, slotname
from hub.nkey import is_public_key
from hub.trunk import registry
from hub.trunk.registry import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from foundation.workspace import Workspace
    from hub.bus import Bus

SUBJECTS = "slots.request.>"
VERSION = 1
RELOADED_WITHIN_S = 10.0
LEAVING_LINGERS_S = 0.5
"""How long the key of a slot that left may wait for others, or a join, to share its reload."""
_PAUSE_OF_RELOADS = 2.0
"""Times as long as the last reload took the next one waits: a reload costs the server about
0.2 ms a slot, and a hundred slots may join one after the other."""
_RETRY_S = 0.05


class _Waiting(NamedTuple):
    """Someone who waits for the change of that number to be recorded, or read by the server."""

    change: int
    loaded: bool
    done: asyncio.Future[None]


class Accounts:
    """The slots of one workspace. One per workspace, in trunk, and of one event loop."""

    def __init__(
        self,
        workspace: Workspace,
        sys: Bus,
        *,
        ended: Callable[[str, int], Awaitable[None]] | None = None,
    ) -> None:
        """Read the registry of *workspace*; *sys* is a connection of the role ``sys``.

        *ended* returns when nothing can land any more that a leaf of a slot, before an epoch, has
        asked for; :meth:`check` refuses what it asks for from then on.

        Raises:
            OSError: a damaged registry cannot be replaced.
        """
        self._workspace = workspace
        self._sys = sys
        self._ended = ended
        loaded = registry.load(workspace)
        self.damage = loaded.damage
        """What was wrong with the registry, "" if nothing: the leases gave the epochs back."""
        self._slots = loaded.slots
        # Nobody knows what the server has read: the first call sees to it.
        self._wanted = 1
        self._written = 0
        self._loaded = 0
        self._server = ""
        self._waiting: list[_Waiting] = []
        self._urgent = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self.reloads = 0
        """How often the server was told to read its accounts."""

    @property
    def slots(self) -> Mapping[str, Entry]:
        """What is registered, by slot; not necessarily on disk yet."""
        return self._slots

    def check(self, slot: str, epoch: int) -> None:
        """Let pass what comes from the present leaf of *slot*, or a later one.

        Raises:
            LeaseLost: *epoch* is over (``superseded``).
        """
        entry = self._slots.get(slot)
        if entry is not None and epoch < entry.epoch:
            raise _superseded(slot, epoch, entry.epoch)

    async def register(self, slot: str, epoch: int, public: str) -> None:
        """Let the leaf of *slot* that acquired *epoch* log in with the key *public*.

        On return it can, and no earlier leaf of *slot* can any more: the server has ended their
        connections, and what they have asked for has landed or never will. The same once more
        changes nothing.

        Raises:
            LeaseLost: a later epoch is registered or leased, or this one has another key or left
                (``superseded``).
            Refused: *slot* is no name; *public* no key (``slot-key``), or another's; *epoch* none
                that the lease has reached (``slot-epoch``).
            Unavailable: it could not be recorded (``accounts-io``), the server did not take it
                (``accounts-reload``), a bug kept it from that (``bug``), or a commit of an
                earlier leaf is still on its way (``commits-in-flight``): ask again.
        """
        slotname.check(slot)
        self._check_key(slot, public)
        leased = registry.leased_epoch(self._workspace, slot)
        if epoch < 1 or (leased and epoch > leased):
            raise Refused(
                f"slot {slot}: its lease has not reached epoch {epoch}, but {leased}",
                reason="slot-epoch",
            )
        known = self._slots.get(slot)
        highest = max(leased, known.epoch if known else 0)
        if epoch < highest:
            raise _superseded(slot, epoch, highest)
        if known is None or known.epoch < epoch or not known.joined:
            self._slots[slot] = Entry(epoch=epoch, public=public, joined=utc_now())
            self._wanted += 1
        elif known.public != public:
            what = "has another key" if known.public else "has left"
            raise LeaseLost(
                f"slot {slot}: its leaf of epoch {epoch} {what}: join again", reason="superseded"
            )
        await self._until(loaded=True)
        if epoch > 1 and self._ended is not None:
            await self._ended(slot, epoch)

    async def leave(self, slot: str, epoch: int) -> None:
        """Take the key from the leaf of *slot* that has *epoch*; the epoch is kept.

        On return that is recorded, and the server is told soon. Of a slot that has left, or was
        never there, nothing is changed.

        Raises:
            LeaseLost: a later epoch is registered (``superseded``).
            Unavailable: it could not be recorded (``accounts-io``).
        """
        self.check(slot, epoch)
        known = self._slots.get(slot)
        if known is None or epoch > known.epoch:
            return
        if known.public or not known.joined:
            joined = known.joined or utc_now()
            self._slots[slot] = Entry(epoch=epoch, public="", joined=joined)
            self._wanted += 1
        await self._until(loaded=False)

    async def answer(
        self, subject: str, payload: bytes, _headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Answer a request that came on *subject*, one of :data:`SUBJECTS`."""
        try:
            await self._act(subject, payload)
        except HubError as error:
            return codec.dumps({"v": VERSION, "error": to_wire(error)}).encode()
        return codec.dumps({"v": VERSION}).encode()

    async def _act(self, subject: str, payload: bytes) -> None:
        verb, _, asker = subject.removeprefix(SUBJECTS[:-1]).partition(".")
        try:
            body = codec.loads_object(payload)
            slot, epoch, public = body.get("slot"), body.get("epoch"), body.get("public", "")
            if not isinstance(slot, str) or type(epoch) is not int or not isinstance(public, str):
                raise ValueError("slot, epoch or public is none")
            if body.get("v") != VERSION or (asker and asker != slot):
                raise ValueError(f"version {body.get('v')}, slot {slot}")
        except ValueError as error:
            raise Refused(f"{subject}: {error}", reason="protocol") from None
        if verb == "register":
            await self.register(slot, epoch, public)
        elif verb == "leave":
            await self.leave(slot, epoch)
        else:
            raise Refused(f"{subject}: no such request", reason="protocol")

    async def close(self) -> None:
        """Give up what is at work. Whatever the server has not been told, it reads at its start."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})
        if self._writing is not None and not self._writing.done():
            await asyncio.wait({self._writing})  # a thread cannot be cancelled

    def _check_key(self, slot: str, public: str) -> None:
        if not is_public_key(public):
            raise Refused(
                f"slot {slot}: {public[:80]!r} is no user's public nkey", reason="slot-key"
            )
        # The server takes no configuration in which a key stands twice.
        others = [name for name, entry in self._slots.items() if entry.public == public]
        others += [r for r, key in nats.read_users(self._workspace).items() if key == public]
        if others not in ([], [slot]):
            raise Refused(f"slot {slot}: its key is that of {others[0]}", reason="slot-key")

    async def _until(self, *, loaded: bool) -> None:
        """Wait until all that is wanted now is recorded, and with *loaded* read by the server."""
        if loaded and self._server != self._sys.server_id:
            self._wanted += 1  # what a server has read that was started meanwhile, who knows
        if (self._loaded if loaded else self._written) >= self._wanted:
            return
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(self._wanted, loaded, done))
        if loaded:
            self._urgent.set()
        if self._work is None:
            self._work = asyncio.create_task(self._bring_up_to_date())
        await done

    async def _bring_up_to_date(self) -> None:
        """Write and reload until nothing more is wanted; tell who waits how it went."""
        failure = Unavailable("trunk is ending: ask the next one", reason="accounts-ending")
        try:
            await self._catch_up()
        except HubError as error:
            failure = Unavailable(str(error), reason=error.reason)
        except OSError as error:
            failure = Unavailable(
                f"the slots of the bus cannot be recorded: {error}", reason="accounts-io"
            )
        except Exception as error:  # noqa: BLE001 - told, and the next call tries again
            asyncio.get_running_loop().call_exception_handler(
                {"message": "recording the slots met a bug", "exception": error}
            )
            failure = Unavailable(f"trunk met a bug recording slots: {error!r}", reason="bug")
        finally:
            self._work = None
            for waiting in self._waiting:
                if not waiting.done.done():
                    waiting.done.set_exception(Unavailable(str(failure), reason=failure.reason))
            self._waiting.clear()

    async def _catch_up(self) -> None:
        loop = asyncio.get_running_loop()
        not_before_s = 0.0
        while self._loaded < self._wanted:
            self._urgent.clear()
            if self._written < self._wanted:
                await self._write()
            urgent = any(waiting.loaded for waiting in self._waiting)
            pause_s = not_before_s - loop.time() if urgent else LEAVING_LINGERS_S
            if pause_s > 0:
                try:
                    async with asyncio.timeout(pause_s):
                        await (asyncio.sleep(pause_s) if urgent else self._urgent.wait())
                except TimeoutError:
                    pass
                if self._written < self._wanted:
                    continue
            began_s = loop.time()
            await self._reload()
            not_before_s = loop.time() + _PAUSE_OF_RELOADS * (loop.time() - began_s)

    async def _write(self) -> None:
        change, slots = self._wanted, dict(self._slots)
        self._writing = asyncio.ensure_future(asyncio.to_thread(self._write_files, slots))
        await asyncio.shield(self._writing)
        self._written = change
        self._tell()

    def _write_files(self, slots: Mapping[str, Entry]) -> None:
        """Write the registry and then the accounts: see :func:`hub.nats.write_config`."""
        registry.write(self._workspace, slots)
        hit("accounts.registered")
        nats.write_accounts(self._workspace, registry.keys(slots))
        hit("accounts.written")

    async def _reload(self) -> None:
        """Have the server read its accounts.

        Raises:
            HubError: it did not answer, or refused them.
        """
        change = self._written
        answer = await self._told_to_reload()
        self.reloads += 1
        hit("accounts.reloaded")
        error = codec.loads_object(answer).get("error")
        if error is not None:
            told = error.get("description", error) if isinstance(error, dict) else error
            raise Unavailable(
                f"the nats-server keeps its old accounts: {told}", reason="accounts-reload"
            )
        self._loaded = change
        self._tell()

    async def _told_to_reload(self) -> bytes:
        try:
            async with asyncio.timeout(RELOADED_WITHIN_S):
                while True:
                    # Of the server that is there now: one that was killed has another id when it
                    # is back, and has read the accounts, but perhaps not those of now.
                    server = self._sys.server_id
                    try:
                        subject = f"$SYS.REQ.SERVER.{server or 'none'}.RELOAD"
                        answer = await self._sys.request(
                            subject, within_s=RELOADED_WITHIN_S, unserved_waits=False
                        )
                    except Unavailable as error:
                        if error.reason != "bus-unserved":
                            raise
                    else:
                        self._server = server
                        return answer.data
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise Unavailable(
                f"the nats-server did not read its accounts in {RELOADED_WITHIN_S:g} s",
                reason="accounts-reload",
            ) from None

    def _tell(self) -> None:
        """Tell those who have what they waited for."""
        still: list[_Waiting] = []
        for waiting in self._waiting:
            if (self._loaded if waiting.loaded else self._written) < waiting.change:
                still.append(waiting)
            elif not waiting.done.done():
                waiting.done.set_result(None)
        self._waiting = still


def _superseded(slot: str, epoch: int, now: int) -> LeaseLost:
    return LeaseLost(
        f"slot {slot}: epoch {epoch} was superseded by {now}: another leaf has the slot now",
        reason="superseded",
    )
