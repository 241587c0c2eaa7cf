"""The way of a dead slot's directory out of ``.bones/swarm``: one rename a step.

Everything happens in ``.bones/rescue``, and a directory's name is its state, so a pass that is
killed leaves nothing that the next one could misread:

=====================  ==============================  ===================================
name                   means                           next
=====================  ==============================  ===================================
``.judging-S-UTC``     taken away as clean             judged once more, where nobody who
                                                       knew it by its path can write
``.removing-S-UTC``    judged clean there              removed, whatever is left of it
``S-UTC``              a rescue                        finished if it is not, and kept
=====================  ==============================  ===================================

Whoever works on one of them holds a flock on the directory itself (:func:`claim`). New names are
given under swarm.lock alone, so no two directories ever want the same.
"""

from __future__ import annotations

import fcntl
import os
import stat

from foundation.clock import utc_now
from foundation.errors import Refused
from slotgc.leaf import is_own_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

JUDGING = ".judging-"
REMOVING = ".removing-"

_STAMP = "00000000T000000Z"


def make_place(workspace: Workspace) -> None:
    """Make ``.bones/rescue``, or make sure that it is ours; git does not see it.

    Raises:
        Refused: it is a link, a file or another user's (``state-foreign``).
        OSError: it cannot be made.
    """
    try:
        os.mkdir(workspace.rescue, 0o700)
    except FileExistsError:
        if not is_place(workspace):
            raise Refused(
                f"{workspace.rescue} is not a directory of our own: move it away",
                reason="state-foreign",
            ) from None
        if stat.S_IMODE(os.lstat(workspace.rescue).st_mode) != stat.S_IRWXU:
            os.chmod(workspace.rescue, stat.S_IRWXU)
    if os.path.lexists(f"{workspace.root}/.git"):
        workspace.hide_from_git()


def is_place(workspace: Workspace) -> bool:
    """Tell whether ``.bones/rescue`` is there and ours: nothing is changed by way of a link."""
    return is_own_directory(workspace.bones) and is_own_directory(workspace.rescue)


def new_name(workspace: Workspace, slot: str) -> str:
    """Return the name that *slot* gets as a rescue made now; the caller holds swarm.lock.

    Who has one of the names may step on meanwhile, so they are asked for in the order of the
    steps: a listing of the directory may show it under neither name.
    """
    now = utc_now()
    first = name = f"{slot}-{now[:19].replace('-', '').replace(':', '')}Z"
    number = 1
    while any(
        os.path.lexists(f"{workspace.rescue}/{step}{name}") for step in (JUDGING, REMOVING, "")
    ):
        number += 1
        name = f"{first}-{number}"
    return name


def parse_name(name: str) -> tuple[str, str]:
    """Return slot and moment of the directory *name*: ``a-20261121T053000Z-2`` gives
    ``("a", "2026-11-21T05:30:00Z")``; ``(name, "")`` if it is none of ours.
    """  # noqa: D205 - the example is the summary
    plain = name.removeprefix(JUDGING).removeprefix(REMOVING)
    slot, _dash, stamp = plain.rpartition("-")
    if stamp.isdigit():
        slot, _dash, stamp = slot.rpartition("-")
    shape = "".join("0" if c.isascii() and c.isdigit() else c for c in stamp)
    if not slot or shape != _STAMP:
        return name, ""
    day, _t, hour = stamp.rstrip("Z").partition("T")
    return slot, f"{day[:4]}-{day[4:6]}-{day[6:]}T{hour[:2]}:{hour[2:4]}:{hour[4:]}Z"


def claim(path: str) -> int | None:
    """Return a descriptor that holds the directory *path* alone.

    None if another works on it, or it has another name by now.

    Raises:
        OSError: it is no directory, or cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def step(workspace: Workspace, name: str, new: str) -> None:
    """Rename *name* in ``.bones/rescue``; the caller has claimed it.

    Raises:
        OSError: it cannot be renamed.
    """
    os.rename(f"{workspace.rescue}/{name}", f"{workspace.rescue}/{new}")
