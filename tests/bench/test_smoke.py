"""The benchmarks run: a figure that nobody can reproduce is none."""

from __future__ import annotations

import json

import pytest

from bench.vm import LIMITS
from tests.orchestrator.vm.qemus import CACHE
from tests.support import run_python


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["start", "seed", "owner", "kill"])
def test_a_benchmark_measures_ours_beside_its_floor(name: str) -> None:
    done = run_python(
        "import sys; sys.argv[1:] = [sys.argv[1], '--smoke', '--json']\n"
        "from bench.__main__ import main; main()",
        name,
    )
    rows = json.loads(done.stdout)
    assert rows
    for row in rows:
        assert row["ours"] > 0 or "later by" in row["name"]  # of three rounds: it may be noise
        assert row["floor"] > 0


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["herd", "commit", "join"])
def test_a_benchmark_of_the_swarm_runs_and_finds_trunk_as_it_should_be(name: str) -> None:
    done = run_python(
        "import sys; sys.argv[1:] = [sys.argv[1], '--smoke', '--json']\n"
        "from bench.__main__ import main; main()",
        name,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found
    for row in found:
        if isinstance(row, dict):
            assert row["landed"] > 0
            assert row["faults"] == []


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.real
def test_the_benchmark_of_vms_measures_each_figure_beside_its_limit() -> None:
    done = run_python(
        "import sys; sys.argv[1:] = ['vm', '--smoke', '--json', '--cache', sys.argv[1]]\n"
        "from bench.__main__ import main; main()",
        str(CACHE),
        check=False,
    )
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == list(LIMITS), done.stderr
    assert all(row["ours"] > 0 for row in rows)
    assert done.returncode in (0, 1), "a limit may be missed on a busy machine"
