"""The fast door of a slot's verbs and the CLI library are one program."""

from __future__ import annotations

import functools
import inspect
import itertools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer

from orchestrator import cli as bones_cli
from orchestrator import entry as bones_entry
from orchestrator import trunk_verbs, vm_cli, vm_verbs
from orchestrator import verbs as bones_verbs
from swarm import cli, entry, plain, running, verbs, work_verbs
from tests.hub.test_cli import SLOW_MODULES
from tests.support import CODE

if TYPE_CHECKING:
    from types import ModuleType

VALUES = {
    "--root": "/r",
    "--slot": "auth",
    "--task": "t w",
    "-m": "a message",
    "--message": "-m",
    "--result": "fail",
    "--summary": "",
    "-n": "7",
    "--lines": "12",
    "--branch": "b/c",
}
TRUNK = {name: bones_entry.PLAIN[name] for name in ("log", "diff", "revert", "apply")}
REST = {name: bones_entry.PLAIN[name] for name in ("up", "status")}
DEFAULTS: dict[str, Any] = {
    "task": "",
    "summary": "",
    "message": "",
    "branch": "",
    "result": "success",
    "files": (),
    "count": 20,
    "slot": "",
}


def needed(form: plain.Form) -> list[str]:
    """Return words without which the verb is not plain."""
    for flag, value in form.items():
        if isinstance(flag, str) and value[0] in form.get(plain.NEEDED, ()):
            return [flag, VALUES[flag]]
    return []


def operand(form: plain.Form) -> list[str]:
    """Return the arguments that are no options, without which the verb is not plain."""
    for kind, words in ((plain.NAMES, ["1a2b"]), (plain.REST, ["sh", "-c", "--json", "--", ""])):
        names = form.get(kind, ())
        if {names, *names} & {*form.get(plain.NEEDED, ())}:
            return words
    return []


def combinations(forms: dict[str, plain.Form]) -> list[list[str]]:
    found = []
    for verb, form in forms.items():
        first, last = needed(form), operand(form)
        taken = form[first[0]][0] if first and first[0] in form else ""
        flags = [flag for flag in form if isinstance(flag, str) and form[flag][0] != taken]
        for count in range(min(len(flags), 2) + 1):
            for chosen in itertools.combinations(flags, count):
                if len({form[flag][0] for flag in chosen}) < count:
                    continue
                given = [[flag, VALUES[flag]] if flag in VALUES else [flag] for flag in chosen]
                found.append([verb, *first, *itertools.chain(*given), *last])
                if any(len(one) > 1 and one[0].startswith("--") for one in given):
                    joined = [["=".join(one)] if one[0].startswith("--") else one for one in given]
                    found.append([verb, *first, *itertools.chain(*joined), *last])
    return found


@functools.cache
def built(app: typer.Typer) -> Any:
    """Return the command of *app*, which takes 30 ms to build."""
    return typer.main.get_command(app)


