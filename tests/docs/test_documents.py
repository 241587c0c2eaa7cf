"""The documents tell the truth about the program."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation.workspace import Workspace
from hub.stop import stop
from swarm.history import open_repository
from tests.support import git
from tests.swarm.leaves import end_leaves
from tests.swarm.stock import FOSSIL

if TYPE_CHECKING:
    from tests.support import Hub

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_reference_is_what_the_program_says() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))["generate"]
    assert (ROOT / "docs" / "cli.md").read_text() == generate()


def test_every_link_between_the_documents_leads_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert documents
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_architecture_names_every_module_that_there_is() -> None:
    told = (ROOT / "ARCHITECTURE.md").read_text()
    for package in ("foundation", "owner", "slotgc", "hub", "swarm", "orchestrator"):
        for module in (ROOT / package).rglob("*.py"):
            if module.stem != "__init__":
                assert f"`{module.stem}`" in told, f"{module.relative_to(ROOT)} is not explained"


def examples() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    assert len(found) == 8
    return found


def run_examples(texts: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for text in texts:
        exec(compile(text, "docs/library.md", "exec"), names)
    return names


@pytest.mark.real
def test_the_examples_of_slots_run(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.start()
    hub.wait_ready()
    monkeypatch.chdir(hub.root)
    try:
        run_examples(examples()[:2])
    finally:
        end_leaves(hub.root)
    assert capsys.readouterr().out.splitlines() == [
        "1 file of auth landed",
        "the agent ended with 0",
        "['Work of agent-0', 'Work of agent-1', 'Work of agent-2']",
    ]
    with open_repository(Workspace(str(hub.root)).repository) as trunk:
        files = trunk.files(trunk.tip().hash)
    assert {b"keys.py", b"keys.md", b"agent-2.txt"} <= set(files)


@pytest.mark.real
def test_the_session_of_the_readme_works_as_pasted(repo: Path) -> None:
    (session,) = re.findall(
        r"\n\n((?:    [^\n]*\n)*    bin/bones down[^\n]*\n)", (ROOT / "README.md").read_text()
    )
    (repo / "bin").symlink_to(ROOT / "bin")
    lines = session.splitlines()
    assert len(lines) == 5
    try:
        done = subprocess.run(
            ["bash", "-e"], input=session, cwd=repo, capture_output=True, text=True, check=False,
            timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        end_leaves(repo)
        stop(str(repo), force=True)
    assert git(repo, "show", "swarm/work:notes.txt") == "work\n"
    assert git(repo, "log", "-1", "--format=%an %s", "swarm/work") == "auth Notes\n"
    assert f"nothing of ours runs in {repo}" in done.stderr
    assert not (repo / ".bones/swarm/auth").exists()


@pytest.mark.real
def test_the_clone_of_the_readme_is_of_this_workspaces_trunk(hub: Hub, tmp_path: Path) -> None:
    (line,) = re.findall(r"\n    (fossil clone .*)\n", (ROOT / "README.md").read_text())
    hub.start()
    done = subprocess.run(
        ["bash", "-c", line.replace("fossil", FOSSIL, 1)],
        cwd=hub.root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with open_repository(hub.workspace.repository) as trunk:
        tip = trunk.tip()
    with open_repository(str(hub.root / "trunk.fossil")) as clone:
        assert clone.tip().hash == tip.hash


def test_the_examples_for_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_examples(examples()[2:5])
    assert capsys.readouterr().out == "writing with epoch 1\n"
    with names["stand_by"]("auth.owner") as me:
        assert me.epoch == 2
