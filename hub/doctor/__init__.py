"""`hub doctor`: look at everything a hub depends on, change nothing, say what to type.

It works with a hub running, with none, on wrecked state and from another user's shell.
Strictly read-only: it makes no file, takes no lock (only a starter may probe ``hub.lock``)
and opens the repository in the one way that leaves no trace (:mod:`hub.doctor.repository`).
"""

from __future__ import annotations

import os
import shlex
from functools import partial

from foundation.errors import HubError, Refused
from hub import output
from hub.doctor import machine, processes, repository, state
from hub.doctor.finding import Finding, Scene, Verdict, ok, problem, warning, way_out
from hub.render import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Finding",
    "count",
    "doctor",
    "examine",
    "in_workspace",
    "lines",
    "machine_wide",
    "summary",
]

_MACHINE: dict[str, Callable[[], Verdict]] = {
    "python": machine.python,
    "git": machine.git,
    "fossil": machine.fossil,
    "nats-server": machine.nats_server,
    "proxy": machine.proxy,
    "logind": machine.logind,
}

_OUTSIDE: dict[str, Callable[[Scene], Verdict | None]] = {
    "git-repository": state.git_repository,
    "tracked": state.tracked,
    "project": state.project,
    "place": state.place,
    "exclude": state.exclude,
    "slots": state.slots,
    "hub": processes.hub,
    "strays": processes.strays,
}
"""What can be judged without looking into ``.orchestrator``."""

_INSIDE: dict[str, Callable[[Scene], Verdict | None]] = {
    "modes": state.modes,
    "bones": state.bones,
    "credentials": state.credentials,
    "leftovers": state.leftovers,
    "hub-json": processes.hub_json,
    "pidfiles": processes.pidfiles,
    "ports": processes.ports,
    "memory": processes.memory,
    "logs": processes.logs,
    "repository": repository.file,
    "repository-wal": repository.wal,
    "repository-content": repository.content,
    "repository-settings": repository.settings,
    "repository-rights": repository.rights,
    "repository-checkins": repository.checkins,
    "repository-fork": repository.fork,
    "repository-clock": repository.clock,
}


def examine(root: str | None = None) -> list[Finding]:
    """Return what was found in the workspace around *root* (None: the current directory).

    One finding for each check that applies. Never raises: what cannot be judged is a finding.
    """
    return [*machine_wide(), *in_workspace(root)]


def machine_wide() -> list[Finding]:
    """Return what was found on this machine, whatever the workspace. Never raises."""
    return [_found(name, check) for name, check in _MACHINE.items()]


def in_workspace(root: str | None = None) -> list[Finding]:
    """Return what was found in the workspace around *root* alone. Never raises."""
    try:
        scene = Scene.of(root)
    except Refused as error:
        wrong = problem(str(error), way_out(error, "git init && git add . && git commit"))
        return [Finding.of("workspace", wrong)]
    findings = [*_all(_OUTSIDE, scene)]
    looked_into = _found("state", partial(_state, scene))
    findings.append(looked_into)
    if looked_into.level == "ok" and os.path.isdir(scene.workspace.state):
        findings += _all(_INSIDE, scene)
    return findings


def _all(checks: dict[str, Callable[[Scene], Verdict | None]], scene: Scene) -> Iterator[Finding]:
    for name, check in checks.items():
        verdict = _judged(partial(check, scene))
        if verdict is not None:
            yield Finding.of(name, verdict)


def _found(name: str, check: Callable[[], Verdict]) -> Finding:
    verdict = _judged(check)
    assert verdict is not None
    return Finding.of(name, verdict)


def _judged(check: Callable[[], Verdict | None]) -> Verdict | None:
    """Run *check*; what stops it is its verdict."""
    try:
        return check()
    except TimeoutError as error:
        return problem(str(error), "hub doctor")
    except OSError as error:
        path = error.filename if isinstance(error.filename, str) else "."
        return problem(
            f"cannot be looked at: {path}: {error.strerror or error}",
            f"ls -ld {shlex.quote(path)}",
        )
    except HubError as error:
        return problem(str(error), way_out(error, "hub logs"))


def _state(scene: Scene) -> Verdict:
    """``.orchestrator`` is there, ours, and can be looked into."""
    state_dir = scene.workspace.state
    quoted = shlex.quote(state_dir)
    if not os.path.lexists(state_dir):
        return ok(f"no {state_dir} yet: the first `hub start` makes it")
    if os.path.islink(state_dir) or not os.path.isdir(state_dir):
        return problem(f"{state_dir} is not a directory of ours", f"mv {quoted} {quoted}.aside")
    if not os.access(state_dir, os.R_OK | os.X_OK):
        from hub.contact import login  # noqa: PLC0415

        owner = os.stat(state_dir).st_uid
        if owner != os.geteuid():
            name = login(owner)
            return warning(
                f"{state_dir} is for its owner {name} alone, so most of it was not judged",
                f"sudo -u {name} {scene.hub('doctor')}",
            )
        mode = os.stat(state_dir).st_mode & 0o777
        return problem(f"{state_dir} has mode {mode:04o}", f"chmod 700 {quoted}")
    return ok(state_dir)


def doctor(*, root: str | None = None, as_json: bool = False) -> int:
    """Print what is wrong and what to type; return 0, or 1 if there is a problem."""
    from hub.verbs import root_or_default  # noqa: PLC0415 - it draws in every verb

    findings = examine(root_or_default(root))
    problems, warnings = count(findings)
    if as_json:
        output.print_data(
            "hub.doctor",
            {
                "findings": [finding.as_dict() for finding in findings],
                "problems": problems,
                "warnings": warnings,
            },
        )
    else:
        output.line("\n".join([*lines(findings), summary(findings)]))
    return 1 if problems else 0


def count(findings: list[Finding]) -> tuple[int, int]:
    """Return how many problems and how many warnings are in *findings*."""
    levels = [finding.level for finding in findings]
    return levels.count("problem"), levels.count("warning")


def lines(findings: list[Finding]) -> Iterator[str]:
    """Yield what a person reads of *findings*: all but what is well."""
    for finding in findings:
        if finding.level != "ok":
            evidence = "\n         ".join(map(printable, finding.evidence.split("\n")))
            yield f"{finding.level:7}  {finding.name}: {evidence}"
            yield f"         fix: {printable(finding.fix)}"


def summary(findings: list[Finding]) -> str:
    """Return the last line: ``12 checks, 1 problem``."""
    problems, warnings = count(findings)
    told = [f"{len(findings)} checks", f"{problems or 'no'} problem{'' if problems == 1 else 's'}"]
    if warnings:
        told.append(f"{warnings} warning{'' if warnings == 1 else 's'}")
    return ", ".join(told)
