"""What the words of ``bones vm`` mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Refused, Usage
from orchestrator import targets
from orchestrator.net import addresses
from orchestrator.store import Options, check_name
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
    with pytest.raises(Usage, match="'Web'"):
        targets.to_start(["Web"], 1)
    with pytest.raises(Usage, match="63"):
        targets.to_start(["x" * 61], 10)
    with pytest.raises(Usage, match="'Web'"):
        targets.one("Web", ["web"])


def test_no_more_are_started_than_a_network_has_addresses_for() -> None:
    assert targets.MOST_MEMBERS == addresses.LAST - addresses.FIRST + 1
    assert len(targets.to_start(["web"], targets.MOST_MEMBERS)) == targets.MOST_MEMBERS
    for count in (targets.MOST_MEMBERS + 1, 10**22):
        with pytest.raises(Usage, match=f"-n {count}.*at most 244"):
            targets.to_start(["web"], count)
    there = [f"web-{number}" for number in range(244)]
    assert targets.to_start(["web-7"], 1, there) == ["web-7"]
    with pytest.raises(Refused, match="web would have 245") as caught:
        targets.to_start(["web-999"], 1, there)
    assert caught.value.reason == "network-full"


def test_the_name_of_a_cluster_starts_its_members_not_another() -> None:
    assert targets.to_start(["web"], 1, ["db", "web-1", "web-2"]) == ["web-1", "web-2"]
    assert targets.to_start(["web", "web-1"], 1, ["web-1", "web-2"]) == ["web-1", "web-2"]
    assert targets.to_start(["web"], 3, ["web-1"]) == ["web-1", "web-2", "web-3"]


@pytest.mark.parametrize(
    ("names", "count", "members"),
    [
        (["web"], 2, ["web"]),
        (["web-2"], 1, ["web"]),
        (["web", "web-1"], 1, []),
        (["web-1", "web-1-2"], 1, []),
        (["web-1-2"], 1, ["web-1"]),
    ],
)
def test_no_name_becomes_that_of_a_vm_and_of_a_cluster(
    names: list[str], count: int, members: list[str]
) -> None:
    with pytest.raises(Refused, match="a VM and a cluster") as caught:
        targets.to_start(names, count, members)
    assert caught.value.reason == "ambiguous"


def test_what_is_both_already_is_started_all_the_same() -> None:
    there = ["web", "web-1"]
    assert targets.to_start(["web"], 1, there) == ["web"]
    assert targets.to_start(["web-1"], 1, there) == ["web-1"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cpus": 0}, "--cpus 0: a whole number from 1 to 64"),
        ({"memory_mb": 16}, "--mem 16: a whole number from 80"),
        ({"disk_mb": -1}, "--disk -1: a whole number from 0"),
        ({"memory_mb": 4097}, "--mem 4097: this machine has 4096 MB"),
    ],
)
def test_what_no_vm_can_have_is_said_of_the_option(asked: dict[str, int], told: str) -> None:
    full: dict[str, int | None] = {"cpus": None, "memory_mb": None, "disk_mb": None, **asked}
    with pytest.raises(Usage, match=told):
        targets.options(**full, egress=True, machine_mb=4096)


def test_an_option_that_is_not_given_is_as_usual() -> None:
    made = targets.options(2, None, 0, egress=False, machine_mb=4096)
    assert made == Options(cpus=2, disk_mb=0, egress=False)


def test_vms_that_this_machine_has_no_memory_for_are_refused() -> None:
    targets.check_memory({}, 100)
    targets.check_memory({"a": 50, "b": 50}, 100)
    with pytest.raises(Usage, match="2 VMs may take 101 MB"):
        targets.check_memory({"a": 50, "b": 51}, 100)
    with pytest.raises(Usage, match="big may take 101 MB"):
        targets.check_memory({"big": 101}, 100)


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        ([], []),
        (["--", "true"], ["true"]),
        (["--", "sh", "-c", "--", "--"], ["sh", "-c", "--", "--"]),
    ],
)
def test_a_command_follows_two_dashes(words: list[str], argv: list[str]) -> None:
    assert targets.command("exec", "web", words) == argv


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["foo"], "web -- foo"),
        (["ls", "-l", "a b"], "web -- ls -l 'a b'"),
        (["foo", "--", "true"], "foo: options go before NAME.*web -- true"),
        (["--"], "web -- COMMAND"),
        (["--cwd", "/", "--"], "web -- COMMAND"),
    ],
)
def test_a_command_anywhere_else_is_refused_with_the_right_form(
    words: list[str], form: str
) -> None:
    with pytest.raises(Usage, match=form):
        targets.command("exec", "web", words)


def test_a_cluster_is_not_one_vm() -> None:
    assert targets.one("web-1", MEMBERS) == "web-1"
    assert targets.one("web", MEMBERS) == "web"
    assert targets.one("nobody", MEMBERS) == "nobody"
    with pytest.raises(Refused, match="web-1, web-2: name one") as caught:
        targets.one("web", ["web-1", "web-2", "db"])
    assert caught.value.reason == "not-one"


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
    with pytest.raises(Usage, match=r"HOST_PORT.*1 to 65535"):
        targets.ports(text)


@given(st.text(max_size=90))
def test_every_test_has_a_name_that_a_vm_can_have(name: str) -> None:
    assert check_name(targets.of_test(name)) == targets.of_test(name)
    assert len(targets.of_test(name)) <= 50


def test_the_name_of_a_test_s_vm_can_be_recognized() -> None:
    assert targets.of_test("test_it_boots[two CPUs]") == "test-it-boots-two-cpus"
