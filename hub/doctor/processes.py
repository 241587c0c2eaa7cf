"""What runs, against what the files in the workspace say runs."""

from __future__ import annotations

import os
import stat

from foundation import codec, procfs
from foundation.atomic import read_bounded
from foundation.process import ALIVE, UNKNOWN, has_exited, open_pidfd
from foundation.workspace import MARK
from hub import discovery
from hub import logs as log_files
from hub import ports as tcp
from hub.census import census
from hub.doctor.finding import Scene, Verdict, ok, problem, warning
from hub.roles import SERVERS
from hub.wording import several, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import psutil

    from hub.discovery import Discovery

_LOG_LINES = 20_000
_SHOWN = 160


def hub(scene: Scene) -> Verdict | None:
    """The hub is all there, or cleanly not there."""
    now = scene.status
    if now.state == "unknown" and not _is_ours(scene.workspace.state):
        return None  # the checks of the place and of the state say so
    if now.state == "running":
        assert now.info is not None
        return ok(f"running, pid {now.info.pid}, since {now.info.started_at}")
    if now.state == "stopped":
        return ok("none runs")
    if now.state == "starting":
        return warning("starting: the servers are not ready yet", scene.hub("status"))
    if now.state == "degraded":
        return warning(now.reason, scene.hub("logs"))
    if now.state == "failed":
        return problem(now.reason, scene.hub("start --detach"))
    if now.state == "stopping":
        return warning(now.reason, scene.hub("status"))
    return problem(
        f"something holds the control socket and does not answer: {now.reason}", scene.renew()
    )


def _is_ours(directory: str) -> bool:
    status = os.lstat(directory)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def hub_json(scene: Scene) -> Verdict | None:
    """``hub.json`` tells the truth about this directory and the hub in it."""
    path = scene.workspace.discovery
    record = scene.record
    if record is None:
        if os.path.lexists(path):
            return warning(f"{path} is torn, or of another version", scene.renew())
        if scene.runs:
            return problem(f"{path} is missing, and a hub runs", scene.renew())
        return ok("no hub has been ready here yet")
    told = f"epoch {record.epoch}, pid {record.identity.pid}"
    if not record.is_of(scene.workspace):
        return warning(
            f"{path} was written in another directory, {record.root}: this workspace is a copy "
            f"of it; a start here makes it a hub of its own",
            scene.renew(),
        )
    if scene.runs:
        return _against_running(scene, record, told)
    if not scene.stopped:
        return None
    state = record.identity.state()
    if state == ALIVE:
        return problem(
            f"{path} names pid {record.identity.pid}, which lives and does not listen "
            f"on {scene.workspace.socket}",
            scene.hub("stop"),
        )
    if state == UNKNOWN:
        return warning(
            f"{path} names pid {record.identity.pid} of another pid namespace (a "
            "container?): it cannot be judged from here",
            scene.hub("status"),
        )
    return ok(f"{told} has ended")


def _against_running(scene: Scene, record: Discovery, told: str) -> Verdict:
    info = scene.status.info
    assert info is not None
    claimed = (record.epoch, record.identity.pid, record.fossil_url, record.nats_url)
    if claimed != (info.epoch, info.pid, info.fossil_url, info.nats_url):
        return problem(
            f"{scene.workspace.discovery} says {told}, {record.fossil_url}, "
            f"{record.nats_url}; the hub that answers is epoch {info.epoch}, pid "
            f"{info.pid}, {info.fossil_url}, {info.nats_url}",
            scene.renew(),
        )
    return ok(f"{told} answers")


def pidfiles(scene: Scene) -> Verdict | None:
    """Every pid file names the process that it should."""
    if not (scene.runs or scene.stopped):
        return None
    found = dict(_pid_files(scene.workspace.pids))
    if scene.stopped:
        stale = [f"{name}.pid names {pid or 'no pid'} ({_who(pid)})" for name, pid in found.items()]
        if stale:
            return warning(f"no hub runs, but {several(stale)}", scene.hub("stop"))
        return ok("none, as no hub runs")
    expected = {child.name: child.pid for child in scene.status.children if child.phase == "ready"}
    assert scene.status.info is not None
    expected["hub"] = scene.status.info.pid
    wrong = [
        f"{name}.pid {'names ' + str(found[name]) if name in found else 'is missing'} "
        f"and the process is {pid}"
        for name, pid in sorted(expected.items())
        if found.get(name) != pid
    ]
    if wrong:
        return warning(several(wrong), scene.renew())
    return ok(", ".join(f"{name} {pid}" for name, pid in sorted(expected.items())))


