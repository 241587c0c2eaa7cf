"""A workspace: a git work tree, and where our state lives in it.

The layout is ARCHITECTURE.md's ("State"): `.orchestrator/` for the hub, `.bones/` for slots.
"""

from __future__ import annotations

import os
import stat

from foundation.atomic import read_bounded, write_file
from foundation.errors import Refused

STATE = ".orchestrator"
SLOTS = ".bones"

MARK = "BONES_WORKSPACE"
"""In the environment of every process of ours: the root of the workspace it serves."""
SLOT_MARK = "BONES_SLOT"
"""In the environment of a leaf and of all that it starts, beside MARK: the name of its slot."""

_EXCLUDED = (f"/{STATE}/", f"/{SLOTS}/")
_EXCLUDE_COMMENT = "# state of the hub and its slots: hub stop, then delete these directories"
_FORMER_COMMENT = "# state of the hub and its slots; `bones purge` removes it"
_BARE = ("HEAD", "objects", "refs")


class Workspace:
    """The paths of one workspace. Holds no open file and changes nothing by itself."""

    def __init__(self, root: str) -> None:
        """Name the workspace whose work tree is the absolute path *root*."""
        self.root = root
        self._below = root.rstrip("/")  # "/" itself may be a work tree, as in a container
        self.state = f"{self._below}/{STATE}"
        self.repository = f"{self.state}/hub.fossil"
        self.lock = f"{self.state}/hub.lock"
        self.discovery = f"{self.state}/hub.json"
        self.socket = f"{self.state}/hub.sock"
        self.fossil_url = f"{self.state}/hub-fossil-url"
        self.nats_url = f"{self.state}/hub-nats-url"
        self.pids = f"{self.state}/pids"
        self.logs = f"{self.state}/logs"
        self.nats = f"{self.state}/nats"
        self.creds = f"{self.state}/creds"
        self.outbox = f"{self.state}/outbox"
        self.leases = f"{self.state}/leases"
        self.leaves_socket = f"{self.state}/leaves.sock"
        self.spool = f"{self.state}/spool"
        self.journal = f"{self.state}/journal"
        self.templates = f"{self.state}/templates"
        self.bones = f"{self._below}/{SLOTS}"
        self.swarm = f"{self.bones}/swarm"
        self.swarm_lock = f"{self.bones}/swarm.lock"
        self.rescue = f"{self.bones}/rescue"

    @classmethod
    def find(cls, start: str | os.PathLike[str] | None = None) -> Workspace:
        """Return the workspace around *start* (the current directory by default).

        The nearest directory upward that holds a ``.git`` entry, so a linked worktree is a
        workspace of its own; inside our own state (a slot's worktree, `.orchestrator`), the
        workspace that the state belongs to.

        Raises:
            Refused: there is none, or *start* is no directory.
        """
        try:
            here = os.path.realpath(start) if start else os.getcwd()
        except FileNotFoundError:
            raise Refused(
                "the current directory was deleted: cd to a git repository or use --root",
                reason="not-git",
            ) from None
        if not os.path.isdir(here):
            raise Refused(f"{start}: no such directory", reason="not-git")
        directory = _outside_state(here)
        bare = ""
        while not os.path.lexists(os.path.join(directory, ".git")):
            if not bare and all(os.path.exists(os.path.join(directory, name)) for name in _BARE):
                bare = directory
            if directory == "/":
                if bare:
                    raise Refused(
                        f"{bare} is a bare repository; a hub needs a work tree: `git clone` or "
                        "`git worktree add` makes one",
                        reason="not-git",
                    )
                raise Refused(
                    f"{here} is not in a git repository: run `git init` and commit, "
                    "or name one with --root",
                    reason="not-git",
                )
            directory = os.path.dirname(directory)
        return cls(directory)

    def git_dir(self) -> str:
        """Return the directory that git shares between this repository's worktrees.

        Source: gitrepository-layout(5): a ``.git`` file holds ``gitdir: PATH``, and the
        directory it names a ``commondir`` file in a linked worktree.

        Raises:
            Refused: ``.git`` is neither.
        """
        entry = f"{self._below}/.git"
        if os.path.isdir(entry):
            return entry
        try:
            line = read_bounded(entry, 8192).decode("utf-8", "surrogateescape").strip()
            if not line.startswith("gitdir:") or "\0" in line:
                raise ValueError("no gitdir line")
            git_dir = os.path.join(self.root, line.removeprefix("gitdir:").strip())
        except (OSError, ValueError) as error:
            raise Refused(
                f"{entry} does not name a git directory: {error}", reason="not-git"
            ) from None
        try:
            common = read_bounded(f"{git_dir}/commondir", 8192).decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            common = "."
        git_dir = os.path.normpath(os.path.join(git_dir, common.strip()))
        if not os.path.isdir(git_dir):
            raise Refused(
                f"{entry} names {git_dir}, which is not there (was the repository moved? "
                "`git worktree repair`)",
                reason="not-git",
            )
        return git_dir

    def make_state(self) -> None:
        """Make ``.orchestrator/`` and its directories, hidden from git and safe from its clean.

        What is there already must be our own, and becomes private (directories 0700, keys
        0600): a repository from elsewhere may track a ``.orchestrator`` of its own, with links
        that lead out of it, or with keys that its author knows.

        Raises:
            Refused: something there is not our own (``state-foreign``).
            OSError: something cannot be written.
        """
        self.hide_from_git()
        _refuse_unmade(self.state)
        make_private(self.state)
        for directory in (
            self.pids,
            self.logs,
            self.nats,
            self.creds,
            self.outbox,
            self.leases,
            self.spool,
            self.journal,
            self.templates,
        ):
            _own_directory(directory)
        for name in os.listdir(self.creds):
            path = f"{self.creds}/{name}"
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                os.chmod(path, 0o600)

    def make_bones(self) -> None:
        """Make ``.bones/`` and its directories, as :meth:`make_state` does for the hub's.

        Raises:
            Refused: something there is not our own (``state-foreign``).
            OSError: something cannot be written.
        """
        self.hide_from_git()
        _refuse_unmade(self.bones)
        make_private(self.bones)
        for directory in (self.swarm, self.rescue):
            _own_directory(directory)

    def hide_from_git(self) -> None:
        """List our two directories in the repository's ``info/exclude``, once.

        Not a ``.gitignore`` inside them: git does not read one in a directory that holds a
        repository of its own, as ours must (:func:`make_private`).
        """
        info = f"{self.git_dir()}/info"
        exclude = f"{info}/exclude"
        try:
            with open(exclude, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            content = b""
        lines = content.splitlines()
        missing = [name.encode() for name in _EXCLUDED if name.encode() not in lines]
        if not missing:
            return
        os.makedirs(info, exist_ok=True)
        if content and not content.endswith(b"\n"):
            content += b"\n"
        mode = os.stat(exclude).st_mode & 0o777 if os.path.exists(exclude) else 0o644
        told = any(comment.encode() in lines for comment in (_EXCLUDE_COMMENT, _FORMER_COMMENT))
        comment = [] if told else [_EXCLUDE_COMMENT.encode()]
        added = b"\n".join([*comment, *missing, b""])
        # Through a symbolic link to the file that it names, so that the link stays one.
        write_file(os.path.realpath(exclude), content + added, mode=mode, durable=False)


def make_private(directory: str) -> None:
    """Make *directory* (0700) and give it the bones of a git repository.

    ``git clean -fdx`` removes ignored directories but passes by those that are repositories;
    it takes one for a repository when ``.git`` holds HEAD, objects/ and refs/ (measured with
    git 2.39). The HEAD is written last: without it the others mean nothing.
    """
    for path in ("", "/.git", "/.git/objects", "/.git/refs"):
        _own_directory(directory + path)
    head = f"{directory}/.git/HEAD"
    if not os.path.exists(head):
        write_file(head, b"ref: refs/heads/no-commits-here\n", durable=False)


def _own_directory(path: str) -> None:
    """Make *path* (0700), or make sure that it is a real directory of ours and private.

    Raises:
        Refused: it is something else.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise Refused(
                f"{path} is not a directory of our own, but a file, a link or another user's: "
                "move it away",
                reason="state-foreign",
            ) from None
        if status.st_mode & 0o777 != 0o700:  # noqa: PLR2004
            os.chmod(path, 0o700)


def _refuse_unmade(state: str) -> None:
    """Refuse a state directory that has content but not what a hub makes first.

    Git cannot track a ``.git``, so what came with somebody's commit has none.
    """
    try:
        content = set(os.listdir(state)) - {".git"}
    except (FileNotFoundError, NotADirectoryError):
        return
    # Looked for last: whoever is making it just now writes HEAD before any content.
    if content and not os.path.exists(f"{state}/.git/HEAD"):
        raise Refused(
            f"{state} was not made by a hub (does git track it?): move it away, or, if it is your "
            f"own and lost its .git, `git init {state}`",
            reason="state-foreign",
        )


def _outside_state(path: str) -> str:
    """Return the work tree that *path* serves if it lies in our state, else *path*."""
    names = path.split("/")
    for depth, name in enumerate(names):  # the outermost: a slot's worktree is a repository too
        if name in (STATE, SLOTS) and os.path.lexists("/".join([*names[:depth], ".git"])):
            return "/".join(names[:depth]) or "/"
    return path
