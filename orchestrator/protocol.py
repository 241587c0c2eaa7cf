"""What both halves of the holder's protocol share: names, commands, states and time limits.

A *holder* is one process that owns a cluster: its network and every VM on it. It has a Unix socket
per member (mode 0600, peers of this user alone), and each socket stands for its member.

The framing is :mod:`foundation.control`'s: one JSON object a line, at most LINE_LIMIT bytes, each
with ``"v": PROTOCOL_VERSION``. A request is ``{"v", "verb", …}``; its answer any number of
``{"v", "progress": {…}}`` and one of ``{"v", "data": {…}}`` or ``{"v", "error": …}``
(:func:`foundation.errors.to_wire`). Requests of one connection are answered in their order.

``status {}``
    → STATUS, at any time of a member's life.
``wait {}``
    → STATUS once the member is ``running``, ``stopped`` or ``error``. Progress, at each change:
    ``{"status": STATUS, "note": TEXT}``, *note* what takes long, "" if nothing does.
``list {}``
    → ``{"members": [STATUS, …]}``, of the whole holder.
``add {"name", "options": {"cpus", "memory_mb", "disk_mb", "egress"}}``
    → STATUS of *name*, and ``"created"``, whether it did not exist; it boots on the same network,
    and the answer does not wait for that. One that is a member already is not touched, but a
    network's gateway that has failed is started anew.
``stop {"timeout_s"}``
    → ``{"how", "last", "pid"}`` after the fact: ``how`` as :class:`Stopped` has it, ``last`` if
    the holder, process ``pid``, ends now.
``exec {"argv", "env", "cwd", "stdin": BOOL, "timeout_s": SECONDS or null}``
    → ``{"status"}``; progress ``{"out": 1 | 2, "bytes": BASE64}``, before it begins maybe with a
    ``"note"``, what it waits for, in words. The end of the connection ends what runs, and so does
    the time, which counts from the end of its input: ``timed-out``.
``terminal {"argv", "env", "rows", "columns"}``
    → ``{"status"}``; progress ``{"bytes": BASE64}``: runs it on a terminal of the guest's. Follow
    may, at any time, ``{"v", "bytes": BASE64}``, what is typed, and ``{"v", "rows", "columns"}``,
    a new size.
``put {"directory"}``
    → ``{}``. Unpacks the tar archive that follows.
``get {"path"}``
    → ``{}``; progress ``{"bytes": BASE64}``, a tar archive.
``logs {"follow": BOOL}``
    → ``{}``; progress ``{"bytes": BASE64}``, of the console. *follow*: until the member ends.
``forward {"guest_port", "host_port"}``
    → ``{"host_port"}``: a port of 127.0.0.1 that leads to the guest's, until the member ends; 0
    asks for any. The same again, or any where one leads there already, is answered with that.
``forwards {}``
    → ``{"forwards": [{"host_port", "guest_port"}, …]}``, of the member.
``unforward {"host_port"}``
    → ``{"ended": BOOL}``: it leads there no longer, and what was connected is cut; false: it did
    not lead to the member.
``bind {}``
    → ``{"version"}``. Answered whatever version the request is of.
``ack {}``
    → ``{}``: of the client that spawned a bound holder, after ``bind``: its members boot, and the
    end of this connection is the end of the cluster. One that ends before changes nothing.

What follows a request (``exec`` with ``stdin``, ``put``) is any number of ``{"v", "bytes":
BASE64}`` and one ``{"v", "end": true}``.

STATUS is :class:`Status`.
"""

from __future__ import annotations

import binascii

from foundation import control
from foundation.errors import Refused, Unavailable
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    State = Literal["downloading", "starting", "running", "stopping", "stopped", "error"]
    Stopped = Literal["agent", "quit", "killed", "not-booted", "not-running"]
    """How a VM was stopped: by its agent, by QEMU, by SIGKILL; before it had booted; not at all."""

RUNNER_FLAG = "--bones-vm-runner"
"""Marks a process as a holder; the names of its members follow, with commas between them."""
OPTIONS_VARIABLE = "BONES_VM_OPTIONS"
"""In a holder's environment: its launch, as JSON (:mod:`orchestrator.holder.launch`)."""
PARENT_VARIABLE = "BONES_VM_PARENT_PID"
"""In a bound holder's environment alone: the client whose end is its own."""
PROTOCOL_VERSION = 1

