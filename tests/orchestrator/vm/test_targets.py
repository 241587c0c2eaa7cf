"""What the words of ``bones vm`` mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Refused, Usage
from orchestrator import targets
from orchestrator.store import check_name
from orchestrator.targets import Copy


@pytest.mark.parametrize(
    ("names", "count", "wanted"),
    [
        ([], 1, ["default"]),
        (["web"], 1, ["web"]),
        (["web"], 3, ["web-1", "web-2", "web-3"]),
        (["web", "db"], 1, ["web", "db"]),
        (["web", "web"], 1, ["web"]),
    ],
)
def test_up_starts_the_names_or_as_many_of_one_name(
    names: list[str], count: int, wanted: list[str]
) -> None:
    assert targets.to_start(names, count) == wanted


@pytest.mark.parametrize(("names", "count"), [(["web"], 0), (["a", "b"], 2), ([], 2)])
def test_a_count_needs_one_name_and_is_at_least_one(names: list[str], count: int) -> None:
    with pytest.raises(Usage, match=f"-n {count}"):
        targets.to_start(names, count)


def test_a_name_that_no_vm_can_have_is_named() -> None:
    with pytest.raises(Refused, match="'Web'"):
        targets.to_start(["Web"], 1)


MEMBERS = ["web", "web-1", "web-2", "web-10", "web-a", "db"]


@pytest.mark.parametrize(
    ("wanted", "found", "unknown"),
    [
        (["web"], ["web"], []),
        (["web-2", "web-1"], ["web-2", "web-1"], []),
        (["db", "db", "web-1"], ["db", "web-1"], []),
        (["we"], [], ["we"]),
        (["nobody", "db"], ["db"], ["nobody"]),
        ([], [], []),
    ],
)
def test_a_name_wins_over_the_cluster_of_that_name(
    wanted: list[str], found: list[str], unknown: list[str]
) -> None:
    assert targets.resolve(wanted, MEMBERS) == (found, unknown)


def test_the_name_of_a_cluster_means_its_members_and_no_others() -> None:
    members = [name for name in MEMBERS if name != "web"]
    assert targets.resolve(["web"], members) == (["web-1", "web-2", "web-10"], [])
    assert targets.resolve(["web-10", "web"], members)[0] == ["web-10", "web-1", "web-2"]


def test_names_are_grouped_by_their_cluster() -> None:
    assert targets.clusters(["web-2", "db", "web-1"]) == {"web": ["web-2", "web-1"], "db": ["db"]}


@pytest.mark.parametrize(
    ("source", "target", "meant"),
    [
        ("a", "web:/b", Copy(name="web", remote="/b", local="a", to_guest=True)),
        ("web:b", ".", Copy(name="web", remote="b", local=".", to_guest=False)),
        ("./a:b", "web:c:d", Copy(name="web", remote="c:d", local="./a:b", to_guest=True)),
    ],
)
def test_a_copy_is_to_or_from_a_vm(source: str, target: str, meant: Copy) -> None:
    assert targets.copy(source, target) == meant


@pytest.mark.parametrize(
    ("source", "target"),
    [("a", "b"), ("x:a", "y:b"), (":/x", "a"), ("web:", "a"), ("", "web:/b"), ("a", ":b")],
)
def test_any_other_copy_is_refused(source: str, target: str) -> None:
    with pytest.raises(Usage, match="NAME:PATH"):
        targets.copy(source, target)


@pytest.mark.parametrize(
    ("text", "meant"), [("80", (0, 80)), ("8080:80", (8080, 80)), ("0:22", (0, 22))]
)
def test_a_forward_names_the_guest_s_port_and_perhaps_ours(
    text: str, meant: tuple[int, int]
) -> None:
    assert targets.ports(text) == meant


@pytest.mark.parametrize("text", ["", "x", "0", "80:", "65536", "1:2:3", "-1", "²", "9" * 5000])
def test_any_other_forward_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="HOST_PORT"):
        targets.ports(text)


@given(st.text(max_size=90))
def test_every_test_has_a_name_that_a_vm_can_have(name: str) -> None:
    assert check_name(targets.of_test(name)) == targets.of_test(name)
    assert len(targets.of_test(name)) <= 50


def test_the_name_of_a_test_s_vm_can_be_recognized() -> None:
    assert targets.of_test("test_it_boots[two CPUs]") == "test-it-boots-two-cpus"
