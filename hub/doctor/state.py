"""The git repository and our directory in it: reachable, private, whole, hidden from git."""

from __future__ import annotations

import os
import shlex
import stat

from foundation import filesystem
from foundation.errors import HubError
from foundation.process import ALIVE, Identity
from foundation.spawn import find_program
from foundation.workspace import SLOTS, STATE
from hub import creds, git, nats
from hub import place as places
from hub.doctor.finding import (
    FOSSIL,
    Scene,
    Verdict,
    in_mib,
    ok,
    problem,
    several,
    warning,
    way_out,
)
from hub.doctor.program import Said, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LOW_FREE_BYTES = 2**30
"""Below this the hub begins to refuse work."""

_FOSSIL_LOGINS = ("hub", "operator")

_BONES = ("HEAD", "objects", "refs")
"""By these git takes a directory for a repository, which its clean passes by."""


def git_repository(scene: Scene) -> Verdict:
    """Git itself accepts the workspace."""
    root = scene.workspace.root
    inside = f"cd {shlex.quote(root)} && "
    try:
        head = git.Git(scene.workspace, scene.workspace.state).head()
    except HubError as error:
        command = way_out(error, "git status")
        # What names the repository by itself can be typed anywhere.
        return problem(str(error), command if root in command else inside + command)
    return ok(f"{root} at {head[:12] if head else 'no commit yet'}")


def tracked(scene: Scene) -> Verdict | None:
    """There is something to seed the trunk from."""
    try:
        repository = git.Git(scene.workspace, scene.workspace.state)
        head = repository.head()
        first = None if head is None else next(iter(repository.tree(head)), None)
    except HubError:
        return None  # git_repository says so
    if first is not None:
        return ok("HEAD has files")
    # Only now, for reading a split index renews its time.
    listed = _git(scene, "ls-files")
    if listed is not None and listed.stdout:
        return ok("the index has files")
    return problem(
        "git tracks no file here, so there is nothing to share",
        f"cd {shlex.quote(scene.workspace.root)} && git add .",
    )


def _git(scene: Scene, *arguments: str) -> Said | None:
    """Return what git says, None if it cannot be asked: other checks say why."""
    program = find_program("git")
    if program is None:
        return None
    said = run([program, *arguments], env=git.environment(), cwd=scene.workspace.root or "/")
    return said if said.status in (0, 1) else None


def place(scene: Scene) -> Verdict:
    """A hub can live here: a local disk of ours, with room."""
    workspace = scene.workspace
    quoted = shlex.quote(workspace.root)
    try:
        places.check(workspace)
    except HubError as error:
        otherwise = {
            "network-filesystem": f"git clone {quoted} ~/{shlex.quote(_name(workspace.root))}",
            "state-not-writable": f"mv {quoted}/{STATE} {quoted}/{STATE}.aside",
            "disk-full": f"df -h {quoted}",
        }.get(error.reason, f"ls -ld {quoted}/{STATE}")
        if error.reason == "state-foreign":
            name = places.login(os.stat(_state_or_root(scene)).st_uid)
            return problem(str(error), f"sudo -u {name} {scene.hub('start --detach')}")
        return problem(str(error), way_out(error, otherwise))
    room = os.statvfs(workspace.root or "/")
    free_bytes = room.f_bavail * room.f_frsize
    told = f"{filesystem.kind_of(workspace.root or '/')} with {in_mib(free_bytes)} free"
    if free_bytes < LOW_FREE_BYTES:
        return warning(
            f"{told}: below {in_mib(LOW_FREE_BYTES)} new slots are refused", f"df -h {quoted}"
        )
    return ok(told)


def _name(root: str) -> str:
    return root.rpartition("/")[2] or "repository"


def _state_or_root(scene: Scene) -> str:
    workspace = scene.workspace
    return workspace.state if os.path.lexists(workspace.state) else workspace.root


def exclude(scene: Scene) -> Verdict | None:
    """Git ignores our two directories."""
    ours = [name for name in (STATE, SLOTS) if os.path.isdir(f"{scene.workspace.root}/{name}")]
    if not ours:
        return None
    ignored = _git(scene, "check-ignore", "--no-index", "--", *(f"{name}/" for name in ours))
    if ignored is None:
        return None
    seen = [name for name in ours if f"{name}/" not in ignored.stdout.split()]
    if not seen:
        return ok(f"git ignores {', '.join(ours)}")
    file = shlex.quote(f"{scene.workspace.git_dir()}/info/exclude")
    lines = " ".join(f"/{name}/" for name in seen)
    return problem(
        f"git does not ignore {', '.join(seen)}: `git add` would take it",
        f"printf '%s\\n' '' {lines} >> {file}",
    )


def slots(scene: Scene) -> Verdict:
    """How many slots there are: dead ones are `hub gc`'s business, not a fault."""
    from slotgc.slots import live_slots  # noqa: PLC0415

    workspace = scene.workspace
    names = _names(workspace.swarm)
    live = len(live_slots(workspace.root))
    rescued = len(_names(f"{workspace.root}/{SLOTS}/rescue"))
    return ok(f"{live} alive, {len(names) - live} dead; {rescued} rescued")


