"""The Linux system calls that the host has a guest make, each with what it is for. Pure.

Numbers and structures are x86-64's (Linux: arch/x86/entry/syscalls/syscall_64.tbl and
Documentation/admin-guide/sysrq.rst; netdevice(7), route.h of the user's API, random(4), mount(2)).
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from foundation.errors import HubError
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orchestrator.image.caller import Argument

FIRST_FD = 3
"""What the first open file of the caller is; each of the lists below closes what it has opened."""

_READ, _WRITE, _OPEN, _CLOSE, _IOCTL = 0, 1, 2, 3, 16
_SOCKET, _EXECVE, _EXIT, _KILL, _RENAME, _MKDIR, _SYMLINK = 41, 59, 60, 62, 82, 83, 88
_SYNC, _MOUNT, _UMOUNT, _SETHOSTNAME, _INIT_MODULE, _CLOCK_SETTIME = 162, 165, 166, 170, 175, 227
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_SIOCADDRT, _SIOCSIFFLAGS, _SIOCSIFADDR = 0x890B, 0x8914, 0x8916
_SIOCSIFNETMASK, _SIOCSIFHWADDR = 0x891C, 0x8924
_TIOCSWINSZ = 0x5414
_IFF_UP, _ARPHRD_ETHER, _RTF_UP, _RTF_GATEWAY = 1, 1, 1, 2
_MS_RDONLY, _MS_REMOUNT, _MS_NOATIME = 1, 32, 1024
_EVERYBODY = -1
_ANY = "0.0.0.0"  # noqa: S104 - a route's, nothing is bound


class Call(Record):
    """One call."""

    number: int
    arguments: tuple[Argument, ...]
    words: str = ""
    """What it does, if it must not fail: "set the clock"."""


def check(calls: list[Call], results: list[int]) -> None:
    """Raise for the first call that must not fail and has.

    Raises:
        HubError: with its words and the error's (``guest``).
    """
    for call, result in zip(calls, results, strict=True):
        if call.words and result < 0:
            raise HubError(f"cannot {call.words}: {os.strerror(-result)}", reason="guest")


def host_name(name: str) -> list[Call]:
    """Be called *name*."""
    raw = os.fsencode(name)
    return [Call(number=_SETHOSTNAME, arguments=(raw, len(raw)), words=f"be called {name}")]


def clock(now_s: float) -> list[Call]:
    """Set the clock to *now_s*, seconds since the epoch."""
    spec = struct.pack("<qq", int(now_s), int(now_s % 1 * 1e9))
    return [Call(number=_CLOCK_SETTIME, arguments=(0, spec), words="set its clock")]


def reseed(seed: bytes) -> list[Call]:
    """Make the kernel's randomness another, at once.

    What is only written to /dev/urandom is heeded later, and VMs of one template wake with the
    same random numbers to come.
    """
    entropy = struct.pack("<ii", 8 * len(seed), len(seed)) + seed
    words = "have randomness of its own"
    return [
        _open("/dev/urandom", os.O_WRONLY, words),
        Call(number=_IOCTL, arguments=(FIRST_FD, _RNDADDENTROPY, entropy), words=words),
        Call(number=_IOCTL, arguments=(FIRST_FD, _RNDRESEEDCRNG, 0), words=words),
        _close(),
    ]


def file(path: str, content: bytes, flags: int = os.O_TRUNC) -> list[Call]:
    """Write a file; *flags*: what open(2) is given besides."""
    words = f"write {path}"
    return [
        _open(path, os.O_WRONLY | os.O_CREAT | flags, words),
        Call(number=_WRITE, arguments=(FIRST_FD, content, len(content)), words=words),
        _close(),
    ]


def replacement(path: str, content: bytes) -> list[Call]:
    """Put a file in the place of another: who reads it sees one or the other."""
    new = f"{path}.new"
    arguments = (_path(new), _path(path))
    rename = Call(number=_RENAME, arguments=arguments, words=f"replace {path}")
    return [*file(new, content), rename]


def reading(path: str, most: int) -> list[Call]:
    """Read at most *most* bytes: of the second call's answer, by its second argument."""
    return [
        _open(path, os.O_RDONLY, ""),
        Call(number=_READ, arguments=(FIRST_FD, bytes(most), most)),
        _close(),
    ]


