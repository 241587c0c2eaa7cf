"""Archives of what is copied into and out of a guest. What comes out of one is not trusted.

The rules of a copy are the same on both sides. It has exactly the path that is asked for, with its
parents made if need be. A file replaces a file or a link, a directory goes into one that is there,
name by name; neither replaces the other. All is written beside at first, and moved when it is
whole. Permissions and links are kept, but the one that is named itself is followed; owners, times
and set-user-ID bits are not.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile

from foundation.errors import Refused
from orchestrator import extracting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

_PERMISSIONS = 0o777
_ENDS = 2 * tarfile.RECORDSIZE
"""Room for an entry's header, and for the archive's end."""
_SPECIAL = (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)


def pack(local: str, archive: BinaryIO, *, limit: int | None = None) -> list[str]:
    """Write the file or directory *local* into *archive*, under its own name.

    If it is a link, where that leads; links below it are kept. Returns the paths of what was left
    out: sockets, pipes, devices.

    Raises:
        OSError: something cannot be read.
        Refused: *local* itself is such a thing (``no-file``); the archive would be larger than
            *limit* bytes (``too-large``).
    """
    left_out: list[str] = []
    top = os.path.realpath(local) if os.path.islink(local) else local
    waiting = [(top, os.path.basename(os.path.abspath(local)) or "top")]
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        while waiting:
            path, told = waiting.pop()
            entry = tar.gettarinfo(path, told)
            # None for a socket, whatever the stubs say.
            if entry is None or entry.type in _SPECIAL:
                left_out.append(path)
                continue
            if limit is not None and tar.offset + entry.size + _ENDS > limit:
                raise Refused(
                    f"{local} is more than {limit >> 20} MiB, which is the most that is copied at "
                    "once: copy its parts",
                    reason="too-large",
                )
            _add(tar, _unowned(entry), path)
            if entry.isdir():
                within = sorted(os.listdir(path), reverse=True)
                waiting += [(os.path.join(path, one), f"{told}/{one}") for one in within]
    if left_out == [top]:
        raise Refused(f"{local} is neither file nor directory", reason="no-file")
    return left_out


def _unowned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode &= _PERMISSIONS
    return entry


def _add(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> None:
    if not entry.isreg():
        tar.addfile(entry)
        return
    with open(path, "rb") as file:
        tar.addfile(entry, file)


def unpack(archive: BinaryIO, local: str, *, limit: int = extracting.LIMIT) -> list[str]:
    """Make *local* of the one file or directory in *archive*, as a guest sent it.

    Returns what was left out: the archive's names for pipes and devices.

    Raises:
        Refused: it would write elsewhere, now or through a link later, or is no such archive
            (``unsafe-archive``); it becomes more than *limit* bytes (``too-large``); something
            else is in its place (``in-the-way``). Nothing has been written.
        OSError: *local* cannot be written.
    """
    try:
        return _unpack(archive, local, limit)
    except OSError as error:
        raise OSError(error.errno, error.strerror, local) from None


def _unpack(archive: BinaryIO, local: str, limit: int) -> list[str]:
    if not _is_directory(local):
        local = local.rstrip("/")
    new = tempfile.mkdtemp(prefix=".copy-", dir=_near(local))
    try:
        left_out = extracting.extract(archive, f"{new}/top", limit)
        _check_place(f"{new}/top", local)
        os.makedirs(os.path.dirname(local) or ".", exist_ok=True)
        _move(f"{new}/top", local)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return left_out


def _near(local: str) -> str:
    """Return a directory on the file system to which *local* belongs, or will."""
    if _is_directory(local):
        return local
    place = os.path.dirname(local) or "."
    while not os.path.lexists(place):
        place = os.path.dirname(place) or "."
    return place


def _check_place(new: str, local: str) -> None:
    """Refuse to have *new* at *local* if a directory is in the place of something else."""
    if not os.path.lexists(local):
        return
    is_directory = _is_directory(new)
    if is_directory != _is_directory(local):
        there, copied = "no directory", "a directory"
        if not is_directory:
            there, copied = copied, there
        raise Refused(f"{local} is {there}, what is copied is {copied}", reason="in-the-way")
    if is_directory:
        for name in os.listdir(new):
            _check_place(f"{new}/{name}", os.path.join(local, name))


def _move(new: str, local: str) -> None:
    if _is_directory(new) and _is_directory(local):
        for name in os.listdir(new):
            _move(f"{new}/{name}", os.path.join(local, name))
    else:
        os.rename(new, local)


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
