"""What stands in the state directory is a claim: junk is no claim."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.process import Identity
from foundation.workspace import Workspace
from hub import discovery
from hub.discovery import Discovery


def example() -> Discovery:
    me = Identity.of(os.getpid())
    assert me is not None
    return Discovery(
        schema=discovery.SCHEMA,
        protocol=1,
        hub_id="ab",
        epoch=3,
        root="/w",
        directory=[1, 2],
        identity=me,
        children={"nats": me},
        fossil_url="http://127.0.0.1:8765",
        nats_url="nats://127.0.0.1:4222",
        started_at="2026-01-01T00:00:00.000Z",
        versions={"fossil": "2.21"},
        tools={"fossil": ["/f", 1, 2, 3]},
    )


@pytest.fixture
def workspace(repo: Path) -> Workspace:
    made = Workspace(str(repo))
    made.make_state()
    return made


def test_what_was_written_is_read(workspace: Workspace) -> None:
    example().write(workspace)
    assert discovery.read(workspace) == example()
    assert Path(workspace.discovery).stat().st_mode & 0o777 == 0o600
    assert Path(workspace.discovery).read_bytes().count(b"\n") == 1


def test_a_copied_directory_is_not_the_one_it_was_written_in(
    workspace: Workspace, tmp_path: Path
) -> None:
    status = os.stat(workspace.state)
    written = example().replace(directory=[status.st_dev, status.st_ino])
    assert written.is_of(workspace)
    copy = Workspace(str(tmp_path / "copy"))
    shutil.copytree(workspace.root, copy.root)
    assert not written.is_of(copy)


def test_nothing_is_nothing(workspace: Workspace) -> None:
    assert discovery.read(workspace) is None
    os.mkfifo(workspace.discovery)
    assert discovery.read(workspace) is None
    os.unlink(workspace.discovery)
    os.mkdir(workspace.discovery)
    assert discovery.read(workspace) is None


def test_a_torn_file_is_nothing(workspace: Workspace) -> None:
    example().write(workspace)
    content = Path(workspace.discovery).read_bytes().rstrip()
    for length in range(len(content)):
        Path(workspace.discovery).write_bytes(content[:length])
        assert discovery.read(workspace) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(Discovery.field_names()), JSON)
def test_a_field_of_another_shape_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any
) -> None:
    root = tmp_path_factory.mktemp("w")
    workspace = Workspace(str(root))
    os.mkdir(workspace.state)
    fields = example().as_dict() | {name: value}
    Path(workspace.discovery).write_text(json.dumps(fields))
    found = discovery.read(workspace)
    if found is None:
        return
    # What is believed can be used as the code uses it.
    assert found.epoch + 1 > found.epoch
    assert isinstance(found.hub_id, str)
    assert found.identity.state() in ("gone", "alive", "unknown")
    assert all(isinstance(child, Identity) for child in found.children.values())
    found.versions.get("fossil")
    found.tools.get("fossil")


@pytest.mark.parametrize(
    ("content", "port"),
    [
        (b"http://127.0.0.1:8765\n", 8765),
        (b"nats://127.0.0.1:4222", 4222),
        (b"http://127.0.0.1:8765/", 8765),
        (b"", None),
        (b"\n", None),
        (b"8765", 8765),
        (b"http://127.0.0.1:0", None),
        (b"http://127.0.0.1:65536", None),
        (b"x:-1", None),
        (b"x:1e3", None),
        (b"\xff\xfe", None),
        (b"x:" + b"9" * 300, None),
        (b"x:\xd9\xa3", None),
        (b"http://127.0.0.1", None),
        (b"\0" * 10, None),
        (b"x:12 34", None),
    ],
)
def test_a_recorded_port_is_a_port_or_none(
    tmp_path: Path, content: bytes, port: int | None
) -> None:
    (tmp_path / "url").write_bytes(content)
    assert discovery.recorded_port(str(tmp_path / "url")) == port


@given(st.binary(max_size=300))
def test_any_bytes_in_a_url_file_are_a_port_or_none(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("u") / "url"
    path.write_bytes(content)
    port = discovery.recorded_port(str(path))
    assert port is None or 0 < port < 65536


def test_only_pid_files_are_removed(workspace: Workspace) -> None:
    for name in ("hub.pid", "nats.pid", "other.pid", "hub.pid.12.34.tmp", "README"):
        (Path(workspace.pids) / name).write_text("1")
    assert discovery.remove_pids(workspace)
    assert os.listdir(workspace.pids) == ["README"]
    os.rmdir(workspace.creds)
    (Path(workspace.pids) / "README").unlink()
    assert not discovery.remove_pids(workspace)
    os.rmdir(workspace.pids)
    assert not discovery.remove_pids(workspace)


def test_a_pid_file_is_digits_and_a_newline(workspace: Workspace) -> None:
    discovery.write_pid(workspace, "nats", 42)
    assert (Path(workspace.pids) / "nats.pid").read_bytes() == b"42\n"
