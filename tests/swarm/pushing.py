"""Many check-ins at once on a trunk, as its writer makes them: delta manifests, one request."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from hub import fossil, manifest
from hub.manifest_reading import EXEC, FILE, LINK
from hub.repository import Entry, Repository
from slotgc import artifact
from tests.slotgc.worktrees import Node
from tests.swarm.stock import FOSSIL

if TYPE_CHECKING:
    from collections.abc import Mapping

START_MS = 1_900_000_000_000


class Pusher:
    """Check-ins on the tip of the trunk at *repository*, gathered and then pushed."""

    def __init__(self, repository: Path | str) -> None:
        """Look at the tip; it must have a full manifest."""
        self.repository = str(repository)
        with Repository(self.repository) as trunk:
            tip = trunk.tip()
            self.baseline = trunk.manifest(tip.hash).baseline or tip.hash
            self._common = trunk.files(self.baseline)
            self.files = trunk.files(tip.hash)
            self.tip = tip.hash
        self.hashes: list[str] = []
        self._cards: list[bytes] = []
        self._at_ms = START_MS

    def add(
        self, edits: Mapping[bytes, Node | None], message: str = "a change", user: str = "auth"
    ) -> str:
        """Add a check-in that makes *edits* (None deletes); return its hash."""
        for path, node in edits.items():
            if node is None:
                del self.files[path]
                continue
            name = artifact.of_bytes(node.content)
            kind = LINK if node.mode == 0 else EXEC if node.mode & 0o100 else FILE
            self.files[path] = Entry(kind, name)
            self._card(name, node.content)
        told = sorted(
            path
            for path in {*self._common, *self.files}
            if self._common.get(path) != self.files.get(path)
        )
        self._at_ms += 1000
        made = manifest.delta_checkin(
            baseline=self.baseline,
            cards=[manifest.file_card(path, *self.files.get(path, ("", ""))) for path in told],
            comment=message,
            date=manifest.date_of(self._at_ms),
            user=user,
            parent=self.tip,
        )
        self._card(made.hash, made.manifest)
        self.tip = made.hash
        self.hashes.append(made.hash)
        return made.hash

    def push(self) -> None:
        """Have stock Fossil receive all that was added, and see that it is the tip."""
        with sqlite3.connect(self.repository) as database:
            code = database.execute(
                "SELECT value FROM config WHERE name='project-code'"
            ).fetchone()[0]
        database.close()
        body = b"push %s %s\n%s" % (b"0" * 40, code.encode(), b"".join(self._cards))
        request = (
            b"POST /xfer HTTP/1.0\r\nHost: localhost\r\n"
            b"Content-Type: application/x-fossil-uncompressed\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        home = os.path.dirname(self.repository)
        done = subprocess.run(
            [FOSSIL, "test-http", self.repository],
            input=request,
            capture_output=True,
            check=True,
            env=fossil.environment(home),
        )
        assert b"\nerror " not in done.stdout, done.stdout
        self._cards.clear()
        with Repository(self.repository) as trunk:
            assert trunk.tip().hash == self.tip

    def _card(self, name: str, content: bytes) -> None:
        self._cards.append(b"file %s %d\n%s" % (name.encode(), len(content), content))