def called_by_library(
    arguments: list[str],
    app: typer.Typer,
    module: ModuleType,
    forms: dict[str, plain.Form],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, dict[str, Any]]:
    """Return what the CLI library calls for *arguments*."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for verb in forms:
        named = list(inspect.signature(getattr(module, verb)).parameters)

        def called(*given: Any, verb: str = verb, named: list[str] = named, **options: Any) -> int:
            calls.append((verb, {**dict(zip(named, given, strict=False)), **options}))
            return 0

        monkeypatch.setattr(module, verb, called)
    with pytest.raises(SystemExit) as ended:
        built(app).main(arguments)
    assert ended.value.code == 0
    assert len(calls) == 1
    return calls[0]


@pytest.mark.parametrize(
    ("arguments", "app", "module", "forms"),
    [
        (arguments, app, module, forms)
        for app, module, forms, more in (
            (cli.app, work_verbs, {"diff": entry.PLAIN["diff"]}, [["diff", "a", "--json", "b"]]),
            (
                cli.app,
                running,
                {"run": entry.PLAIN["run"]},
                [
                    ["run", "--slot", "a", "--", "x"],
                    ["run", "--slot", "a", "--", "--", "x"],
                    ["run", "--slot", "a", "--", "-x", "--slot", "b"],
                    ["run", "--keep", "--slot", "a", "x", "--", "y", "--json"],
                    ["run", "--slot", "a", "--", ""],
                ],
            ),
            (
                cli.app,
                verbs,
                {name: form for name, form in entry.PLAIN.items() if name not in ("diff", "run")},
                [
                    ["commit", "-m", "x", "a", "b/c"],
                    ["commit", "a", "--message=x", "b c", "--json"],
                    ["commit", "\udcff", "-m", "\udcfe"],
                    ["commit", "-m", "x", ""],
                ],
            ),
            (
                bones_cli.app,
                trunk_verbs,
                TRUNK,
                [["diff", "a"], ["diff", "a", "b"], ["diff", "a", "--json", "b"]],
            ),
            (bones_cli.app, bones_verbs, REST, []),
        )
        for arguments in [*combinations(forms), *more]
    ],
    ids=lambda value: repr(value) if isinstance(value, list) else "",
)
def test_both_make_the_same_call(
    arguments: list[str],
    app: typer.Typer,
    module: ModuleType,
    forms: dict[str, plain.Form],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_both_say(arguments, app, module, forms, monkeypatch)


def assert_both_say(
    arguments: list[str],
    app: typer.Typer,
    module: ModuleType,
    forms: dict[str, plain.Form],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = plain.parse(arguments, forms)
    assert read is not None
    verb, options = read
    known = inspect.signature(getattr(module, verb)).parameters
    slow_verb, slow_options = called_by_library(arguments, app, module, forms, monkeypatch)
    assert slow_verb == verb
    told = {
        name: value
        for name, value in slow_options.items()
        if name in options
        or (
            value not in (None, False, [])
            and value not in (known[name].default, DEFAULTS.get(name))
        )
    }
    assert told == options


@pytest.mark.parametrize(
    "arguments",
    [
        ["up"],
        ["up", "a", "b", "-n", "2", "--json"],
        ["up", "a", "--cpus", "2", "--mem=256", "--disk", "64", "--root", "/r"],
        ["down", "--all"],
        ["down", "a", "--json", "b"],
        ["ls", "-q"],
        ["ls", "--quiet", "--json"],
        ["cp", "a", "b:c", "--root=/r"],
        ["logs", "a", "-f"],
        ["logs", "--follow", "a"],
        ["forward", "--json", "a", "80"],
    ],
)
def test_both_make_the_same_call_for_vms(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = bones_entry.VM_PLAIN
    assert_both_say(arguments, vm_cli.app, vm_verbs, forms, monkeypatch)


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
        ["commit", "-m", ""],
        ["run", "--slot", "a"],
        ["run", "--slot", "a", "--"],
        ["run", "--", "true"],
        ["run", "true", "--slot", "a"],
        ["reap"],
        ["rescue", "ls"],
    ],
    ids=repr,
)
def test_whatever_is_not_plain_is_left_to_the_library(arguments: list[str]) -> None:
    assert plain.parse(arguments, entry.PLAIN) is None


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--version"],
        ["status", "-h"],
        ["status", "--json", "--json"],
        ["status", "x"],
        ["up", "--timeout", "3"],
        ["log", "-n", "0"],
        ["log", "-n", "-1"],
        ["log", "-n", "1_000"],
        ["log", "-n", "\N{SUPERSCRIPT TWO}"],
        ["log", "-n5"],
        ["log", "--all"],
        ["diff", "a", "b", "c"],
        ["revert"],
        ["revert", "a", "b"],
        ["events"],
        ["down"],
        ["purge"],
    ],
    ids=repr,
)
def test_what_else_bones_is_asked_is_left_to_the_library(arguments: list[str]) -> None:
    assert plain.parse(arguments, bones_entry.PLAIN) is None


def test_a_plain_verb_loads_nothing_slow() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); import orchestrator.entry, swarm.entry, "
        "swarm.verbs, swarm.running, swarm.which; print(' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    assert not SLOW_MODULES & set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["a", "--", "ls", "-l"], {"name": "a", "words": ["--", "ls", "-l"]}),
        (["-i", "--cwd=/x", "a", "--", "cat"], {"name": "a", "stdin": True, "cwd": "/x"}),
        (
            ["--json", "a", "--", "--", "x"],
            {"name": "a", "as_json": True, "words": ["--", "--", "x"]},
        ),
    ],
)
def test_a_command_for_a_vm_is_read_as_the_library_does(
    words: list[str], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_form = bones_entry.vm_form(["exec", *words])
    assert plain_form is not None
    assert plain_form[0] == "execute"
    assert plain_form[1].items() >= options.items()
    calls: list[dict[str, Any]] = []

    def called(name: str, words: list[str], **rest: Any) -> int:
        calls.append({"name": name, "words": words, **rest})
        return 0

    monkeypatch.setattr(vm_verbs, "execute", called)
    with pytest.raises(SystemExit) as ended:
        built(vm_cli.app).main(["exec", *words])
    assert ended.value.code == 0
    assert calls[0].items() >= plain_form[1].items()


@pytest.mark.parametrize("words", [[], ["a"], ["a", "--"], ["a", "ls"], ["a", "--json", "--", "x"]])
def test_what_is_no_plain_command_for_a_vm_goes_to_the_library(words: list[str]) -> None:
    assert bones_entry.vm_form(["exec", *words]) is None
