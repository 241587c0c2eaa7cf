"""Where a workspace's hub is: ``hub.json``, the URL files and the pid files.

What stands in these files is a claim. Whether a hub runs is decided by connecting to this
directory's ``hub.sock`` (:mod:`hub.status`): a copied workspace copies the claims too.
"""

from __future__ import annotations

import os

from foundation import codec
from foundation.atomic import read_bounded, write_file
from foundation.process import Identity
from foundation.record import Record
from hub import ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from foundation.workspace import Workspace

SCHEMA = 1
_LIMIT = 64 * 1024
SERVERS = ("nats", "fossil")  # in the order of starting: the slower first


class Discovery(Record):
    """The content of ``hub.json``: written whole once both servers answer, kept over a stop."""

    schema: int
    protocol: int
    hub_id: str
    epoch: int
    root: str
    directory: list[int]
    """Device and inode of ``.orchestrator``: a copy has others."""
    identity: Identity
    children: dict[str, Identity]
    fossil_url: str
    nats_url: str
    started_at: str
    versions: dict[str, str]
    tools: dict[str, list[Any]]
    """By server, what its version was read off: path, size, mtime in ns, inode."""

    def is_of(self, workspace: Workspace) -> bool:
        """Tell whether this was written in the very directory of *workspace*, not in one copied.

        Raises:
            OSError: there is no ``.orchestrator`` to compare with.
        """
        here = os.stat(workspace.state)
        return self.directory == [here.st_dev, here.st_ino]

    def write(self, workspace: Workspace) -> None:
        """Put this in ``hub.json``. Not durable: after a reboot no word of it holds."""
        content = codec.dumps(self.as_dict()).encode() + b"\n"
        write_file(workspace.discovery, content, durable=False)


def read(workspace: Workspace) -> Discovery | None:
    """Return what ``hub.json`` says, None if it is missing, torn or of another schema."""
    try:
        fields = codec.loads_object(read_bounded(workspace.discovery, _LIMIT))
    except (OSError, ValueError):
        return None
    if set(fields) != set(Discovery.field_names()) or fields["schema"] != SCHEMA:
        return None
    identity = Identity.from_json(fields["identity"], init=True)
    children = fields["children"]
    if identity is None or not isinstance(children, dict):
        return None
    known = {name: Identity.from_json(value) for name, value in children.items()}
    texts = (
        fields["hub_id"],
        fields["root"],
        fields["fossil_url"],
        fields["nats_url"],
        fields["started_at"],
    )
    if type(fields["epoch"]) is not int or not all(isinstance(text, str) for text in texts):
        return None
    if not isinstance(fields["versions"], dict) or not isinstance(fields["tools"], dict):
        return None
    return Discovery(
        **{
            **fields,
            "identity": identity,
            "children": {name: who for name, who in known.items() if who is not None},
        }
    )


def recorded_port(path: str) -> int | None:
    """Return the port in the URL file *path*, None if there is no sound one."""
    try:
        text = read_bounded(path, 256).decode("ascii")
    except (OSError, ValueError):
        return None
    return ports.parse(text.strip().rstrip("/").rpartition(":")[2])


def write_urls(workspace: Workspace, fossil_url: str, nats_url: str) -> None:
    """Record both URLs in plain text; they outlive a stop, so that the ports do too."""
    for path, url in ((workspace.fossil_url, fossil_url), (workspace.nats_url, nats_url)):
        write_file(path, f"{url}\n".encode(), durable=False)


def write_pid(workspace: Workspace, name: str, pid: int) -> None:
    """Name a process in ``pids/NAME.pid``: plain digits and a newline, for people and tools."""
    write_file(f"{workspace.pids}/{name}.pid", f"{pid}\n".encode(), durable=False)


def remove_pids(workspace: Workspace) -> bool:
    """Remove every pid file; return whether there were any.

    Only the supervisor does it, or whoever holds ``hub.lock``. If there were any when a hub
    begins, its predecessor was killed.
    """
    try:
        directory = os.open(workspace.pids, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):  # not there, or a link to elsewhere
        return False
    try:
        names = [name for name in os.listdir(directory) if name.endswith((".pid", ".tmp"))]
        for name in names:
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue  # somebody tidies up, too
    finally:
        os.close(directory)
    return bool(names)
