"""The way to trunk of a leaf or a holder: a key of its own, a connection that outlives the hub.

The key exists in this process's memory alone. Trunk is told its public half with the epoch,
and has revoked that of every lower epoch when it answers. Where the bus is stands in the files of
this very directory, and whoever answers there must have the name that the hub gave its server, so
a hub that comes back on another port is found and a copy's is not.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import nkeys

from foundation import codec
from foundation.errors import HubError, LeaseLost, NotRunning, Refused, Unavailable, from_wire
from hub import bus as buses
from hub import commits
from hub.creds import new_key
from hub.wording import starting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from foundation.workspace import Workspace
    from hub.bus import Ack, Bus

LOADED = (nkeys,)
"""What making a key loads: now, for nothing of another version may be loaded into a living leaf."""

PER_TRY_S = 3.0
"""A request that trunk has not answered for so long is sent again, under the same id."""

_VERSION = 1
_RETRY_FROM_S, _RETRY_TO_S = 0.1, 2.0
_MOVED_EVERY_S = 2.0
"""How often one without a connection looks whether the hub has come back elsewhere."""
_CLOSED_S = 0.01

Result = TypeVar("Result")


class Registrant(NamedTuple):
    """Whom trunk is to register: a slot, or a cluster."""

    login: str
    """Its name on the bus (:mod:`hub.logins`)."""
    words: str
    """It in words: ``slot auth``."""
    subject: str
    """Where trunk is asked: ``slots.request``."""
    name: str
    """Its own."""
    field: str
    """What a request calls that: ``slot``."""


async def _nothing(_bus: Bus) -> None:
    """Do nothing with a new connection."""


class Link:
    """The connection of one registrant. All of it belongs to one loop."""

    def __init__(
        self,
        workspace: Workspace,
        who: Registrant,
        *,
        on_change: Callable[[str], None],
        on_superseded: Callable[[LeaseLost], None],
        on_bus: Callable[[Bus], Awaitable[None]] = _nothing,
        told: Mapping[str, str] | None = None,
    ) -> None:
        """Connect nothing yet.

        *on_change* is told "" when the hub can be reached, and why not when it cannot any more;
        *on_superseded* that trunk knows a later registrant of this name. *on_bus* is given every
        bus before anything else is done with it, and may subscribe; *told* is what trunk is told
        beside the key.
        """
        self.epoch = 0
        self.away = "not connected yet"
        """Why the hub cannot be reached, "" if it can."""
        self._workspace = workspace
        self._who = who
        self._told = dict(told or {})
        self._on_bus = on_bus
        self._seed = ""
        self._public = ""
        self._on_change = on_change
        self._on_superseded = on_superseded
        self._bus: Bus | None = None
        self._has_bus = asyncio.Event()
        self._wanted = asyncio.Event()
        self._waiting = 0
        self._leaving = False
        self._revoked = asyncio.Event()
        """Set when the bus refuses our key although, or because, we are leaving."""
        self._keeping: asyncio.Task[None] | None = None

    async def register(self, epoch: int, within_s: float) -> dict[str, Any]:
        """Have trunk know us as that of *epoch*, with a key of its own; lower ones are revoked.

        Asked for again it changes nothing. Returns the answer.

        Raises:
            LeaseLost: trunk knows a higher one.
            Unavailable: trunk did not answer in time.
            HubError: it refused.
        """
        if epoch != self.epoch:
            self._seed, self._public = new_key()
            self.epoch = epoch
        return await self._register(within_s)

    async def begin(self, within_s: float) -> None:
        """Connect, and stay connected from now on.

        Raises:
            Unavailable: the bus did not let us in in time.
        """
        self._keeping = asyncio.get_running_loop().create_task(self._keep())
        await self._until_bus(asyncio.get_running_loop().time() + within_s)

    async def reconnect(self) -> None:
        """Log in again, with the key that was registered last."""
        if self._bus is not None:
            await self._bus.close()

    async def end(self) -> None:
        """Close the connection for good."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        if self._bus is not None:
            await self._bus.close()

    async def request(self, subject: str, payload: bytes, *, within_s: float) -> bytes:
        """Return the answer to a request, asked again over every loss until *within_s* is over.

        Raises:
            Unavailable: no answer in time; it may have been carried out or not.
            Refused: this key may not ask that (``denied``).
        """

        async def ask(bus: Bus, left_s: float) -> bytes:
            answer = await bus.request(subject, payload, within_s=left_s, per_try_s=PER_TRY_S)
            return answer.data

        return await self._over_any_bus(ask, within_s)

    async def publish(self, subject: str, payload: bytes, *, msg_id: str, within_s: float) -> None:
        """Store an event; on return it is on disk.

        Raises: as :meth:`hub.bus.Bus.publish`.
        """

        async def store(bus: Bus, left_s: float) -> Ack:
            return await bus.publish(subject, payload, msg_id=msg_id, within_s=left_s)

        await self._over_any_bus(store, within_s)

    async def _over_any_bus(
        self, act: Callable[[Bus, float], Coroutine[Any, Any, Result]], within_s: float
    ) -> Result:
        """Do *act*, given a connection and the seconds left; again if that was given up."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        while True:
            bus = await self._until_bus(deadline_s)
            try:
                return await act(bus, deadline_s - loop.time())
            except Unavailable as error:
                if error.reason != "bus-closed" or loop.time() >= deadline_s:
                    raise
                await asyncio.sleep(_CLOSED_S)  # its keeper is about to look for the next one

    async def send(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Publish without an acknowledgement; dropped where the hub is away."""
        if self._bus is not None and not self.away:
            try:
                await self._bus.send(subject, payload, headers=headers)
            except HubError:
                pass

    async def leave(self, within_s: float) -> None:
        """Have trunk revoke our key; from now on nobody is told that it was.

        The bus may drop our connection before the answer has come by it: a key that it refuses
        then is one that trunk has revoked.

        Raises: as :meth:`register`.
        """
        self._leaving = True
        subject = f"{self._who.subject}.leave.{self._who.name}"
        body = {"v": _VERSION, self._who.field: self._who.name, "epoch": self.epoch}
        payload = codec.dumps(body).encode()
        loop = asyncio.get_running_loop()
        asking = loop.create_task(self.request(subject, payload, within_s=within_s))
        dropped = loop.create_task(self._revoked.wait())
        try:
            await asyncio.wait({asking, dropped}, return_when=asyncio.FIRST_COMPLETED)
            if not dropped.done():
                _checked(subject, asking.result())
        finally:
            for task in (asking, dropped):
                task.cancel()
            await asyncio.wait({asking, dropped})

    async def _register(self, within_s: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        subject = f"{self._who.subject}.register"
        key = {"epoch": self.epoch, "public": self._public}
        body = {"v": _VERSION, self._who.field: self._who.name, **key, **self._told}
        payload = codec.dumps(body).encode()
        wait_s = _RETRY_FROM_S
        while True:
            try:
                async with await buses.connect(self._workspace) as bus:
                    left_s = max(0.1, deadline_s - loop.time())
                    answer = await bus.request(
                        subject, payload, within_s=left_s, per_try_s=PER_TRY_S
                    )
                    return _checked(subject, answer.data)
            except (NotRunning, Unavailable) as error:
                if loop.time() + wait_s > deadline_s:
                    raise Unavailable(
                        f"trunk did not register {self._who.words}: {error}", reason="hub-away"
                    ) from None
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _RETRY_TO_S)

    async def _keep(self) -> None:
        """Connect, again and again; what the hub is asked meanwhile waits."""
        wait_s = _RETRY_FROM_S
        while True:
            try:
                bus = await buses.connect(self._workspace, seed=self._seed, name=self._who.login)
                async with bus:
                    wait_s = _RETRY_FROM_S
                    await self._serve(bus)
            except LeaseLost as error:
                self._on_superseded(error)
                return
            except Refused as error:
                if error.reason == "denied" and self._leaving:
                    self._revoked.set()
                    return
                self._note(str(error))
                if error.reason == "denied" and not await self._known_again():
                    return
            except (HubError, OSError) as error:
                self._note(str(error))
            finally:
                self._bus = None
                self._has_bus.clear()
            await self._pause(wait_s)
            wait_s = min(2 * wait_s, _RETRY_TO_S)

    async def _known_again(self) -> bool:
        """Register anew with a bus that has forgotten us, or revoked us: trunk knows which."""
        try:
            await self._register(_MOVED_EVERY_S)
        except LeaseLost as error:
            if self._leaving:  # it began meanwhile
                self._revoked.set()
            else:
                self._on_superseded(error)
            return False
        except (HubError, OSError) as error:
            self._note(str(error))
        return True

    async def _serve(self, bus: Bus) -> None:
        """Note *bus* coming and going until it will not come back, or the hub is elsewhere."""
        await self._on_bus(bus)
        await bus.subscribe(commits.STARTED, lambda *_message: bus.resend())
        while True:
            self._bus = bus
            self._has_bus.set()
            self._note("")
            bus.resend()
            await bus.until_lost()
            self._note("the connection to the bus was lost")
            while True:
                try:
                    async with asyncio.timeout(_MOVED_EVERY_S):
                        await bus.until_connected()
                    break
                except TimeoutError:
                    if self._moved(bus):
                        return

    def _moved(self, bus: Bus) -> bool:
        try:
            return buses.read_url(self._workspace) != bus.url
        except NotRunning:
            return False

    def _note(self, away: str) -> None:
        if bool(away) != bool(self.away) or not away:
            self.away = away
            self._on_change(away)
        self.away = away

    async def _until_bus(self, deadline_s: float) -> Bus:
        if self._bus is not None:
            return self._bus
        self._waiting += 1
        self._wanted.set()
        try:
            async with asyncio.timeout_at(deadline_s):
                while self._bus is None:
                    await self._has_bus.wait()
        except TimeoutError:
            raise Unavailable(
                f"the hub of {self._workspace.root} is away ({self.away}): `{starting()}`",
                reason="hub-away",
            ) from None
        finally:
            self._waiting -= 1
        return self._bus

    async def _pause(self, wait_s: float) -> None:
        """Wait before the next attempt, shortly if somebody waits for it."""
        self._wanted.clear()
        if self._waiting:
            wait_s = min(wait_s, 2 * _RETRY_FROM_S)
        try:
            async with asyncio.timeout(wait_s):
                await self._wanted.wait()
        except TimeoutError:
            pass
        else:
            await asyncio.sleep(_RETRY_FROM_S)


def _checked(what: str, answer: bytes) -> dict[str, Any]:
    """Return the answer of trunk, or raise the error that it is."""
    try:
        body = codec.loads_object(answer)
    except ValueError as error:
        raise HubError(
            f"{what}: the answer is not understood: {error}", reason="protocol"
        ) from None
    if "error" in body:
        raise from_wire(body["error"])
    return body
