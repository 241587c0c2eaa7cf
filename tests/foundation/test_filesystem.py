"""Which file system a path is on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import filesystem
from foundation.filesystem import kind_in, kind_of

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
