"""Bringing the trunk's check-ins back into git, each as a commit on a branch of its own.

The branch begins at the commit that the trunk was seeded from, and every commit is its parent's
tree with what one check-in changed: what seeding left out (submodules, names that Fossil cannot
hold) stays as it was. Contents are what trunk holds, which are git's own bytes.

In order, so that it may be killed anywhere: the objects, the record of where the branch will be
(:mod:`swarm.applied`), the branch. The same check-ins make the same commits, whoever applies them.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from foundation.errors import Corrupt, HubError, Refused, Unavailable
from foundation.failpoint import hit
from foundation.lock import try_lock
from foundation.record import Record
from foundation.workspace import Workspace
from hub.fossil_repo import OPERATOR
from slotgc import treepath
from swarm import applied, fast_import, git_branch
from swarm.applied import Step
from swarm.git_branch import UserGit
from swarm.git_tree import Kept
from swarm.history import open_repository
from swarm.trailers import message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from hub.repository import CheckinRow, Difference, Repository

    Progress = Callable[[str, int, int], None]
    """Phase (``contents``, ``commits``), done, total."""

    _Change = tuple[bytes, bytes, str]
    """Path, git mode (b"": deleted), hash of the content."""

PREFIX = "swarm/"
"""How the default branch begins; the base's first 12 digits follow."""

_BASE = "session base: "
_NO_BASE = "none"
_PROGRESS_EVERY = 50


