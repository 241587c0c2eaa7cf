"""A guest's console, as QEMU appends it to a file: its last lines, and its bound."""

from __future__ import annotations

import os

NAME = "console.log"
LARGEST = 4 << 20
"""In bytes: a console that is longer is cut."""
_KEPT = 256 << 10
_TAIL_BYTES = 8192
_PANIC = "Kernel panic"


def begin(path: str) -> None:
    """Put the console of the life before this one aside."""
    try:
        os.rename(path, f"{path}.old")
    except FileNotFoundError:
        return


def last_lines(path: str, number: int) -> str:
    """Return the last *number* lines that are not empty, less what a terminal would obey.

    Where a kernel panicked, the line that says so comes before them.
    """
    lines = [
        line.rstrip() for line in _tail(path, _TAIL_BYTES).decode("utf-8", "replace").split("\n")
    ]
    plain = ["".join(c for c in line if c.isprintable() or c == "\t") for line in lines if line]
    died = [line for line in plain[:-number] if _PANIC in line]
    return "\n".join(died[-1:] + plain[-number:])


def cut(path: str) -> None:
    """Cut a console that is too long to its last lines.

    QEMU appends: it goes on at the new end. What it writes in these microseconds may be lost.
    """
    try:
        if os.stat(path).st_size <= LARGEST:
            return
        kept = _tail(path, _KEPT)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError:
        return
    try:
        os.ftruncate(fd, 0)
        os.write(fd, kept[kept.find(b"\n") + 1 :])
    finally:
        os.close(fd)


def _tail(path: str, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)
    except OSError:
        return b""
