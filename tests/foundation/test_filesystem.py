"""Which file system a path is on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import filesystem, libc
from foundation.filesystem import kind_in, kind_of, network_kind_of

MOUNTS = rb"""21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
22 21 0:20 / /proc rw,nosuid - proc proc rw
30 21 0:50 / /home rw shared:9 master:2 - nfs4 server:/export rw
31 30 0:51 / /home/ada/big\040disk rw - xfs /dev/sdb rw
32 30 0:52 / /home/ada/new\012line\134 rw - fuse.sshfs host: rw
33 21 0:53 / /data rw - btrfs /dev/sdc rw
34 21 0:54 / /data rw - cifs //server/share rw
35 21 0:55 /sub /srv\303\274 rw - btrfs /dev/sdd rw
"""


@pytest.mark.parametrize(
    ("path", "device", "kind"),
    [
        ("/x", (254, 0), "ext4"),
        ("/home/ada", (0, 50), "nfs4"),
        ("/home/ada/big disk/x", (0, 51), "xfs"),
        ("/home/ada/big disk/x", (9, 99), "xfs"),
        ("/home/ada/big disk", (9, 99), "xfs"),
        ("/home/ada/big diskette", (9, 99), "nfs4"),
        ("/home/ada/new\nline\\/x", (9, 99), "fuse.sshfs"),
        ("/data/x", (9, 99), "cifs"),
        ("/srvü/x", (9, 99), "btrfs"),
        ("/srv/x", (9, 99), "ext4"),
    ],
)
def test_the_device_decides_then_the_longest_mount_point(
    path: str, device: tuple[int, int], kind: str
) -> None:
    assert kind_in(MOUNTS, path, *device) == kind


@given(st.binary(), st.text())
def test_a_table_of_junk_names_no_file_system_or_some(table: bytes, path: str) -> None:
    assert isinstance(kind_in(table, path, 1, 1), str)


def test_no_table_means_unknown() -> None:
    assert kind_in(b"", "/", 1, 1) == "unknown"
    assert kind_in(b"\n\n1 2 3\n- - -\n", "/", 1, 1) == "unknown"


def test_this_machine_s_own_are_told(tmp_path: Path) -> None:
    assert kind_of("/proc") == "proc"
    assert kind_of(str(tmp_path)) not in filesystem.NETWORK | {"unknown"}
    assert kind_of("/sys") == "sysfs"
    if os.path.exists("/dev/shm"):
        assert kind_of("/dev/shm") == "tmpfs"


def test_a_local_disk_is_no_network_s_and_the_table_is_read_only_for_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert network_kind_of(str(tmp_path)) == network_kind_of("/proc") == ""
    monkeypatch.setattr(filesystem, "kind_of", lambda _path: "nfs4")
    assert network_kind_of("/proc") == "nfs4"
    for number, kind in ((0xEF53, ""), (0x01021994, ""), (0x6969, "nfs4"), (0x65735546, "nfs4")):
        monkeypatch.setattr(libc, "file_system_at", lambda _path, number=number: number)
        assert network_kind_of("/proc") == kind
    monkeypatch.setattr(filesystem, "kind_of", lambda _path: "fuse")
    assert network_kind_of("/proc") == ""


def test_who_has_no_such_directory_is_told_so() -> None:
    with pytest.raises(FileNotFoundError, match="'/nowhere'"):
        network_kind_of("/nowhere")
