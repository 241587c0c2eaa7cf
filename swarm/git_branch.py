"""The user's git as apply touches it: a branch, found, guarded and moved; objects, added.

Nothing else changes: not HEAD, index, work tree, stash, another reference; no hook runs.
"""

from __future__ import annotations

import os
import shutil

from foundation.errors import HubError, Refused, ToolFailed, Unavailable
from foundation.spawn import capture, find_program
from hub import git as hub_git
from hub.git_errors import explain
from hub.tool import Tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from foundation.workspace import Workspace

HEADS = "refs/heads/"
SCRATCH = "apply.git"
SCRATCH_REF = f"{HEADS}applied"

_UPDATE_WITHIN_S = 60.0
_BUFFER_BYTES = 1 << 18
_IN_WORK = (
    "rebase-merge/head-name",
    "rebase-merge/update-refs",
    "rebase-apply/head-name",
    "BISECT_START",
)
"""Where a git that was interrupted to ask a person notes the branches that it will move."""
_SETTINGS = ("core.hooksPath=/dev/null", "gc.auto=0", "maintenance.auto=false")
_IDENTITY = {
    # For the reflog; the commits carry their own.
    f"GIT_COMMITTER_{what}": value
    for what, value in {"NAME": "bones", "EMAIL": "apply@bones.invalid"}.items()
}


