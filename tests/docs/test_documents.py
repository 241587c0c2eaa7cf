"""The documents tell the truth about the program."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

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
        for module in (ROOT / package).glob("*.py"):
            if module.stem != "__init__":
                assert f"`{module.stem}`" in told, f"{package}/{module.name} is not explained"


def test_the_examples_for_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    assert len(examples) == 3
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "docs/library.md", "exec"), names)
    assert capsys.readouterr().out == "writing with epoch 1\n"
    with names["stand_by"]("auth.owner") as me:
        assert me.epoch == 2
