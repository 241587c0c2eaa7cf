"""Logging in to the bus of a workspace: where it is, who we are there, whom we mean."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from foundation.atomic import read_bounded
from foundation.errors import NotRunning, Refused, Unavailable
from hub.bus.bus import Bus
from hub.bus.connection import Login
from hub.bus.errors import ENDED
from hub.creds import read_seed
from hub.nats import config_path
from hub.wording import starting

if TYPE_CHECKING:
    from foundation.workspace import Workspace

CONNECT_WITHIN_S = 5.0
_DOUBTED = ("denied", ENDED)
_DOUBTED_S = (0.02, 0.1, 0.3)
_URL_LIMIT = 1024
_CONFIG_LIMIT = 65_536
_NAMED = b'\nserver_name: "'


async def connect(
    workspace: Workspace,
    role: str = "operator",
    *,
    seed: str | None = None,
    name: str | None = None,
    url: str | None = None,
    within_s: float = CONNECT_WITHIN_S,
) -> Bus:
    """Log in to the bus of *workspace* as *role* (one of :data:`hub.nats.ROLES`).

    Given *seed*, with that key instead, as whom it is registered for: a slot's leaf passes the
    slot's *name*, for answers go to ``_INBOX_<name>.>`` and its key may listen nowhere else.

    The hub's own processes find the bus where the hub recorded it before it started them. For
    all others that record is a claim: they ask the hub, and pass its *url*.

    Raises:
        NotRunning: no address is recorded, or nobody answers there.
        Refused: no key of ours to log in with (``creds-missing``), or the server does not
            know it (``denied``).
        Unavailable: it does not let us in in time, or it is another's server (``bus-foreign``).
    """
    if url is None:
        url = read_url(workspace)
    if seed is None:
        seed = read_seed(workspace, role)
    login = Login(seed, name or role, _server_name(workspace))
    try:
        async with asyncio.timeout(within_s):
            return await _opened(url, login)
    except TimeoutError:
        raise Unavailable(
            f"the bus at {url} did not answer in {within_s:g} s", reason="bus-timeout"
        ) from None


async def _opened(url: str, login: Login) -> Bus:
    """Log in; believe a server that sends us away only when it does so again and again.

    Whoever has connected and not yet said who he is when the server reads its accounts is sent
    away as a stranger, with or without a word (measured with nats-server 2.15.1: of 1,600 that
    logged in while it read them every 10 ms, 290 heard nothing and 100 that they are strangers),
    and every join makes it read them.
    """
    for wait_s in (*_DOUBTED_S, None):
        bus = Bus(url, login)
        try:
            await bus.open()
        except (Refused, Unavailable) as error:
            if error.reason not in _DOUBTED or wait_s is None:
                raise
            await asyncio.sleep(wait_s)
        else:
            return bus
    raise AssertionError("the last attempt returns or raises")


def read_url(workspace: Workspace) -> str:
    """Return the recorded address of the bus, ``nats://127.0.0.1:4222``.

    Raises:
        NotRunning: none is recorded.
    """
    try:
        return read_bounded(workspace.nats_url, _URL_LIMIT).decode("ascii").strip()
    except (OSError, ValueError):
        raise NotRunning(
            f"no hub runs in {workspace.root}: `{starting()}`", reason="not-running"
        ) from None


def _server_name(workspace: Workspace) -> str:
    """Return the name that the hub gave its server, "" if it cannot be told.

    The supervisor writes it before it starts the server. A copied or left file of it names a
    server that is nowhere any more, or one that a live hub of this directory will replace.
    """
    try:
        config = b"\n" + read_bounded(config_path(workspace), _CONFIG_LIMIT)
        return config.partition(_NAMED)[2].partition(b'"')[0].decode("ascii")
    except (OSError, ValueError):
        return ""
