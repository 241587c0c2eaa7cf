"""What a git that failed means for the user, read off what it said on standard error."""

from __future__ import annotations

import shlex

from foundation.errors import Corrupt, HubError, Refused, ToolFailed
from foundation.spawn import describe_exit
from hub import place


def explain(argv: list[str], status: int, said: str, root: str, scratch: str) -> HubError:
    """Return what a failed git means for the user; *said* is its standard error."""
    lines = [line for line in said.splitlines() if line]
    telling = next(
        (line for line in lines if line.startswith(("fatal:", "error:"))),
        lines[0] if lines else f"it {describe_exit(status)}",
    )
    if "dubious ownership" in said or "is owned by someone else" in said:
        command = next(
            (
                line.strip()
                for line in lines
                if "safe.directory" in line and line.strip().startswith("git config")
            ),
            f"git config --global --add safe.directory {shlex.quote(root)}",
        )
        return Refused(
            f"{root} belongs to another user, so git does not trust it; if you do: `{command}`",
            reason="dubious-ownership",
        )
    if "not a git repository" in said or "must be run in a work tree" in said:
        return Refused(
            f"{root} is not a git work tree ({telling}): `git init` and commit there",
            reason="not-git",
        )
    if "lazy fetching disabled" in said or "promisor remote" in said:
        return partial_clone(root, f"lacks what is needed ({telling})")
    if any(sign in said for sign in _FULL):
        return place.disk_full(scratch)
    if any(sign in said for sign in _DAMAGE):
        return Corrupt(
            f"the git repository of {root} is damaged ({telling}): `git fsck` there",
            reason="repository-corrupt",
        )
    return ToolFailed(argv, status, said, reason="git")


_FULL = ("No space left on device", "Disk quota exceeded", "Out of diskspace")
_DAMAGE = (
    "corrupt",
    "bad object",
    "missing blob",
    "missing tree",
    "not a tree object",
    "unable to read",
    "bad signature",
    "bad tree",
    "index file smaller",
    "inflate:",
    "broken ref",
    "bad index file",
    "hash mismatch",
    "invalid sha1 pointer",
    "No such ref: HEAD",
    "not a symbolic ref",
    "malformed",
    "truncated",
    "unable to find",
)


def partial_clone(root: str, lack: str) -> Refused:
    """Return the error for a clone that *lack*s what seeding needs."""
    return Refused(
        f"{root} is a partial clone and {lack}; seeding does not use the network: `git fetch "
        "--refetch --no-filter` first",
        reason="partial-clone",
    )
