"""Looking for what may differ from the base: by file status alone, no content is read.

What git's ignore rules say of new files is git's to say, and only if there are new files.
"""

from __future__ import annotations

import os
import stat

from foundation.errors import HubError, Refused
from foundation.record import Record
from hub import manifest
from slotgc import base, treepath
from slotgc.beneath import INTO, BlockedError, enter
from slotgc.work import Walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from slotgc.base import Base
    from swarm.worktree.ignoring import Rules

_DOT_GIT = b"/.git"


class Skipped(Record):
    """What a commit of everything leaves out, and why in words."""

    path: bytes
    reason: str


class Sight:
    """What was found: files of the base that may have changed, those that are gone, new ones."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.known: dict[bytes, os.stat_result] = {}
        self.missing: list[bytes] = []
        self.new: dict[bytes, os.stat_result] = {}
        self.skipped: list[Skipped] = []

    def skip(self, path: bytes, reason: str) -> None:
        """Leave *path* out."""
        self.skipped.append(Skipped(path=path, reason=reason))


def everywhere(worktree: str, known: Base, rules: Rules) -> Sight:
    """Look at the whole worktree.

    Raises:
        HubError: it cannot be looked at.
    """
    sight = Sight()
    try:
        walk = Walk(worktree, known.files)
        for path, status, row, cached in walk.entries():
            if row is not None:
                _take_known(sight, known, path, status)
            elif not cached:
                sight.new[path] = status
        missing = list(walk.missing())
        if missing:
            tree = os.open(worktree, INTO)
            try:
                _look_again(sight, tree, known, missing)
            finally:
                os.close(tree)
    except OSError as error:
        raise HubError(f"{worktree} cannot be looked at: {error}", reason="worktree") from None
    for words in walk.doubts:
        sight.skipped.append(Skipped(path=b"", reason=words))
    _leave_out(sight, rules)
    return sight


def _look_again(sight: Sight, tree: int, known: Base, paths: Iterable[bytes]) -> None:
    """Look at *paths* of the base one by one, which were not met: gone is what is gone now too."""
    for path in paths:
        try:
            status = _status(tree, path)
        except (FileNotFoundError, NotADirectoryError, BlockedError):
            sight.missing.append(path)
            continue
        except OSError as error:
            sight.skip(path, f"cannot be looked at: {error.strerror}")
            continue
        if stat.S_ISDIR(status.st_mode):
            sight.missing.append(path)
        else:
            _take_known(sight, known, path, status)


def _status(tree: int, path: bytes) -> os.stat_result:
    parent, last = enter(tree, path)
    try:
        return os.lstat(last, dir_fd=parent)
    finally:
        os.close(parent)


def at(
    worktree: str,
    known: Base,
    paths: Sequence[bytes],
    rules: Rules,
    may_be_directory: Callable[[bytes], bool],
) -> Sight:
    """Look at *paths* alone: files, directories with all in them, files that are gone.

    *may_be_directory* is false of what surely is none in *known*, which saves a look at all of it.

    Raises:
        Refused: one is none, cannot be on trunk, or is ignored by git (``no-such-path``,
            ``unfit-name``, ``ignored``, ``not-a-file``, ``nested-repository``).
    """
    if b"" in paths or b"." in paths:
        return everywhere(worktree, known, rules)
    sight = Sight()
    try:
        tree = os.open(worktree, INTO)
        try:
            for path in paths:
                _look_at(sight, tree, worktree, known, path)
        finally:
            os.close(tree)
    except OSError as error:
        raise HubError(f"{worktree} cannot be looked at: {error}", reason="worktree") from None
    named = sorted(path for path in paths if path in sight.new)
    nested = _around(worktree, paths, {*sight.known, *sight.new})
    _refuse_unfit(named, nested)
    below = Sight()
    if len(named) < len(sight.new):
        by_name = set(named)
        below.new = {path: status for path, status in sight.new.items() if path not in by_name}
        _leave_out(below, rules, nested)
    hidden = rules.ignored(named)
    if hidden:
        raise Refused(
            f"{_shown(hidden)}: ignored by git; say so in .gitignore, or `git add -f` it in the "
            "slot first",
            reason="ignored",
        )
    sight.new = {path: sight.new[path] for path in named} | below.new
    sight.skipped += below.skipped
    _take_what_is_in_the_way(sight, known, may_be_directory)
    return sight


def _look_at(sight: Sight, tree: int, worktree: str, known: Base, path: bytes) -> None:
    if not treepath.is_sound(path):
        raise Refused(
            f"{treepath.show(path)} is no path of a file in {worktree}", reason="no-such-path"
        )
    try:
        status = _status(tree, path)
    except (FileNotFoundError, BlockedError):
        gone = [path] if path in known.files else _below(known, [path])
        if not gone:
            raise Refused(
                f"{treepath.show(path)}: there is no such file, and none on trunk",
                reason="no-such-path",
            ) from None
        sight.missing += gone
        return
    except OSError as error:
        raise Refused(f"{treepath.show(path)}: {error.strerror}", reason="not-a-file") from None
    if stat.S_ISDIR(status.st_mode):
        _look_below(sight, tree, worktree, known, path)
    elif not base.kind_of(status.st_mode):
        raise Refused(
            f"{treepath.show(path)} is no file but a socket, a pipe or a device",
            reason="not-a-file",
        )
    elif path in known.files:
        _take_known(sight, known, path, status)
    else:
        sight.new[path] = status


def _look_below(sight: Sight, tree: int, worktree: str, known: Base, path: bytes) -> None:
    """Look at all that is in the directory *path*, and at a file that was there instead."""
    prefix = path + b"/"
    inside = {name[len(prefix) :]: row for name, row in known.files.items() if _in(name, prefix)}
    walk = Walk(os.fsdecode(os.fsencode(worktree) + b"/" + path), inside)
    for name, status, row, cached in walk.entries():
        if row is not None:
            _take_known(sight, known, prefix + name, status)
        elif not cached:
            sight.new[prefix + name] = status
    _look_again(sight, tree, known, [prefix + name for name in walk.missing()])
    if path in known.files:
        sight.missing.append(path)
    for words in walk.doubts:
        sight.skip(path, words)


def _in(name: bytes, prefix: bytes) -> bool:
    return name.startswith(prefix)


def _take_known(sight: Sight, known: Base, path: bytes, status: os.stat_result) -> None:
    kind = base.kind_of(status.st_mode)
    if not kind:
        sight.skip(path, "is no file any more but a socket, a pipe or a device")
    elif not known.trusts(known.files[path], status) or kind != known.files[path][0]:
        sight.known[path] = status


def _take_what_is_in_the_way(
    sight: Sight, known: Base, may_be_directory: Callable[[bytes], bool]
) -> None:
    """Take along what the base has where a new file needs a directory, or is one's successor.

    Trunk cannot have a file and a directory of the same name.
    """
    if not sight.new:
        return
    gone = set(sight.missing)
    for path in sight.new:
        above = path
        while b"/" in above:
            above = above.rpartition(b"/")[0]
            if above in known.files:
                gone.add(above)
    successors = [path for path in sight.new if may_be_directory(path)]
    if successors:
        gone.update(_below(known, successors))
    sight.missing = sorted(gone)


def _below(known: Base, paths: Iterable[bytes]) -> list[bytes]:
    prefixes = tuple(path + b"/" for path in paths)
    return [path for path in known.files if path.startswith(prefixes)]


def _around(worktree: str, paths: Iterable[bytes], files: Collection[bytes]) -> tuple[bytes, ...]:
    """Return which of *paths*, and of the directories that they are in, are git repositories.

    Those of *paths* that are *files* are none.
    """
    top = os.fsencode(worktree) + b"/"
    places: set[bytes] = set()
    for path in paths:
        above = path.rpartition(b"/")[0] if path in files else path
        while above and above not in places:
            places.add(above)
            above = above.rpartition(b"/")[0]
    return tuple(sorted(one + b"/" for one in places if os.path.lexists(top + one + _DOT_GIT)))


def _refuse_unfit(named: Iterable[bytes], nested: tuple[bytes, ...]) -> None:
    for path in named:
        unfit = manifest.unfit_name(path)
        if unfit:
            raise Refused(f"{treepath.show(path)} cannot be on trunk: {unfit}", reason="unfit-name")
    for path in named:
        if path.startswith(nested):
            raise Refused(
                f"{treepath.show(path)} is in a git repository of its own, which trunk cannot "
                "hold: remove its .git, or list it in .gitignore",
                reason="nested-repository",
            )


def _leave_out(sight: Sight, rules: Rules, known: tuple[bytes, ...] = ()) -> None:
    """Leave out new files that trunk cannot hold or that git ignores.

    *known*: directories that are known to be git repositories, with a slash.
    """
    nested = tuple(sorted({*known, *_nested(sight.new)}))
    for top in nested:
        if any(path.startswith(top) for path in sight.new):
            sight.skip(top[:-1], "is a git repository of its own")
    kept = {}
    for path, status in sight.new.items():
        if nested and path.startswith(nested):
            continue
        unfit = manifest.unfit_name(path)
        if unfit:
            sight.skip(path, f"cannot be on trunk: {unfit}")
        elif not base.kind_of(status.st_mode):
            sight.skip(path, "is a socket, a pipe or a device")
        else:
            kept[path] = status
    hidden = rules.ignored(kept)
    sight.new = {path: status for path, status in kept.items() if path not in hidden}


def _nested(new: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the directories, with a slash, that are git repositories of their own."""
    found = set()
    for path in new:
        at_git = path.find(_DOT_GIT)
        while at_git >= 0:
            if path[at_git + len(_DOT_GIT) :][:1] in (b"", b"/"):
                found.add(path[:at_git] + b"/")
                break
            at_git = path.find(_DOT_GIT, at_git + 1)
    return tuple(sorted(found))


def _shown(paths: Collection[bytes]) -> str:
    some = sorted(paths)[:3]
    more = f" and {len(paths) - len(some)} more" if len(paths) > len(some) else ""
    return ", ".join(map(treepath.show, some)) + more
