"""A cluster's network with its real gateway: what guests reach, and what is left of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation.errors import HubError, Refused, Unavailable
from orchestrator.net.addresses import GATEWAY_MAC
from orchestrator.net.network import Network
from tests.orchestrator.net.frames import ACK, ICMP, TCP, echo, ipv4, packed, tcp, to_gateway
from tests.orchestrator.net.guest import Guest, listening
from tests.support import CODE, accepts, eventually, free_port, is_gone, kill

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

pytestmark = pytest.mark.vm

FOUND = shutil.which("qemu-system-x86_64")
GATEWAY = "10.77.0.1"
UNSHARE = ["unshare", "--user", "--map-root-user", "--net"]


def qemu() -> str:
    """Return the path of QEMU, without which there is nothing to test."""
    assert FOUND is not None, "qemu-system-x86_64 is not installed"
    return FOUND


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Have process *pid* stand still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def opened(**options: Any) -> AsyncGenerator[Network]:
    """Yield a network that is closed at the end."""
    network = Network("test", **{"qemu": qemu(), **options})
    await network.open()
    try:
        yield network
    finally:
        network.close()


def plugged(network: Network, member: str = "me") -> Guest:
    """Return a guest whose port is open."""
    guest = Guest(network, member)
    network.admit(member)
    return guest


def gateway_pid(network: Network) -> int:
    """Return the pid of the gateway."""
    gateway = network._uplink._gateway
    assert gateway is not None
    return gateway.pid


async def heard(network: Network) -> None:
    """Return when the gateway has done all that it was asked up to now."""
    await asyncio.sleep(0)
    gateway = network._uplink._gateway
    assert gateway is not None
    await gateway._monitor("info version")


async def soon(holds: Callable[[], bool]) -> None:
    """Wait until *holds* returns true, while the loop runs."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)


def has_called(server: socket.socket) -> bool:
    """Tell whether somebody has connected to *server*."""
    server.setblocking(False)
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


async def test_a_guest_reaches_the_ports_of_the_host_that_are_allowed_and_no_other() -> None:
    with listening() as hub, listening() as private:
        hub_port, private_port = hub.getsockname()[1], private.getsockname()[1]
        async with opened() as network:
            network.allow(hub_port)
            with plugged(network) as guest:
                guest.pings(GATEWAY)
                connection = guest.connects(GATEWAY, hub_port)
                caller, _address = hub.accept()
                with caller:
                    connection.says(b"a question")
                    assert caller.recv(100) == b"a question"
                    caller.sendall(b"an answer")
                    assert connection.hears(9) == b"an answer"
                # At once, not when it has waited in vain.
                with pytest.raises(ConnectionRefusedError):
                    guest.connects(GATEWAY, private_port)
                assert network.counts().refused == {"port": 1}
                network.disallow(hub_port)
                with pytest.raises(ConnectionRefusedError):
                    guest.connects(GATEWAY, hub_port)
                guest.pings(GATEWAY)
                assert not has_called(private)
                assert not has_called(hub)


async def test_the_host_is_not_reached_under_any_of_its_other_names() -> None:
    names = ("10.77.0.2", "10.77.0.3", "10.77.0.200", "10.77.0.255", "127.0.0.1", "0.0.0.0")
    with listening() as hub:
        port = hub.getsockname()[1]
        async with opened() as network:
            network.allow(port)
            with plugged(network) as guest:
                for name in names:
                    guest.knocks(name, port, mac=GATEWAY_MAC)
                guest.pings(GATEWAY)
                assert sum(network.counts().refused.values()) == len(names)
                assert not has_called(hub)
                # The very same frame to the one name that is allowed does call.
                guest.knocks(GATEWAY, port, mac=GATEWAY_MAC)
                guest.pings(GATEWAY)
                assert has_called(hub)