class UserGit:
    """The git repository around a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        """Look at it.

        Raises:
            Refused: git is missing, or refuses the repository.
        """
        self._workspace = workspace
        self._git = hub_git.Git(workspace, workspace.state)
        self._common = os.path.realpath(workspace.git_dir())
        self._scratch = f"{workspace.state}/{SCRATCH}"

    # --- looking -------------------------------------------------------------------------

    def branch(self, name: str) -> str:
        """Return the commit that branch *name* is at, "" if there is none.

        Raises:
            Refused: it can be no branch, or is another name of one.
        """
        ref = f"{HEADS}{name}"
        parts = ref.split("/")
        # A reference is a file, so one that is a prefix of the other excludes it.
        prefixes = ["/".join(parts[:end]) for end in range(3, len(parts) + 1)]
        found = {}
        with self._git.run(
            "for-each-ref", "--format=%(refname) %(objectname) %(symref)", *prefixes
        ) as tool:
            for line in tool.stdout.read().decode("utf-8", "surrogateescape").splitlines():
                shown, commit, target = line.split(" ", 2)
                found[shown] = commit, target
            self._git.expect_success(tool)
        commit, target = found.pop(ref, ("", ""))
        if target:
            raise Refused(
                f"branch {name} is another name of {target}: name another with --branch",
                reason="branch-symbolic",
            )
        in_the_way = [one for one in found if one in prefixes or one.startswith(f"{ref}/")]
        if in_the_way and not commit:
            raise Refused(
                f"there can be no branch {name} beside {in_the_way[0].removeprefix(HEADS)}: name "
                "another with --branch",
                reason="branch-name",
            )
        if not commit:
            self._check_name(name)
        return commit

    def _check_name(self, name: str) -> None:
        with self._git.run("check-ref-format", f"{HEADS}{name}") as tool:
            tool.stdout.read()
            if tool.wait() != 0 or name.startswith("-") or name == "HEAD":
                raise Refused(
                    f"{name!r:.200} can be no branch's name: name another with --branch",
                    reason="branch-name",
                )

    def refuse_in_use(self, name: str) -> None:
        """Refuse if branch *name* is checked out, or being rebased or bisected, anywhere.

        Raises:
            Refused: ``branch-checked-out``.
        """
        with self._git.run("worktree", "list", "--porcelain") as tool:
            lines = tool.stdout.read().split(b"\n")
            self._git.expect_success(tool)
        where = b""
        for line in lines:
            if line.startswith(b"worktree "):
                where = line.removeprefix(b"worktree ")
            if line == b"branch " + os.fsencode(f"{HEADS}{name}"):
                raise _checked_out(name, f"checked out in {os.fsdecode(where)}")
        linked = f"{self._common}/worktrees"
        directories = [self._common]
        if os.path.isdir(linked):
            directories += [f"{linked}/{entry}" for entry in sorted(os.listdir(linked))]
        ref = os.fsencode(f"{HEADS}{name}")
        for directory in directories:
            for file in _IN_WORK:
                try:
                    with open(f"{directory}/{file}", "rb") as opened:
                        lines = opened.read().split(b"\n")
                except OSError:
                    continue
                # A bisect notes the branch by its short name.
                if ref in lines or (file == "BISECT_START" and os.fsencode(name) in lines):
                    raise _checked_out(name, f"to be moved by a {file[:6].lower()} in {directory}")

    def commit_of(self, digits: str) -> str:
        """Return the one commit whose id begins with *digits*.

        Raises:
            Refused: there is none, or several.
        """
        with self._git.run("rev-parse", f"--disambiguate={digits}") as tool:
            ids = tool.stdout.read()
            self._git.expect_success(tool)
        with self._git.run("cat-file", "--batch-check", stdin=ids) as tool:
            kinds = [line.split() for line in tool.stdout.read().decode().splitlines()]
            self._git.expect_success(tool)
        commits = [words[0] for words in kinds if words[1] == "commit"]
        if len(commits) == 1:
            return commits[0]
        many = "several commits begin so" if commits else "it is not in this git repository"
        raise Refused(
            f"the trunk was seeded from git commit {digits}, but {many}; if it was fetched from "
            "somewhere, fetch it again",
            reason="base-missing",
        )

    def tree(self, commit: str) -> dict[bytes, bytes]:
        """Return path → git mode of everything below the tree of *commit*."""
        return {path: mode for mode, _oid, path in self._git.tree(commit)}

    def identity(self) -> tuple[str, str]:
        """Return the user's name and address as git's configuration has them, "" if it has not."""
        with self._git.run("config", "-z", "--get-regexp", r"^user\.(name|email)$") as tool:
            out = tool.stdout.read().decode("utf-8", "replace")
            tool.wait()
        # Of several the last counts.
        found = dict(item.partition("\n")[::2] for item in out.split("\0") if item)
        return found.get("user.name", ""), found.get("user.email", "")

    def in_the_way(self, name: str) -> list[bytes]:
        """Return the paths for which git would refuse to merge branch *name* into the work tree.

        Those that the branch changes and that are there uncommitted, untracked ones too. None
        where git cannot tell: before the first commit, in the middle of another merge.
        """
        span = f"HEAD...{HEADS}{name}"
        with self._git.run("diff", "--name-only", "--no-renames", "-z", span, "--") as tool:
            changed = set(tool.stdout.read().split(b"\0"))
            if tool.wait() != 0:
                return []
        words = ["status", "--porcelain=v1", "--no-renames", "--untracked-files=all", "-z"]
        with self._git.run(*words) as tool:
            lines = tool.stdout.read().split(b"\0")
            if tool.wait() != 0:
                return []
        return sorted(line[3:] for line in lines if line[3:] and line[3:] in changed)

    # --- changing ------------------------------------------------------------------------

    def store(self, stream: Iterable[bytes]) -> dict[int, str]:
        """Add the objects that *stream* makes (see :mod:`swarm.fast_import`); return mark → id.

        No reference changes. *stream* ends in ``DONE`` and puts its commits on
        :data:`SCRATCH_REF`.

        Raises:
            HubError: it was not possible; what was added till then, git's gc will remove.
        """
        self._make_scratch()
        try:
            self._import(stream)
            marks = {}
            with open(f"{self._scratch}/marks", encoding="ascii") as file:
                for line in file:
                    mark, commit = line[1:].split()
                    marks[int(mark)] = commit
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return marks

    def _import(self, stream: Iterable[bytes]) -> None:
        environment = hub_git.environment() | {
            "GIT_DIR": self._scratch,
            "GIT_OBJECT_DIRECTORY": f"{self._common}/objects",
        }
        words = ["fast-import", "--quiet", "--done", f"--export-marks={self._scratch}/marks"]
        read, write = os.pipe()
        try:
            tool = Tool(_argv(*words), env=environment, cwd=self._workspace.root, stdin=read)
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        with tool:
            try:
                with open(write, "wb", buffering=_BUFFER_BYTES) as sink:
                    sink.writelines(stream)
            except BrokenPipeError:
                pass  # it has ended, and says why
            tool.stdout.read()
            if tool.wait() != 0:
                raise explain(
                    ["git", *words], tool.wait(), tool.said(), self._workspace.root, self._common
                )

    def _make_scratch(self) -> None:
        """Make a repository whose references and crash reports are nobody's."""
        with self._git.run("rev-parse", "--show-object-format") as tool:
            id_format = tool.stdout.read().strip()
            self._git.expect_success(tool)
        shutil.rmtree(self._scratch, ignore_errors=True)
        for name in ("objects", "refs"):
            os.makedirs(f"{self._scratch}/{name}", 0o700)
        with open(f"{self._scratch}/HEAD", "w", encoding="ascii") as file:
            file.write("ref: refs/heads/none\n")
        path = f"{self._common}/config".replace("\\", "\\\\").replace('"', '\\"')
        with open(f"{self._scratch}/config", "wb") as file:
            # How the user wants objects to be written: compressed, shared with a group, …
            file.write(b'[include]\n\tpath = "%s"\n' % os.fsencode(path))
            file.write(b"[core]\n\tbare = true\n\trepositoryformatversion = 1\n")
            file.write(b"[extensions]\n\tobjectFormat = %s\n" % id_format)

    def move(self, name: str, new: str, old: str, why: str) -> None:
        """Move branch *name* from commit *old* ("": there is none) to *new*, or leave it there.

        *why* goes into its reflog. By a git that goes on when we are killed: a dead one would
        leave a lock behind in the user's repository.

        Raises:
            Refused: it is not at *old* any more (``branch-moved``).
            HubError: it cannot be moved.
        """
        nothing = "0" * len(new)
        argv = _argv("-C", self._workspace.root)
        argv += ["update-ref", "--no-deref", "-m", why, f"{HEADS}{name}", new, old or nothing]
        environment = hub_git.environment() | _IDENTITY
        try:
            status, said = capture(argv, env=environment, within_s=_UPDATE_WITHIN_S)
        except (OSError, TimeoutError) as error:
            raise HubError(f"git update-ref: {error}", reason="git") from None
        if status == 0:
            return
        now = self.branch(name)
        if now == new:
            return  # by the git of an apply that was killed
        if now != old:
            raise moved(name, now, old)
        if "File exists" in said:
            raise Unavailable(
                f"branch {name} cannot be moved, another git works on it: {said.strip()}",
                reason="branch-locked",
            )
        raise ToolFailed(["git", "update-ref"], status, said, reason="git")


def moved(name: str, now: str, applied: str) -> Refused:
    """Return the error for a branch that is not where apply left it (*applied*; "": nowhere)."""
    if not applied:
        return Refused(
            f"branch {name} is there, at {now[:12]}, and not by an apply of this trunk: name "
            "another with --branch",
            reason="branch-foreign",
        )
    where = f"is at {now[:12]}" if now else "is gone"
    return Refused(
        f"branch {name} {where}, apply had left it at {applied[:12]}: whoever moved it may want "
        f"it so. Name another with --branch, or `git branch --force {name} {applied[:12]}`",
        reason="branch-moved",
    )


def _checked_out(name: str, where: str) -> Refused:
    return Refused(
        f"branch {name} is {where}, and a work tree is never changed behind its back: switch to "
        "another branch there, or name another with --branch",
        reason="branch-checked-out",
    )


def _argv(*words: str) -> list[str]:
    program = find_program("git")
    assert program is not None, "UserGit has looked for it"
    settings = [part for one in _SETTINGS for part in ("-c", one)]
    return [program, *settings, *words]
