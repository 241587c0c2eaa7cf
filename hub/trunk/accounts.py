"""Who may log in to the bus as which slot or cluster: a key per epoch, the older ones revoked.

The registry is written first, then the server's accounts, then the server is told to read them
(``$SYS.REQ.SERVER.<id>.RELOAD``, which answers when it has). A kill anywhere leaves what the
next call completes; what many ask for at once is one write and one reload.

Asked over the bus, ``slots.request.register`` and ``slots.request.leave.<slot>``, with
``{"v":1,"slot":NAME,"epoch":N,"public":"U…"}`` (no key to leave), it answers ``{"v":1}`` or
``{"v":1,"error":…}`` (:func:`foundation.errors.to_wire`). For a VM cluster ``clusters.request.…``,
with ``"cluster"`` in place of ``"slot"`` and ``"guest":"U…"``, the key that its guests share.
Whom a *login* here means: :mod:`hub.logins`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from foundation import codec
from foundation.clock import utc_now
from foundation.errors import HubError, LeaseLost, Refused, Unavailable, to_wire
from foundation.failpoint import hit
from hub import logins, nats
from hub.nkey import is_public_key
from hub.trunk import registry
from hub.trunk.registry import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from foundation.workspace import Workspace
    from hub.bus import Bus

SUBJECTS = "slots.request.>"
CLUSTER_SUBJECTS = "clusters.request.>"
_NAMED_BY = {"slots": "slot", "clusters": "cluster"}
VERSION = 1
RELOADED_WITHIN_S = 10.0
LEAVING_LINGERS_S = 0.5
"""How long the key of a slot that left may wait for others, or a join, to share its reload."""
_PAUSE_OF_RELOADS = 2.0
"""Times as long as the last reload took the next one waits: a reload costs the server about
0.2 ms a slot, and a hundred slots may join one after the other."""
_RETRY_S = 0.05


_BEARER = {"slot": "leaf", "cluster": "holder"}


class _Waiting(NamedTuple):
    """Someone who waits for the change of that number to be recorded, or read by the server."""

    change: int
    loaded: bool
    done: asyncio.Future[None]


class Accounts:
    """Whom one workspace lets in. One per workspace, in trunk, and of one event loop."""

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
        self._logins = loaded.logins
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
    def logins(self) -> Mapping[str, Entry]:
        """What is registered, by login; not necessarily on disk yet."""
        return self._logins

    def check(self, login: str, epoch: int) -> None:
        """Let pass what comes from the present bearer of *login*, or a later one.

        Raises:
            LeaseLost: *epoch* is over (``superseded``).
        """
        entry = self._logins.get(login)
        if entry is not None and epoch < entry.epoch:
            raise _superseded(login, epoch, entry.epoch)

    async def register(self, login: str, epoch: int, public: str, guest: str = "") -> None:
        """Let the leaf or holder of *login* that acquired *epoch* log in with the key *public*.

        A cluster's guests with the key *guest*, "" for none. On return they can, and no earlier
        bearer of *login* can any more: the server has ended their connections, and what they have
        asked for has landed or never will. The same once more changes nothing.

        Raises:
            LeaseLost: a later epoch is registered or leased, or this one has another key or left
                (``superseded``).
            Refused: *login* is no name; *public* or *guest* no key (``slot-key``,
                ``cluster-key``), or another's; *epoch* none that the lease has reached
                (``slot-epoch``, ``cluster-epoch``).
            Unavailable: it could not be recorded (``accounts-io``), the server did not take it
                (``accounts-reload``), a bug kept it from that (``bug``), or a commit of an
                earlier leaf is still on its way (``commits-in-flight``): ask again.
        """
        logins.check(login)
        self._check_keys(login, [public, guest] if guest else [public])
        leased = registry.leased_epoch(self._workspace, login)
        if epoch < 1 or (leased and epoch > leased):
            raise Refused(
                f"{logins.title(login)}: its lease has not reached epoch {epoch}, but {leased}",
                reason=f"{logins.kind_of(login)}-epoch",
            )
        known = self._logins.get(login)
        highest = max(leased, known.epoch if known else 0)
        if epoch < highest:
            raise _superseded(login, epoch, highest)
        if known is None or known.epoch < epoch or not known.joined:
            entry = Entry(epoch=epoch, public=public, joined=utc_now(), guest=guest)
            self._logins[login] = entry
            self._wanted += 1
        elif (known.public, known.guest) != (public, guest):
            what = "has another key" if known.public else "has left"
            bearer = _BEARER[logins.kind_of(login)]
            raise LeaseLost(
                f"{logins.title(login)}: its {bearer} of epoch {epoch} {what}: take a new epoch",
                reason="superseded",
            )
        await self._until(loaded=True)
        if epoch > 1 and self._ended is not None and logins.kind_of(login) == "slot":
            await self._ended(login, epoch)

    async def leave(self, login: str, epoch: int) -> None:
        """Take the key from the bearer of *login* that has *epoch*; the epoch is kept.

        A cluster's guests lose theirs too. On return that is recorded, and the server is told
        soon. Of who has left, or was never there, nothing is changed.

        Raises:
            LeaseLost: a later epoch is registered (``superseded``).
            Unavailable: it could not be recorded (``accounts-io``).
        """
        self.check(login, epoch)
        known = self._logins.get(login)
        if known is None or epoch > known.epoch:
            return
        if known.public or not known.joined:
            joined = known.joined or utc_now()
            self._logins[login] = Entry(epoch=epoch, public="", joined=joined)
            self._logins = registry.without_oldest(self._logins)
            self._wanted += 1
        await self._until(loaded=False)

    async def answer(
        self, subject: str, payload: bytes, _headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Answer what came on *subject*, of :data:`SUBJECTS` or :data:`CLUSTER_SUBJECTS`."""
        try:
            await self._act(subject, payload)
        except HubError as error:
            return codec.dumps({"v": VERSION, "error": to_wire(error)}).encode()
        return codec.dumps({"v": VERSION}).encode()

    async def _act(self, subject: str, payload: bytes) -> None:
        whose, _, what = subject.partition(".request.")
        verb, _, asker = what.partition(".")
        try:
            body = codec.loads_object(payload)
            field = _NAMED_BY[whose]
            name, epoch = body.get(field), body.get("epoch")
            public, guest = body.get("public", ""), body.get("guest", "")
            if not all(isinstance(text, str) for text in (name, public, guest)):
                raise ValueError(f"{field}, public or guest is none")
            if type(epoch) is not int:
                raise ValueError("epoch is none")
            if body.get("v") != VERSION or (asker and asker != name):
                raise ValueError(f"version {body.get('v')}, {field} {name}")
            if guest and field == "slot":
                raise ValueError("a slot has no guests")
        except ValueError as error:
            raise Refused(f"{subject}: {error}", reason="protocol") from None
        login = str(name) if field == "slot" else logins.of_cluster(str(name))
        if verb == "register":
            await self.register(login, epoch, str(public), str(guest))
        elif verb == "leave":
            await self.leave(login, epoch)
        else:
            raise Refused(f"{subject}: no such request", reason="protocol")

    async def close(self) -> None:
        """Give up what is at work. Whatever the server has not been told, it reads at its start."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})
        if self._writing is not None and not self._writing.done():
            await asyncio.wait({self._writing})  # a thread cannot be cancelled

    def _check_keys(self, login: str, keys: list[str]) -> None:
        title, reason = logins.title(login), f"{logins.kind_of(login)}-key"
        for key in keys:
            if not is_public_key(key):
                raise Refused(f"{title}: {key[:80]!r} is no user's public nkey", reason=reason)
        # The server takes no configuration in which a key stands twice.
        others = [
            logins.title(other)
            for other, entry in self._logins.items()
            if other != login and not {entry.public, entry.guest}.isdisjoint(keys)
        ]
        others += [r for r, key in nats.read_users(self._workspace).items() if key in keys]
        if len(set(keys)) < len(keys):
            others.append("its guests")
        if others:
            raise Refused(f"{title}: its key is that of {others[0]}", reason=reason)

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
                f"who may use the bus cannot be recorded: {error}", reason="accounts-io"
            )
        except Exception as error:  # noqa: BLE001 - told, and the next call tries again
            asyncio.get_running_loop().call_exception_handler(
                {"message": "recording who may use the bus met a bug", "exception": error}
            )
            failure = Unavailable(f"trunk met a bug recording that: {error!r}", reason="bug")
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
        change, known = self._wanted, dict(self._logins)
        self._writing = asyncio.ensure_future(asyncio.to_thread(self._write_files, known))
        await asyncio.shield(self._writing)
        self._written = change
        self._tell()

    def _write_files(self, known: Mapping[str, Entry]) -> None:
        """Write the registry and then the accounts: see :func:`hub.nats.write_config`."""
        registry.write(self._workspace, known)
        hit("accounts.registered")
        nats.write_accounts(self._workspace, registry.keys(known))
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


def _superseded(login: str, epoch: int, now: int) -> LeaseLost:
    kind = logins.kind_of(login)
    return LeaseLost(
        f"{logins.title(login)}: epoch {epoch} was superseded by {now}: another {_BEARER[kind]} "
        f"has the {kind} now",
        reason="superseded",
    )