async def test_a_forward_leads_from_the_host_to_the_guest_and_only_there() -> None:
    with listening() as private:
        async with opened() as network:
            with plugged(network) as guest, socket.socket() as caller:
                host_port = await network.forward("me", 22)
                caller.setblocking(False)
                caller.connect_ex(("127.0.0.1", host_port))
                connection = guest.accepts(22)
                caller.settimeout(10)
                caller.sendall(b"knock")
                assert connection.hears(5) == b"knock"
                connection.says(b"come in")
                assert caller.recv(100) == b"come in"
                refused = network.counts().refused
                # By the same port the guest opens nothing of the host's.
                private_port = private.getsockname()[1]
                guest.knocks(GATEWAY, private_port, sport=22)
                stray = tcp(guest.ip, packed(GATEWAY), 23, private_port, flags=ACK)
                guest.sends(stray, packed(GATEWAY), TCP)
                guest.pings(GATEWAY)
                assert network.counts().refused.get("port", 0) - refused.get("port", 0) == 2
                assert not has_called(private)
            own = f"0100007F:{host_port:04X}"  # 127.0.0.1, as the kernel writes it
            everywhere = f"00000000:{host_port:04X}"
            sockets = Path("/proc/net/tcp").read_text()  # noqa: ASYNC240 - no disk
            assert f" {own} 00000000:0000 0A " in sockets
            assert f" {everywhere} " not in sockets


async def test_a_forward_ends_when_it_is_told_to_and_with_its_member() -> None:
    async with opened() as network:
        with plugged(network), plugged(network, "other"):
            first, second = [await network.forward("me", port) for port in (22, 80)]
            assert network.forwards("me") == {first: 22, second: 80}
            assert network.forwards("other") == {}
            assert accepts(first)
            assert not await network.unforward("other", first)
            assert accepts(first)
            assert await network.unforward("me", first)
            assert not await network.unforward("me", first)
            assert not accepts(first)
            assert accepts(second)
            network.release("me")
            network.release("me")
            assert not network.forwards("me")
            await soon(lambda: not accepts(second))


async def test_the_same_forward_is_no_other_one_and_no_error() -> None:
    async with opened() as network:
        with plugged(network), plugged(network, "other"):
            host_port = await network.forward("me", 22)
            assert await network.forward("me", 22) == host_port
            assert await network.forward("me", 22, host_port) == host_port
            another = await network.forward("me", 22, free_port())
            assert network.forwards("me") == {host_port: 22, another: 22}
            assert await network.forward("other", 22) not in (host_port, another)
            for member, port in (("me", 23), ("other", 22)):
                with pytest.raises(
                    Refused,
                    match=f"{host_port} leads to port 22 of me already: .*me --end {host_port}",
                ):
                    await network.forward(member, port, host_port)


async def test_a_forward_that_nobody_waits_for_any_more_is_taken_back() -> None:
    async with opened() as network:
        with plugged(network):
            with frozen(gateway_pid(network)):
                asking = asyncio.create_task(network.forward("me", 22, port := free_port()))
                await soon(lambda: bool(network.forwards("me")))
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
            assert network.forwards("me") == {}
            await heard(network)
            assert not accepts(port)


async def test_a_port_of_the_host_that_is_taken_is_not_forwarded() -> None:
    with listening() as other:
        async with opened() as network:
            with plugged(network):
                with pytest.raises(Refused, match=r"of 127\.0\.0\.1 is in use") as taken:
                    await network.forward("me", 22, other.getsockname()[1])
                assert taken.value.reason == "port-taken"
                assert not network.forwards("me")
                port = free_port()
                assert await network.forward("me", 22, port) == port
                with pytest.raises(Refused) as taken:
                    await network.forward("me", 80, port)
                assert taken.value.reason == "port-taken"
                assert network.forwards("me") == {port: 22}
                for wrong in (0, 65536, -1):
                    with pytest.raises(ValueError, match=str(wrong)):
                        await network.forward("me", wrong)
                    with pytest.raises(ValueError, match=str(wrong)):
                        network.allow(wrong)


async def test_nobody_who_has_no_port_gets_a_forward() -> None:
    async with opened() as network:
        network.reserve("me")
        with pytest.raises(Unavailable) as absent:
            await network.forward("me", 22)
        assert absent.value.reason == "not-running"


