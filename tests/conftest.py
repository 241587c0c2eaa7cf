"""What every test gets: a mark, a home of its own, and the proof that it left nothing behind."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from hub.stop import stop
from tests.support import (
    MARK,
    Hub,
    end,
    eventually,
    listening_ports,
    make_repository,
    processes_of,
    record_free_ports,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# A loaded machine is slow at times; what must be fast is measured by the test that says so.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

_DYING_FOR_S = 1.0
"""A process that was killed by the test's last line may still be on its way out."""
_HOSTS = Path("/etc/hosts")
"""A guest's has another content: whoever writes there for a guest must not write here."""


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep the thousands of collected tests out of every collection of garbage from now on."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_survives(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail a test that leaves a process, a port or a temporary file; end what it left."""
    mark = uuid.uuid4().hex
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    _isolate(tmp_path_factory.mktemp("home"), monkeypatch)
    hosts = _HOSTS.read_bytes()
    yield
    left: list[str] = []
    try:
        eventually(lambda: not _words(mark, tmp_path), _DYING_FOR_S)
    except AssertionError:
        left = _words(mark, tmp_path)
        for survivor in processes_of(mark, str(tmp_path)):
            end(survivor)
    _collect_children()
    left += [f"temporary file {name}" for name in os.listdir(scratch)]
    assert not left, "left behind: " + "; ".join(left)
    assert _HOSTS.read_bytes() == hosts, f"{_HOSTS} of this very machine was written"


def _collect_children() -> None:
    """Collect what has ended and nobody waits for, as a detached holder: others count children."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def _words(mark: str, place: Path) -> list[str]:
    words = []
    for survivor in processes_of(mark, str(place)):
        ports = listening_ports(survivor.pid)
        words.append(
            f"process {survivor.pid} ({survivor.words})"
            + (f", listening on {ports}" if ports else "")
        )
        os.close(survivor.pidfd)
    return words


def _isolate(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's git, home and hub away."""
    # Not /dev/null: git writes by renaming over it. After each commit it would look for upkeep.
    (home / ".gitconfig").write_text("[maintenance]\n\tauto = false\n")
    for name in list(os.environ):
        if name.startswith(("GIT_", "HUB_", "BONES_", "FOSSIL")) and name != MARK:
            monkeypatch.delenv(name)
    for name, value in {
        "HOME": home,
        "GIT_CONFIG_GLOBAL": home / ".gitconfig",
        "GIT_CONFIG_NOSYSTEM": "1",
        "XDG_STATE_HOME": home / "state",
        "XDG_CONFIG_HOME": home / "config",
        "XDG_CACHE_HOME": home / "cache",
        "XDG_DATA_HOME": home / "data",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("SUDO_UID", raising=False)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Return a small git repository."""
    return make_repository(tmp_path / "repo")


@pytest.fixture
def hub_root(repo: Path) -> Iterator[Path]:
    """Return a small git repository in which a hub may be left running."""
    yield repo
    stop(str(repo), force=True)


@pytest.fixture(scope="session")
def _seeded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a workspace with a seeded repository and credentials, to be copied."""
    root = tmp_path_factory.mktemp("seeded") / "repo"
    with pytest.MonkeyPatch.context() as monkeypatch:
        _isolate(tmp_path_factory.mktemp("seeding"), monkeypatch)
        hub = Hub(make_repository(root))
        hub.start()
        hub.stop()
    for name in (
        "hub.json",
        "hub-fossil-url",
        "hub-nats-url",
        "hub.sock",
        "logs/hub.log",
        "logs/fossil.log",
        "logs/nats.log",
        "logs/trunk.log",
        "outbox/current",
        "nats/events.mark",
    ):
        (root / ".orchestrator" / name).unlink(missing_ok=True)
    shutil.rmtree(root / ".orchestrator/nats/jetstream")
    return root


@pytest.fixture
def seeded(tmp_path: Path, _seeded_once: Path) -> Path:
    """Return a git repository whose trunk has been seeded; no hub has run in it."""
    sockets = shutil.ignore_patterns("*.sock")  # a nursery that was killed leaves its own
    copied = shutil.copytree(_seeded_once, tmp_path / "repo", symlinks=True, ignore=sockets)
    return Path(copied)


@pytest.fixture
def hub(seeded: Path) -> Iterator[Hub]:
    """Return a hub that is ready to be started, and is ended at the end."""
    made = Hub(seeded)
    record_free_ports(made.workspace)
    yield made
    if (seeded / ".git").exists():
        stop(str(seeded), force=True, timeout_s=5)


@pytest.fixture
def fresh_hub(hub_root: Path) -> Hub:
    """Return a hub that has never been started: the first start seeds."""
    return Hub(hub_root)
