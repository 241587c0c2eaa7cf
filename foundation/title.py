"""What ``ps`` and /proc show of a forked process: its words and its marks, not its parent's.

A fork that does not exec has the command line and the environment of who forked it, also where
other processes look for proof of what it is.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_ARGUMENTS, _ENVIRONMENT = (45, 46), (47, 48)
"""Where the two areas begin and end. Source: proc_pid_stat(5), fields 48-51, less three."""
_COMM_BYTES = 15  # proc_pid_comm(5)


def set_title(words: list[str], marks: Mapping[str, str]) -> bool:
    """Show *words* as this process's command line and *marks* first in its environment.

    For a process that has forked and not executed. What the program itself reads of both stays
    as it is. Cut to the room that the parent's had. Returns false if the system does not permit
    it; nothing depends on it then but what others can see.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        arguments, environment = (
            (int(fields[begin]), int(fields[end])) for begin, end in (_ARGUMENTS, _ENVIRONMENT)
        )
        with open("/proc/self/environ", "rb") as file:
            shown = file.read().split(b"\0")
        # The C library's own table points into the area: onto copies elsewhere, first.
        for name, value in os.environb.items():
            os.putenv(name, value)
        memory = os.open("/proc/self/mem", os.O_WRONLY)
        try:
            _write(memory, arguments, [os.fsencode(word) for word in words])
            lines = [os.fsencode(f"{name}={value}") for name, value in marks.items()]
            named = tuple(os.fsencode(f"{name}=") for name in marks)
            lines += [line for line in shown if line and not line.startswith(named)]
            _write(memory, environment, lines)
        finally:
            os.close(memory)
    except (OSError, ValueError, IndexError):
        return False
    return set_name(words[0])


def set_name(name: str) -> bool:
    """Show *name*, cut to 15 bytes, where the system shows one word: in ``top``, ``ps -o comm``."""
    try:
        with open("/proc/self/comm", "wb") as file:
            file.write(os.fsencode(name)[:_COMM_BYTES])
    except OSError:
        return False
    return True


def _write(memory: int, area: tuple[int, int], lines: list[bytes]) -> None:
    """Fill *area* with *lines*, each ended by a zero; those that do not fit are left out.

    Its last byte stays zero, or the kernel would read on behind it.
    """
    begin, end = area
    size = end - begin
    content = b""
    for line in lines:
        if len(content) + len(line) + 1 <= size:
            content += line + b"\0"
    os.pwrite(memory, content.ljust(size, b"\0"), begin)
