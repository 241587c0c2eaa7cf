"""``bones vm cp``: where a copy goes, what is told of it; with fakes for VMs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.workspace import Workspace
from orchestrator import vm_verbs
from orchestrator.store import Store
from tests.orchestrator.vm.holders import end_holders, up

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.real


@pytest.fixture
def guest(repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return where a fake VM called web keeps its files; the current directory is a new one."""
    Workspace(str(repo)).make_state()
    monkeypatch.setenv("HUB_ROOT", str(repo))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    store = Store(repo / ".orchestrator/vms")
    store.make()
    up(store, "web")
    yield Path(store.place("web").directory) / "guest"
    end_holders(store)


def test_a_copy_is_called_so_or_goes_into_a_directory_on_both_sides(guest: Path) -> None:
    Path("a/site").mkdir(parents=True)
    Path("a/site/page").write_text("page\n")
    Path("there").mkdir()
    (guest / "there").mkdir()
    for there, source, target, made in (
        (guest, "a/site", "web:new", "new/page"),
        (guest, "a/site", "web:new", "new/site/page"),
        (guest, "a/site", "web:no/such/", "no/such/site/page"),
        (guest, "a/site/", "web:there", "there/site/page"),
        (guest, "a/site/.", "web:there", "there/page"),
        (guest, "a/site/page", "web:there/", "there/page"),
        (guest, "a/site/page", "web:deep/other", "deep/other"),
        (Path(), "web:new", "copy", "copy/page"),
        (Path(), "web:new", "copy", "copy/new/page"),
        (Path(), "web:new", "not/yet/", "not/yet/new/page"),
        (Path(), "web:new/", "there", "there/new/page"),
        (Path(), "web:new/.", "there", "there/page"),
        (Path(), "web:new/page", "there/", "there/page"),
        (Path(), "web:new/page", "down/other", "down/other"),
    ):
        assert vm_verbs.cp(source, target) == 0
        assert (there / made).read_text() == "page\n", (source, target)


def test_what_is_left_out_is_named_and_what_cannot_be_copied_is_said_plainly(
    guest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("site").mkdir()
    os.mkfifo("site/pipe\n")
    assert vm_verbs.cp("site", "web:site") == 0
    assert "left out, being a socket, a pipe or a device: site/pipe" in capfd.readouterr().err
    assert vm_verbs.cp("site", "web:again/", as_json=True) == 0
    assert json.loads(capfd.readouterr().out)["data"] == {
        "name": "web", "remote": "again/site", "local": "site", "to_guest": True,
        "left_out": ["site/pipe\n"],
    }  # fmt: skip
    Path("file").touch()
    Path("site/sub").mkdir()
    (guest / "site/sub").touch()
    for source, target, words in (
        ("nope", "web:nope", "nope does not exist"),
        ("site/pipe\n", "web:pipe", "is neither file nor directory"),
        ("web:nope", "nope", "no such file"),
        ("web:site", "file/x", "file/x cannot be written: Not a directory"),
        ("site/.", "web:site", "sub is no directory, what is copied is a directory"),
        ("file", "nobody:/x", "no VM nobody"),
    ):
        assert vm_verbs.cp(source, target) != 0
        said = capfd.readouterr().err
        assert words in said
        assert "Errno" not in said
        assert ".copy-" not in said