@pytest.mark.faults
@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_forward_that_waits_for_the_gateway_does_not_outlive_its_member(
    comes_back: bool,
) -> None:
    async with opened() as network:
        with plugged(network):
            async with network._uplink._changing:  # as while a new gateway is started
                asking = asyncio.create_task(network.forward("me", 22, port := free_port()))
                await asyncio.sleep(0)
                network.release("me")
                if comes_back:
                    network.port("me").close()
            with pytest.raises(Unavailable) as ended:
                await asking
            assert ended.value.reason == "not-running"
            assert network.forwards("me") == {}
            assert not accepts(port)


@pytest.mark.faults
async def test_a_member_that_ends_while_its_forward_is_made_leaves_none() -> None:
    async with opened() as network:
        with plugged(network), plugged(network, "other"):
            with frozen(gateway_pid(network)):
                asking = asyncio.create_task(network.forward("me", 22, port := free_port()))
                await soon(lambda: bool(network.forwards("me")))
                network.release("me")
            with pytest.raises(Unavailable) as ended:
                await asking
            assert ended.value.reason == "not-running"
            await network.forward("other", 22)
            assert not accepts(port)


@pytest.mark.faults
async def test_a_forward_that_was_refused_for_time_does_not_open_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened() as network:
        with plugged(network):
            with monkeypatch.context() as impatient, frozen(gateway_pid(network)):
                impatient.setattr("orchestrator.net.gateway.ANSWER_WITHIN_S", 0.1)
                with pytest.raises(Unavailable, match="did not answer") as late:
                    await network.forward("me", 22, port := free_port())
                assert late.value.reason == "gateway-silent"
            assert network.forwards("me") == {}
            await heard(network)
            assert not accepts(port)
            assert accepts(await network.forward("me", 23))  # it goes on


async def test_a_port_that_was_taken_at_first_is_kept_once_it_is_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened() as network:
        with plugged(network), listening() as other:
            port, tries = other.getsockname()[1], list[int]()

            def chosen() -> int:
                if tries:
                    other.close()
                tries.append(port)
                return int(port)

            monkeypatch.setattr("hub.ports.any_free", chosen)
            assert await network.forward("me", 22) == port
            assert len(tries) == 2
            await network.forward("me", 23, free_port())
            assert accepts(port)


async def test_a_guest_that_sends_as_another_is_not_heard() -> None:
    async with opened() as network:
        with plugged(network) as guest, plugged(network, "other") as other:
            guest.pings(GATEWAY)
            before = network.counts().frames_out
            for mac, ip in ((other.mac, guest.ip), (guest.mac, other.ip)):
                packet = ipv4(echo(), source=ip, to=packed(GATEWAY), protocol=ICMP)
                guest.socket.send(to_gateway(packet, mac=mac))
            guest.pings(GATEWAY)
            assert network.counts("me").refused == {"spoofed": 2}
            assert network.counts().frames_out == before + 1


async def test_the_gateway_can_start_nothing_and_gain_nothing() -> None:
    async with opened() as network:
        status = Path(f"/proc/{gateway_pid(network)}/status").read_text()  # noqa: ASYNC240 - no disk
        assert "Seccomp:\t2\n" in status


_NEW_ADDRESS = """
import asyncio, fcntl, select, socket, struct, sys
from orchestrator.net.network import Network
from tests.orchestrator.net.guest import Guest
async def main():
    with socket.socket() as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("=16sH22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
        network = Network("test", qemu=sys.argv[1])
        await network.open()
        here = struct.pack("=16sHH4s8x8x", b"lo:1", socket.AF_INET, 0, bytes((198, 51, 100, 9)))
        fcntl.ioctl(sock, 0x8916, here)  # SIOCSIFADDR
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with socket.create_server(("198.51.100.9", 0)) as server, Guest(network, "me") as guest:
            network.admit("me")
            gateway = guest.resolve(bytes((10, 77, 0, 1)))
            guest.knocks("198.51.100.9", server.getsockname()[1], mac=gateway)
            guest.pings("10.77.0.1")
            print(network.counts().refused)
        assert not select.select([network._watching], [], [], 0)[0]  # the loop can sleep
        network.close()
asyncio.run(main())
"""


