"""The packs that new objects go into: two that take turns, growing, until they are full.

A loose file for each object would be five inodes a commit and as many directories, a pack for each
commit two, and a git that looks into hundreds of packs. Here the next pack holds what the last one
does and what is new; once it is there, the last one's files leave, to be written over the time
after. Of a pack only the end is written. A git that has one of the files open, or mapped, keeps
it: then new ones are made (:func:`swarm.gitrepo.places.open_spare`).

A pack counts once its index is there, so a kill anywhere leaves a file that nobody reads.
"""

from __future__ import annotations

import os

from foundation.failpoint import hit
from slotgc.gitobjects import OURS_NS
from swarm.gitrepo.objects import content_of, entry, pack_header, pack_index, pack_row
from swarm.gitrepo.places import OURS, cut, open_spare, write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swarm.gitrepo.objects import Format, Row
    from swarm.gitrepo.places import Places

_SPARE = f"{OURS}/pack"
_SPARE_INDEX = f"{OURS}/pack.idx"
_FULL_BYTES = 32 * 1024
"""Half a dozen commits. The checksum is of all of it, each time."""


class Packs:
    """New objects of one repository, until they are written, and the pack that is growing."""

    def __init__(self, form: Format) -> None:
        """Begin with none."""
        self._form = form
        self._new: dict[bytes, bytes] = {}
        self._entries: list[bytes] = []
        self._rows: list[Row] = []
        """Name, CRC-32 and offset of what is in the pack that is growing."""
        self._size = 0
        self._live = ""
        self._in_spare = 0
        """How many of the entries stand in the spare pack already, from its beginning."""
        self._young: set[str] = set()

    def add(self, kind: bytes, content: bytes) -> bytes:
        """Take an object in; return its name, raw."""
        name = self._form.name_of(kind, content)
        if name not in self._new:
            self._new[name] = entry(kind, content)
        return name

    def get(self, name: bytes) -> bytes | None:
        """Return the content of an object that was taken in and is not written yet."""
        packed = self._new.get(name)
        return None if packed is None else content_of(packed)

    def write(self, at: Places) -> None:
        """Let the repository have what was taken in.

        Raises:
            OSError: it has not; another call may succeed.
        """
        if not self._new:
            return
        if self._size > _FULL_BYTES:
            self._entries, self._rows, self._size = [], [], 0
            self._live, self._in_spare = "", 0
        entries, rows = self._entries.copy(), self._rows.copy()
        end = 12 + self._size
        for name, packed in self._new.items():
            rows.append(pack_row(name, packed, end))
            entries.append(packed)
            end += len(packed)
        pack = self._place(at, entries, rows)
        before, self._live = self._live, pack
        self._in_spare = self._retire(at, before) if before and before != pack else 0
        self._entries, self._rows, self._size = entries, rows, end - 12
        self._new.clear()
        if self._size > _FULL_BYTES:  # a big one is not kept in memory
            self._entries, self._rows = [], []

    def date_back(self, at: Places) -> None:
        """Give the packs since the last call a time long past: what is in them, trunk has.

        By its time a judge of the slot tells objects that an agent's git has stored. Not before
        a branch names them: a ``git gc`` drops what is old and has no name.
        """
        for name in self._young:
            for path in (f"{name}.pack", f"{name}.idx"):
                try:
                    os.utime(path, ns=(OURS_NS, OURS_NS), dir_fd=at.pack)
                except FileNotFoundError:  # the agent's git has packed all anew
                    continue
        self._young.clear()

    def _place(self, at: Places, entries: list[bytes], rows: list[Row]) -> str:
        """Write the pack and its index, let git see them; return the pack's name."""
        start = pack_header(len(entries))
        packed = self._form.new(b"".join([start, *entries])).digest()
        known, self._in_spare = self._in_spare, 0
        fd, was = open_spare(_SPARE, at.git)
        try:
            if was is None:
                known = 0
            ending = b"".join([*entries[known:], packed])
            if known:
                write_at(fd, start, 0)
                end = write_at(fd, ending, int.from_bytes(rows[known][2], "big"))
            else:
                end = write_at(fd, start + ending, 0)
            cut(fd, end, was)
        finally:
            os.close(fd)
        hit("gitrepo.pack")
        fd, was = open_spare(_SPARE_INDEX, at.git)
        try:
            cut(fd, write_at(fd, pack_index(self._form, rows, packed), 0), was)
        finally:
            os.close(fd)
        hit("gitrepo.pack-index")
        name = f"pack-{packed.hex()}"
        os.rename(_SPARE, f"{name}.pack", src_dir_fd=at.git, dst_dir_fd=at.pack)
        hit("gitrepo.pack-placed")
        os.rename(_SPARE_INDEX, f"{name}.idx", src_dir_fd=at.git, dst_dir_fd=at.pack)
        hit("gitrepo.packed")
        self._young.add(name)
        return name

    def _retire(self, at: Places, name: str) -> int:
        """Take the files of a pack away, to be written over; return how many entries it has."""
        self._young.discard(name)
        try:
            os.rename(f"{name}.idx", _SPARE_INDEX, src_dir_fd=at.pack, dst_dir_fd=at.git)
            hit("gitrepo.pack-retired")
            os.rename(f"{name}.pack", _SPARE, src_dir_fd=at.pack, dst_dir_fd=at.git)
        except FileNotFoundError:  # the agent's git has packed all anew
            return 0
        return len(self._entries)
