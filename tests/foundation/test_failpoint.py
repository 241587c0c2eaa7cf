"""A failpoint kills where and when it is told to, and nowhere else."""

from __future__ import annotations

import subprocess

import pytest

from tests.support import run_python

PROGRAM = """
from foundation.failpoint import hit
for turn in range(3):
    hit("a")
    hit("b")
    print(turn, flush=True)
"""


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    return run_python(PROGRAM, check=False, **environment)


@pytest.mark.parametrize(
    ("wanted", "turns", "status"),
    [
        ("a", 0, -9),
        ("b", 0, -9),
        ("b@2", 1, -9),
        ("a@3", 2, -9),
        ("a@4", 3, 0),
        ("c", 3, 0),
        ("", 3, 0),
    ],
)
def test_it_dies_there(wanted: str, turns: int, status: int) -> None:
    done = run(HUB_FAILPOINT=wanted)
    assert (len(done.stdout.splitlines()), done.returncode) == (turns, status)


def test_without_the_variable_nothing_happens() -> None:
    assert run().returncode == 0
