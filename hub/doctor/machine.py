"""What a hub needs of the machine, whatever the workspace."""

from __future__ import annotations

import os
import sys

from foundation.errors import HubError, Refused, ToolFailed, Unavailable
from foundation.spawn import capture, find_program
from hub import contact
from hub import fossil as fossil_binary
from hub import git as git_binary
from hub import nats as nats_binary
from hub.doctor.finding import Verdict, ok, problem, warning, way_out

OLDEST_PYTHON = (3, 11)
WITHIN_S = 5.0

_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_NOT_PROXIED = ("no_proxy", "NO_PROXY")
_LOGIND = "systemd/logind.conf"


def python() -> Verdict:
    """The interpreter that runs us runs the hub."""
    told = f"{sys.executable} is Python {sys.version.split()[0]}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return problem(f"{told}; {oldest} or newer is needed", f"python{oldest} -m venv .venv")
    return ok(told)


def git() -> Verdict:
    """Git is there and says its version."""
    program = find_program("git")
    if program is None:
        return problem("git is not installed, or not in PATH", "sudo apt-get install git")
    try:
        version = _answer([program, "version"], git_binary.environment())
    except HubError as error:
        return problem(str(error), way_out(error, "sudo apt-get install --reinstall git"))
    return ok(f"{program} is {version.removeprefix('git version ')}")


def fossil() -> Verdict:
    """The fossil binary that a start would take is there and supported."""
    variable = fossil_binary.VARIABLE
    chosen = _chosen_by(variable)
    try:
        path = fossil_binary.find()
        version = fossil_binary.version_of(path)
    except HubError as error:
        return problem(f"{error} ({chosen})", way_out(error, _other(variable)))
    return ok(f"{path} is {version} ({chosen})")


def nats_server() -> Verdict:
    """The nats-server that a start would take is there and supported."""
    variable = nats_binary.VARIABLE
    chosen = _chosen_by(variable)
    try:
        path = nats_binary.find_server()
        said = _answer([path, "--version"], {"PATH": os.defpath})
        version = said.removeprefix("nats-server: ")
        nats_binary.check_version(version)
    except HubError as error:
        return problem(f"{error} ({chosen})", way_out(error, _other(variable)))
    return ok(f"{path} is {version} ({chosen})")


def _chosen_by(variable: str) -> str:
    named = os.environ.get(variable)
    return f"chosen by {variable}={named}" if named else f"{variable} is not set"


def _other(variable: str) -> str:
    if os.environ.get(variable):
        return f"unset {variable}"
    return "bin/setup" if variable == nats_binary.VARIABLE else "sudo apt-get install fossil"


def _answer(argv: list[str], env: dict[str, str]) -> str:
    """Return the line that *argv* answers.

    Raises:
        HubError: it does not run, or says nothing.
    """
    try:
        status, said = capture(argv, env=env, within_s=WITHIN_S)
    except TimeoutError as error:
        raise Unavailable(str(error)) from None
    except OSError as error:
        raise Refused(f"{argv[0]} cannot be executed: {error.strerror}") from None
    if status != 0 or not said.strip():
        raise ToolFailed(argv, status, said)
    return said.strip().splitlines()[0]


def proxy() -> Verdict:
    """No proxy stands between a program and the servers on loopback."""
    named = [name for name in _PROXIES if os.environ.get(name)]
    if not named:
        return ok("no http_proxy in the environment")
    exempt = next((os.environ[name] for name in _NOT_PROXIED if os.environ.get(name)), "")
    hosts = {host.strip() for host in exempt.split(",")}
    if "*" in hosts or any(host.startswith("127.") for host in hosts):
        return ok(f"{', '.join(named)} with no_proxy={exempt}")
    # Not the value: it may hold a password.
    return warning(
        f"{', '.join(named)} would catch requests to 127.0.0.1, which no_proxy "
        f"({exempt or 'not set'}) does not exempt",
        f"export no_proxy={','.join([*filter(None, [exempt]), '127.0.0.1', 'localhost'])}",
    )


def logind() -> Verdict:
    """A detached hub outlives the login session that started it."""
    if not os.path.isdir("/run/systemd/system"):
        return ok("no systemd: nobody ends a detached hub at logout")
    if not _kills_user_processes():
        return ok("KillUserProcesses is off")
    login = contact.login(os.geteuid())
    if os.geteuid() == 0 or os.path.exists(f"/var/lib/systemd/linger/{login}"):
        return ok(f"KillUserProcesses is on, but {login} is exempt")
    return warning(
        "KillUserProcesses is on: a detached hub is killed when its user logs out",
        "loginctl enable-linger",
    )


def _kills_user_processes() -> bool:
    """Read logind's own files. Source: logind.conf(5); a later setting wins."""
    paths = []
    for base in ("/usr/lib", "/etc", "/run"):
        paths.append(f"{base}/{_LOGIND}")
        try:
            names = sorted(os.listdir(f"{base}/{_LOGIND}.d"))
        except OSError:
            continue
        paths += [f"{base}/{_LOGIND}.d/{name}" for name in names if name.endswith(".conf")]
    value = ""
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _equals, told = line.partition("=")
            if name.strip() == "KillUserProcesses":
                value = told.strip().lower()
    return value in ("yes", "true", "on", "1")
