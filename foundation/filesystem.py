"""What kind of file system a path is on."""

from __future__ import annotations

import os

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs"}
    | {"beegfs", "coda", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.gcsfuse"}
)
"""Types on which flock, Unix sockets or fsync do not mean what they mean on a local disk."""

_LOCAL = frozenset(
    {0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630, 0xF2F52010, 0x2FC12FC1, 0xCA451A4E}
)
"""ext2 to ext4, xfs, btrfs, tmpfs, overlay, f2fs, zfs, bcachefs. Source: statfs(2), f_type."""

_MOUNT_POINT = 4  # the field of a line


def network_kind_of(path: str) -> str:
    """Return the type of the file system that *path* is on if it is a network's, "" if not.

    The kernel knows most disks' by a number, at a hundredth of what reading the table costs.
    """
    from foundation import libc  # noqa: PLC0415 - 0.9 ms that others can do without

    if libc.file_system_at(path) in _LOCAL:
        return ""
    kind = kind_of(path)
    return kind if kind in NETWORK else ""


def kind_of(path: str) -> str:
    """Return the type of the file system that *path* is on, as /proc/mounts names it."""
    device = os.stat(path).st_dev
    with open("/proc/self/mountinfo", "rb") as file:
        return kind_in(file.read(), os.path.realpath(path), os.major(device), os.minor(device))


def kind_in(mountinfo: bytes, path: str, major: int, minor: int) -> str:
    """Return the type of the file system at *path*, on device *major*:*minor*.

    The device decides; where none matches (btrfs and overlay give files device numbers of
    their own) the longest mount point above the path does. ``unknown`` if neither is found.

    Source: proc_pid_mountinfo(5): id, parent, major:minor, root, mount point (octal
    escapes), options, optional fields, ``-``, type, source, options.
    """
    best, best_length = "unknown", -1
    wanted = f"{major}:{minor}".encode()
    for line in mountinfo.splitlines():
        left, _dash, right = line.partition(b" - ")
        fields = left.split()
        if len(fields) <= _MOUNT_POINT or not right:
            continue
        kind = right.split()[0].decode("ascii", "replace")
        if fields[2] == wanted:
            return kind
        point = _unescape(fields[_MOUNT_POINT])
        above = point in ("/", path) or path.startswith(point + "/")
        if above and len(point) >= best_length:  # a later mount on the same point hides it
            best, best_length = kind, len(point)
    return best


def _unescape(field: bytes) -> str:
    head, *rest = field.split(b"\\")
    plain = head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)
    return os.fsdecode(plain)
