"""What a slot's worktree must hold, by the word of who wrote it.

Every change is announced before it is made and confirmed after. One that was announced and not
confirmed, because its writer was killed, may have happened, or half of it. So a ledger gives the
trees that the worktree may be, and the bases that it may have been committed as.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

File = tuple[str, str]
"""Kind (``file``, ``exec``, ``link``) and content (of a link its target)."""
Tree = dict[str, File]

FILE, EXEC, LINK = "file", "exec", "link"


class Model:
    """What a worktree may be."""

    def __init__(self) -> None:
        """Begin with a slot that has no worktree."""
        self.trees: list[Tree] = []
        self.bases: list[Tree] = []
        self.may_lack = True
        """Whether there may be no worktree yet."""
        self._announced: dict[str, object] = {}

    def may_be(self, tree: Tree | None) -> bool:
        """Tell whether *tree* (None: no worktree) is one that it may be."""
        return self.may_lack if tree is None else tree in self.trees

    @property
    def may_be_clean(self) -> bool:
        """Whether there may have been no unsaved work."""
        return self.may_lack or any(tree in self.bases for tree in self.trees)

    def learn(self, line: dict[str, object]) -> None:
        """Take in one line of the ledger."""
        what = line["what"]
        if what == "done":
            self._confirm()
        elif what == "found":
            self.trees = [_tree(line["tree"])]
            self.may_lack = False
        else:
            self._announced = line
            if what == "make":
                self.trees = self.bases = [_tree(line["tree"])]
            elif what == "commit":
                self.bases = [*self.bases, self.trees[0]]
            else:
                path, new = str(line["path"]), _file(line["file"])
                old = self.trees[0]
                self.trees = [_with(old, path, state) for state in states(old.get(path), new)]

    def _confirm(self) -> None:
        if self._announced["what"] == "make":
            self.may_lack = False
        elif self._announced["what"] == "commit":
            self.bases = self.bases[-1:]
        else:
            self.trees = self.trees[-1:]


def states(old: File | None, new: File | None) -> list[File | None]:
    """Return what there may be at a path while *new* is put in the place of *old*, in order."""
    met = [old]
    if old is not None and (new is None or LINK in (old[0], new[0])):
        met.append(None)
    if new is not None and new[0] == LINK:
        met.append(new)
    elif new is not None:
        kind = FILE if met[-1] is None else met[-1][0]
        met += [(kind, ""), (kind, new[1]), new]
    return met


def put(top: str, path: str, new: File | None) -> None:
    """Bring *path* in the worktree *top* to *new*, by way of :func:`states`."""
    target = f"{top}/{path}"
    if (new is None or new[0] == LINK or os.path.islink(target)) and os.path.lexists(target):
        os.unlink(target)
    if new is None:
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if new[0] == LINK:
        os.symlink(new[1], target)
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, new[1].encode())  # below a page: whole or not at all
        os.fchmod(fd, 0o755 if new[0] == EXEC else 0o644)
    finally:
        os.close(fd)


def scan(top: str) -> Tree | None:
    """Return the tree at *top*, None if there is none; directories do not count."""
    if not os.path.isdir(top):
        return None
    tree: Tree = {}
    for directory, below, names in os.walk(top):
        for name in [*names, *(b for b in below if os.path.islink(f"{directory}/{b}"))]:
            path = f"{directory}/{name}"
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                tree[os.path.relpath(path, top)] = (LINK, os.readlink(path))
            else:
                content = Path(path).read_text(errors="replace")
                kind = EXEC if mode & stat.S_IXUSR else FILE
                tree[os.path.relpath(path, top)] = (kind, content)
    return tree


class Ledger:
    """The ledger of one slot directory from its making to its end; one writer at a time."""

    def __init__(self, path: str) -> None:
        """Read what stands there already."""
        self.model = Model()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        content = Path(path).read_text()
        for line in content.splitlines(keepends=True):
            if line.endswith("}\n"):  # else its writer was killed in the middle of it
                self.model.learn(json.loads(line))
        if content and not content.endswith("\n"):
            os.write(self._fd, b"\n")

    def announce(self, what: str, **fields: object) -> None:
        """Write down what is going to be done."""
        self._write({"what": what, **fields})

    def confirm(self) -> None:
        """Write down that it was done."""
        self._write({"what": "done"})

    def found(self, tree: Tree) -> None:
        """Write down what the worktree is, all doubts resolved."""
        self._write({"what": "found", "tree": tree})

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")
        self.model.learn(line)


def _with(tree: Tree, path: str, file: File | None) -> Tree:
    changed = {name: found for name, found in tree.items() if name != path}
    return changed if file is None else {**changed, path: file}


def _tree(value: object) -> Tree:
    assert isinstance(value, dict)
    return {path: (file[0], file[1]) for path, file in value.items()}


def _file(value: object) -> File | None:
    if value is None:
        return None
    assert isinstance(value, list | tuple)
    return (str(value[0]), str(value[1]))
