"""``.orchestrator/applied.json``: what apply has put on which branch.

It is written before a branch moves, so the branch is where the record says, or where it says that
it was before. A branch that is anywhere else was moved by somebody else: the trailer in its commits
could not tell that, it survives an amend and a rebase.

One JSON object::

    {"schema": 1,
     "root": check-in that the trunk begins with,
     "base": git commit that this is the tree of, "" if it was made before the first commit,
     "kept": [[PATH, MODE], …],
     "branches": {NAME: {"commit": …, "checkin": …, "former_commit": …, "former_checkin": …}}}

``kept`` is what the base has in git and the trunk began without; a character of PATH stands for the
byte of that number, for these are the names that are fit for nothing else.
"""

from __future__ import annotations

from foundation import codec
from foundation.atomic import read_bounded, write_file
from foundation.errors import Corrupt, HubError
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from foundation.workspace import Workspace
    from hub.repository import CheckinRow, Repository

SCHEMA = 1
_LIMIT_BYTES = 64 << 20


class Step(Record):
    """The last that was applied to a branch: from the former commit to this one.

    The former ones are "" if there was no branch. They are the present ones once it has moved.
    """

    commit: str
    checkin: str
    former_commit: str
    former_checkin: str

    def checkin_at(self, commit: str) -> str | None:
        """Return the check-in up to which a branch at *commit* holds trunk, None: unknown."""
        known = {self.former_commit: self.former_checkin, self.commit: self.checkin}
        return known.get(commit)

    def settled(self) -> Step:
        """Return the same after the branch has moved."""
        return self.replace(former_commit=self.commit, former_checkin=self.checkin)


class Account(Record):
    """The whole record, of the trunk that begins with ``root``."""

    root: str
    base: str
    kept: dict[bytes, bytes]
    branches: dict[str, Step]


def read(workspace: Workspace) -> Account | None:
    """Return the record of *workspace*, None if nothing was ever applied.

    Raises:
        Corrupt: it is damaged.
        HubError: it cannot be read.
    """
    path = _path(workspace)
    try:
        fields = codec.loads_object(read_bounded(path, _LIMIT_BYTES))
        if fields["schema"] != SCHEMA:
            raise ValueError(f"schema {fields['schema']!r:.20}")
        return Account(
            root=str(fields["root"]),
            base=str(fields["base"]),
            kept={path.encode("latin-1"): mode.encode() for path, mode in fields["kept"]},
            branches={name: _step(step) for name, step in fields["branches"].items()},
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}", reason="system") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(
            f"{path} is damaged ({error}); without it nobody knows what was applied: remove it, "
            "and name a new branch with --branch",
            reason="applied-corrupt",
        ) from None


def write(workspace: Workspace, applied: Account, *, durable: bool = True) -> None:
    """Replace the record of *workspace*; with *durable* the new one survives a power cut.

    Raises:
        OSError: it cannot be written.
    """
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        **applied.as_dict(),
        "kept": [[path.decode("latin-1"), mode.decode()] for path, mode in applied.kept.items()],
    }
    write_file(_path(workspace), codec.dumps(fields).encode(), durable=durable)


def never_applied(workspace: Workspace, repository: Repository) -> list[CheckinRow]:
    """Return the check-ins on trunk, the oldest first, that were never applied to any branch.

    Whatever has become of the branch since. The root is not among them: it is git's already.

    Raises:
        HubError: that cannot be known.
    """
    root = repository.root().hash
    rows = repository.line(after=root)
    applied = read(workspace)
    if applied is not None and applied.root == root:
        done = {step.former_checkin for step in applied.branches.values()}
        for at in range(len(rows), 0, -1):
            if rows[at - 1].hash in done:
                return rows[at:]
    return rows


def _path(workspace: Workspace) -> str:
    return f"{workspace.state}/applied.json"


def _step(fields: Any) -> Step:
    return Step(**{name: str(fields[name]) for name in Step.field_names()})
