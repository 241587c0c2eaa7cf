"""The front door's fast path and the CLI library are one program."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import typer

from hub import cli, entry, verbs

VALUES = {"--root": "/r", "--fossil-port": "8765", "--nats-port": "4222"}


@functools.cache
def built() -> Any:
    """Return the library's command, which takes 30 ms to build."""
    return typer.main.get_command(cli.app)


def slow(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Return what the CLI library calls for *arguments*."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for verb in entry._PLAIN:

        def called(verb: str = verb, **options: Any) -> int:
            calls.append((verb, options))
            return 0

        monkeypatch.setattr(verbs, verb, called)
    with pytest.raises(SystemExit) as ended:
        built().main(arguments)
    assert ended.value.code == 0
    assert len(calls) == 1
    return calls[0]


def combinations() -> list[list[str]]:
    found = []
    for verb, known in entry._PLAIN.items():
        flags = list(known)
        for count in range(min(len(flags), 3) + 1):
            for chosen in itertools.combinations(flags, count):
                words = [verb]
                for flag in chosen:
                    words += [flag, VALUES[flag]] if flag in VALUES else [flag]
                found.append(words)
                if any(flag in VALUES for flag in chosen):
                    found.append(
                        [verb]
                        + [f"{flag}={VALUES[flag]}" if flag in VALUES else flag for flag in chosen]
                    )
    return found


@pytest.mark.parametrize("arguments", combinations(), ids=" ".join)
def test_both_make_the_same_call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = entry.parse(arguments)
    assert plain is not None
    verb, options = plain
    slow_verb, slow_options = slow(arguments, monkeypatch)
    assert slow_verb == verb
    given = {
        name: value
        for name, value in slow_options.items()
        if value not in (None, False) and name != "verb"
    }
    assert {
        name: str(value) if isinstance(value, Path) else value for name, value in given.items()
    } == options


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["start", "--help"],
        ["start", "-h"],
        ["dance"],
        ["start", "--nope"],
        ["start", "--root"],
        ["start", "--nats-port", "x"],
        ["start", "--nats-port", "-1"],
        ["start", "--nats-port", "70000"],
        ["start", "--nats-port", "0"],
        ["start", "--nats-port=²"],
        ["start", "--detach=yes"],
        ["start", "extra"],
        ["status", "--force"],
        ["stop", "--"],
        ["logs"],
        ["run"],
        ["--version"],
        ["start", "--nats-port", "1_000"],
    ],
)
def test_whatever_is_not_plain_is_left_to_the_library(arguments: list[str]) -> None:
    assert entry.parse(arguments) is None
