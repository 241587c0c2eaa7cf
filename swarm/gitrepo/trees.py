"""The tree of a commit, in memory as far as it was touched. Pure but for its two callables.

A change rewrites the trees above it and nothing else; a directory is read when something in it
changes for the first time.
Source: git's tree objects are ``MODE NAME NUL HASH``, sorted as if a directory's name ended in /.
"""

from __future__ import annotations

from bisect import bisect_left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Entry = tuple[bytes, bytes]
    """(mode as git prints it, name of the object, raw)"""

DIRECTORY = b"40000"


class Tree:
    """A tree with what is below it. One call of :meth:`update` at a time."""

    def __init__(
        self, name: bytes, read: Callable[[bytes], bytes], write: Callable[[bytes], bytes]
    ) -> None:
        """Begin with the tree *name* (raw; b"": none yet).

        *read* gives a tree object's content by its name, *write* takes one and names it.
        """
        self.name = name
        self._read, self._write = read, write
        self._root = _Directory(name, read(name) if name else b"")

    def update(self, changes: Mapping[bytes, Entry | None]) -> bytes:
        """Make *changes* (None: the path is gone) and return the new tree's name.

        A file where a directory was takes its place with all that was in it, and the other way
        round. What raises midway leaves this unusable.
        """
        for path, entry in changes.items():
            if entry is None:
                self._remove(path)
        for path, entry in changes.items():
            if entry is not None:
                self._put(path, entry)
        self.name = self._written(self._root) or self._write(b"")
        return self.name

    def get(self, path: bytes) -> Entry | None:
        """Return what is at *path*, None if there is nothing, or a directory."""
        *above, last = path.split(b"/")
        here = self._root
        for name in above:
            below = self._below(here, name)
            if below is None:
                return None
            here = below
        return here.get(last)

    def _below(self, here: _Directory, name: bytes) -> _Directory | None:
        below = here.below.get(name)
        if below is None:
            entry = here.get(name + b"/")
            if entry is None:
                return None
            below = here.below[name] = _Directory(entry[1], self._read(entry[1]))
        return below

    def _remove(self, path: bytes) -> None:
        *above, last = path.split(b"/")
        passed = [self._root]
        for name in above:
            below = self._below(passed[-1], name)
            if below is None:
                return
            passed.append(below)
        if passed[-1].drop(last):
            for one in passed:
                one.name = b""

    def _put(self, path: bytes, entry: Entry) -> None:
        *above, last = path.split(b"/")
        here = self._root
        here.name = b""
        for name in above:
            below = self._below(here, name)
            if below is None:
                here.drop(name)
                below = here.below[name] = _Directory(b"", b"")
            below.name = b""
            here = below
        here.drop(last + b"/")
        here.below.pop(last, None)
        here.put(last, entry)

    def _written(self, here: _Directory) -> bytes:
        """Write *here* and what has changed below it; return its name, b"" if it is empty."""
        if here.name:
            return here.name
        for name, below in list(here.below.items()):
            if below.name:
                continue
            written = self._written(below)
            if written:
                here.put(name + b"/", (DIRECTORY, written))
            else:  # git has no empty directories
                here.drop(name + b"/")
                del here.below[name]
        if here.keys:
            here.name = self._write(b"".join(here.entries))
        return here.name


class _Directory:
    """One tree object: its name, b"" once it has changed; its entries, by their sorting keys."""

    def __init__(self, name: bytes, content: bytes) -> None:
        self.name = name
        self.keys: list[bytes] = []
        self.entries: list[bytes] = []
        self.below: dict[bytes, _Directory] = {}
        for key, entry in _entries(content, len(name)):
            self.keys.append(key)
            self.entries.append(entry)

    def get(self, key: bytes) -> Entry | None:
        at = bisect_left(self.keys, key)
        if at == len(self.keys) or self.keys[at] != key:
            return None
        entry = self.entries[at]
        mode, _space, rest = entry.partition(b" ")
        return mode, rest[len(key.rstrip(b"/")) + 1 :]

    def put(self, key: bytes, entry: Entry) -> None:
        raw = b"%s %s\0%s" % (entry[0], key.rstrip(b"/"), entry[1])
        at = bisect_left(self.keys, key)
        if at < len(self.keys) and self.keys[at] == key:
            self.entries[at] = raw
        else:
            self.keys.insert(at, key)
            self.entries.insert(at, raw)

    def drop(self, key: bytes) -> bool:
        """Remove an entry; tell whether it was there."""
        at = bisect_left(self.keys, key)
        if at == len(self.keys) or self.keys[at] != key:
            return False
        del self.keys[at], self.entries[at]
        return True


def _entries(content: bytes, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield sorting key and entry of each entry of a tree object."""
    at = 0
    while at < len(content):
        nul = content.index(b"\0", at)
        mode, _space, name = content[at:nul].partition(b" ")
        end = nul + 1 + size
        yield (name + b"/" if mode == DIRECTORY else name), content[at:end]
        at = end
