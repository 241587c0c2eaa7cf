"""Whether this Fossil does with a push what the writer counts on, tried on a scratch repository.

Tried once for every binary: by trunk, before it takes the first commit, since the binary may change
under a repository that an older one has seeded. No version number promises that a delta check-in
with a commit id lands where it is told to, nor that the guard keeps a fork out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time

from foundation import codec
from foundation.atomic import read_bounded, write_file
from foundation.errors import HubError, Refused
from hub import fossil, manifest
from hub.fossil_repo import RepositoryFile
from hub.trunk import estimates, guard
from hub.trunk.ledger import Ledger, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace
    from hub.manifest import Checkin
    from hub.trunk.writer import Log

VERSION = 1
_ID = "0123456789abcdef0123456789abcdef"


def ensure(workspace: Workspace, log: Log) -> None:
    """Try the Fossil of *workspace* if it was not tried before; set the guard and the estimates.

    A guard that does not work is logged (``no-guard``): then only looking keeps trunk one line.

    Raises:
        Refused: it does not do what commits need (``fossil-unsupported``), or there is none.
        HubError, OSError, sqlite3.Error: it cannot be tried, or the guard not be set.
    """
    if not _guards(workspace):
        log("error", "no-guard", fossil=fossil.find())
    db = connect(workspace.repository)
    try:
        guard.install(db)
        estimates.install(db)
    finally:
        db.close()


def _guards(workspace: Workspace) -> bool:
    """Return whether the guard works; the rest does, or it would have been refused."""
    binary = fossil.find()
    status = os.stat(binary)
    stamp = [VERSION, binary, status.st_size, status.st_mtime_ns, status.st_ino]
    path = f"{workspace.journal}/contract.json"
    try:
        known = codec.loads_object(read_bounded(path, 65_536))
        if known.get("stamp") == stamp and isinstance(known.get("guard"), bool):
            return bool(known["guard"])
    except (OSError, ValueError):
        pass
    scratch = f"{workspace.journal}/contract"
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch, 0o700)
    try:
        works = attempt(binary, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_file(path, codec.dumps({"stamp": stamp, "guard": works}).encode() + b"\n", durable=False)
    return works


def attempt(binary: str, scratch: str) -> bool:
    """Try the fossil *binary* in the empty directory *scratch*; return whether the guard works.

    Raises:
        Refused: a delta check-in does not land as it must (``fossil-unsupported``).
        HubError, OSError, sqlite3.Error: it could not be tried.
    """
    path = f"{scratch}/scratch.fossil"
    with RepositoryFile.create(binary, path, scratch) as making:
        RepositoryFile.created(making, path)
    content = b"content\n"
    with RepositoryFile(path) as file:
        file.add([manifest.pack(content)])
        project_code = file.project_code
        file.close()
    at_ms = time.time_ns() // 1_000_000
    root = manifest.checkin(
        files=[], comment="root", date=manifest.date_of(at_ms), user="hub", parent=None
    )
    child, rival = (
        manifest.delta_checkin(
            baseline=root.hash,
            cards=[manifest.file_card(b"a file", "file", hashlib.sha3_256(content).hexdigest())],
            comment=comment,
            date=manifest.date_of(at_ms + 1),
            user="hub",
            parent=root.hash,
            commit_id=_ID,
        )
        for comment in ("child", "rival")
    )

    def push(checkin: Checkin) -> None:
        RepositoryFile.store(binary, path, [checkin], project_code, scratch)

    push(root)
    db = connect(path)
    guard.install(db)
    db.close()
    push(child)
    try:
        push(rival)
    except HubError:
        pass  # whatever it says: what counts is what it stored
    with Ledger(path) as ledger:
        landed = (
            child.hash in ledger.position(root.hash).children
            and ledger.position(child.hash).on_trunk
            and ledger.id_of(child.hash) == _ID
        )
        if not landed:
            raise Refused(
                f"{binary} does not take commits as fossil 2.21 does: name another one in "
                f"{fossil.VARIABLE}",
                reason="fossil-unsupported",
            )
        return ledger.position(root.hash).children == (child.hash,)
