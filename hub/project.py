"""``bones.toml``: what a project asks of its trunk.

At the root of the workspace, written by people: the file of the workspace counts, never one that a
slot commits. ::

    [trunk]
    verify = "make test"       # must end with status 0 on a commit's tree, or it does not land
    verify_timeout_s = 600     # seconds
"""

from __future__ import annotations

import math
import os
import stat
import time
import tomllib

from foundation.errors import Refused
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Stamp = tuple[int, ...]
    """What the file system says of a file; it differs whenever the file does."""

NAME = "bones.toml"
LIMIT_BYTES = 1 << 20
LONGEST_S = 86_400.0
_YOUNG_NS = 1_000_000_000  # changed once more in the same tick, a file would look the same
_KEYS = ("verify", "verify_timeout_s")


class Project(Record):
    """What a project asks for."""

    verify: str = ""
    """A shell command that a commit's tree must pass; "": none."""
    verify_timeout_s: float = 600.0


class ProjectFile:
    """The file of one workspace, read again whenever it has changed."""

    def __init__(self, root: str) -> None:
        """Name the workspace whose work tree is *root*; nothing is read."""
        self._path = f"{root.rstrip('/')}/{NAME}"
        self._stamp: Stamp | None = None
        self._known: Project | Refused = Project()

    def read(self) -> Project:
        """Return what the file asks for; nothing if there is none.

        Raises:
            Refused: it cannot be read, or what it says makes no sense (``project-file``).
        """
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._stamp = None
            return Project()
        except OSError as error:
            self._refuse(f"it cannot be read: {error.strerror}")
        stamp = (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_mode,
        )
        if stamp != self._stamp:
            try:
                self._known = self._parse(self._content())
            except Refused as fault:
                self._known = fault
            young = time.time_ns() - status.st_ctime_ns < _YOUNG_NS
            self._stamp = None if young else stamp
        if isinstance(self._known, Refused):
            raise Refused(str(self._known), reason=self._known.reason)
        return self._known

    def _content(self) -> bytes:
        try:
            # A link may lead to a file that projects share. A pipe must not make us wait.
            fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    self._refuse("it is not a regular file")
                content = file.read(LIMIT_BYTES + 1)
        except OSError as error:
            self._refuse(f"it cannot be read: {error.strerror}")
        if len(content) > LIMIT_BYTES:
            self._refuse(f"it is longer than {LIMIT_BYTES >> 20} MiB")
        return content

    def _parse(self, content: bytes) -> Project:
        try:
            value = tomllib.loads(content.decode())
        except UnicodeDecodeError:
            self._refuse("it is not UTF-8")
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            self._refuse(f"it is not TOML: {error}")
        trunk = value.get("trunk", {})
        if not isinstance(trunk, dict):
            self._refuse("trunk must be a table: [trunk]")
        for key in trunk:
            if key not in _KEYS:
                self._refuse(f"trunk.{key} is unknown: [trunk] takes {' and '.join(_KEYS)}")
        project = Project(**trunk)
        self._check(project.verify, project.verify_timeout_s, given=trunk)
        return project.replace(verify_timeout_s=float(project.verify_timeout_s))

    def _check(self, verify: object, timeout_s: Any, *, given: dict[str, Any]) -> None:
        if not isinstance(verify, str) or "\0" in verify:
            self._refuse(f'trunk.verify must be a command, as in "make test", not {verify!r:.40}')
        if "verify" in given and not verify.strip():
            self._refuse("trunk.verify is empty: remove the line to let every commit land")
        is_number = type(timeout_s) in (int, float) and math.isfinite(timeout_s)
        if not is_number or not 0 < timeout_s <= LONGEST_S:
            self._refuse(
                "trunk.verify_timeout_s must be a number of seconds, more than 0 and at most "
                f"{LONGEST_S:.0f}, not {timeout_s!r:.40}"
            )

    def _refuse(self, fault: str) -> NoReturn:
        raise Refused(
            f"{self._path}: {fault}. No commit lands until it is corrected or removed",
            reason="project-file",
        )
