"""The fast door of a slot's verbs and the CLI library are one program."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import cli as bones_cli
from orchestrator import entry as bones_entry
from orchestrator import verbs as bones_verbs
from swarm import cli, entry, verbs
from tests.hub.test_cli import SLOW_MODULES
from tests.support import CODE

VALUES = {
    "--root": "/r",
    "--slot": "auth",
    "--task": "t w",
    "-m": "a message",
    "--message": "-m",
    "--result": "fail",
    "--summary": "",
}
NEEDED = {"join": ["--slot", "auth"], "commit": ["-m", "x"]}


def slow(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Return what the CLI library calls for *arguments*, without what is as if not given."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for verb in entry._PLAIN:

        def called(verb: str = verb, **options: Any) -> int:
            calls.append((verb, options))
            return 0

        monkeypatch.setattr(verbs, verb, called)
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert len(calls) == 1
    return calls[0]


def combinations() -> list[list[str]]:
    found = []
    for verb, known in entry._PLAIN.items():
        needed = NEEDED.get(verb, [])
        flags = [flag for flag in known if known[flag] != known.get((*needed, "")[0])]
        for count in range(min(len(flags), 2) + 1):
            for chosen in itertools.combinations(flags, count):
                given = [[flag, VALUES[flag]] if flag in VALUES else [flag] for flag in chosen]
                words = [verb, *needed, *itertools.chain(*given)]
                found.append(words)
                joined = [
                    "=".join(one) if one[0].startswith("--") else " ".join(one) for one in given
                ]
                if any("=" in one for one in joined):
                    found.append([verb, *needed, *joined])
    found += [
        ["commit", "-m", "x", "a", "b/c"],
        ["commit", "a", "--message=x", "b c", "--json"],
        ["commit", "\udcff", "-m", "\udcfe"],
        ["commit", "-m", "", ""],
    ]
    return found


@pytest.mark.parametrize("arguments", combinations(), ids=repr)
def test_both_make_the_same_call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = entry.parse(arguments)
    assert plain is not None
    verb, options = plain
    slow_verb, slow_options = slow(arguments, monkeypatch)
    assert slow_verb == verb
    defaults: dict[str, Any] = {"task": "", "summary": "", "result": "success", "files": ()}
    told = {
        name: value
        for name, value in slow_options.items()
        if name in options or (value not in (None, False) and value != defaults.get(name))
    }
    assert told == options


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["join"],
        ["join", "--slot"],
        ["join", "--slot", "a", "b"],
        ["commit"],
        ["commit", "a"],
        ["commit", "-m"],
        ["commit", "-mx"],
        ["commit", "-m=x"],
        ["commit", "-m", "x", "-m", "y"],
        ["commit", "-m", "x", "--message", "y"],
        ["commit", "-m", "x", "--", "a"],
        ["commit", "-m", "x", "--timeout", "1"],
        ["commit", "-m", "x", "-h"],
        ["commit", "-m", "x", "-"],
        ["commit", "-m", "x", "--json=1"],
        ["commit", "-m", "x", "--jso"],
        ["close", "--result", "maybe"],
        ["close", "--result"],
        ["update", "a"],
        ["status", "--all"],
        ["cwd", "auth"],
        ["diff"],
        ["run", "--slot", "a", "--", "true"],
        ["rescue", "ls"],
    ],
    ids=repr,
)
def test_whatever_is_not_plain_is_left_to_the_library(arguments: list[str]) -> None:
    assert entry.parse(arguments) is None


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"]], ids=repr)
def test_bones_status_is_the_same_by_both(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def called(**options: Any) -> int:
        calls.append({name: value for name, value in options.items() if value})
        return 0

    monkeypatch.setattr(bones_verbs, "status", called)
    assert CliRunner().invoke(bones_cli.app, arguments).exit_code == 0
    assert bones_entry.parse(arguments) == ("status", calls[0])


@pytest.mark.parametrize(
    "arguments",
    [[], ["status", "-h"], ["status", "--json", "--json"], ["status", "x"], ["up"], ["--version"]],
    ids=repr,
)
def test_what_else_bones_is_asked_is_left_to_the_library(arguments: list[str]) -> None:
    assert bones_entry.parse(arguments) is None


def test_a_plain_verb_loads_nothing_slow() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); import orchestrator.entry, swarm.entry, "
        "swarm.verbs, swarm.slot, swarm.which; print(' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    assert not SLOW_MODULES & set(done.stdout.split())
