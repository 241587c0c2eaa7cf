"""What git can take of the trunk: names it refuses, and what only git has.

Pure. Seeding leaves out submodules and files that Fossil cannot hold. They are in every commit
that is applied as they are in the base, so nothing that would take their place is applied.
"""

from __future__ import annotations

import re

from hub import manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SUBMODULE = b"160000"

# Source: git's path.c, is_ntfs_dotgit(), which guards Linux too; read-cache.c, verify_dotfile().
_DOT_GIT = re.compile(rb"(?:^|/)(?:\.git|git~1)[ .]*(?:[:\\/]|$)", re.IGNORECASE)
_DOT_GITMODULES = re.compile(
    rb"(?:^|/)(?:\.gitmodules|gitmod~[1-4])[ .]*(?:[:\\/]|$)", re.IGNORECASE
)


class Kept:
    """What the base has in git and the trunk began without."""

    def __init__(self, modes: Mapping[bytes, bytes]) -> None:
        """Take path → git mode of each."""
        self.modes = dict(modes)
        self._above = {
            path[:end] for path in modes for end in range(len(path)) if path[end : end + 1] == b"/"
        }

    def refusal(self, path: bytes, kind: str) -> str:
        """Return why *path* as *kind* ("": deleted) stays out of git, "" if it goes in."""
        reason = manifest.unfit_name(path)
        if reason is None and _DOT_GIT.search(path):
            reason = "git's own name"
        if reason is None and kind == "link" and _DOT_GITMODULES.search(path):
            reason = "git takes no link of that name"
        if reason is not None:
            return reason
        if path in self._above:
            return "git has a directory there, with what the trunk does not hold"
        if self.modes.get(path) == SUBMODULE:
            return "git has a submodule there"
        end = path.find(b"/")
        while end >= 0:
            if path[:end] in self.modes:
                return "it would be below a submodule or a file that only git has"
            end = path.find(b"/", end + 1)
        return ""
