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


def ips(addresses: Addresses, *names: str) -> list[int]:
    """Return the last numbers of the addresses of *names*, reserved in this order."""
    return [int(addresses.reserve(name).ip.removeprefix("10.77.0.")) for name in names]


def test_an_address_is_that_of_the_names_number_whoever_boots_first() -> None:
    assert ips(Addresses("web"), "web-3", "web-1", "web-2", "web-3") == [13, 11, 12, 13]
    assert ips(Addresses("web"), "web-2", "web-1") == [12, 11]
    assert ips(Addresses("web"), "web-244", "web-007") == [254, 17]
    assert Addresses("web").reserve("web-4").interface == "10.77.0.14/24"


def test_who_has_no_number_gets_the_lowest_free_address_and_keeps_it() -> None:
    addresses = Addresses("web")
    assert ips(addresses, "web-2", "a", "b", "web-x", "a") == [12, 11, 13, 14, 11]


@pytest.mark.parametrize("name", ["db-1", "web-0", "web-245", "web-00000", f"web-{10**40}"])
def test_what_is_anothers_is_not_taken_and_nobodys_own_either(name: str) -> None:
    addresses = Addresses("web")
    assert ips(addresses, "web-1", name, "web-2", "web-3") == [11, 254, 12, 13]


def test_who_has_gone_finds_its_address_again_and_nobody_else_has_had_it() -> None:
    addresses = Addresses("web")
    assert ips(addresses, "a", "web-2", "web-3") == [11, 12, 13]
    for name in ("web-2", "a", "a", "never-seen"):
        addresses.release(name)
    assert ips(addresses, "b", "db-2", "web-1", "a", "web-2") == [14, 254, 253, 11, 12]


def test_a_full_network_gives_who_is_new_the_place_of_the_longest_gone() -> None:
    addresses = Addresses("web")
    names = [f"web-{number}" for number in range(1, LAST - FIRST + 2)]
    assert ips(addresses, *names) == list(range(FIRST, LAST + 1))
    with pytest.raises(Refused) as full:
        addresses.reserve("one-too-many")
    assert full.value.reason == "network-full"
    for name in ("web-9", "web-7", "web-9", "web-8"):
        addresses.release(name)
    addresses.reserve("web-9")
    assert ips(addresses, "one-more", "web-1000") == [17, 18]
    for name in ("web-7", "web-8"):
        with pytest.raises(Refused):
            addresses.reserve(name)


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.sampled_from(["a", "b", "db-1", *(f"web-{n}" for n in range(5))])
        )
    )
)
def test_a_name_never_leads_to_two_members_and_never_changes(steps: list[tuple[bool, str]]) -> None:
    addresses, known = Addresses("web"), dict[str, str]()
    for comes, name in steps:
        if comes:
            ip = addresses.reserve(name).ip
            assert known.setdefault(name, ip) == ip
        else:
            addresses.release(name)
    assert len(set(known.values())) == len(known)


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
