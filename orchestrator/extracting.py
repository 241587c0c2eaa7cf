"""What a guest sent as an archive, made into files; nothing of it leads out, whatever it says."""

from __future__ import annotations

import errno
import os
import stat
import tarfile

from foundation.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    Path = tuple[str, ...]
    """Of an entry, below what is copied; () is that itself."""

LIMIT = 1 << 30
"""What an archive may become here, in bytes; each of its entries counts for a block as well."""
_BLOCK = 4096
_PERMISSIONS = 0o777
_LONGEST_NAME = 255
_LONGEST_PATH = 4096
_DEEPEST = 200
_NAMED = 120
"""How much of a guest's name is told."""
_BY_ITS_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.ELOOP, errno.ENOENT}
)
"""What making an entry fails with where its name or its link is to blame, not this machine."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LONG = {tarfile.GNUTYPE_LONGNAME: "name", tarfile.GNUTYPE_LONGLINK: "linkname"}
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_LEFT_OUT = (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)


def extract(archive: BinaryIO, top: str, limit: int = LIMIT) -> list[str]:
    """Make *top*, which is not there, of the one file or directory in *archive*.

    Returns what was left out: the archive's names for pipes and devices.

    Raises:
        Refused: it would write elsewhere, now or through a link later, or is no such archive
            (``unsafe-archive``); it becomes more than *limit* bytes (``too-large``). What has been
            made by then is there.
        OSError: *top* cannot be written.
    """
    extracting = _Extracting(top, limit)
    for entry in _entries(archive):
        extracting.take(entry, archive)
    extracting.finish()
    return extracting.left_out


def _entries(archive: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of *archive*; who gets a file reads its content before the next.

    Not by tarfile's reader: that believes any size, makes sparse files of nothing, and follows a
    chain of headers by recursion. A guest's tar has files, directories, links and long names.
    """
    long: dict[str, str] = {}
    while any(block := _read(archive, tarfile.BLOCKSIZE)):
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError):
            raise _unsafe("it is no tar archive") from None
        told = _LONG.get(entry.type)
        if told is None:
            for field, text in long.items():
                setattr(entry, field, text)
            long = {}
            yield entry
            continue
        if not 0 <= entry.size <= _LONGEST_PATH:
            raise _unsafe(f"a name of {entry.size} bytes")
        content, _nul, _rest = _read(archive, _padded(entry.size)).partition(b"\0")
        long[told] = content.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


def _read(archive: BinaryIO, size: int) -> bytes:
    content = archive.read(size)
    if len(content) < size:
        raise _unsafe("it ends too early")
    return content


