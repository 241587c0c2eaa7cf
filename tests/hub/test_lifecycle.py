"""The tables of lives: what a supervisor can do never leaves them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hub import lifecycle
from hub.lifecycle import CHILD, HUB, child_step, hub_step


class ChildLife(RuleBasedStateMachine):
    """What a child goes through, by the kernel and by the supervisor's own rules.

    The model is a process that is there or not, and a supervisor that asks for what it may.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase: lifecycle.ChildPhase = "down"
        self.process = False
        self.asked_to_stop = False

    def step(self, event: lifecycle.ChildEvent) -> None:
        self.phase = child_step(self.phase, event)

    @precondition(lambda self: not self.process and not self.asked_to_stop)
    @rule()
    def it_is_spawned(self) -> None:
        self.step("spawned")
        self.process = True

    @precondition(lambda self: self.phase == "starting")
    @rule()
    def it_answers(self) -> None:
        self.step("probed")

    @precondition(lambda self: self.process)
    @rule()
    def it_exits(self) -> None:
        self.step("exited")
        self.process = False

    @precondition(lambda self: self.phase == "waiting")
    @rule()
    def it_cannot_be_executed(self) -> None:
        self.step("exited")

    @precondition(lambda self: self.phase == "down" and not self.asked_to_stop)
    @rule()
    def it_is_put_off(self) -> None:
        self.step("delayed")

    @precondition(lambda self: self.phase == "down" and not self.asked_to_stop)
    @rule()
    def it_is_given_up(self) -> None:
        self.step("gave-up")

    @rule()
    def it_is_stopped(self) -> None:
        self.step("stop")
        self.asked_to_stop = True

    @invariant()
    def the_phase_says_whether_there_is_a_process(self) -> None:
        assert self.process == (self.phase in ("starting", "ready", "draining"))

    @invariant()
    def what_was_stopped_goes_down_and_stays_down(self) -> None:
        if self.asked_to_stop:
            assert self.phase == ("draining" if self.process else "down")


TestChildLife = ChildLife.TestCase


ALLOWED = {
    "down": {"spawned", "delayed", "gave-up", "stop"},
    "starting": {"probed", "exited", "stop"},
    "ready": {"exited", "stop"},
    "waiting": {"spawned", "exited", "stop"},
    "draining": {"exited", "stop"},
    "failed": {"spawned", "stop"},
}
"""What can happen to a child, said once more: a slip in the table is seen here."""


def test_a_pair_outside_the_table_is_a_bug_and_never_a_phase() -> None:
    phases = {phase for phase, _event in CHILD}
    events = {event for _phase, event in CHILD}
    assert phases == set(ALLOWED)
    assert events == set().union(*ALLOWED.values())
    for phase, event in itertools.product(phases, events):
        if event in ALLOWED[phase]:
            assert child_step(phase, event) in phases
        else:
            with pytest.raises(AssertionError, match=f"{event} while {phase}"):
                child_step(phase, event)


def test_every_phase_can_be_left_and_stopped() -> None:
    phases = set(CHILD.values())
    assert phases == {phase for phase, _event in CHILD}
    for phase in phases:
        assert CHILD[phase, "stop"] in ("down", "draining")
    assert {event for phase, event in CHILD if phase == "draining"} == {"exited", "stop"}
    assert CHILD["draining", "exited"] == "down"


@given(st.lists(st.sampled_from(["all-ready", "stop"])))
def test_a_hub_that_drains_drains_for_good(events: list[lifecycle.HubEvent]) -> None:
    phase: lifecycle.HubPhase = "starting"
    stopped = False
    for event in events:
        if (phase, event) not in HUB:
            assert event == "all-ready"
            assert phase != "starting"
            continue
        phase = hub_step(phase, event)
        stopped = stopped or event == "stop"
        assert (phase == "draining") == stopped