STATUS = "status"
WAIT = "wait"
LIST = "list"
ADD_MEMBER = "add"
STOP = "stop"
EXEC = "exec"
TERMINAL = "terminal"
PUT = "put"
GET = "get"
LOGS = "logs"
FORWARD = "forward"
FORWARDS = "forwards"
UNFORWARD = "unforward"
BIND = "bind"
BIND_ACK = "ack"

DOWNLOADING: State = "downloading"
"""What is done once per machine: it is not counted as part of a boot."""
STARTING: State = "starting"
RUNNING: State = "running"
STOPPING: State = "stopping"
STOPPED: State = "stopped"
ERROR: State = "error"
STATES: frozenset[State] = frozenset({DOWNLOADING, STARTING, RUNNING, STOPPING, STOPPED, ERROR})
OVER: frozenset[State] = frozenset({STOPPED, ERROR})

MEMBERS = 244
"""How many members one network has addresses for."""

LINE_LIMIT = control.LINE_LIMIT
CHUNK = 96 * 1024
"""Bytes in one line; as base64 they fit."""
UPLOAD_LIMIT = 512 * 1024 * 1024
"""What may follow a request, in bytes: it is put together in the holder's memory."""

ANSWER_WITHIN_S = 5.0
"""For what a holder answers from memory."""
BIND_WITHIN_S = 30.0
"""For a holder to begin, which on a busy machine is an interpreter's start and its imports."""
BOOT_WITHIN_S = 120.0
"""From a VM's start to its agent's answer; the holder gives it up then."""
DOWNLOAD_WITHIN_S = 1800.0
RUN_AT_MOST_S = 1e6
"""The longest time limit of a command; without one it may run for ever."""
STOP_WITHIN_S = 30.0
"""From a client's request to the outcome, however many members there are."""
GENTLE_FOR_S = 15.0
"""Of that, what a guest has to go by itself."""


class Status(Record):
    """A member as its holder, or else the disk, tells it."""

    name: str
    pid: int
    """Of the VM; 0 if it has none (yet, or any more)."""
    running: bool
    """A holder has it: it is booting, up or being stopped."""
    ip: str
    """Without a prefix length; "" until it is known."""
    state: State
    error: str = ""
    """Why it is not up, or has no way out (``gateway``), in words; "" if nothing is wrong."""
    reason: str = ""
    """The same as a slug."""


def status_from_json(value: object) -> Status:
    """Return the status that *value* (decoded JSON) holds.

    Raises:
        Unavailable: it holds none: the other side is of another version.
    """
    if isinstance(value, dict) and value.get("state") in tuple(STATES):  # it may be unhashable
        known = {name: value[name] for name in Status.field_names() if name in value}
        try:
            return Status(**known)
        except TypeError:
            pass
    raise Unavailable(f"{value!r} is not a member's status", reason="protocol")


def encode(message: dict[str, Any]) -> bytes:
    """Return *message* as a line of this version of the protocol."""
    return control.encode({"v": PROTOCOL_VERSION, **message})


def check_version(message: dict[str, Any], who: str) -> None:
    """Refuse a *message* of another version; *who* sent it.

    Raises:
        Unavailable: it is of another one.
    """
    if message.get("v") != PROTOCOL_VERSION:
        raise mismatch(who, message.get("v"))


def mismatch(who: str, version: object) -> Unavailable:
    """Return the error of two halves that are not of one version."""
    return Unavailable(
        f"{who} speaks protocol version {version}, which does not match this program's "
        f"{PROTOCOL_VERSION}: stop the cluster with the program that started it, and start it anew",
        reason="protocol-version",
    )


def seconds(value: object, *, at_most_s: float = DOWNLOAD_WITHIN_S) -> float:
    """Return *value*, a time limit that was asked for.

    Raises:
        Refused: it is none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value <= at_most_s:  # type: ignore[operator] # a number
        return float(value)  # type: ignore[arg-type] # a number
    raise Refused(f"timeout_s={value!r}: seconds are needed", reason="protocol")


def pack(chunk: bytes) -> str:
    """Return *chunk* as it goes into a line."""
    return binascii.b2a_base64(chunk, newline=False).decode("ascii")


def unpack(text: object) -> bytes:
    """Return the bytes that :func:`pack` made *text* of.

    Raises:
        Refused: it is something else.
    """
    if isinstance(text, str):
        try:
            return binascii.a2b_base64(text, strict_mode=True)
        except ValueError:
            pass
    raise Refused("bytes were expected, as base64", reason="protocol")