class _Extracting:
    """Making *top* of the entries of one archive, each of which lies in a directory before it."""

    def __init__(self, top: str, limit: int) -> None:
        self.left_out: list[str] = []
        self._top = top
        self._limit = self._left = limit
        self._prefix: Path | None = None
        """Its own name in the archive."""
        self._types: dict[Path, bytes] = {}
        self._modes: list[tuple[str, int]] = []

    def take(self, entry: tarfile.TarInfo, content: BinaryIO) -> None:
        """Make *entry*; the *content* of a file comes next."""
        if entry.type not in (*_FILES, *_LEFT_OUT, tarfile.DIRTYPE, *_LINKS):
            raise _unsafe(f"{_name(entry.name)} is no file, directory or link")
        if entry.size < 0 or (entry.size and entry.type not in _FILES):
            raise _unsafe(f"{_name(entry.name)} has {entry.size} bytes")
        self._left -= entry.size + _BLOCK
        if self._left < 0:
            raise Refused(
                f"what the guest sent becomes more than {self._limit >> 20} MiB", reason="too-large"
            )
        if self._prefix is None:
            self._prefix = _parts(entry.name)[:1]
        path = self._below(entry.name, entry.name)
        if path in self._types:
            raise _unsafe(f"{_name(entry.name)} is in it twice")
        if path and self._types.get(path[:-1]) != tarfile.DIRTYPE:
            raise _unsafe(f"{_name(entry.name)} is in no directory of it")
        self._types[path] = entry.type
        try:
            self._make(entry, path, content)
        except OSError as error:
            if error.errno in _BY_ITS_NAME:
                raise _unsafe(f"{_name(entry.name)}: {error.strerror}") from None
            raise

    def finish(self) -> None:
        """Give directories their permissions, when nothing is written in them any more."""
        if self._types.get((), tarfile.FIFOTYPE) in _LEFT_OUT:
            raise _unsafe("there is no file, directory or link in it")
        for path, mode in reversed(self._modes):
            os.chmod(path, mode)

    def _below(self, name: str, told: str) -> Path:
        """Return *name* as a path; *told* names in the refusal what it belongs to."""
        assert self._prefix is not None
        path = _parts(name)
        if path[: len(self._prefix)] != self._prefix:
            raise _unsafe(f"{_name(told)} is not below {_name('/'.join(self._prefix))}")
        return path[len(self._prefix) :]

    def _make(self, entry: tarfile.TarInfo, path: Path, content: BinaryIO) -> None:
        place = "/".join((self._top, *path))
        mode = entry.mode & _PERMISSIONS
        if entry.type in _LEFT_OUT:
            self.left_out.append("/".join(_parts(entry.name)))
        elif entry.type == tarfile.DIRTYPE:
            os.mkdir(place, stat.S_IRWXU)
            self._modes.append((place, mode | stat.S_IRWXU))
        elif entry.type == tarfile.SYMTYPE:
            _check_link(entry, path)
            os.symlink(entry.linkname, place)
        elif entry.type == tarfile.LNKTYPE:
            target = self._below(entry.linkname, entry.name)
            if self._types.get(target) not in _FILES:
                raise _unsafe(f"{_name(entry.name)} is a link to no file of it")
            os.link("/".join((self._top, *target)), place)
            self._types[path] = tarfile.REGTYPE
        else:
            _write(content, entry.size, place, mode)


def _parts(name: str) -> Path:
    """Return the components of an entry's *name*.

    Raises:
        Refused: it leads upwards, or no file system would have it.
    """
    parts = _components(name)
    if name.startswith("/") or ".." in parts:
        raise _unsafe(f"{_name(name)} leads out of it")
    if len(parts) > _DEEPEST or any(len(os.fsencode(one)) > _LONGEST_NAME for one in parts):
        raise _unsafe(f"{_name(name)} is too long")
    return parts


def _components(name: str) -> Path:
    return tuple(one for one in name.split("/") if one not in ("", "."))


def _check_link(entry: tarfile.TarInfo, path: Path) -> None:
    """Refuse a link that leads out of what is copied, by itself or together with others.

    The way up may only be at its beginning, where it starts from a directory that is one: behind a
    name, which may be another link's, `..` leads anywhere.
    """
    target = _components(entry.linkname)
    up = next((at for at, one in enumerate(target) if one != ".."), len(target))
    if entry.linkname.startswith("/") or up >= len(path) or ".." in target[up:]:
        raise _unsafe(
            f"{_name(entry.name)} is a link to {_name(entry.linkname)}, which may lead out of it"
        )


def _write(content: BinaryIO, size: int, place: str, mode: int) -> None:
    with open(place, "xb") as file:
        while size > 0:
            chunk = _read(content, min(_padded(size), 1 << 20))
            file.write(chunk[:size])
            size -= len(chunk)
        os.fchmod(file.fileno(), mode)


def _name(name: str) -> str:
    """Return a guest's *name* as it may be told: a terminal is not to obey it."""
    return ascii(name if len(name) <= _NAMED else f"{name[:_NAMED]}...")


def _unsafe(why: str) -> Refused:
    return Refused(f"the archive that the guest sent is refused: {why}", reason="unsafe-archive")