def _pid_files(directory: str) -> Iterator[tuple[str, int]]:
    """Yield (name, pid) of every pid file; 0 for one that holds no pid."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith(".pid"):
            continue
        try:
            text = read_bounded(f"{directory}/{name}", 64).decode("ascii").strip()
        except (OSError, ValueError):
            text = ""
        yield name.removesuffix(".pid"), int(text) if text.isdigit() else 0


def _who(pid: int) -> str:
    """Return who has *pid* now; a zombie has it still, and has ended all the same."""
    pidfd = open_pidfd(pid)
    if pidfd is None:
        return "ended"
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
        return "ended" if has_exited(pidfd) else f"now {name}"
    except OSError:
        return "ended"
    finally:
        os.close(pidfd)


def strays(scene: Scene) -> Verdict | None:
    """Every process of this workspace has a hub or a leaf above it.

    What `hub reap` ends is a program of ours; the others are a person's to judge.
    """
    if scene.status.state not in ("running", "degraded", "failed", "stopped"):
        return None  # who belongs to whom is about to change
    from slotgc.slots import live_slots  # noqa: PLC0415

    known = {slot.pid for slot in live_slots(scene.workspace.root)}
    known |= _holders(scene)
    if scene.status.info is not None:
        known.add(scene.status.info.pid)
    with census(scene.workspace.root) as found:
        known |= {member.pid for member in found.members if member.role in ("hub", "leaf")}
        left = [
            member
            for member in found.members
            if not known & {member.pid, *procfs.ancestors_of(member.pid)}
            and not has_exited(member.pidfd)
        ]
    if not left:
        return ok(f"none among {len(found.members)} processes of this workspace")
    named = [f"pid {member.pid} ({member.name})" for member in left]
    others = [str(member.pid) for member in left if member.role not in SERVERS]
    fixes = ["hub reap"] if len(others) < len(left) else []
    if others:
        fixes.append(f"kill {' '.join(others)}")
    return problem(
        f"{several(named)}: started for this workspace ({MARK}={scene.workspace.root} in the "
        "environment), with no hub or leaf above",
        " && ".join(fixes),
    )


def _holders(scene: Scene) -> set[int]:
    """Return the pids that the VM clusters' pid files name."""
    vms = f"{scene.workspace.state}/vms"
    try:
        inner = [entry.path for entry in os.scandir(vms) if entry.is_dir()]
    except OSError:
        return set()
    return {pid for directory in (vms, *inner) for _name, pid in _pid_files(directory)}


def ports(scene: Scene) -> Verdict | None:
    """The recorded ports are the hub's, or free for it."""
    if not (scene.runs or scene.stopped):
        return None
    files = {"fossil": scene.workspace.fossil_url, "nats": scene.workspace.nats_url}
    recorded = {
        name: port
        for name, path in files.items()
        if (port := discovery.recorded_port(path)) is not None
    }
    missing = [path for name, path in files.items() if name not in recorded]
    if missing and (scene.runs or any(map(os.path.lexists, missing))):
        return warning(f"{several(missing)} names no port", scene.renew())
    taken = []
    for name, port in recorded.items():
        inodes = tcp.listener_inodes(port)
        if scene.stopped:
            if inodes:
                taken.append(f"port {port} of {name} is held by {_holder(port)}")
        elif _holds(scene, name, inodes) is False:
            taken.append(
                f"port {port} is recorded for {name}, and its process does not listen "
                f"there but {_holder(port) if inodes else 'nobody'}"
            )
    told = ", ".join(f"{name} {port}" for name, port in recorded.items()) or "none recorded"
    if not taken:
        return ok(told)
    if scene.stopped:
        return warning(
            f"{several(taken)}; the next start takes another", scene.hub("start --detach")
        )
    return problem(several(taken), scene.renew())


def _holder(port: int) -> str:
    return tcp.holder_of(port) or "another user's process"


def _holds(scene: Scene, name: str, inodes: set[int]) -> bool | None:
    """Tell whether server *name* has one of the sockets *inodes*; None if that cannot be seen."""
    pid = next(
        (
            child.pid
            for child in scene.status.children
            if child.name == name and child.phase == "ready"
        ),
        0,
    )
    if not pid:
        return None
    files = procfs.open_files(pid)
    if not files:
        return None
    return not files.isdisjoint(f"socket:[{inode}]" for inode in inodes)


def memory(scene: Scene) -> Verdict | None:
    """What the processes of the hub take."""
    if not scene.runs:
        return None
    import psutil  # noqa: PLC0415

    assert scene.status.info is not None
    pids = {"hub": scene.status.info.pid}
    pids |= {child.name: child.pid for child in scene.status.children if child.pid}
    told = []
    for name, pid in pids.items():
        try:
            told.append(f"{name} {size(_own_bytes(psutil.Process(pid)))}")
        except psutil.Error:
            told.append(f"{name} not seen")
    return ok(", ".join(told))


def _own_bytes(process: psutil.Process) -> int:
    """Return the memory that would be free if *process* ended (USS)."""
    return int(process.memory_full_info().uss)


def logs(scene: Scene) -> Verdict:
    """Nothing since the last start asks for a person."""
    found = {
        name: lines
        for name, lines in (("hub", _hub_errors(scene)), ("nats", _nats_errors(scene)))
        if lines
    }
    if not found:
        return ok("no error since the last start")
    count = sum(map(len, found.values()))
    name, lines = next(iter(found.items()))
    return warning(
        f"{count} error{'' if count == 1 else 's'} since the last start, the last of "
        f"{name}: {lines[-1][:_SHOWN]}",
        scene.hub(f"logs {name}"),
    )


def _hub_errors(scene: Scene) -> list[str]:
    errors: list[str] = []
    for line in _log_lines(scene, "hub"):
        try:
            told = codec.loads_object(line)
        except codec.DecodeError:
            continue  # a traceback, or the output of a tool
        if told.get("event") == "starting":
            errors.clear()
        elif told.get("level") == "error":
            fields = [
                f"{key}={value}"
                for key, value in told.items()
                if key not in ("time", "level", "event")
            ]
            errors.append(" ".join([str(told.get("event")), *fields]))
    return errors


def _nats_errors(scene: Scene) -> list[str]:
    errors: list[str] = []
    for line in _log_lines(scene, "nats"):
        if b"] Starting nats-server" in line:
            errors.clear()
        elif b" [ERR] " in line or b" [FTL] " in line:
            errors.append(line.decode("utf-8", "replace"))
    return errors


def _log_lines(scene: Scene, name: str) -> Iterable[bytes]:
    path = f"{scene.workspace.logs}/{name}.log"
    return log_files.tail(path, _LOG_LINES) if os.path.isfile(path) else ()
