"""The client's half of the holder's protocol: launching holders, asking them, ending members.

It imports no backend and no holder, so that whoever only looks loads none of that.
"""

from __future__ import annotations

import os
import time

from foundation.errors import HubError, OwnedByAnother, Refused, Unavailable
from foundation.process import open_pidfd, terminate, wait_exit
from orchestrator import holding, protocol
from orchestrator.protocol import Status, status_from_json
from orchestrator.requests import connect, execute, forward, forwards, get, logs, put, unforward
from orchestrator.session import Session
from orchestrator.spawning import SpawnConfig, check_room, spawn, take_back
from orchestrator.store import Options, Store, cluster_of, in_order, no_such
from orchestrator.waiting import get_status, wait_members

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foundation.process import Identity

    Announce = Callable[[str], None]

__all__ = [
    "Session",
    "SpawnConfig",
    "Status",
    "add_member",
    "bring_up",
    "connect",
    "end_holder",
    "execute",
    "forward",
    "forwards",
    "get",
    "get_status",
    "is_running",
    "logs",
    "put",
    "running_members",
    "spawn",
    "stop",
    "stop_all",
    "unforward",
    "wait_members",
]

_AGAIN_S = 0.02
_SIDE_BY_SIDE = 32
_ENDING_S = 2.0
"""A holder that has answered its last request ends within this."""


def is_running(store: Store, name: str) -> bool:
    """Tell whether a holder has member *name*: booting, up or being stopped.

    Its socket tells, which listens from before the holder's start to its end; a holder whose socket
    was deleted is known by its pidfile and its open lock.
    """
    wire = connect(store, name)
    if wire is not None:
        wire.close()
        return True
    return holding.holder(store, name) is not None


def running_members(store: Store, cluster: str = "") -> list[str]:
    """Return the members, all or those of *cluster*, that a holder has."""
    return [name for name in store.members(cluster) if is_running(store, name)]


def add_member(
    store: Store,
    sibling: str,
    name: str,
    *,
    options: Options | None = None,
    timeout_s: float = protocol.BOOT_WITHIN_S,
    announce: Announce | None = None,
) -> Status:
    """Have the holder of *sibling* boot *name* on its network; return when it is up.

    One that is a member already is waited for. *options* are those of a VM that does not exist;
    it does not exist afterwards if its boot failed. One that is late goes on booting.

    Raises:
        Unavailable: *sibling* has no holder, or that one is ending (``not-running``).
        OwnedByAnother: another holder has *name* (``taken``).
        HubError: it will not be up; see :func:`wait_members`.
    """
    _status, created = request_member(store, sibling, name, options=options)
    try:
        return wait_members(store, [name], timeout_s, announce)[name]
    except HubError:
        if created and not is_running(store, name):
            take_back(store, [name])
        raise


def request_member(
    store: Store, sibling: str, name: str, *, options: Options | None = None
) -> tuple[Status, bool]:
    """Have the holder of *sibling* take *name* in, as :func:`add_member`, without waiting.

    Return its state, and whether it did not exist before.
    """
    wire = connect(store, sibling)
    if wire is None:
        has = holding.holder(store, sibling)
        if has is not None and not _ends_within(has, _ENDING_S):
            raise holding.silent(sibling, has)
        raise Unavailable(
            f"VM {sibling} has no holder that {name} could join", reason="not-running"
        )
    with wire:
        wanted = (options or Options()).check().as_dict()
        answer = wire.ask(
            protocol.ADD_MEMBER, within_s=protocol.STOP_WITHIN_S, name=name, options=wanted
        )
        return status_from_json(answer), answer.get("created") is True


def bring_up(
    store: Store,
    config: SpawnConfig,
    *,
    timeout_s: float = protocol.BOOT_WITHIN_S,
    announce: Announce | None = None,
    own: int = 0,
) -> tuple[Session | None, dict[str, Status]]:
    """Have all of *config*'s members up, whoever else wants the same at this moment.

    Those that a holder has are left to it, and the others join it; with no holder one is spawned.
    The :class:`Session` of a bound one is returned, for the caller to close. *own*: the process of
    a bound one that the caller has already. *announce* is told, in words, what is downloaded.

    If they do not come up, a bound holder that was spawned is ended again; nothing else is.

    Raises:
        Refused: the members that are up are on several networks (``several-holders``); the
            cluster is to have no egress, and was created with it (``egress``).
        OwnedByAnother: they are to be bound, and another's holder has some (``running-elsewhere``).
        HubError: as :func:`spawn` and :func:`wait_members`.
    """
    for cluster in in_order({cluster_of(name) for name in config.names}):
        if not config.options.egress and store.egress(cluster):
            raise Refused(
                f"cluster {cluster} was created to reach the internet, and keeps that: "
                f"`bones vm rm {cluster}` first, or another name",
                reason="egress",
            )
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            session = _gather(store, config, own)
            break
        except (OwnedByAnother, Unavailable) as error:
            # Somebody was faster, or is just ending: soon the picture is another.
            passing = error.reason in ("cluster-running", "taken", "not-running", "gone")
            if not passing or time.monotonic() > deadline_s:
                raise
            time.sleep(_AGAIN_S)
    if session is not None and not config.bound:
        session.close()
        session = None
    try:
        return session, wait_members(store, config.names, timeout_s, announce)
    except BaseException:
        if session is not None:
            session.close()
            take_back(store, session.created)
        raise


