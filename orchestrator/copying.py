"""Archives of what is copied into and out of a guest. What comes out of one is not trusted."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile

from foundation.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


def pack(local: str, name: str, archive: BinaryIO) -> None:
    """Write the file or directory *local* into *archive* as *name*, without its owners.

    Raises:
        OSError: it cannot be read.
    """
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(local, arcname=name, filter=_unowned)


def _unowned(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
        return None  # a socket, a pipe, a device
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def unpack(archive: BinaryIO, local: str) -> None:
    """Make *local* of the one file or directory in *archive*; it is there whole or not at all.

    A file that is there is replaced; a directory is not.

    Raises:
        Refused: the archive would write elsewhere, or holds no single thing (``unsafe-archive``).
        OSError: *local* cannot be written.
    """
    local = local.rstrip("/") or "/"
    new = tempfile.mkdtemp(prefix=".copy-", dir=os.path.dirname(local) or ".")
    try:
        try:
            with tarfile.open(fileobj=archive, mode="r:") as tar:
                _extract(tar, new)
        except tarfile.TarError as error:
            raise _unsafe(str(error)) from None
        found = os.listdir(new)
        if len(found) != 1:
            raise _unsafe(f"it holds {len(found)} things, not one")
        os.rename(f"{new}/{found[0]}", local)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _extract(tar: tarfile.TarFile, top: str) -> None:
    """Extract files and directories, then links: so nothing is ever written through one.

    Not tarfile's own filter, which Python 3.11 has only from 3.11.4 on.
    """
    links: list[tuple[str, str]] = []
    modes: list[tuple[str, int]] = []
    for entry in tar:
        name = _inside(entry.name, entry.name)
        path = os.path.join(top, name)
        if entry.isdir():
            os.makedirs(path, exist_ok=True)
            modes.append((path, entry.mode & 0o777 | 0o700))
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if entry.issym():
            if entry.linkname.startswith("/"):
                raise _unsafe(f"{entry.name} is a link to {entry.linkname}")
            _inside(os.path.join(os.path.dirname(name), entry.linkname), entry.name)
            links.append((path, entry.linkname))
        elif entry.isreg():
            _write(tar, entry, path)
        elif entry.islnk():
            os.link(os.path.join(top, _inside(entry.linkname, entry.name)), path)
        else:
            raise _unsafe(f"{entry.name} is no file, directory or link")
    for path, target in links:
        os.symlink(target, path)
    for path, mode in reversed(modes):
        os.chmod(path, mode)


def _inside(name: str, told: str) -> str:
    """Return *name* normalized if it is below the top; *told* names it in the refusal."""
    normal = os.path.normpath(name)
    if normal.startswith(("/", "../")) or normal in ("..", ".") or "\0" in normal:
        raise _unsafe(f"{told} leads out of it")
    return normal


def _write(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> None:
    content = tar.extractfile(entry)
    assert content is not None
    with content, open(path, "xb") as file:
        shutil.copyfileobj(content, file)
        os.fchmod(file.fileno(), entry.mode & 0o777)


def _unsafe(why: str) -> Refused:
    return Refused(f"the archive that the guest sent is refused: {why}", reason="unsafe-archive")
