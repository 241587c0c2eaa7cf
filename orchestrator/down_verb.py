"""The verb down: plan, ask, call, print, exit code."""

from __future__ import annotations

import shlex
import sys
import threading
import time

from foundation.errors import HubError
from foundation.workspace import Workspace
from hub import output
from hub.bar import Bar
from hub.render import printable
from hub.verbs import root_or_default
from hub.wording import several
from orchestrator import down as ending
from swarm.asking import agreed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from orchestrator.down import Down, Plan

VERB = "bones.down"
_SILENT_S = 1.0
_TELL_EVERY_S = 5.0


def down(
    *,
    root: str | None = None,
    keep_hub: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    """End what runs in the workspace; without *yes* only after asking."""
    try:
        workspace = Workspace.find(root_or_default(root))
        if dry_run or not yes:
            plan = ending.plan(workspace, keep_hub=keep_hub)
            if dry_run:
                if as_json:
                    output.print_data(VERB, {"dry_run": True, **plan.as_dict()})
                else:
                    _print(_planned(plan), f"nothing runs in {workspace.root}")
                return 0
            if not plan.is_empty and not agreed(_asked(plan), as_json=as_json):
                output.say("nothing was ended", program="bones")
                return 1
        with _Patience() as patience:
            done = ending.down(
                workspace.root,
                keep_hub=keep_hub,
                timeout_s=ending.HUB_WITHIN_S if timeout_s is None else timeout_s,
                on_phase=patience.begins,
                on_progress=patience.goes_on,
            )
    except HubError as error:
        return output.print_error(VERB, error, as_json=as_json)
    except KeyboardInterrupt:
        output.say("interrupted: `bones down` again ends the rest", program="bones")
        return 130
    if as_json:
        output.print_data(VERB, {"dry_run": False, **done.as_dict()})
    else:
        _show(done, keep_hub=keep_hub)
    return 0 if done.is_clean else 1


class _Patience:
    """Says what takes so long, once it has taken a second, and then how far it is."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        self._phase = ""
        self._told_s = 0.0
        self._bar = Bar(sys.stderr)

    def begins(self, phase: str) -> None:
        self.__exit__()
        self._phase, self._told_s = phase, time.monotonic()
        self._timer = threading.Timer(_SILENT_S, _say, (f"{phase} …",))
        self._timer.daemon = True
        self._timer.start()

    def goes_on(self, done: int, total: int) -> None:
        """Show it: as a bar on a terminal, else as a line now and then."""
        if sys.stderr is not None and sys.stderr.isatty():
            if self._timer is not None:
                self._timer.cancel()
            self._bar.show("slots", done, total)
        elif time.monotonic() > self._told_s + _TELL_EVERY_S:
            self._told_s = time.monotonic()
            _say(f"{self._phase}: {done} of {total} …")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._bar.end()


def _say(text: str) -> None:
    output.say(text, program="bones")


def _asked(plan: Plan) -> Iterator[str]:
    yield f"in {plan.root}:"
    yield from _planned(plan)


def _planned(plan: Plan) -> Iterator[str]:
    for process in plan.processes:
        if not process.is_aide:
            yield f"end      {printable(process.what)} (pid {process.pid})"
    ending = [slot.name for slot in plan.slots if slot.action == "end"]
    if ending:
        yield f"clean up {several(ending)}, once ended: what is unsaved is rescued"
    for slot in plan.slots:
        if slot.action != "end":
            yield f"{slot.action:8} slot {printable(slot.name)}: {printable(slot.reason)}"
    if plan.hub:
        yield f"stop     the hub (pid {plan.hub})"


def _show(done: Down, *, keep_hub: bool) -> None:
    lines = list(_done(done))
    if lines:
        output.line("\n".join(map(printable, lines)))
    if done.is_clean:
        aside = "the hub aside, " if keep_hub else ""
        output.say(f"{aside}nothing of ours runs in {printable(done.root)}", program="bones")


def _done(done: Down) -> Iterator[str]:
    for process in done.ended:
        if process.is_aide:
            continue
        yield f"ended    {process.what} (pid {process.pid})"
    for name in done.removed:
        yield f"removed  slot {name}"
    for name, rescue in done.rescued.items():
        words = f"bones swarm rescue restore {shlex.quote(rescue)}"
        yield f"rescued  slot {name}: `{words}` brings its work back"
    if done.hub:
        yield f"stopped  the hub (pid {done.hub})"
    for name, reason in done.kept.items():
        yield f"kept     slot {name}: {reason}"
    for name in done.doubtful:
        yield f"DOUBTFUL slot {name}: its leaf may live, or somebody is making it"
    for name, reason in done.failed.items():
        yield f"FAILED   slot {name}: {reason}"
    for process in done.survivors:
        yield f"SURVIVES {process.what} (pid {process.pid})"
    if done.trouble:
        yield f"FAILED   the hub: {done.trouble}"


def _print(shown: Iterator[str], otherwise: str) -> None:
    lines = list(shown)
    if lines:
        output.line("\n".join(map(printable, lines)))
    else:
        output.say(otherwise, program="bones")