def _gather(store: Store, config: SpawnConfig, own: int) -> Session | None:
    clusters = {cluster_of(name) for name in config.names}
    around = [name for cluster in clusters for name in running_members(store, cluster)]
    if not around:
        return spawn(store, config)
    holders = {identity.pid for name in around if (identity := store.holder_of(name))}
    if config.bound and holders != {own}:
        raise OwnedByAnother(
            f"{', '.join(around)} would not end with this process, whose they are not: attach to "
            "them (bound=False), or stop them first",
            reason="running-elsewhere",
        )
    if len(holders) > 1:
        raise Refused(
            f"{', '.join(around)} are on several networks: stop some of them first",
            reason="several-holders",
        )
    check_room(len({*around, *config.names}), config.names[-1])
    for name in config.names:  # one that is up is not touched, one that is stopping boots again
        sibling = name if name in around else around[0]
        request_member(store, sibling, name, options=config.options)
    return None


def stop(store: Store, name: str, *, timeout_s: float = protocol.STOP_WITHIN_S) -> protocol.Stopped:
    """Stop member *name*, gently at first; return how it went, after the fact.

    Its holder goes on for the others, and ends with the last one.

    Raises:
        Refused: there is no such member (``no-such-vm``).
        Unavailable: its holder did not answer in time (``no-answer``); :func:`end_holder`.
    """
    wire = connect(store, name)
    lets_go_s = _ENDING_S if wire is None else timeout_s
    if wire is not None:
        with wire:
            try:
                wire.send(protocol.STOP, timeout_s=timeout_s)
                answer = wire.answer(within_s=timeout_s + protocol.ANSWER_WITHIN_S)
            except Unavailable as error:
                if error.reason == "no-answer" and (has := holding.holder(store, name)):
                    raise holding.silent(name, has) from None
                if error.reason != "gone":
                    raise
            else:
                if answer.get("last") and isinstance(answer.get("pid"), int):
                    _await_end(answer["pid"])
                how: protocol.Stopped = answer["how"]
                return how
    # By another's hand it may be ending just now.
    has = holding.holder(store, name)
    if has is not None and not _lets_go_within(store, name, lets_go_s):
        raise holding.silent(name, has)
    if not store.exists(name):
        raise no_such(name)
    return "not-running"


def stop_all(store: Store, names: Sequence[str]) -> dict[str, protocol.Stopped]:
    """Stop *names* side by side, as :func:`stop`; return how it went."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - of this verb alone

    with ThreadPoolExecutor(max(1, min(len(names), _SIDE_BY_SIDE))) as pool:
        return dict(zip(names, pool.map(lambda name: stop(store, name), names), strict=True))


def _lets_go_within(store: Store, name: str, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while holding.holder(store, name) is not None:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_AGAIN_S)
    return True


def _ends_within(identity: Identity, timeout_s: float) -> bool:
    pidfd = identity.open()
    if pidfd is None:
        return True
    try:
        return wait_exit(pidfd, timeout_s)
    finally:
        os.close(pidfd)


def _await_end(pid: int) -> None:
    pidfd = open_pidfd(pid)
    if pidfd is not None:
        try:
            wait_exit(pidfd, _ENDING_S)
        finally:
            os.close(pidfd)


def end_holder(store: Store, name: str, *, grace_s: float = protocol.STOP_WITHIN_S) -> bool:
    """End the holder of *name* with all its members; return False if there was none.

    For one that does not answer: SIGTERM to the very process that holder.pid names, if it has the
    member's lock, and SIGKILL after *grace_s*. The kernel ends its VMs with it.

    Raises:
        Unavailable: it is there still (``holder-stays``).
    """
    identity = store.holder_of(name)
    pidfd = holding.opened(store, name, identity) if identity is not None else None
    if identity is None or pidfd is None:
        return False
    try:
        if not terminate(pidfd, grace_s=grace_s):
            raise Unavailable(f"process {identity.pid} cannot be ended", reason="holder-stays")
    finally:
        os.close(pidfd)
    return True
