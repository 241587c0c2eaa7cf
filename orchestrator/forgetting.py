"""Revoking the logins of a cluster whose holder was killed: nobody else gives them up."""

from __future__ import annotations

import asyncio

from foundation import codec
from foundation.errors import HubError, LeaseLost, from_wire
from foundation.workspace import Workspace
from hub import bus as buses
from hub import logins
from hub.events import address
from hub.trunk import registry
from orchestrator.bus import SUBJECT

_VERSION = 1
_WITHIN_S, _PER_TRY_S = 10.0, 3.0


async def forget(root: str, cluster: str) -> bool:
    """Revoke what the last holder of *cluster* and its guests log in with; return whether any was.

    The caller holds the cluster's lock: there is no holder. One that comes meanwhile keeps its
    logins, for its epoch is greater.

    Raises:
        NotRunning: no hub runs in the workspace *root*; then nobody logs in either.
        HubError: it could not be asked, or trunk could not do it.
    """
    workspace = Workspace(root)
    known = registry.read(workspace).logins.get(logins.of_cluster(cluster))
    if known is None or not known.public:
        return False
    body = {"v": _VERSION, "cluster": cluster, "epoch": known.epoch}
    # By the hub's own word: what is on record outlives a stop, and anybody may listen there.
    url = await asyncio.to_thread(address, workspace)
    async with await buses.connect(workspace, url=url) as operator:
        answer = await operator.request(
            f"{SUBJECT}.leave.{cluster}",
            codec.dumps(body).encode(),
            within_s=_WITHIN_S,
            per_try_s=_PER_TRY_S,  # asked for twice it changes nothing
        )
    told = codec.loads_object(answer.data)
    if "error" not in told:
        return True
    error: HubError = from_wire(told["error"])
    if isinstance(error, LeaseLost):
        return False
    raise error
