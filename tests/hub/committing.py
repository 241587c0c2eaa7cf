"""A real Fossil server with a writer in this process, and commits as a slot would ask for them."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from foundation.workspace import Workspace
from hub import fossil
from hub.commits import Change, Landed, Proposal, new_id
from hub.repository import Repository
from hub.trunk import guard
from hub.trunk.writer import Reports, Writer
from tests.hub.gitrepo import FOSSIL
from tests.support import accepts, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hub.trunk.head import Arrival


def name_of(content: bytes) -> str:
    return hashlib.sha3_256(content).hexdigest()


class FossilServer:
    """The Fossil server of a seeded workspace, on a port of its own that outlives a kill."""

    def __init__(self, root: Path, *, guarded: bool = True) -> None:
        self.workspace = Workspace(str(root))
        self.port = free_port()
        Path(self.workspace.fossil_url).write_text(f"http://127.0.0.1:{self.port}\n")
        if guarded:
            db = sqlite3.connect(self.workspace.repository, isolation_level=None)
            guard.install(db)
            db.close()

    def start(self) -> Self:
        with open(f"{self.workspace.logs}/fossil.log", "ab") as log:
            self.process = subprocess.Popen(
                fossil.server_argv(FOSSIL, self.workspace, self.port),
                env=fossil.environment(self.workspace.state),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(lambda: accepts(self.port))
        return self

    def freeze(self) -> None:
        """Have it take what is sent and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it with its requests in flight; each of them holds the port until it is gone."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        eventually(lambda: not accepts(self.port))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_raised: object) -> None:
        self.kill()


class RunningWriter:
    """A writer in a thread of its own, with all that it reports."""

    def __init__(self, workspace: Workspace, **options: Any) -> None:
        self.logged: list[dict[str, Any]] = []
        self.arrivals: list[Arrival] = []
        self.forks: list[list[str]] = []
        self.opened = threading.Event()
        self._changed = threading.Condition()
        self._answers: dict[object, Any] = {}
        self.writer = Writer(
            workspace,
            Reports(
                log=self._log,
                opened=self.opened.set,
                answered=self._answered,
                arrived=self.arrivals.extend,
                forked=lambda leaves: self.forks.append(list(leaves)),
            ),
            **options,
        )
        self._thread = threading.Thread(target=self.writer.run)

    def _log(self, level: str, event: str, **fields: Any) -> None:
        self.logged.append({"level": level, "event": event, **fields})

    def _answered(self, answers: Sequence[tuple[Any, Any]]) -> None:
        with self._changed:
            for asked, outcome in answers:
                assert asked.ticket not in self._answers, "answered twice"
                self._answers[asked.ticket] = outcome
            self._changed.notify_all()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.logged if line["event"] == name]

    def ask(self, proposal: Proposal) -> Callable[[], Any]:
        """Ask for *proposal*; what is returned waits for the answer."""
        ticket = object()
        self.writer.submit(proposal, ticket)

        def answer(within_s: float = 20.0) -> Any:
            with self._changed:
                assert self._changed.wait_for(lambda: ticket in self._answers, within_s), (
                    self.logged
                )
                return self._answers[ticket]

        return answer

    def commit(self, proposal: Proposal) -> Any:
        return self.ask(proposal)()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.opened.wait(20), self.logged
        return self

    def __exit__(self, *_raised: object) -> None:
        self.writer.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


def propose(
    changes: Mapping[str, bytes | None],
    *,
    base: Mapping[str, bytes] | None = None,
    slot: str = "a",
    message: str = "a change",
    commit_id: str = "",
    epoch: int = 1,
) -> Proposal:
    """Return a commit of *changes*, path → new content, None: deleted, over *base*."""
    rows, contents = [], {}
    for path, content in changes.items():
        before = (base or {}).get(path)
        if content is not None:
            contents[name_of(content)] = content
        rows.append(
            Change(
                path=path.encode(),
                kind="" if content is None else "file",
                hash="" if content is None else name_of(content),
                base_kind="" if before is None else "file",
                base_hash="" if before is None else name_of(before),
            )
        )
    return Proposal(
        id=commit_id or new_id(),
        slot=slot,
        epoch=epoch,
        base="",
        message=message,
        changes=tuple(rows),
        contents=contents,
    )


def files(workspace: Workspace, checkin: str = "tip") -> dict[str, bytes]:
    """Return the files of *checkin*."""
    with Repository(workspace.repository) as repository:
        tree = repository.files(repository.checkin(checkin).hash)
        return {path.decode(): repository.content(entry.hash) for path, entry in tree.items()}


def assert_sound(workspace: Workspace, landed: Sequence[Landed], *, others: int = 0) -> None:
    """Every one of *landed* is on trunk once, which is one line of them, the root and *others*."""
    with Repository(workspace.repository) as repository:
        line = [row.hash for row in repository.line()]
        assert len(line) == len(set(line))
        wanted = {one.checkin for one in landed}
        assert wanted <= set(line)
        assert len(line) == 1 + len(wanted) + others
        assert len(repository.leaves()) == 1
        assert repository.forks() == 0
        ids = repository.recent_ids(100_000)
        assert len(set(ids.values())) == len(ids)
    done = subprocess.run(
        [FOSSIL, "test-integrity", "-R", workspace.repository],
        env=fossil.environment(workspace.state),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 errors" in done.stdout, done.stdout