def test_an_address_that_this_host_gets_later_is_not_reached_either() -> None:
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-c", _NEW_ADDRESS, qemu()],
        cwd=CODE,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    )
    assert done.stdout == "{'this-host': 1}\n", done.stderr


async def test_nothing_of_a_guest_gets_out_before_it_is_admitted() -> None:
    with listening() as hub:
        port = hub.getsockname()[1]
        async with opened() as network:
            network.allow(port)
            with Guest(network, "me") as guest, plugged(network, "other") as other:
                guest.knocks(GATEWAY, port, mac=GATEWAY_MAC)
                await soon(lambda: network.counts("me").closed > 0)
                other.pings(GATEWAY)
                assert not has_called(hub)
                network.admit("me")
                guest.pings(GATEWAY)
                network.shut("me")
                guest.knocks(GATEWAY, port, mac=GATEWAY_MAC)
                other.pings(GATEWAY)
                assert not has_called(hub)


async def test_a_member_that_is_plugged_in_anew_loses_its_old_port() -> None:
    async with opened() as network:
        with plugged(network) as before, plugged(network) as after:
            assert before.address == after.address
            after.pings(GATEWAY)
            with pytest.raises(ConnectionRefusedError):
                before.socket.send(b"still here")
            network.release("me")
            with pytest.raises(ConnectionRefusedError):
                after.socket.send(b"still here")
            with pytest.raises(KeyError):
                network.admit("me")


@pytest.mark.faults
async def test_a_killed_gateway_is_back_with_its_forwards() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    with listening() as hub:
        port = hub.getsockname()[1]
        async with opened(told=lambda *event: told.append(event)) as network:
            network.allow(port)
            with plugged(network) as guest:
                host_port = await network.forward("me", 22)
                guest.connects(GATEWAY, port)
                for _ in range(2):
                    before = gateway_pid(network)
                    told.clear()
                    kill(before)
                    await soon(lambda: bool(told))
                    assert told[-1] == (
                        "gateway-restarted",
                        {"status": -9, "error": told[-1][1]["error"]},
                    )
                    assert gateway_pid(network) != before
                    guest.connects(GATEWAY, port)
                    with socket.socket() as caller:
                        caller.setblocking(False)
                        caller.connect_ex(("127.0.0.1", host_port))
                        guest.accepts(22)
        assert not accepts(host_port)


@pytest.mark.faults
async def test_a_forward_whose_port_was_taken_meanwhile_is_told_as_lost() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    async with opened(told=lambda *event: told.append(event)) as network:
        with plugged(network):
            host_port = await network.forward("me", 22)
            kept = await network.forward("me", 80)
            kill(gateway_pid(network))
            eventually(lambda: not accepts(host_port))  # the loop has no turn before it is ours
            with socket.create_server(("127.0.0.1", host_port)):
                await soon(lambda: len(told) == 2)
            assert [name for name, _details in told] == ["forward-lost", "gateway-restarted"]
            assert told[0][1]["host_port"] == host_port
            assert network.forwards("me") == {kept: 80}
            assert accepts(kept)


def breakable(tmp_path: Path) -> tuple[Path, Path]:
    """Return a QEMU, and a file in whose presence it does not start."""
    program, broken = tmp_path / "qemu", tmp_path / "qemu.broken"
    program.write_text(
        f'#!/bin/sh\n[ -e "$0.broken" ] && echo no luck && exit 7\nexec {qemu()} "$@"\n'
    )
    program.chmod(0o755)
    return program, broken


