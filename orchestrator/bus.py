"""A holder on the bus of its workspace: it announces, is asked, and lets its guests in.

A VM needs no hub, so nothing here waits for one, starts one or fails without one: events wait in
memory, and the libraries of the bus are loaded, beside the loop, when a hub listens for the first
time. The hub of this very directory is meant; one that comes back on another port is found.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.clock import utc_now
from foundation.errors import HubError, LeaseLost, Unavailable
from foundation.workspace import Workspace
from hub import contact, logins, ports, slotname
from hub.outgoing import Outgoing
from orchestrator.asked import Asked
from orchestrator.guest_access import GuestAccess
from orchestrator.watch import NAMED, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from hub.bus import Bus as HubBus
    from hub.link import Link, Registrant
    from orchestrator.asked import Handler


SUBJECT = "clusters.request"
CLOSED_WITHIN_S = 1.0
_LOOK_EVERY_S, _LOOK_AT_MOST_S = 1.0, 8.0
_UNWATCHED_EVERY_S = 60.0
"""Where its directory cannot be watched, a hub is found this late at most."""
_REGISTERED_WITHIN_S = 10.0
_FOSSIL_AGAIN_S = 2.0
_STATUS_WITHIN_S = 1.0


class Bus:
    """The bus as the holder of one cluster has it. All of it belongs to one running loop."""

    def __init__(
        self,
        root: str,
        cluster: str,
        epoch: int,
        *,
        on_hub: Callable[[], None] = lambda: None,
        complain: Callable[[str, str], None] = lambda _what, _error: None,
    ) -> None:
        """Begin to look for the hub of workspace *root*; "": there is no workspace, nor ever a hub.

        *epoch* is greater than that of every holder of *cluster* before
        (:func:`orchestrator.epochs.next_epoch`). *on_hub* is called when the hub has come or
        gone, and with it what :meth:`guest_access` tells; *complain* with a slug and what is
        wrong in words.
        """
        self.cluster = cluster
        self.epoch = epoch
        self.superseded: LeaseLost | None = None
        """Why this holder is refused for good: the bus knows a later one of the cluster."""
        self._workspace = Workspace(root) if root else None
        self._on_hub = on_hub
        self._complain = complain
        self._asked = Asked(f"the holder of cluster {cluster}")
        self._events = Outgoing(self._publish, self._event_refused)
        self._numbered = 0
        self._link: Link | None = None
        self._guest: asyncio.Task[tuple[str, str]] | None = None
        self._password = os.urandom(24).hex()
        self._said = ""
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._begin(self._live())

    @property
    def is_connected(self) -> bool:
        """Whether the hub can be reached now."""
        return self._link is not None and not self._link.away

    @property
    def waiting(self) -> int:
        """How many events are not published yet."""
        return self._events.waiting

    def announce(self, member: str, kind: str, data: Mapping[str, Any] | None = None) -> None:
        """Have ``vm.<cluster>.<member>.event.<kind>`` published when the hub is there.

        ``{"time","kind","cluster","member","epoch","seq","data"}``; ``seq`` counts the events of
        one epoch, and one that is missing was dropped: more than :data:`hub.outgoing.KEPT`
        waited, or the holder was killed. Never blocks and never raises.
        """
        if self._closed or self.superseded is not None:
            return
        if not (slotname.has_form(member) and slotname.has_form(kind)):
            self._complain("event-impossible", f"{member!r:.80} cannot announce {kind!r:.80}")
            return
        self._numbered += 1
        body = {
            "time": utc_now(),
            "kind": kind,
            "cluster": self.cluster,
            "member": member,
            "epoch": self.epoch,
            "seq": self._numbered,
        }
        try:
            payload = codec.dumps({**body, "data": dict(data or {})})
        except (TypeError, ValueError) as error:  # a bug of the caller's, and no reason to fail
            self._complain("event-not-json", f"{kind} of {member}: {error}")
            payload = codec.dumps({**body, "data": {"not_json": repr(data)[:1000]}})
        msg_id = f"vm-{self.cluster}-{self.epoch}-{self._numbered}"
        self._events.add(f"vm.{self.cluster}.{member}.event.{kind}", payload.encode(), msg_id)

    def serve(self, handler: Handler) -> None:
        """Have *handler* answer ``vm.<cluster>.request.<verb>`` whenever the hub is there.

        It is called with the verb and the request, a JSON object, and returns the answer, which
        is sent as ``{"v":1,"data":…}``; a HubError of it as ``{"v":1,"error":…}``. The same may
        be asked twice: whoever has lost the connection asks again.
        """
        self._asked.handler = handler

    async def guest_access(self) -> GuestAccess:
        """Return what the cluster's guests need to reach the hub; the ports are those of now.

        The credentials are there before any hub is, and the same for as long as this holder
        lives. Ports are 0 while no hub is ready: what has them by then may be anybody's.
        """
        seed, _public = await self._guest_key()
        nats_url = fossil_url = ""
        if self._workspace is not None:
            nats_url, fossil_url = await asyncio.to_thread(_urls_of, self._workspace)
        return GuestAccess(
            cluster=self.cluster,
            nats_port=_port_of(nats_url),
            fossil_port=_port_of(fossil_url),
            seed=seed,
            fossil_login=logins.of_fossil(self.cluster),
            fossil_password=self._password,
        )

    async def close(self, within_s: float = CLOSED_WITHIN_S) -> None:
        """Publish what waits and have all keys of this epoch revoked; give up after *within_s*.

        Without a hub that listens nothing is waited for.
        """
        self._closed = True
        deadline_s = asyncio.get_running_loop().time() + within_s
        hopeless = self.superseded is not None or (self._link is None and self._said)
        if not hopeless and await self._hub_listens():
            await self._events.flush(within_s)
            if self.is_connected:
                await self._leave(deadline_s - asyncio.get_running_loop().time())
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if self._link is not None:
            await self._link.end()

    # --- its life --------------------------------------------------------------------------

    async def _live(self) -> None:
        """Wait for a hub, register with it, and be connected from then on."""
        if self._workspace is None:
            return
        await self._until_hub_listens(self._workspace)
        try:
            link = await self._made_link(self._workspace)
            wait_s = _LOOK_EVERY_S
            answer = await self._registered(link)
            while not answer:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LOOK_AT_MOST_S)
                answer = await self._registered(link)
            self._link = link
            self._begin(self._events.keep())
            try:
                await link.begin(_REGISTERED_WITHIN_S)
            except Unavailable as error:  # it goes on trying
                self._say("bus-away", error)
            while not answer.get("fossil"):
                await asyncio.sleep(_FOSSIL_AGAIN_S)
                if self.is_connected:
                    answer = await self._registered(link)
        except LeaseLost as error:
            self._was_superseded(error)

    async def _until_hub_listens(self, workspace: Workspace) -> None:
        """Return when the hub is there: what it begins with makes files in its directory."""
        with Watch(workspace.state, NAMED) as watch:
            wait_s = _LOOK_EVERY_S
            while not await self._hub_listens():
                has_changed = await watch.change(wait_s)
                wait_s = _LOOK_EVERY_S if has_changed else min(2 * wait_s, _UNWATCHED_EVERY_S)

    async def _made_link(self, workspace: Workspace) -> Link:
        link, registrant = await asyncio.to_thread(_loaded)
        _seed, guest = await self._guest_key()
        login = logins.of_cluster(self.cluster)
        return link(
            workspace,
            registrant(login, logins.title(login), SUBJECT, self.cluster, "cluster"),
            on_change=self._changed,
            on_superseded=self._was_superseded,
            on_bus=self._subscribe,
            told={"guest": guest, "password": self._password},
        )

    async def _registered(self, link: Link) -> dict[str, Any]:
        """Return what trunk answers, {} if it does not now.

        Raises:
            LeaseLost: it knows a later holder.
        """
        if not await self._hub_listens():
            return {}
        try:
            return await link.register(self.epoch, _REGISTERED_WITHIN_S)
        except LeaseLost:
            raise
        except HubError as error:  # what is refused now may be mended: the hub's credentials
            self._say("not-registered", error)
            return {}

    async def _subscribe(self, bus: HubBus) -> None:
        await bus.serve(f"vm.{self.cluster}.request.*", self._asked.answer)

    async def _publish(self, subject: str, payload: bytes, *, msg_id: str, within_s: float) -> None:
        assert self._link is not None, "events are published once there is a link"
        await self._link.publish(subject, payload, msg_id=msg_id, within_s=within_s)

    async def _leave(self, within_s: float) -> None:
        assert self._link is not None
        try:
            await self._link.leave(max(0.1, within_s))
        except HubError as error:  # its epoch ends with the next holder's at the latest
            self._complain("not-left", str(error))

    async def _guest_key(self) -> tuple[str, str]:
        if self._guest is None:
            self._guest = asyncio.get_running_loop().create_task(asyncio.to_thread(_new_key))
            self._own(self._guest)
        return await asyncio.shield(self._guest)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._own(asyncio.get_running_loop().create_task(work))

    def _own(self, task: asyncio.Task[Any]) -> None:
        """End *task* with this bus; a bug in it is told."""
        self._tasks.add(task)
        task.add_done_callback(_ended)

    # --- what it hears ---------------------------------------------------------------------

    def _changed(self, away: str) -> None:
        if not away:
            self._said = ""
        self._on_hub()

    def _was_superseded(self, error: LeaseLost) -> None:
        self.superseded = error
        self._complain("superseded", str(error))
        self._on_hub()

    def _event_refused(self, kind: str, error: HubError) -> None:
        self._complain("event-refused", f"{kind}: {error}")

    def _say(self, what: str, error: HubError) -> None:
        """Complain of *error* once while it lasts."""
        if str(error) != self._said:
            self._said = str(error)
            self._complain(what, str(error))

    async def _hub_listens(self) -> bool:
        """Tell whether the hub of our workspace is there, be it ready or not."""
        if self._workspace is None:
            return False
        try:
            return await asyncio.to_thread(_listens, self._workspace)
        except HubError as error:
            self._say("hub-foreign", error)
        except OSError:
            pass
        return False


def _ended(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": "a holder's bus met a bug", "exception": error}
        )


# What a thread does: it loads libraries, or asks a hub that may be frozen.


def _listens(workspace: Workspace) -> bool:
    connection = contact.connect(workspace)
    if connection is None:
        return False
    connection.close()
    return True


def _urls_of(workspace: Workspace) -> tuple[str, str]:
    """Return the addresses of the bus and of Fossil by the word of a hub that is ready, else ""."""
    from hub.status import status_of  # noqa: PLC0415

    try:
        info = status_of(workspace, within_s=_STATUS_WITHIN_S).info
    except HubError:  # another user's
        return "", ""
    return ("", "") if info is None else (info.nats_url, info.fossil_url)


def _loaded() -> tuple[type[Link], type[Registrant]]:
    from hub.link import Link, Registrant  # noqa: PLC0415 - a fifth of a second, and megabytes

    return Link, Registrant


def _new_key() -> tuple[str, str]:
    from hub.creds import new_key  # noqa: PLC0415

    return new_key()


def _port_of(url: str) -> int:
    return ports.parse(url.rstrip("/").rpartition(":")[2]) or 0
