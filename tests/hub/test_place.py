"""Places in which no hub can live, and which are not to be had here on demand."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from foundation import control, filesystem
from foundation.errors import Refused
from foundation.workspace import Workspace
from hub import place
from hub.daemon import become_starter

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", sorted(filesystem.NETWORK))
def test_a_network_file_system_is_refused_by_name(
    repo: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(filesystem, "kind_of", lambda _path: kind)
    with pytest.raises(Refused, match=f"network file system .{kind}.") as raised:
        place.check(Workspace(str(repo)))
    assert raised.value.reason == "network-filesystem"
    assert not (repo / ".orchestrator").exists()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_sockets_is_refused_by_name(
    repo: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_path: str) -> None:
        raise OSError(number, "no sockets here")

    monkeypatch.setattr(control, "listen", refuse)
    workspace = Workspace(str(repo))
    for _turn in range(2):  # the lock was given back
        with pytest.raises(Refused, match="has no Unix sockets") as raised:
            become_starter(workspace)
        assert raised.value.reason == "no-sockets"