def _names(directory: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def modes(scene: Scene) -> Verdict:
    """Nobody else can look in: the repository holds what is as good as its passwords."""
    workspace = scene.workspace
    wanted = {workspace.state: 0o700, workspace.creds: 0o700, workspace.repository: 0o600}
    for path in _credential_files(scene):
        wanted[path] = 0o600
    wrong = []
    for path, mode in wanted.items():
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if status.st_mode & 0o777 != mode and not stat.S_ISLNK(status.st_mode):
            wrong.append((path, status.st_mode & 0o777, mode))
    if not wrong:
        return ok("directories 0700, repository and credentials 0600")
    return problem(
        several([f"{path} has mode {seen:04o}" for path, seen, _mode in wrong]),
        " && ".join(f"chmod {mode:o} {shlex.quote(path)}" for path, _seen, mode in wrong),
    )


def _credential_files(scene: Scene) -> Iterator[str]:
    yield nats.users_path(scene.workspace)
    for role in nats.ROLES:
        yield creds.seed_path(scene.workspace, role)
    for login in _FOSSIL_LOGINS:
        yield f"{scene.workspace.creds}/fossil-{login}"


def bones(scene: Scene) -> Verdict:
    """`git clean -fdx` passes our directory by."""
    inner = f"{scene.workspace.state}/.git"
    missing = [name for name in _BONES if not os.path.exists(f"{inner}/{name}")]
    if not missing:
        return ok(f"{inner} makes `git clean` pass by")
    quoted = shlex.quote(inner)
    return problem(
        f"{inner} lacks {', '.join(missing)}: `git clean -fdx` would delete the trunk",
        f"mkdir -p {quoted}/objects {quoted}/refs && "
        f"echo ref: refs/heads/no-commits-here > {quoted}/HEAD",
    )


def credentials(scene: Scene) -> Verdict | None:
    """Every key of the bus is there, can be used and is the one that the server knows."""
    workspace = scene.workspace
    users = nats.users_path(workspace)
    if not os.path.lexists(workspace.repository) and not os.path.lexists(users):
        return None  # both are made by the first start
    try:
        public = nats.read_users(workspace)
    except HubError as error:
        return problem(str(error), _made_anew(scene))
    wrong = [told for role in nats.ROLES if (told := _key_fault(scene, role, public[role]))]
    if wrong:
        return problem(several(wrong), _made_anew(scene))
    lost = [
        path
        for login in _FOSSIL_LOGINS
        if not os.path.isfile(path := f"{workspace.creds}/fossil-{login}")
    ]
    if lost and os.path.lexists(workspace.repository):
        return problem(
            f"{several(lost)} missing: nobody can log in to the Fossil server as that user",
            " && ".join(_password_anew(scene, path) for path in lost),
        )
    return ok(f"{len(nats.ROLES)} keys of the bus, {len(_FOSSIL_LOGINS)} Fossil passwords")


def _key_fault(scene: Scene, role: str, public: str) -> str:
    """Return what is wrong with the seed of *role*, "" if it fits *public*."""
    import nkeys  # noqa: PLC0415

    path = creds.seed_path(scene.workspace, role)
    try:
        seed = creds.read_seed(scene.workspace, role)
    except HubError as error:
        return str(error)
    try:
        derived = nkeys.from_seed(bytearray(seed.encode())).public_key.decode()
    except Exception:  # noqa: BLE001 - binascii, nacl and its own errors, by the byte at fault
        return f"{path} is no seed"
    return "" if derived == public else f"{path} is not the key of the user that the bus knows"


def _made_anew(scene: Scene) -> str:
    """Return the command after which a start makes what is missing and keeps the rest.

    A start looks at the keys only where their list is missing.
    """
    remove = f"rm -f {shlex.quote(nats.users_path(scene.workspace))}"
    return f"{scene.while_stopped(remove)} && {scene.hub('start --detach')}"


def _password_anew(scene: Scene, path: str) -> str:
    login = path.rpartition("-")[2]
    file = shlex.quote(path)
    return (
        f"(umask 077; head -c 18 /dev/urandom | base64 > {file}) && {FOSSIL} user password "
        f'{login} "$(cat {file})" -R {shlex.quote(scene.workspace.repository)}'
    )


def leftovers(scene: Scene) -> Verdict:
    """Nothing is left of a writer that was killed."""
    workspace = scene.workspace
    found = []
    for directory in (workspace.state, workspace.creds, workspace.pids, workspace.nats):
        if not os.path.isdir(directory):
            continue
        for name in sorted(os.listdir(directory)):
            seeding = name.startswith("hub.fossil.seeding") and scene.status.state != "starting"
            if seeding or (name.endswith(".tmp") and not _still_written(name)):
                found.append(f"{directory}/{name}")
    if not found:
        return ok("none")
    return warning(
        f"a writer that was killed left {several(found)}",
        f"rm -rf {' '.join(map(shlex.quote, found))}",
    )


def _still_written(name: str) -> bool:
    """Tell whether the writer of the temporary file *name* (``NAME.PID.tmp``) lives."""
    pid = name.removesuffix(".tmp").rpartition(".")[2]
    who = Identity.of(int(pid)) if pid.isascii() and pid.isdigit() else None
    return who is not None and who.state() == ALIVE
