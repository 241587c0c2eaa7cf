"""Every running hub of this user on this machine, a file each, so that one can be found again.

``$XDG_STATE_HOME/bones/workspaces/<id>.json``. An entry is a hint where to ask, and nothing more:
whether a hub runs is decided at its socket, and nobody is ever signalled for what stands here.
"""

from __future__ import annotations

import os
import stat

from foundation import codec
from foundation.atomic import read_bounded, remove, write_file
from foundation.errors import HubError, Refused
from foundation.process import Identity
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1
_LIMIT = 64 * 1024
_SUFFIX = ".json"
_PATH_LIMIT = 4096  # PATH_MAX of Linux


class Entry(Record):
    """A hub, as it registers itself once it is ready."""

    schema: int
    root: str
    directory: list[int]
    """Device and inode of ``.orchestrator``."""
    hub_id: str
    epoch: int
    identity: Identity
    fossil_url: str
    nats_url: str
    started_at: str
    version: str


class Unreadable(Record):
    """A file in the registry that is no entry of ours."""

    path: str
    reason: str

    @property
    def way_out(self) -> str:
        """The command that removes it."""
        return removal_of(self.path)


def removal_of(path: str) -> str:
    """Return the command with which a person removes *path*."""
    import shlex  # noqa: PLC0415 - only for a message

    return f"rm -r {shlex.quote(path)}"


def directory() -> str:
    """Return where the registry is; it need not exist.

    Source: XDG Base Directory Specification: a relative XDG_STATE_HOME is invalid and ignored.

    Raises:
        Refused: this user has no home directory (``no-home``).
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):
        state = f"{_home()}/.local/state"
    return f"{state.rstrip('/')}/bones/workspaces"


def _home() -> str:
    home = os.environ.get("HOME", "")
    if home.startswith("/"):
        return home.rstrip("/")
    import pwd  # noqa: PLC0415 - only where HOME says nothing

    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        home = ""
    if not home.startswith("/"):
        raise Refused(
            f"uid {os.geteuid()} has no home directory: set HOME or XDG_STATE_HOME",
            reason="no-home",
        )
    return home.rstrip("/")


def path_of(root: str) -> str:
    """Return the file of the hub of workspace *root*."""
    return f"{directory()}/{_id_of(root)}{_SUFFIX}"


def _id_of(root: str) -> str:
    """Return 16 hexadecimal digits that stand for *root*."""
    try:
        from _blake2 import blake2b  # noqa: PLC0415 - hashlib loads OpenSSL, which is megabytes
    except ImportError:
        from hashlib import blake2b  # noqa: PLC0415
    return str(blake2b(os.fsencode(root), digest_size=8).hexdigest())


def entries() -> tuple[list[Entry], list[Unreadable]]:
    """Return all entries by root, and what in the registry is none. Changes nothing.

    Raises:
        Refused: this user has no home directory.
    """
    place = directory()
    try:
        _require_own(place)
        names = sorted(name for name in os.listdir(place) if name.endswith(_SUFFIX))
    except FileNotFoundError:
        return [], []
    except (OSError, HubError) as error:
        return [], [Unreadable(path=place, reason=_words(error))]
    found, unreadable = [], []
    for name in names:
        path = f"{place}/{name}"
        try:
            found.append(read(path))
        except FileNotFoundError:
            continue  # its hub has just ended
        except (OSError, ValueError) as error:
            unreadable.append(Unreadable(path=path, reason=_words(error)))
    return sorted(found, key=lambda entry: entry.root), unreadable


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def read(path: str) -> Entry:
    """Return the entry in the file *path*.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is not an entry, not this user's, or not of the root that it is named for.
    """
    owner = os.lstat(path).st_uid
    if owner != os.geteuid():
        raise ValueError(f"it belongs to uid {owner}")
    entry = _decode(codec.loads_object(read_bounded(path, _LIMIT)))
    if os.path.basename(path) != f"{_id_of(entry.root)}{_SUFFIX}":
        raise ValueError("it is not named for the workspace in it")
    return entry


def _decode(fields: dict[str, Any]) -> Entry:
    """Check every field.

    Raises:
        ValueError: one is not what it should be.
    """
    if fields.get("schema") != SCHEMA:
        raise ValueError(f"schema {fields.get('schema')!r}, not {SCHEMA}")
    if set(fields) != set(Entry.field_names()):
        raise ValueError("it has not the fields of an entry")
    texts = ("root", "hub_id", "fossil_url", "nats_url", "started_at", "version")
    if not all(isinstance(fields[name], str) for name in texts):
        raise ValueError(f"{', '.join(texts)} are texts, and one is not")
    root, numbers = fields["root"], fields["directory"]
    if not root.startswith("/") or "\0" in root or os.path.normpath(root) != root:
        raise ValueError("root is not an absolute path")
    try:
        length = len(os.fsencode(root))
    except UnicodeEncodeError:
        raise ValueError("root is not the name of a file") from None
    if length > _PATH_LIMIT:
        raise ValueError("root is longer than a path can be")
    if not isinstance(numbers, list) or [type(n) for n in numbers] != [int, int]:
        raise ValueError("directory is not a device and an inode")
    if type(fields["epoch"]) is not int or fields["epoch"] < 0:
        raise ValueError("epoch is not a count")
    identity = Identity.from_json(fields["identity"], init=True)
    if identity is None:
        raise ValueError("identity names no process")
    if identity.uid != os.geteuid():
        raise ValueError(f"identity names a process of uid {identity.uid}")
    return Entry(**{**fields, "identity": identity})


def write(entry: Entry) -> None:
    """Put *entry* in the registry, which is made (0700) where it does not exist.

    Not durable: after a reboot no word of it holds.

    Raises:
        Refused: the registry's place is not this user's (``registry-foreign``), or there is none.
        OSError: it cannot be written.
    """
    place = directory()
    _make(place)
    content = codec.dumps(entry.as_dict()).encode() + b"\n"
    write_file(path_of(entry.root), content, durable=False)


def withdraw(entry: Entry) -> bool:
    """Remove what the registry says of *entry*'s very hub; return whether it was there.

    Another hub of the same root keeps its own.

    Raises:
        OSError: it cannot be removed.
    """
    path = path_of(entry.root)
    try:
        if read(path).identity != entry.identity:
            return False
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return remove(path)


def _make(place: str) -> None:
    """Make the directories of *place* that are missing; the last two are ours alone.

    A hub that root runs in a user's home, as with sudo, makes nothing there: the directories
    would be root's, and the user's own hubs could not register any more.
    """
    bones = os.path.dirname(place)
    above = os.path.dirname(bones)
    missing = []
    while not os.path.isdir(above):
        missing.append(above)
        above = os.path.dirname(above)
    owner = os.stat(above).st_uid
    if os.geteuid() == 0 != owner:
        raise Refused(
            f"{above} is uid {owner}'s, and this is root: set HOME or XDG_STATE_HOME to root's own",
            reason="registry-foreign",
        )
    for path in (*reversed(missing), bones, place):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
    for path in (bones, place):
        _require_own(path)
        if os.stat(path).st_mode & 0o077:
            os.chmod(path, 0o700)


def _require_own(path: str) -> None:
    """Refuse a registry that somebody else can write.

    Raises:
        FileNotFoundError: there is none.
        Refused: it is a link, no directory, or another user's.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise Refused(
            f"{path} is not a directory of our own, but a file, a link or another user's: "
            "move it away",
            reason="registry-foreign",
        )