class LeftOut(Record):
    """A path that check-ins changed and git cannot take."""

    path: bytes
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, the path as :func:`slotgc.treepath.to_json` writes it."""
        return {"path": treepath.to_json(self.path), "reason": self.reason}


class AppliedCheckin(Record):
    """A check-in that is a commit now, or would be."""

    checkin: str
    commit: str
    """"" if it was not made."""
    time: str
    """ISO 8601, UTC, milliseconds."""
    user: str
    comment: str
    files: int
    """How many it changed."""


class Applied(Record):
    """What an apply did, or would do."""

    branch: str
    base: str
    """The git commit that the trunk was seeded from; "": there was none yet."""
    former: str
    """Where the branch was; "" if there was none."""
    tip: str
    """Where it is now; "" if there is none."""
    checkin: str
    """The check-in that it now holds, trunk's tip; of a dry run, that it would hold."""
    added: tuple[AppliedCheckin, ...]
    """What is new on it, the oldest first."""
    left_out: tuple[LeftOut, ...]
    in_the_way: tuple[bytes, ...]
    """Paths that the branch changes and the work tree has uncommitted, if something was added:
    git merges it only when they are committed or stashed."""
    dry_run: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, paths as :func:`slotgc.treepath.to_json` writes them."""
        return {**super().as_dict(), "in_the_way": [treepath.to_json(p) for p in self.in_the_way]}


def apply(
    root: str | os.PathLike[str] | None = None,
    branch: str = "",
    *,
    dry_run: bool = False,
    on_progress: Progress = lambda _phase, _done, _total: None,
) -> Applied:
    """Put every check-in that *branch* has not yet on it, as a commit.

    *root* is a directory in the workspace, the current one by default; *branch* by default
    ``swarm/`` and the base. With *dry_run* only say what would be added. Needs no hub.

    Raises:
        Refused: the branch is not where apply left it (``branch-moved``, ``branch-foreign``), is
            checked out somewhere (``branch-checked-out``) or can be none (``branch-name``); the
            base is not in git (``base-missing``); there is no trunk (``no-trunk``).
        Unavailable: another apply is at it.
        HubError: anything else; the branch is as it was.
    """
    workspace = Workspace.find(root)
    with open_repository(workspace.repository) as repository:
        lock = None if dry_run else _lock(workspace)
        try:
            return _Application(workspace, repository, branch, on_progress).run(dry_run=dry_run)
        except OSError as error:
            raise HubError(f"apply failed: {error}", reason="system") from error
        finally:
            if lock is not None:
                os.close(lock)


def _lock(workspace: Workspace) -> int:
    lock = try_lock(f"{workspace.state}/apply.lock")
    if lock is None:
        raise Unavailable("another `bones apply` is at work here: wait for it", reason="busy")
    return lock


class _Application:
    """One run."""

    def __init__(
        self, workspace: Workspace, repository: Repository, branch: str, on_progress: Progress
    ) -> None:
        self._workspace = workspace
        self._repository = repository
        self._on_progress = on_progress
        self._git = UserGit(workspace)
        self._tip = repository.tip()
        self._root = repository.root()
        self._record = self._known_record()
        self._branch = branch or PREFIX + (self._record.base[:12] or _NO_BASE)
        self._former = self._git.branch(self._branch)
        self._left_out: dict[bytes, str] = {}

    def run(self, *, dry_run: bool) -> Applied:
        last = self._last_applied()
        if last == self._tip.hash or (not self._former and self._tip.hash == self._root.hash):
            if not dry_run:
                self._settle()
            return self._result([], [], {}, dry_run=dry_run)
        self._git.refuse_in_use(self._branch)
        rows = self._line(last or self._root.hash)
        if not self._record.branches:
            self._record = self._record.replace(kept=self._kept_in_git())
        changes = self._planned(rows)
        hit("apply.planned")
        if dry_run:
            return self._result(rows, changes, {}, dry_run=True)
        marks = _marks(changes)
        ids = self._git.store(self._stream(rows, changes, marks))
        commits = {row.hash: ids[_mark_of_commit(marks, at)] for at, row in enumerate(rows)}
        hit("apply.stored")
        self._move(commits[self._tip.hash], last)
        return self._result(rows, changes, commits, dry_run=False)

    # --- looking -------------------------------------------------------------------------

    def _known_record(self) -> applied.Account:
        """Return what is recorded of this trunk, or what a first apply begins with."""
        known = applied.read(self._workspace)
        if known is not None and known.root == self._root.hash:
            return known
        return applied.Account(root=self._root.hash, base=self._base(), kept={}, branches={})

    def _base(self) -> str:
        comments = [self._root.comment]
        if not comments[0].startswith(_BASE):  # it was amended
            comments.append(self._repository.manifest(self._root.hash).comment)
        digits = comments[-1].removeprefix(_BASE)
        if not comments[-1].startswith(_BASE):
            raise Corrupt(
                f"trunk begins with check-in {self._root.hash}, which does not say what it was "
                "seeded from: it was not made by `hub start`",
                reason="base-unknown",
            )
        return "" if digits == _NO_BASE else self._git.commit_of(digits)

    def _last_applied(self) -> str:
        """Return the check-in up to which the branch holds trunk; "": there is no branch."""
        if not self._former:
            return ""
        step = self._record.branches.get(self._branch)
        checkin = None if step is None else step.checkin_at(self._former)
        if checkin is None and self._former == self._record.base:
            checkin = self._root.hash  # a branch that somebody made for us to go on from
        if checkin is None:
            raise git_branch.moved(self._branch, self._former, "" if step is None else step.commit)
        return checkin

    def _line(self, after: str) -> list[CheckinRow]:
        try:
            return self._repository.line(after, self._tip.hash)
        except Refused as error:
            raise Refused(
                f"branch {self._branch} holds trunk up to check-in {after}, and trunk's tip "
                f"{self._tip.hash} does not come after it: has trunk forked? ({error}) Name "
                "another branch with --branch",
                reason="not-on-line",
            ) from None

    def _kept_in_git(self) -> dict[bytes, bytes]:
        """Return path → mode of what the base has in git and the trunk began without."""
        if not self._record.base:
            return {}
        trunk = self._repository.files(self._root.hash)
        tree = self._git.tree(self._record.base)
        lost = [path for path in trunk if path not in tree]
        if lost:
            raise Corrupt(
                f"trunk was not seeded from git commit {self._record.base}: that has no "
                f"{treepath.show(lost[0])}",
                reason="base-unknown",
            )
        return {path: mode for path, mode in tree.items() if path not in trunk}

    def _planned(self, rows: list[CheckinRow]) -> list[list[_Change]]:
        kept = Kept(self._record.kept)
        return [self._fit(changed, kept) for _row, changed in self._repository.line_changes(rows)]

    def _fit(self, changed: list[Difference], kept: Kept) -> list[_Change]:
        """Return what git is to be told of a check-in; note what it cannot take."""
        fit = []
        for path, _before, after in changed:
            reason = kept.refusal(path, "" if after is None else after.kind)
            if reason:
                self._left_out[path] = reason
            elif after is None:
                fit.append((path, b"", ""))
            else:
                fit.append((path, fast_import.MODES[after.kind], after.hash))
        return fit

    # --- making --------------------------------------------------------------------------

    def _stream(
        self, rows: list[CheckinRow], changes: list[list[_Change]], marks: dict[str, int]
    ) -> Iterator[bytes]:
        """Yield what fast-import reads: every content once, then a commit for each of *rows*."""
        self._on_progress("contents", 0, len(marks))
        contents = self._repository.contents(marks)
        for done, (name, content) in enumerate(contents, 1):
            yield from fast_import.blob(marks[name], content)
            if done % _PROGRESS_EVERY == 0:
                self._on_progress("contents", done, len(marks))
        hit("apply.contents")
        author = self._authors()
        parent = self._former or self._record.base
        for at, (row, changed) in enumerate(zip(rows, changes, strict=True)):
            yield fast_import.commit(
                git_branch.SCRATCH_REF,
                _mark_of_commit(marks, at),
                author(row.user),
                _seconds(row.time),
                message(row.comment, row.hash),
                [(path, mode, marks.get(name, 0)) for path, mode, name in changed],
                parent if at == 0 else "",
            )
            if at % _PROGRESS_EVERY == 0:
                self._on_progress("commits", at, len(rows))
        self._on_progress("commits", len(rows), len(rows))
        hit("apply.commits")
        yield fast_import.DONE

    def _authors(self) -> Callable[[str], bytes]:
        """Return what makes a check-in's user an author: the operator is git's own user."""
        name, address = self._git.identity()
        known: dict[str, bytes] = {}
        if name and address:
            known = dict.fromkeys((OPERATOR, name), fast_import.person(name, address))
        return lambda user: known.get(user) or fast_import.person(user)

    def _move(self, commit: str, last: str) -> None:
        step = Step(
            commit=commit,
            checkin=self._tip.hash,
            former_commit=self._former,
            former_checkin=last,
        )
        self._write(step)
        hit("apply.recorded")
        why = f"bones apply: to check-in {self._tip.hash}"
        self._git.move(self._branch, commit, self._former, why)
        hit("apply.moved")
        self._write(step.settled(), durable=False)

    def _settle(self) -> None:
        """Complete the record of an apply that was killed when the branch had just moved."""
        step = self._record.branches.get(self._branch)
        if step is not None and self._former == step.commit != step.former_commit:
            self._write(step.settled(), durable=False)

    def _write(self, step: Step, *, durable: bool = True) -> None:
        branches = {**self._record.branches, self._branch: step}
        applied.write(self._workspace, self._record.replace(branches=branches), durable=durable)

    def _result(
        self,
        rows: list[CheckinRow],
        changes: list[list[_Change]],
        commits: dict[str, str],
        *,
        dry_run: bool,
    ) -> Applied:
        return Applied(
            branch=self._branch,
            base=self._record.base,
            former=self._former,
            tip=commits.get(self._tip.hash, self._former),
            checkin=self._tip.hash,
            added=tuple(
                AppliedCheckin(
                    checkin=row.hash,
                    commit=commits.get(row.hash, ""),
                    time=row.time,
                    user=row.user,
                    comment=row.comment,
                    files=len(changed),
                )
                for row, changed in zip(rows, changes, strict=True)
            ),
            left_out=tuple(
                LeftOut(path=path, reason=reason) for path, reason in sorted(self._left_out.items())
            ),
            in_the_way=tuple(self._git.in_the_way(self._branch)) if commits else (),
            dry_run=dry_run,
        )


def _marks(changes: list[list[_Change]]) -> dict[str, int]:
    """Return content → mark, of all contents that *changes* need."""
    names = dict.fromkeys(name for changed in changes for _path, _mode, name in changed if name)
    return {name: mark for mark, name in enumerate(names, 1)}


def _mark_of_commit(marks: dict[str, int], at: int) -> int:
    return len(marks) + 1 + at


def _seconds(time: str) -> int:
    return int(datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp() // 1)
