"""Who has which address, and which addresses are this host's own."""

from __future__ import annotations

import ipaddress
import os
import struct
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Refused
from orchestrator.net.addresses import FIRST, LAST, Addresses, mac_of
from orchestrator.net.host import _ours, own_addresses
from tests.support import CODE


def test_members_get_the_lowest_free_address_and_keep_it() -> None:
    addresses = Addresses("web")
    assert [addresses.reserve(f"web-{n}").ip for n in (1, 2, 3, 1)] == [
        "10.77.0.11",
        "10.77.0.12",
        "10.77.0.13",
        "10.77.0.11",
    ]
    addresses.release("web-2")
    addresses.release("web-2")
    assert addresses.reserve("web-4").ip == "10.77.0.12"
    assert addresses.reserve("web-4").interface == "10.77.0.12/24"


def test_a_member_that_comes_back_has_its_address_again_if_that_is_free() -> None:
    addresses = Addresses("web")
    for name in ("a", "b", "c"):
        addresses.reserve(name)
    addresses.release("b")
    addresses.release("a")
    assert addresses.reserve("b").ip == "10.77.0.12"
    addresses.release("b")
    assert addresses.reserve("new").ip == "10.77.0.11"
    assert addresses.reserve("newer").ip == "10.77.0.12"
    assert addresses.reserve("b").ip == "10.77.0.14"


@pytest.mark.parametrize(
    ("hint", "given_"),
    [
        ("10.77.0.99", "10.77.0.99"),
        ("10.77.0.11", "10.77.0.12"),
        ("10.77.0.1", "10.77.0.12"),
        ("10.77.0.255", "10.77.0.12"),
        ("10.78.0.99", "10.77.0.12"),
        ("10.77.0.99/24", "10.77.0.12"),
        ("10.77.0.²", "10.77.0.12"),
        ("", "10.77.0.12"),
    ],
)
def test_a_wish_is_granted_if_it_is_free_and_a_members_address(hint: str, given_: str) -> None:
    addresses = Addresses("web")
    addresses.reserve("first")
    assert addresses.reserve("second", hint).ip == given_


def test_a_full_network_says_so_and_takes_no_one_more() -> None:
    addresses = Addresses("web")
    for number in range(LAST - FIRST + 1):
        addresses.reserve(f"web-{number}")
    with pytest.raises(Refused) as full:
        addresses.reserve("one-too-many")
    assert full.value.reason == "network-full"
    addresses.release("web-7")
    assert addresses.reserve("one-too-many").ip == "10.77.0.18"


@given(cluster=st.text(), member=st.text())
def test_a_mac_is_a_locally_given_one_of_one_station_and_the_names_alone_decide(
    cluster: str, member: str
) -> None:
    mac = mac_of(cluster, member)
    assert mac == mac_of(cluster, member)
    assert mac.startswith("02:")
    assert mac != mac_of(cluster + "x", member)
    assert mac != mac_of(cluster, member + "x")


def test_macs_of_a_cluster_differ() -> None:
    assert len({mac_of("web", f"web-{n}") for n in range(5000)}) == 5000


def test_this_hosts_addresses_are_all_known() -> None:
    own = [(ipaddress.ip_address(network), length) for network, length in own_addresses()]
    networks = [ipaddress.ip_network(f"{network}/{length}") for network, length in own]
    assert ipaddress.ip_network("127.0.0.0/8") in networks
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == 2:
                at = ipaddress.ip_address(address.address)
                assert any(at in network for network in networks), at
    assert ipaddress.ip_network("0.0.0.0/0") not in networks


def _route(*, table: int, kind: int) -> bytes:
    """Return a route to 198.51.100.0/24 as netlink tells it."""
    attribute = struct.pack("=HH4s", 8, 1, bytes((198, 51, 100, 0)))
    return struct.pack("=BBBBBBBBL", 2, 24, 0, 0, table, 0, 0, kind, 0) + attribute


def test_only_what_the_kernel_keeps_for_itself_is_this_hosts() -> None:
    here = [(0xC6336400, 24)]
    assert [_ours(_route(table=255, kind=kind)) for kind in (1, 2, 3, 4)] == [[], here, here, here]
    assert _ours(_route(table=100, kind=2)) == []


_CHANGE = """
import fcntl, select, socket, struct
from orchestrator.net.host import drain, own_addresses, watch_addresses
watching = watch_addresses()
before = own_addresses()
assert not select.select([watching], [], [], 0)[0]
sock = socket.socket()
here = struct.pack("=16sHH4s8x8x", b"lo", socket.AF_INET, 0, socket.inet_aton("198.51.100.9"))
fcntl.ioctl(sock, 0x8916, here)  # SIOCSIFADDR
fcntl.ioctl(sock, 0x8914, struct.pack("=16sH22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
assert select.select([watching], [], [], 10)[0]
drain(watching)
assert not select.select([watching], [], [], 0)[0]
print(set(own_addresses()) - set(before))
"""


def test_a_new_address_of_this_host_is_told_at_once() -> None:
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", _CHANGE],
        cwd=CODE,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    )
    assert f"({int(ipaddress.ip_address('198.51.100.9'))}, 32)" in done.stdout, done.stderr
