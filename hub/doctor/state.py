"""The git repository and our directory in it: reachable, private, whole, hidden from git."""

from __future__ import annotations

import os
import shlex
import stat

from foundation import filesystem
from foundation.errors import HubError, Refused
from foundation.process import ALIVE, Identity
from foundation.spawn import capture, find_program
from foundation.workspace import SLOTS, STATE
from hub import contact, creds, git, nats
from hub import place as places
from hub.doctor.finding import FOSSIL, Scene, Verdict, ok, problem, warning, way_out
from hub.fossil_repo import LOGINS
from hub.project import NAME as PROJECT_FILE
from hub.project import ProjectFile
from hub.seed import SCRATCH, password_path
from hub.wording import several, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LOW_FREE_BYTES = 2**30
"""Below this the hub begins to refuse work."""

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
    listed = _git(scene, "ls-files", "--error-unmatch", ".")
    if listed is not None and listed[0] == 0:
        return ok("the index has files")
    return problem(
        "git tracks no file here, so there is nothing to share",
        f"cd {shlex.quote(scene.workspace.root)} && git add .",
    )


def _git(scene: Scene, *arguments: str) -> tuple[int, str] | None:
    """Return git's status and what it says, None if it cannot be asked: other checks say why."""
    program = find_program("git")
    if program is None:
        return None
    answer = capture([program, "-C", scene.workspace.root, *arguments], env=git.environment())
    return answer if answer[0] in (0, 1) else None


def project(scene: Scene) -> Verdict | None:
    """What bones.toml asks of commits makes sense; else none lands."""
    try:
        asked = ProjectFile(scene.workspace.root).read()
    except Refused as error:
        path = f"{scene.workspace.root.rstrip('/')}/{PROJECT_FILE}"
        return problem(str(error), f"${{EDITOR:-vi}} {shlex.quote(path)}")
    return ok(f"commits must pass `{asked.verify}`") if asked.verify else None


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
            "disk-full": _largest(workspace.root),
        }.get(error.reason, f"ls -ld {quoted}/{STATE}")
        if error.reason == "state-foreign":
            name = contact.login(os.stat(_state_or_root(scene)).st_uid)
            return problem(str(error), f"sudo -u {name} {scene.hub('start --detach')}")
        return problem(str(error), way_out(error, otherwise))
    free_bytes = places.free_bytes(workspace.root)
    told = f"{filesystem.kind_of(workspace.root)} with {size(free_bytes)} free"
    if free_bytes < LOW_FREE_BYTES:
        return warning(
            f"{told}: below {size(LOW_FREE_BYTES)} new slots are refused; delete something large",
            _largest(workspace.root),
        )
    return ok(told)


def _largest(root: str) -> str:
    """Return the command that shows what takes the room on the disk of *root*."""
    return f'du -xah "$(stat -c %m {shlex.quote(root)})" 2>/dev/null | sort -h | tail -n 20'


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
    seen = [name for name in ours if f"{name}/" not in ignored[1].split()]
    if not seen:
        return ok(f"git ignores {', '.join(ours)}")
    file = shlex.quote(f"{scene.workspace.git_dir()}/info/exclude")
    lines = " ".join(f"/{name}/" for name in seen)
    return problem(
        f"git does not ignore {', '.join(seen)}: `git add` would take it",
        f"printf '%s\\n' '' {lines} >> {file}",
    )


def slots(scene: Scene) -> Verdict:
    """Every slot's leaf lives, or is dead beyond doubt and waits for nothing but `hub gc`."""
    from slotgc.leaf import DEAD, JUNK, LIVE, UNKNOWN, look_all  # noqa: PLC0415

    workspace = scene.workspace
    leaves = look_all(workspace)
    doubtful = [f"{leaf.name}: {leaf.reason}" for leaf in leaves if leaf.state in (JUNK, UNKNOWN)]
    dead = [leaf.name for leaf in leaves if leaf.state == DEAD]
    live = sum(leaf.state == LIVE for leaf in leaves)
    rescued = len(_names(workspace.rescue))
    told = f"{live} alive, {len(dead)} dead; {rescued} rescued"
    if doubtful:
        place = shlex.quote(workspace.swarm)
        return warning(f"{told}; in doubt, and so kept: {several(doubtful)}", f"ls -l {place}/*/")
    if dead and scene.runs:  # a hub that starts removes what is clean
        return warning(f"{told}: {several(dead)}", scene.hub("gc --dry-run"))
    return ok(told)


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
    for login in LOGINS:
        yield password_path(scene.workspace, login)


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
    wrong = [told for role in nats.ROLES if (told := _key_fault(scene, role))]
    if not wrong and not creds.intact(workspace):
        wrong = [f"{users} does not know the keys beside it as they are"]
    if wrong:
        return problem(several(wrong), scene.renew())
    lost = [login for login in LOGINS if not os.path.isfile(password_path(workspace, login))]
    if lost and os.path.lexists(workspace.repository):
        missing = [password_path(workspace, login) for login in lost]
        return problem(
            f"{several(missing)} missing: nobody can log in to the Fossil server as that user",
            " && ".join(_password_anew(scene, login) for login in lost),
        )
    return ok(f"{len(nats.ROLES)} keys of the bus, {len(LOGINS)} Fossil passwords")


def _key_fault(scene: Scene, role: str) -> str:
    """Return why nobody can log in as *role*, "" if its key can be used."""
    try:
        creds.read_seed(scene.workspace, role)
    except HubError as error:
        return str(error)
    return ""


def _password_anew(scene: Scene, login: str) -> str:
    file = shlex.quote(password_path(scene.workspace, login))
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
            seeding = name.startswith(SCRATCH) and scene.status.state != "starting"
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
