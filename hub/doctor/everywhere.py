"""`hub doctor --all`: every workspace in which a hub of this user runs, and the registry itself."""

from __future__ import annotations

import os
from functools import partial

from foundation.errors import HubError
from foundation.record import Record
from foundation.workspace import Workspace
from hub import doctor as one
from hub import output, reap, registry
from hub.census import census
from hub.doctor.finding import Finding, Verdict, ok, problem, warning
from hub.everywhere import everywhere, is_below
from hub.render import printable
from hub.wording import several

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Examined(Record):
    """What was found in one workspace."""

    root: str
    findings: tuple[Finding, ...]
    problems: int
    warnings: int


def examine(below: str | None = None) -> tuple[list[Finding], list[Examined]]:
    """Return what was found on the machine, and in each workspace of a hub, by root.

    With *below* only for workspaces at that directory or below it. Never raises.
    """
    wide = one.machine_wide()
    roots: list[str] = []
    checks: dict[str, Callable[[], Verdict]] = {
        "registry": _registry,
        "hubs": partial(_hubs, below, roots),
        "reap": partial(_reap, below),
    }
    for name, check in checks.items():
        try:
            verdict = check()
        except HubError as error:
            verdict = problem(str(error), "hub status --all")
        wide.append(Finding.of(name, verdict))
    return wide, [_examined(root) for root in roots]


def _examined(root: str) -> Examined:
    findings = one.in_workspace(root)
    problems, warnings = one.count(findings)
    return Examined(root=root, findings=tuple(findings), problems=problems, warnings=warnings)


def _registry() -> Verdict:
    """Whatever stands in the registry is an entry."""
    entries, unreadable = registry.entries()
    if unreadable:
        told = [f"{bad.path}: {bad.reason}" for bad in unreadable]
        return warning(several(told), " && ".join(bad.way_out for bad in unreadable))
    return ok(f"{len(entries)} in {registry.directory()}")


def _hubs(below: str | None, roots: list[str]) -> Verdict:
    """Every hub stands in the registry; its workspace, if it is there, goes to *roots*."""
    hubs = everywhere(below).hubs
    named = {entry.root for entry in registry.entries()[0] if is_below(entry.root, below)}
    known = named | {hub.root for hub in hubs}
    roots += sorted(root for root in known if os.path.isdir(Workspace(root).state))
    strangers = [
        f"{hub.root} (pid {hub.pid})"
        for hub in hubs
        if not hub.registered and hub.state != "starting"
    ]
    if strangers:
        return warning(
            f"{several(strangers)}: not in {registry.directory()}, so of another HOME or "
            "XDG_STATE_HOME, or this one cannot be written",
            "hub status --all",
        )
    return ok(f"{len(hubs)} run")


def _reap(below: str | None) -> Verdict:
    """No process serves a workspace that is gone."""
    with census() as found:
        planned = reap.would(reap.plan(found, below))
    if planned:
        told = [
            f"{reaped.kind} of {reaped.root} ({reaped.reason}): pid "
            + ", ".join(str(process.pid) for process in reaped.processes)
            for reaped in planned
        ]
        return problem(several(told), "hub reap")
    return ok("no process has lost its workspace or its hub")


def doctor(*, below: str | None = None, as_json: bool = False) -> int:
    """Print what is wrong and what to type; return 0, or 1 if there is a problem."""
    wide, workspaces = examine(below)
    every = [*wide, *(finding for examined in workspaces for finding in examined.findings)]
    problems, warnings = one.count(every)
    if as_json:
        output.print_data(
            "hub.doctor",
            {
                "findings": [finding.as_dict() for finding in wide],
                "workspaces": [examined.as_dict() for examined in workspaces],
                "problems": problems,
                "warnings": warnings,
            },
        )
    else:
        output.line("\n".join([f"this machine: {one.summary(wide)}", *one.lines(wide)]))
        for examined in workspaces:
            findings = list(examined.findings)
            output.line(
                "\n".join(
                    [f"{printable(examined.root)}: {one.summary(findings)}", *one.lines(findings)]
                )
            )
    return 1 if problems else 0
