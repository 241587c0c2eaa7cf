"""What may be an older version than the base's, where git cannot tell what was taken back to what.

An agent may have git forget the commit that it was at (``gc --prune=now``), or remove ``.git`` with
all that it knew. Then what differs from the base is the slot's work, or it is from before others'
work came in. So a commit of everything takes none of it: who wants it to land names it.
"""

from __future__ import annotations

import os

from foundation.errors import HubError
from slotgc import artifact, base
from slotgc.beneath import INTO, enter
from swarm.gitrepo.objects import BLOB
from swarm.worktree.going_back import there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from hub.repository import Repository
    from slotgc.base import Base
    from swarm.gitrepo.objects import Format
    from swarm.gitrepo.reading import ObjectReader


def words(why: str, commit: str, doubtful: Collection[bytes], known: Base) -> str:
    """Return what is to be said of the *doubtful*: *why*, and the ways out.

    *commit*: what has them as the base does, "" if none.
    """
    ways = []
    if commit and any(path in known.files for path in doubtful):
        ways.append(f"`git checkout {commit[:10]} -- PATH` brings back what trunk had here")
    if any(path not in known.files for path in doubtful):
        ways.append("what others have deleted can be removed")
    ways.append("to commit it as it is, name it")
    return (
        f"{why}, so nobody can tell whether this takes back what others have landed: "
        + "; ".join(ways)
    )


def find(
    worktree: str,
    known: Base,
    repository: Repository,
    slot: str,
    reader: ObjectReader,
    form: Format,
) -> frozenset[bytes]:
    """Return what may be older than the base, of all that differs from it now.

    What others have changed since trunk began, and what git had before: deleted, or with a content
    that *reader*, the user's git, knows. Whatever else the slot has there is its own.

    Raises:
        HubError: trunk cannot be read.
        OSError: *worktree* cannot be opened.
    """
    by_others, begun = _by_others(repository, known, slot)
    doubtful = set()
    for path, here in there(worktree, known, by_others | known.files.keys()).items():
        row = known.files.get(path)
        if here != (None if row is None else (row[0], row[2])) and (
            path in by_others
            or (path in begun and (here is None or _had(worktree, path, here[0], reader, form)))
        ):
            doubtful.add(path)
    return frozenset(doubtful)


def still(worktree: str, known: Base, doubtful: frozenset[bytes]) -> frozenset[bytes]:
    """Return those of the *doubtful* that differ from the base now.

    Raises:
        OSError: *worktree* cannot be opened.
    """
    left = set()
    for path, here in there(worktree, known, doubtful).items() if doubtful else ():
        row = known.files.get(path)
        if here != (None if row is None else (row[0], row[2])):
            left.add(path)
    return frozenset(left)


def _by_others(
    repository: Repository, known: Base, slot: str
) -> tuple[set[bytes], Collection[bytes]]:
    """Return the paths that others have changed on the way to the base, and those of the root."""
    root, *line = repository.line()
    at = repository.files(known.checkin) if known.checkin else {}
    by_others: set[bytes] = set()
    beyond = root.hash == known.checkin
    for row, changes in repository.line_changes(line):
        if row.user != slot:
            for path, _old, _new in changes:
                # Past its check-in the base has only what the slot has landed there.
                entry, own = at.get(path), known.files.get(path)
                is_later = (entry and tuple(entry)) != (own and (own[0], own[2]))
                if not beyond or is_later:
                    by_others.add(path)
        beyond = beyond or row.hash == known.checkin
    begun = repository.files(root.hash)
    repository.forget()
    return by_others, begun.keys()


def _had(worktree: str, path: bytes, kind: str, reader: ObjectReader, form: Format) -> bool:
    """Tell whether git has ever had what is at *path*; where that cannot be told, it has."""
    try:
        tree = os.open(worktree, INTO)
        try:
            parent, last = enter(tree, path)
        finally:
            os.close(tree)
        try:
            if kind == base.LINK:
                content = os.fsencode(os.readlink(last, dir_fd=parent))
            else:
                with os.fdopen(artifact.open_regular(last, dir_fd=parent), "rb") as file:
                    content = file.read()
        finally:
            os.close(parent)
        return reader.has(form.name_of(BLOB, content))
    except (OSError, HubError):
        return True
