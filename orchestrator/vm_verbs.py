"""The verbs ``bones vm …``: find the VMs that are meant, ask their holders, print, exit code."""

from __future__ import annotations

import os

from foundation.errors import HubError, Refused, Usage
from hub import output
from hub.render import printable
from orchestrator import requests, targets
from orchestrator.store import Options, Store
from orchestrator.vm_down import down
from orchestrator.vm_exec import execute, pass_on, ssh
from orchestrator.vm_removal import prune, rm
from orchestrator.vm_shared import (
    PROGRAM,
    UNREAD,
    one,
    running,
    say,
    statuses_of,
    store_of,
)
from orchestrator.vm_up import up
from slotgc.treepath import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from orchestrator.protocol import Status

__all__ = ["cp", "doctor", "down", "execute", "forward", "logs", "ls", "prune", "rm", "ssh", "up"]

_UNKNOWN = {"pid": 0, "running": False, "ip": "", "state": "unknown"}


@output.verb("bones.vm.ls")
def ls(*, quiet: bool = False, root: str | None = None, as_json: bool = False) -> int:
    """List the VMs of the workspace."""
    store = store_of(root)
    names = store.members()
    if quiet:
        for name in names:
            output.line(name)
        return 0
    rows = [_row(store, name, status) for name, status in statuses_of(store, names).items()]
    if as_json:
        output.print_data("bones.vm.ls", {"store": store.directory, "vms": rows})
        return 0
    output.lines(_table(rows), "no VMs; `bones vm up` makes one", program=PROGRAM)
    return 0


def _row(store: Store, name: str, status: Status | HubError) -> dict[str, Any]:
    if isinstance(status, HubError):
        row = {**_UNKNOWN, "name": name, "error": str(status), "reason": status.reason}
    else:
        row = status.as_dict()
    try:
        config = store.config(name)
    except HubError as failed:
        row.update(error=str(failed), reason=failed.reason)
        return {**row, **Options().as_dict(), "created_at": ""}
    return {**row, **config.options.as_dict(), "created_at": config.created_at}


def _table(rows: list[dict[str, Any]]) -> Iterable[str]:
    for row in rows:
        line = (
            f"{row['name']:16} {row['state']:11} {row['ip'] or '-':12} "
            f"{row['cpus']} CPU  {row['memory_mb']} MB"
        )
        egress = "" if row["egress"] else "  no egress"
        why, _newline, more = row["error"].partition("\n")
        yield printable(f"{line}{egress}  {why}{' …' if more else ''}".rstrip())


@output.verb("bones.vm.cp")
def cp(source: str, target: str, *, root: str | None = None, as_json: bool = False) -> int:
    """Copy a file or a directory into a VM, or out of one; into a directory under its own name."""
    from orchestrator.cluster import VM  # noqa: PLC0415

    plan = targets.copy(source, target)
    store = store_of(root)
    vm = VM(store, running(store, plan.name))
    local, remote = plan.local, plan.remote
    try:
        if plan.to_guest:
            os.lstat(local)
            into = remote.endswith("/") or vm.execute(["test", "-d", remote]).status == 0
            remote = targets.within(remote, local) if into else remote
            left_out = vm.put(local, remote)
        else:
            into = local.endswith("/") or os.path.isdir(local)
            local = targets.within(local, remote) if into else local
            left_out = vm.get(remote, local)
    except OSError as error:
        raise _local(error, local, "read" if plan.to_guest else "written") from None
    for path in left_out:
        say(f"left out, being a socket, a pipe or a device: {path}")
    if as_json:
        told = {"name": plan.name, "remote": remote, "local": local, "to_guest": plan.to_guest}
        output.print_data(
            "bones.vm.cp", {**told, "left_out": [to_json(os.fsencode(one)) for one in left_out]}
        )
    return 0


def _local(error: OSError, path: str, done: str) -> Refused:
    path = error.filename or path
    if isinstance(error, FileNotFoundError):
        return Refused(f"{path} does not exist", reason="local")
    return Refused(f"{path} cannot be {done}: {error.strerror or error}", reason="local")


@output.verb("bones.vm.logs")
def logs(name: str, *, follow: bool = False, root: str | None = None, as_json: bool = False) -> int:
    """Print what a VM's console has said since its last start."""
    store = store_of(root)
    said = requests.logs(store, one(store, name), follow=follow)
    if as_json and not follow:
        told = [_text(line) for line in b"".join(said).splitlines()]
        output.print_data("bones.vm.logs", {"name": name, "lines": told})
        return 0
    try:
        if as_json:
            for line in _lines(said):
                envelope = output.envelope("bones.vm.logs", {"name": name, "line": _text(line)})
                pass_on(1, envelope.encode())
        elif os.isatty(1):  # a guest's escapes could steer the terminal
            for line in _lines(said):
                pass_on(1, f"{printable(_text(line).expandtabs())}\n".encode())
        else:
            for chunk in said:
                pass_on(1, chunk)
    except BrokenPipeError:
        return UNREAD
    return 0


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines that *chunks* are pieces of, each as soon as it is whole."""
    begun = b""
    for chunk in chunks:
        *whole, begun = (begun + chunk).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    if begun:
        yield begun


def _text(line: bytes) -> str:
    return line.decode(errors="replace")


@output.verb("bones.vm.forward")
def forward(
    name: str,
    port: str = "",
    *,
    end: int | None = None,
    root: str | None = None,
    as_json: bool = False,
) -> int:
    """Have a port of 127.0.0.1 lead into a VM, list those that do, or *end* one."""
    if port and end is not None:
        raise Usage(f"{port} and --end {end}: one or the other", reason="usage")
    asked = targets.ports(port) if port else (0, 0)
    end_port = None if end is None else targets.ports(str(end))[1]
    store = store_of(root)
    running(store, name)
    if end_port is not None:
        ended = requests.unforward(store, name, end_port)
        if not ended:
            raise Refused(
                f"127.0.0.1:{end_port} does not lead to {name}: `bones vm forward {name}` lists "
                "what does",
                reason="no-forward",
            )
        told: dict[str, Any] = {"name": name, "host_port": end_port, "ended": True}
        words = f"127.0.0.1:{end_port} leads to {name} no longer"
    elif port:
        host_port = requests.forward(store, name, asked[1], asked[0])
        told = {"name": name, "host_port": host_port, "guest_port": asked[1]}
        words = f"127.0.0.1:{host_port}"
    else:
        found = requests.forwards(store, name)
        listed = [{"host_port": one, "guest_port": to} for one, to in sorted(found.items())]
        told = {"name": name, "forwards": listed}
        words = "\n".join(f"127.0.0.1:{one} leads to {to}" for one, to in sorted(found.items()))
    if as_json:
        output.print_data("bones.vm.forward", told)
    else:
        output.lines(filter(None, [words]), f"nothing leads to {name}", program=PROGRAM)
    return 0


@output.verb("bones.vm.doctor")
def doctor(*, root: str | None = None, as_json: bool = False) -> int:
    """Print what VMs need on this machine, and what is wrong with those here."""
    from orchestrator import vm_doctor  # noqa: PLC0415 - it loads the backend

    return vm_doctor.doctor(store_of(root), as_json=as_json)