@pytest.mark.faults
async def test_a_gateway_that_cannot_come_back_is_given_up_until_it_is_needed(
    tmp_path: Path,
) -> None:
    program, broken = breakable(tmp_path)
    told: list[tuple[str, dict[str, Any]]] = []
    async with opened(qemu=str(program), told=lambda *event: told.append(event)) as network:
        with plugged(network) as guest:
            host_port = await network.forward("me", 22)
            assert network.trouble == ""
            broken.touch()
            kill(gateway_pid(network))
            await soon(lambda: bool(network.trouble))
            with pytest.raises(Unavailable, match="is being started again") as away:
                await network.forward("me", 23)
            assert away.value.reason == "gateway"
            await soon(lambda: bool(told))
            assert [name for name, _details in told] == ["gateway-failed"]
            assert "no luck" in told[0][1]["error"]
            for attempt in (lambda: network.forward("me", 23), network.revive):
                with pytest.raises(
                    HubError, match=r"could not be started anew: .*no luck"
                ) as failed:
                    await attempt()
                assert failed.value.reason == "gateway"
                assert "failed for good" in network.trouble
                assert "no luck" in network.trouble
            with pytest.raises(Unavailable, match="failed for good"):
                network.counts()
            with plugged(network, "other") as other:
                guest.knocks(other.address, 1, mac=other.mac)  # members still talk
                eventually(lambda: network.counts("other").frames_out == 1)
            broken.unlink()
            await asyncio.gather(network.revive(), network.revive())
            assert network.trouble == ""
            assert [name for name, _details in told] == ["gateway-failed", "gateway-restarted"]
            guest.pings(GATEWAY)
            assert accepts(host_port)
            # It is kept again, and as patiently as the first time.
            kill(gateway_pid(network))
            await soon(lambda: len(told) == 3)
            assert told[-1][0] == "gateway-restarted"


@pytest.mark.faults
async def test_a_gateway_that_had_failed_is_there_again_for_who_asks_for_a_forward(
    tmp_path: Path,
) -> None:
    program, broken = breakable(tmp_path)
    told: list[tuple[str, dict[str, Any]]] = []
    async with opened(qemu=str(program), told=lambda *event: told.append(event)) as network:
        with plugged(network):
            broken.touch()
            kill(gateway_pid(network))
            await soon(lambda: bool(told))
            broken.unlink()
            assert accepts(await network.forward("me", 22))
            assert network.trouble == ""


@pytest.mark.faults
async def test_a_bug_beside_the_gateway_is_told_and_does_not_end_it_in_silence() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    async with opened(told=lambda *event: told.append(event)) as network:
        network._switch.close()
        kill(gateway_pid(network))
        await soon(lambda: bool(told))
        assert told[0][0] == "gateway-failed"
        assert "the switch is closed" in told[0][1]["error"]
        assert "the switch is closed" in network.trouble


async def test_a_qemu_that_cannot_be_confined_is_a_gateway_all_the_same(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *-sandbox*) echo no option group >&2; exit 1;; esac\n'
        f'exec {qemu()} "$@"\n'
    )
    program.chmod(0o755)
    async with opened(qemu=str(program), confined=False) as network:
        with plugged(network) as guest:
            guest.pings(GATEWAY)


@pytest.mark.parametrize(
    ("program", "words"), [("/bin/false", "exited"), ("/nonexistent/qemu", "No such file")]
)
async def test_a_gateway_that_does_not_start_is_an_error_that_says_why(
    program: str, words: str
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    network = Network("test", qemu=program)
    with pytest.raises(HubError, match=words) as failed:
        await network.open()
    assert failed.value.reason == "gateway"
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    network.close()


async def test_without_knowing_this_hosts_addresses_there_is_no_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown() -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("orchestrator.net.network.own_addresses", unknown)
    with pytest.raises(HubError) as failed:
        await Network("test", qemu=qemu()).open()
    assert failed.value.reason == "addresses"


async def test_a_closed_network_leaves_nothing() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    async with opened() as network:
        pid = gateway_pid(network)
        with plugged(network) as guest:
            host_port = await network.forward("me", 22)
            guest.pings(GATEWAY)
    assert is_gone(pid)
    assert not accepts(host_port)
    network.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(RuntimeError, match="not open"):
        network.port("me")


_HOLDER = """
import asyncio, sys
from orchestrator.net.network import Network
async def main():
    network = Network("test", qemu=sys.argv[1])
    await network.open()
    print(network._uplink._gateway.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.faults
def test_the_gateway_of_a_killed_holder_dies_with_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, qemu()],
        cwd=CODE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    ) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert not is_gone(pid)
        holder.kill()
        holder.wait()
        eventually(lambda: is_gone(pid), 5)