def network(card: str, mac: str, address: str, gateway: str) -> list[Call]:
    """Give *card* its addresses (``10.77.0.11/24``), bring it up; have a way out if *gateway*."""
    ip, _slash, length = address.partition("/")
    mask = (0xFFFF_FFFF << (32 - int(length))) & 0xFFFF_FFFF
    hardware = struct.pack("<H", _ARPHRD_ETHER) + bytes.fromhex(mac.replace(":", ""))
    wanted = [
        (_SIOCSIFHWADDR, hardware),
        (_SIOCSIFADDR, _inet(ip)),
        (_SIOCSIFNETMASK, struct.pack("<HHI", socket.AF_INET, 0, socket.htonl(mask))),
        (_SIOCSIFFLAGS, struct.pack("<H", _IFF_UP)),
    ]
    words = f"have {address}, {mac}, on {card}"
    made = [Call(number=_SOCKET, arguments=(socket.AF_INET, socket.SOCK_DGRAM, 0), words=words)]
    for command, value in wanted:
        made.append(_configure(command, card, value, words))
    if gateway:
        route = struct.pack(
            *("<Q16s16s16sH62x", 0, _inet(_ANY), _inet(gateway), _inet(_ANY)),
            _RTF_UP | _RTF_GATEWAY,
        )
        words = f"have {gateway} as its gateway"
        made.append(Call(number=_IOCTL, arguments=(FIRST_FD, _SIOCADDRT, route), words=words))
    return [*made, _close()]


def loopback() -> list[Call]:
    """Bring the loopback up."""
    words = "have a loopback"
    return [
        Call(number=_SOCKET, arguments=(socket.AF_INET, socket.SOCK_DGRAM, 0), words=words),
        _configure(_SIOCSIFFLAGS, "lo", struct.pack("<H", _IFF_UP), words),
        _close(),
    ]


def _configure(command: int, card: str, value: bytes, words: str) -> Call:
    ask = struct.pack("<16s24s", card.encode(), value)
    return Call(number=_IOCTL, arguments=(FIRST_FD, command, ask), words=words)


def window(terminal: str, rows: int, columns: int) -> list[Call]:
    """Tell a terminal how large it is, and whoever runs on it. Source: ioctl_tty(2), TIOCSWINSZ."""
    size = struct.pack("<HHHH", rows, columns, 0, 0)
    return [
        _open(terminal, os.O_RDWR | os.O_NOCTTY, ""),
        Call(number=_IOCTL, arguments=(FIRST_FD, _TIOCSWINSZ, size)),
        _close(),
    ]


def mount_disk(device: str, place: str) -> list[Call]:
    """Mount an ext4."""
    arguments = (_path(device), _path(place), b"ext4\0", _MS_NOATIME, 0)
    return [Call(number=_MOUNT, arguments=arguments, words=f"mount {device}, its disk")]


def mount(kind: str, place: str, options: str = "") -> list[Call]:
    """Mount a file system of *kind*, which needs no device."""
    arguments = (_path(kind), _path(place), _path(kind), 0, _path(options) if options else 0)
    return [Call(number=_MOUNT, arguments=arguments)]


def directory(path: str) -> list[Call]:
    """Make a directory."""
    return [Call(number=_MKDIR, arguments=(_path(path), 0o755))]


def link(path: str, to: str) -> list[Call]:
    """Make a symbolic link."""
    return [Call(number=_SYMLINK, arguments=(_path(to), _path(path)))]


def module(content: bytes) -> list[Call]:
    """Load a kernel module. Source: init_module(2)."""
    return [Call(number=_INIT_MODULE, arguments=(content, len(content), b"\0"))]


def become(path: str, *argv: str) -> list[Call]:
    """Become another program, or end."""
    return [
        Call(number=_EXECVE, arguments=(_path(path), tuple(_path(word) for word in argv), 0)),
        Call(number=_EXIT, arguments=(1,)),
    ]


def terminate(signal_number: int, pid: int = _EVERYBODY) -> list[Call]:
    """Send a signal; to everybody but init and the caller itself."""
    return [Call(number=_KILL, arguments=(pid, signal_number))]


def unmount(place: str) -> list[Call]:
    """Unmount."""
    return [Call(number=_UMOUNT, arguments=(_path(place), 0))]


def is_in_use(result: int) -> bool:
    """Whether that is what *result* of :func:`unmount` says."""
    return result == -errno.EBUSY


def freeze(place: str) -> list[Call]:
    """Have all written, and nothing written any more."""
    flags = _MS_REMOUNT | _MS_RDONLY
    return [
        Call(number=_SYNC, arguments=()),
        Call(number=_MOUNT, arguments=(0, _path(place), 0, flags, 0)),
    ]


def reset() -> list[Call]:
    """End at once; there will be no answer.

    By sysrq: an orderly power-off has this kernel break its devices, and one that is sending just
    then spins for ever (seen once in 60 stops).
    """
    return [
        _open("/proc/sysrq-trigger", os.O_WRONLY, ""),
        Call(number=_WRITE, arguments=(FIRST_FD, b"b", 1)),
    ]


def _open(path: str, flags: int, words: str) -> Call:
    return Call(number=_OPEN, arguments=(_path(path), flags, 0o644), words=words)


def _close() -> Call:
    return Call(number=_CLOSE, arguments=(FIRST_FD,))


def _path(path: str) -> bytes:
    return os.fsencode(path) + b"\0"


def _inet(address: str) -> bytes:
    return struct.pack("<HH4s", socket.AF_INET, 0, socket.inet_aton(address))
