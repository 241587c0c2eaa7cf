"""Archives in cpio's "newc" form, which the kernel unpacks as an initramfs. Pure.

Source: https://www.kernel.org/doc/html/latest/driver-api/early-userspace/buffer-format.html
"""

from __future__ import annotations

import stat

_TRAILER = "TRAILER!!!"


class Archive:
    """An archive that is written front to back; everything in it belongs to root."""

    def __init__(self) -> None:
        """Begin an empty one."""
        self._parts: list[bytes] = []
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; whatever is in it comes after it."""
        self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link at *path* that names *target*."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device: a header alone, so that nobody need be root."""
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def to_bytes(self) -> bytes:
        """Return the whole archive."""
        return b"".join((*self._parts, *_entry(_TRAILER, 0, 0, b"", (0, 0))))

    def _add(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        if path.startswith("/") or not path:
            raise ValueError(f"{path!r}: paths in an archive are relative")
        self._inode += 1
        self._parts += _entry(path, self._inode, mode, content, device)


def _entry(
    path: str, inode: int, mode: int, content: bytes, device: tuple[int, int]
) -> tuple[bytes, ...]:
    name = path.encode() + b"\0"
    # inode mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return header + name, _padding(len(header) + len(name)), content, _padding(len(content))


def _padding(length: int) -> bytes:
    return b"\0" * (-length % 4)
