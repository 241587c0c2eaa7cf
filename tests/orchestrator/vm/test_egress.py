"""A cluster without egress: its members reach each other and the hub, and nothing else."""

from __future__ import annotations

import json
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from foundation.errors import Refused
from foundation.workspace import Workspace
from orchestrator import clusters, control, vm_verbs
from orchestrator.cluster import Cluster
from orchestrator.control import SpawnConfig
from orchestrator.holder.launch import Launch
from orchestrator.holder.ours import assemble
from orchestrator.net.addresses import NAME_SERVER
from orchestrator.packages import QEMU
from orchestrator.store import Options, Store
from owner import private
from tests.orchestrator.net.frames import UDP, packed, udp
from tests.orchestrator.net.guest import listening
from tests.orchestrator.net.test_network import GATEWAY, plugged, qemu
from tests.orchestrator.vm.holders import SMALL, config, up
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.net.network import Network

CLOSED = SMALL.replace(egress=False)
OUTSIDE = "192.0.2.1"
"""For documentation: nobody has it, whoever asks. Source: RFC 5737."""


def created(store: Store, name: str, options: Options) -> None:
    lock = store.take(name)
    assert lock is not None
    store.create(name, options)
    private.close(lock)


# --- what is kept ---------------------------------------------------------------------------


def test_a_cluster_that_was_started_without_egress_keeps_that_whoever_joins(store: Store) -> None:
    _session, _found = control.bring_up(
        store, config("web-1").replace(options=CLOSED), timeout_s=30
    )
    control.add_member(store, "web-1", "web-2", options=SMALL)
    control.bring_up(store, config("web-3"), timeout_s=30)
    assert {store.config(name).options.egress for name in store.members("web")} == {False}
    for name in store.members():
        control.stop(store, name)
    _session, _found = control.bring_up(store, config("web-1", "web-4"), timeout_s=30)
    assert not store.config("web-4").options.egress


def test_who_wants_no_egress_does_not_get_it_from_a_cluster_that_has_it(store: Store) -> None:
    up(store, "web-1")
    with pytest.raises(Refused, match="cluster web was created to reach the internet") as caught:
        control.bring_up(store, config("web-1", "web-2").replace(options=CLOSED), timeout_s=30)
    assert caught.value.reason == "egress"
    assert store.members() == ["web-1"]


def test_clusters_of_one_network_have_all_egress_or_none(store: Store) -> None:
    control.bring_up(store, config("web-1").replace(options=CLOSED), timeout_s=30)
    with pytest.raises(Refused, match="db") as caught:
        control.add_member(store, "web-1", "db", options=SMALL)
    assert caught.value.reason == "egress"
    assert not store.exists("db")
    assert control.add_member(store, "web-1", "db", options=CLOSED).running
    for name in store.members():
        control.stop(store, name)
    with pytest.raises(Refused, match="web") as caught:
        control.spawn(store, config("new", "web-1"))
    assert caught.value.reason == "egress"
    assert not store.exists("new")


def test_a_cluster_in_python_tells_what_it_has_not_what_was_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "vms")
    store.make()
    assert not Cluster(["web-1"], store=store, egress=False).egress
    created(store, "web-1", SMALL)
    assert Cluster(["web-2"], store=store, egress=False).egress


def test_egress_is_shown_where_options_are(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Workspace(str(repo)).make_state()
    store = Store(repo / ".orchestrator/vms")
    created(store, "web", CLOSED)
    created(store, "db", SMALL)
    assert vm_verbs.ls(root=str(repo)) == 0
    db, web = capsys.readouterr().out.splitlines()
    assert "no egress" in web
    assert "egress" not in db
    assert vm_verbs.ls(root=str(repo), as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)["data"]["vms"]
    assert {row["name"]: row["egress"] for row in rows} == {"web": False, "db": True}
    views, _half = clusters.look(Workspace(str(repo)))
    assert {view.name: view.egress for view in views} == {"web": False, "db": True}
    assert clusters.summary(views) == "db: 1 stopped; web (no egress): 1 stopped"


# --- what passes ----------------------------------------------------------------------------


async def opened(store: Store, settings: dict[str, Any]) -> Network:
    """Return the network of a holder of ours that was launched for cluster web."""
    launch = Launch(
        names=("web-1", "web-2"),
        store=store.directory,
        parent=0,
        clusters={"web": -1},
        locks={},
        listeners={},
        settings=settings,
    )
    network: Any = (await assemble(launch)).network
    await network.open(lambda _words: None)
    opened: Network = network._network
    return opened


@pytest.mark.vm
@pytest.mark.parametrize("egress", [False, True])
async def test_a_holder_lets_frames_out_or_not_as_its_cluster_was_created(
    store: Store, monkeypatch: pytest.MonkeyPatch, egress: bool
) -> None:
    monkeypatch.setenv(QEMU, qemu())
    store.make()
    for name in ("web-1", "web-2"):
        created(store, name, Options(egress=egress))
    with listening() as hub:
        port = hub.getsockname()[1]
        network = await opened(store, {"allow_ports": [port]})
        try:
            with plugged(network, "web-1") as one, plugged(network, "web-2") as two:
                # Each other, and the hub.
                one.knocks(two.address, 80, mac=two.mac)
                assert two.segment(lambda s: s.dport == 80).source == one.ip
                one.connects(GATEWAY, port)
                hub.accept()[0].close()
                # Neither the internet nor who answers for names there.
                name_server = one.resolve(packed(NAME_SERVER))
                question = udp(40000, 53, b"?" * 12)
                one.sends(question, packed(NAME_SERVER), UDP, mac=name_server)
                outside = one.resolve(packed(GATEWAY))
                one.knocks(OUTSIDE, 80, mac=outside)
                one.sends(udp(40000, 9, b"?"), packed(OUTSIDE), UDP, mac=outside)
                one.pings(GATEWAY)
                refused = network.counts().refused.get("egress", 0)
                assert refused == (0 if egress else 3)
                if not egress:
                    with pytest.raises(ConnectionRefusedError):
                        _connects_outside(one)
        finally:
            network.close()


def _connects_outside(guest: Any) -> None:
    guest._neighbours[packed(OUTSIDE)] = guest.resolve(packed(GATEWAY))
    guest.connects(OUTSIDE, 80)


@pytest.mark.vm
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_guests_without_egress_reach_each_other_and_the_allowed_port_alone(store: Store) -> None:
    with listening() as hub:
        port = hub.getsockname()[1]
        wanted = SpawnConfig(
            names=("web-1", "web-2"),
            options=Options(disk_mb=0, egress=False),
            settings={"allow_ports": [port]},
        )

        def ran(script: str) -> tuple[int, str]:
            done = control.execute(store, "web-1", ["sh", "-c", script])
            return done.status, (done.stdout + done.stderr).decode()

        def hang_up() -> None:
            hub.accept()[0].close()

        with control.spawn(store, wanted):
            control.wait_members(store, wanted.names, 120)
            eventually(lambda: ran("ping -c 1 -W 5 web-2")[0] == 0, 30)
            hanging_up = Thread(target=hang_up)
            hanging_up.start()
            assert ran(f"nc -w 5 {GATEWAY} {port} </dev/null")[0] == 0
            hanging_up.join()
            status, said = ran(f"nc -w 20 {OUTSIDE} 80 </dev/null")
            assert status != 0
            assert "refused" in said, "told at once, not left to wait"
            assert ran("nslookup example.org")[0] != 0
