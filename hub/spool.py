"""The spool: what is too large for a message of the bus, as files of one user on one disk.

A file holds a content on its way to trunk, or a request or an answer (a *parcel*) of which the
message says no more than name and size. Its name is the SHA3-256 of what it holds; it is written
beside under a name that ends in ``.tmp`` and renamed, so it is whole or absent.

===========  ==========================================================================
holds        is removed
===========  ==========================================================================
a content    by trunk, once trunk holds it
a request    by who asked, once it knows what became of it: an answer can get lost
an answer    by who asked, once it is read
===========  ==========================================================================

What somebody who was killed has left there goes when trunk starts and at `hub gc`
(:func:`sweep`): nobody asks for it again, because a commit that waits for its answer is known to
its leaf's memory alone, and ends with that.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import contextmanager

from foundation.atomic import remove, write_all, write_file
from foundation.errors import Refused, Unavailable
from hub import commits
from slotgc import artifact
from slotgc.leaf import LIVE, UNKNOWN, look_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from foundation.errors import HubError
    from foundation.workspace import Workspace
    from hub.commits import Conflict, Landed, Proposal

YOUNG_NS = 600 * 10**9
"""Whoever writes a file, or asks for a commit without being a leaf, is done with it by then."""
SPOOLED_NS = 86_400 * 10**9
"""No commit is asked for any more after so long; if it is, it is refused and made anew."""
_TEMPORARY = ".tmp"
_CHUNK = 1 << 20


def post(spool: str, proposal: Proposal) -> tuple[bytes, str]:
    """Return the message that asks for *proposal*, and its parcel in *spool*, "" if it needs none.

    Again for the same proposal it is the same parcel. :func:`discard` it when the fate of the
    commit is known.

    Raises:
        Refused: it has too many changes (``too-many-changes``).
        Unavailable: it cannot be written (``spool``).
    """
    request = commits.encode(proposal)
    if len(request) <= commits.MESSAGE_BYTES:
        return request, ""
    if len(request) > commits.PARCEL_BYTES:
        raise Refused(
            f"{len(proposal.changes)} changes are too many for one commit: commit them in "
            "parts, a few directories at a time",
            reason="too-many-changes",
        )
    name = _put(spool, request)
    return commits.encode_parcel(proposal, name, len(request)), name


def take_in(spool: str, fd: int, is_needed: Callable[[str], bool]) -> str:
    """Copy what *fd* holds into *spool*; return its name, having kept it if *is_needed* of that.

    Raises:
        OSError: *fd* cannot be read.
        Unavailable: the spool cannot be written (``spool``).
    """
    temporary = f"{spool}/{os.getpid()}-{os.urandom(8).hex()}{_TEMPORARY}"
    with _writing(spool):
        os.makedirs(spool, mode=0o700, exist_ok=True)
        writing = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        try:
            digest = hashlib.sha3_256()
            while chunk := os.read(fd, _CHUNK):
                digest.update(chunk)
                with _writing(spool):
                    write_all(writing, chunk)
        finally:
            os.close(writing)
        name = digest.hexdigest()
        if is_needed(name):
            with _writing(spool):
                os.rename(temporary, f"{spool}/{name}")
            return name
    except BaseException:
        discard(spool, os.path.basename(temporary))
        raise
    discard(spool, os.path.basename(temporary))
    return name


@contextmanager
def _writing(spool: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{spool} cannot be written: {error}", reason="spool") from None


def opened(spool: str, parcel: commits.Parcel) -> Proposal:
    """Return the proposal of which a message said *parcel*.

    Raises:
        Unavailable: it is not in *spool* (``parcel-missing``): whoever asks puts it there again.
        Refused: what is there is another (``protocol``).
    """
    try:
        proposal = commits.decode(_taken(spool, parcel.name, parcel.size))
    except ValueError as error:
        raise Refused(
            f"trunk does not understand this commit: {error}", reason="protocol"
        ) from None
    if (proposal.id, proposal.slot, proposal.epoch) != (parcel.id, parcel.slot, parcel.epoch):
        raise Refused("the spooled commit is another than the message says", reason="protocol")
    return proposal


def post_answer(spool: str, answer: Landed | tuple[Conflict, ...] | HubError) -> bytes:
    """Return the message that tells *answer*; a long one is a parcel, for the asker to remove.

    Raises:
        Unavailable: it cannot be written (``spool``).
    """
    told = commits.encode_answer(answer)
    if len(told) <= commits.MESSAGE_BYTES:
        return told
    return commits.encode_answer_parcel(_put(spool, told), len(told))


def answered(spool: str, message: bytes) -> Landed:
    """Return what :func:`hub.commits.decode_answer` does for *message*, or the parcel it names.

    Raises:
        Unavailable: the parcel is not there (``parcel-missing``): asked again, trunk puts one.
        Conflicted, HubError, ValueError: as there.
    """
    parcel = commits.answer_parcel(message)
    if parcel is None:
        return commits.decode_answer(message)
    told = _taken(spool, *parcel)
    discard(spool, parcel[0])
    return commits.decode_answer(told)


def content(spool: str, name: str) -> bytes | None:
    """Return the content *name*, None if it is not there, or is none that trunk takes.

    It is not compared with its name.
    """
    try:
        return _read(f"{spool}/{name}", commits.LARGEST_BYTES)
    except (OSError, ValueError):
        return None


def discard(spool: str, name: str) -> None:
    """Remove the file *name*, "" for none; what cannot be removed is swept some day."""
    if name:
        try:
            remove(f"{spool}/{name}")
        except OSError:
            pass


def sweep(workspace: Workspace, now_ns: int) -> None:
    """Remove from the spool of *workspace* what nobody can ask for any more.

    A file that was never finished once it is :data:`YOUNG_NS` old; another if it is so, and older
    than every leaf that may be alive (it is of one who is dead), or :data:`SPOOLED_NS` old.
    What is no file is nobody's here, and stays.

    Raises:
        OSError: the spool cannot be made or listed.
    """
    os.makedirs(workspace.spool, mode=0o700, exist_ok=True)
    names = os.listdir(workspace.spool)
    if not names:
        return
    young_ns = now_ns - YOUNG_NS
    old_ns = max(now_ns - SPOOLED_NS, min(young_ns, _first_leaf_ns(workspace)))
    for name in names:
        path = f"{workspace.spool}/{name}"
        try:
            status = os.lstat(path)
            before_ns = young_ns if name.endswith(_TEMPORARY) else old_ns
            if not stat.S_ISDIR(status.st_mode) and status.st_mtime_ns < before_ns:
                remove(path)
        except OSError:
            pass  # gone meanwhile; or it stays, and costs its room


def _first_leaf_ns(workspace: Workspace) -> int:
    """Return since when the oldest leaf lives that may be alive; for ever if none is."""
    born_ns = []
    for leaf in look_all(workspace):
        if leaf.state in (LIVE, UNKNOWN):
            try:
                born_ns.append(os.stat(f"{workspace.swarm}/{leaf.name}/leaf.pid").st_mtime_ns)
            except OSError:
                return 0  # nobody knows
    return min(born_ns, default=1 << 63)


def _put(spool: str, parcel: bytes) -> str:
    """Put *parcel* into the spool; return its name.

    Raises:
        Unavailable: it cannot be written.
    """
    name = artifact.of_bytes(parcel)
    path = f"{spool}/{name}"
    try:
        there = os.lstat(path)
        if stat.S_ISREG(there.st_mode) and there.st_size == len(parcel):
            return name
    except OSError:
        pass
    with _writing(spool):
        os.makedirs(spool, mode=0o700, exist_ok=True)
        write_file(path, parcel, durable=False)
    return name


def _taken(spool: str, name: str, size: int) -> bytes:
    """Return the parcel *name*, which was written by this user and is *size* bytes long.

    Raises:
        Unavailable: it is not there, or is another by now (``parcel-missing``).
    """
    missing = Unavailable(
        f"{spool} does not hold the parcel {name:.16}: ask again", reason="parcel-missing"
    )
    try:
        parcel = _read(f"{spool}/{name}", size)
    except (OSError, ValueError):
        raise missing from None
    if len(parcel) != size or artifact.of_bytes(parcel) != name:
        discard(spool, name)  # its name is a lie, and nobody would write it again
        raise missing
    return parcel


def _read(path: str, limit: int) -> bytes:
    """Return what the file of ours at *path* holds.

    Raises:
        OSError: it cannot be read, is no file (a link, say), or another user's.
        ValueError: it is longer than *limit* bytes, or grows.
    """
    fd = artifact.open_regular(path)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise OSError(f"{path} is another user's")
        if status.st_size > limit:
            raise ValueError(f"{path} is longer than {limit} bytes")
        # In one piece, and no more room taken than it needs: there are tens of thousands.
        found = os.read(fd, status.st_size + 1)
        while len(found) < status.st_size and (more := os.read(fd, status.st_size - len(found))):
            found += more
        if len(found) > status.st_size:
            raise ValueError(f"{path} is being written")
        return found
    finally:
        os.close(fd)
