"""The campaigns run, find nothing wrong, and would find it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.chaos import detect, ledger, plan, start
from bench.chaos.stage import Stage
from bench.chaos.verdict import Verdict
from bench.chaos.witness import Entry
from tests.support import CODE, eventually

pytestmark = [pytest.mark.real, pytest.mark.faults, pytest.mark.slow]

_PROGRAM = "from bench.__main__ import main; main()"


def chaos(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "chaos", *arguments, "--smoke", "--json"],
        cwd=CODE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    )


def result(*arguments: str) -> dict[str, Any]:
    process = chaos(*arguments)
    out, err = process.communicate()
    assert "seed" in err.splitlines()[0]
    found: dict[str, Any] = json.loads(out)
    assert process.returncode == (1 if found["violations"] else 0), err
    return found


def test_many_processes_that_want_one_lease_never_own_it_twice() -> None:
    found = result("owner")
    assert found["violations"] == [], found
    figures = found["figures"]
    assert found["processes"] >= 16
    for what in ("stops", "kills", "claims", "owners", "visits behind the fence"):
        assert figures[what] > 0, figures


def test_both_witnesses_see_what_a_naive_lease_does() -> None:
    wanted = {"confirmed", "fence"}
    told = ""
    for seed in range(1, 9):  # what goes wrong in a few seconds, and whether, is up to the machine
        found = result("owner", "--lease", "bench.chaos.naive", f"--seed={seed}", "--seconds", "3")
        told += " ".join(found["violations"])
        if all(word in told for word in wanted):
            break
    assert all(word in told for word in wanted), told


def test_cleaning_up_among_leaves_that_work_and_die_loses_nothing_and_hits_nobody() -> None:
    found = result("slotgc")
    assert found["violations"] == [], found
    figures = found["figures"]
    for what in ("stops", "kills", "edits", "passes", "slots rescued", "strangers refused"):
        assert figures[what] > 0, figures
    assert figures["strangers signalled"] == 0


def test_the_witnesses_see_what_a_naive_cleaning_up_does() -> None:
    told = " ".join(result("slotgc", "--gc", "naive", "--seconds", "3")["violations"])
    assert "nowhere" in told, told
    assert "proves no death" in told, told
    assert "stranger" in told, told


def test_many_hands_on_one_hub_meet_one_hub() -> None:
    found = result("start")
    assert found["violations"] == [], found
    figures = found["figures"]
    for what in ("verbs", "answers", "hubs that answered"):
        assert figures[what] > 0, figures
    assert sum(count for what, count in figures.items() if what.startswith("kill-")) > 0, figures


def test_committers_land_more_whatever_is_killed_and_nothing_is_lost_or_twice() -> None:
    found = result("trunk", "--rounds", "5", "--processes", "6")
    assert found["violations"] == [], found
    figures = found["figures"]
    assert figures["acknowledged"] > 0
    assert figures["check-ins"] >= figures["acknowledged"]
    assert sum(count for what, count in figures.items() if what.startswith("kills of")) == 5


def test_an_answer_of_an_old_hub_or_owner_is_seen() -> None:
    old = Entry(0, 10, 1, 0, 5)
    new = Entry(0, 11, 2, 10, 20)
    assert list(detect.superseded([old, new], [old, new])) == []
    assert list(detect.superseded([old._replace(before=15, after=25)], [old, new])) == []
    late = old._replace(before=21, after=25)
    assert "epoch 1 confirmed" in next(detect.superseded([late], [old, new]))
    assert "given to pid 10 and to pid 12" in next(detect.shared([], [old, Entry(0, 12, 1, 9, 9)]))
    assert "claimed by pid 12" in next(detect.shared([Entry(0, 12, 1, 9, 9)], [old]))
    assert "again" in next(detect.repeated([old, old]))


def sees(campaign: start.Campaign) -> bool:
    campaign._look()
    return bool(campaign.verdict.violations)


def test_two_servers_of_one_workspace_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_DEATH_TAKES_S", 0.05)
    given = plan.parser("start", None).parse_args(["--smoke", "--seed", "1", "--json"])
    options = plan.options(given, smoke_s=1)
    verdict = Verdict("start", options)
    with Stage("start") as stage:
        campaign = start.Campaign(stage, options, verdict)
        argv = [sys.executable, "-c", "import time; time.sleep(60)"]
        argv.append(f"{campaign.workspace.nats}/nats.conf")
        servers = [subprocess.Popen(argv, start_new_session=True) for _ in range(2)]
        try:
            eventually(lambda: sees(campaign))
        finally:
            for server in servers:
                server.kill()
                server.wait()
    assert "two nats of one workspace" in verdict.violations[0]


def test_the_same_seed_gives_the_same_plan() -> None:
    rates = [plan.Rate("kill", 5.0), plan.Rate("stop", 9.0, (0.0, 1.5), leader_share=0.5)]
    first = plan.faults(7, 10, 16, rates)
    assert first == plan.faults(7, 10, 16, rates)
    assert first != plan.faults(8, 10, 16, rates)
    assert {fault.what for fault in first} == {"kill", "stop"}


def test_a_ledger_knows_what_a_change_that_was_cut_short_may_have_left(tmp_path: Path) -> None:
    book = ledger.Ledger(str(tmp_path / "book"))
    book.announce("make", tree={"a": ("file", "1")})
    book.confirm()
    assert book.model.may_be_clean
    book.announce("put", path="a", file=("exec", "2"))
    again = ledger.Ledger(str(tmp_path / "book")).model
    for state in (("file", "1"), ("file", ""), ("file", "2"), ("exec", "2")):
        assert again.may_be({"a": state})
    assert not again.may_be({"a": ("file", "3")})
    assert not again.may_be(None)
    book.confirm()
    assert not book.model.may_be({"a": ("file", "1")})
    assert not book.model.may_be_clean
    book.announce("commit")
    assert book.model.may_be_clean
    book.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("campaign", ["owner", "start"])
def test_everything_ends_with_the_conductor(how: int, campaign: str) -> None:
    process = chaos(campaign, "--seconds", "60")
    temporary = Path(os.environ["TMPDIR"])

    def plays() -> bool:
        return any(temporary.glob("chaos-*/lease")) or any(
            temporary.glob("chaos-*/*/.orchestrator/hub.json")
        )

    eventually(plays)
    process.send_signal(how)
    process.communicate()
    assert process.returncode != 0
    eventually(lambda: not list(temporary.iterdir()))
