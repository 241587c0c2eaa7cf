"""The verb ``bones vm down``, also of VMs whose holder does not answer."""

from __future__ import annotations

from foundation.errors import HubError, Unavailable
from hub import output
from orchestrator import control, holding, protocol
from orchestrator.vm_removal import clear
from orchestrator.vm_shared import for_each, meant, say, store_of, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from foundation.process import Identity
    from orchestrator.store import Store

_HUNG_S = 2.0
"""What a holder has left that takes connections and answers none."""


@output.verb("bones.vm.down", interrupted="`bones vm down` again ends the rest")
def down(
    names: Sequence[str] = (),
    *,
    everything: bool = False,
    force: bool = False,
    root: str | None = None,
    as_json: bool = False,
) -> int:
    """Stop VMs; their disks stay. One that is not running is no failure.

    With *force* a holder that does not answer is ended, with all its VMs.
    """
    store = store_of(root)
    found, failed = meant(store.members(), names, everything=everything, verb="down")
    ended = _ended_by_force(store, found, failed) if force else []
    try:
        clear(store, root, ended)
    except HubError as error:
        say(f"{error}; `bones vm prune` clears up later")
    asked = [name for name in found if name not in ended and name not in failed]
    how = for_each(asked, lambda name: control.stop(store, name), failed)
    return tell(
        "bones.vm.down",
        {
            **dict.fromkeys(ended, "forced"),
            **{name: word for name, word in how.items() if word != "not-running"},
        },
        failed,
        "stopped",
        as_json=as_json,
        nothing="nothing was running",
    )


def _ended_by_force(store: Store, names: Sequence[str], failed: dict[str, str]) -> list[str]:
    """End the holders of *names* that do not answer; return the names of all their VMs.

    Why one could not be ended is put into *failed*.
    """
    holders: dict[Identity, str] = {}
    for name in names:
        holder = holding.holder(store, name)
        if holder is not None:
            holders.setdefault(holder, name)
    has = {name: holding.holder(store, name) for name in store.members()} if holders else {}

    def end(name: str) -> str:
        if _answers(store, name):
            return "answers"
        control.end_holder(store, name, grace_s=_grace_s(store, name))
        return "forced"

    outcomes = for_each(list(holders.values()), end, failed)
    gone = [holder for holder, name in holders.items() if outcomes.get(name) == "forced"]
    return [name for name, holder in has.items() if holder in gone]


def _answers(store: Store, name: str) -> bool:
    try:
        control.get_status(store, name)
    except Unavailable as error:
        return error.reason != "no-answer"
    except HubError:  # what is wrong with it, its holder has told, or the disk
        pass
    return True


def _grace_s(store: Store, name: str) -> float:
    """Return how long the holder has to stop its VMs in order."""
    wire = control.connect(store, name)
    if wire is None:  # nobody can ask it, but it may be well
        return protocol.STOP_WITHIN_S
    wire.close()
    return _HUNG_S
