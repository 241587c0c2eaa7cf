"""What the agent's git has been taken back to: a commit of ours from before others' work came in.

``git reset --hard HEAD~1`` past an update makes the files an older version of trunk. To the base
each of them would look like a change of the slot, and a commit would undo what others have landed.
So the base follows: it becomes, there, what git was taken back to, and what the agent has changed
since is what differs from that.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from foundation.errors import HubError
from foundation.spawn import find_program
from hub import git as user_git
from hub.tool import Tool
from slotgc import artifact, base
from slotgc.beneath import INTO, BlockedError, enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hub.repository import Entry, Repository
    from slotgc.base import Base
    from swarm.gitrepo.reading import ObjectReader

_KINDS = {b"100644": base.FILE, b"100755": base.EXEC, b"120000": base.LINK}
_MOST_STEPS = 256
_NONE_IN_COMMON = 1  # git-merge-base(1)


UNREADABLE = "", ""
"""What is said of a file that is there and cannot be read: it is like no other."""


class Version(NamedTuple):
    """A file as it was in a commit."""

    kind: str
    content: bytes
    name: str
    """Fossil's, of the content."""


class Back:
    """What has come after a commit, by path."""

    def __init__(
        self, commit: str, files: dict[bytes, tuple[str, bytes] | None], reader: ObjectReader
    ) -> None:
        """Know *files* as they were in *commit*: kind and blob's name, None: not there yet."""
        self.commit = commit
        self.files = files
        self._reader = reader
        self._read: dict[bytes, Version | None] = {}

    def version(self, path: bytes) -> Version | None:
        """Return what was at *path*, None if nothing was.

        Raises:
            HubError: git has lost it.
        """
        if path not in self._read:
            was = self.files[path]
            version = None
            if was is not None:
                content = self._reader.read(was[1])[1]
                version = Version(was[0], content, artifact.of_bytes(content))
            self._read[path] = version
        return self._read[path]


def since_common(
    worktree: str, ours: str, now: str, reader: ObjectReader, *, common: str = ""
) -> Back:
    """Return what *ours* has of later than the last commit that it and *now* have in common.

    Nothing, if *now* goes on from *ours*. *common*: that commit, where it is known.

    Raises:
        HubError: git cannot tell (``git``): it is not there, has lost one of the two, or they have
            nothing in common.
        OSError: git cannot be run.
    """
    common = common or _asked(worktree, "merge-base", ours, now).strip().decode("ascii", "replace")
    files: dict[bytes, tuple[str, bytes] | None] = {}
    if common != ours:
        answer = _asked(worktree, "diff-tree", "-r", "-z", "--raw", "--no-renames", common, ours)
        for mode, oid, path in _rows(answer):
            if mode in _KINDS:
                files[path] = _KINDS[mode], bytes.fromhex(oid.decode("ascii"))
            elif not mode.strip(b"0"):  # else it was a submodule, which is not trunk's
                files[path] = None
    return Back(common, files, reader)


def _asked(worktree: str, *words: str) -> bytes:
    program = find_program("git")
    if program is None:
        raise HubError("git is not in PATH", reason="git")
    # By name: were the slot's own repository gone, git would look upward and find the user's.
    env = user_git.environment() | {"GIT_DIR": f"{worktree}/.git", "GIT_WORK_TREE": worktree}
    with Tool([program, *words], env=env, cwd=worktree) as tool:
        answer = tool.stdout.read()
        status = tool.wait()
        if status == _NONE_IN_COMMON and words[0] == "merge-base":
            raise HubError("HEAD has no commit in common with trunk's branch", reason="git")
        if status:
            said = tool.said().partition("\n")[0]
            raise HubError(f"git {words[0]} fails ({said or f'exit {status}'})", reason="git")
        return answer


def _rows(answer: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield mode and name before, and path. Source: git-diff-tree(1), raw output format."""
    fields = iter(answer.split(b"\0"))
    for row in fields:
        if row.startswith(b":"):
            mode, _mode, oid, *_rest = row[1:].split(b" ")
            yield mode, oid, next(fields)


def there(
    worktree: str, known: Base, paths: Iterable[bytes]
) -> dict[bytes, tuple[str, str] | None]:
    """Return kind and hash of what is at *paths*, None: no file, "" twice: it cannot be read.

    Raises:
        OSError: *worktree* cannot be opened.
    """
    found: dict[bytes, tuple[str, str] | None] = {}
    tree = os.open(worktree, INTO)
    try:
        for path in paths:
            try:
                found[path] = _at(tree, known, path)
            except (FileNotFoundError, BlockedError):
                found[path] = None
            except OSError:
                found[path] = UNREADABLE
    finally:
        os.close(tree)
    return found


def _at(tree: int, known: Base, path: bytes) -> tuple[str, str] | None:
    parent, last = enter(tree, path)
    try:
        status = os.lstat(last, dir_fd=parent)
        kind = base.kind_of(status.st_mode)
        if not kind:
            return None
        row = known.files.get(path)
        if row is not None and known.trusts(row, status):
            return kind, row[2]
        return kind, artifact.of_entry(last, kind, dir_fd=parent)
    finally:
        os.close(parent)


def others_have_changed(
    repository: Repository, slot: str, path: bytes, now: tuple[str, str] | None, was: Version | None
) -> bool:
    """Tell whether anybody but *slot* has made *path*, on trunk, of what it *was* what it is *now*.

    Where that cannot be told, somebody has.
    """
    until, reached = "", False
    try:
        for _step in range(_MOST_STEPS):
            row = repository.last_change(path, until)
            if row is None or not row.parent:
                return True
            old, new = _change(repository, row.hash, path)
            reached = reached or _is(new, now)
            if reached and row.user != slot:
                return True
            if reached and _is(old, None if was is None else (was.kind, was.name)):
                return False
            until = row.parent
    except HubError:
        pass
    return True


def _change(repository: Repository, checkin: str, path: bytes) -> tuple[Entry | None, Entry | None]:
    for changed, old, new in repository.changes(checkin):
        if changed == path:
            return old, new
    return None, None


def _is(entry: Entry | None, what: tuple[str, str] | None) -> bool:
    return (None if entry is None else (entry.kind, entry.hash)) == what


def rows(back: Mapping[bytes, Version | None]) -> dict[bytes, base.Row]:
    """Return what the base is to say of those that are there; nothing is known of their files."""
    return {
        path: (one.kind, len(one.content), one.name, 0, 0, 0)
        for path, one in back.items()
        if one is not None
    }
