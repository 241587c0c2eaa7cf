"""The programs behind a VM: QEMU, a kernel and busybox, found or fetched, without root.

A variable names a file; else what the system has or was fetched before; else Debian's packages,
by apt-get with a private state and dpkg-deb, unpacked in the cache: nothing is installed.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from foundation.errors import HubError, Refused, ToolFailed, Unavailable
from foundation.failpoint import hit
from foundation.record import Record
from foundation.spawn import find_program
from orchestrator import cache
from orchestrator.child import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.backends.base import Progress

    Fetch = Callable[["_Apt", str], Awaitable[None]]
    """Has apt download something, and unpack it in a directory."""

QEMU = "BONES_QEMU"
KERNEL = "BONES_VM_KERNEL"
MODULES = "BONES_VM_MODULES"
BUSYBOX = "BONES_VM_BUSYBOX"

_QEMU_PROGRAM = "qemu-system-x86_64"
_QEMU_PACKAGE = "qemu-system-x86"
_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_BUSYBOX_PACKAGE = "busybox-static"
_QEMU_ADVICE = (
    f"install QEMU so that {_QEMU_PROGRAM} is on PATH (Debian: {_QEMU_PACKAGE}; Fedora: "
    "qemu-system-x86-core; Arch: qemu-system-x86; Alpine: qemu-system-x86_64), or name it by "
    f"{QEMU}"
)
_GUEST_ADVICE = (
    f"name a kernel by {KERNEL} (a bzImage), its modules by {MODULES} (such as "
    f"/lib/modules/VERSION, with virtio's) and a static busybox by {BUSYBOX}; they come from "
    f"Debian's {_KERNEL_PACKAGE} and {_BUSYBOX_PACKAGE} where there is apt-get"
)
_DPKG_STATUS = "/var/lib/dpkg/status"
_DOWNLOAD_S = 600.0
_UNPACK_S = 120.0
_ASK_S = 60.0


class Qemu(Record):
    """A QEMU that can be run."""

    program: str
    libraries: list[str]
    """Directories for LD_LIBRARY_PATH; empty if the system's own suffice."""
    data: list[str]
    """Directories of its firmware; empty if it knows them."""

    def environment(self) -> dict[str, str]:
        """Return what to run it with: our own environment, and where its libraries are."""
        found = dict(os.environ)
        if self.libraries:
            found["LD_LIBRARY_PATH"] = ":".join(self.libraries)
        return found

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line that runs it with *arguments*."""
        return [self.program, *(word for path in self.data for word in ("-L", path)), *arguments]


class Guest(Record):
    """What a guest's image is made of: absolute paths."""

    kernel: str
    modules: str
    """The directory of its modules; it holds ``kernel/`` and ``modules.builtin``."""
    busybox: str


class Packages:
    """What is in one cache directory, and how it gets there."""

    def __init__(self, directory: str, *, fetch: bool = True) -> None:
        """Name the directory; nothing is made or looked at yet. Not *fetch*: what is missing is."""
        self._room = f"{directory}/packages"
        self._fetch = fetch

    async def qemu(self, progress: Progress) -> Qemu:
        """Return a QEMU.

        Raises:
            Refused: the variable names none (``no-such-program``).
            HubError: there is none, and none can be fetched (``no-qemu``).
        """
        if named := os.environ.get(QEMU):
            return Qemu(program=_named_program(QEMU, named), libraries=[], data=[])
        if found := find_program(_QEMU_PROGRAM):
            return Qemu(program=found, libraries=[], data=[])
        root = await self._have("qemu", progress, _fetch_qemu, "no-qemu", _QEMU_ADVICE)
        return unpacked_qemu(root)

    async def guest(self, progress: Progress) -> Guest:
        """Return a kernel, its modules and a static busybox.

        Raises:
            Refused: a variable names what is not there (``no-such-program``).
            HubError: they cannot be fetched (``no-guest``).
        """
        kernel, modules = os.environ.get(KERNEL, ""), os.environ.get(MODULES, "")
        busybox = os.environ.get(BUSYBOX, "")
        if bool(kernel) != bool(modules):
            raise Refused(
                f"{KERNEL} and {MODULES} belong together: a bzImage, and the directory of its "
                "modules, such as /lib/modules/VERSION",
                reason="no-such-program",
            )
        if kernel:
            _there(KERNEL, kernel, os.path.isfile)
            _there(MODULES, modules, os.path.isdir)
        if busybox:
            busybox = _named_program(BUSYBOX, busybox)
        if not (kernel and busybox):
            root = await self._have("guest", progress, _fetch_guest, "no-guest", _GUEST_ADVICE)
            if not kernel:
                kernel, modules = unpacked_kernel(root)
            busybox = busybox or unpacked_busybox(root)
        return Guest(kernel=kernel, modules=modules, busybox=busybox)

    async def _have(
        self, name: str, progress: Progress, fetch: Fetch, reason: str, advice: str
    ) -> str:
        """Return the directory of what was unpacked as *name*, which is fetched if it must be."""
        path = f"{self._room}/{name}"
        if cache.has(path):
            return path
        if not (find_program("apt-get") and find_program("dpkg-deb")):
            raise HubError(advice, reason=reason)
        if not self._fetch:
            raise Unavailable(f"{name}: not fetched yet", reason="not-fetched")
        try:
            async with cache.making(self._room, "waiting for another download", progress) as new:
                if cache.has(path):
                    return path
                progress(f"downloading {name} packages, once, to {self._room}")
                os.mkdir(f"{new}/root", 0o700)
                await fetch(await _Apt.fresh(new), f"{new}/root")
                hit("packages.unpacked")
                os.rename(f"{new}/root", path)
        except (HubError, OSError) as error:
            raise HubError(
                f"the {name} packages cannot be fetched: {error}\n{advice}", reason=reason
            ) from error
        return path


async def _fetch_guest(apt: _Apt, root: str) -> None:
    depends = await apt.ask("apt-cache", "depends", _KERNEL_PACKAGE)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise HubError(f"{_KERNEL_PACKAGE} is not among the system's packages", reason="tool")
    await apt.download(found[1], _BUSYBOX_PACKAGE)
    await apt.unpack(root)
    unpacked_kernel(root)
    unpacked_busybox(root)


async def _fetch_qemu(apt: _Apt, root: str) -> None:
    """QEMU needs much; what of it the system has already is not fetched."""
    await apt.download_with_needs(_QEMU_PACKAGE)
    await apt.unpack(root)
    unpacked_qemu(root)


def unpacked_qemu(root: str) -> Qemu:
    """Return the QEMU that was unpacked in *root*.

    Raises:
        HubError: there is none.
    """
    program = _there_unpacked(f"{root}/usr/bin/{_QEMU_PROGRAM}")
    libraries = [
        path
        for path in (
            f"{root}/usr/lib/x86_64-linux-gnu",
            f"{root}/lib/x86_64-linux-gnu",
            f"{root}/usr/lib",
        )
        if os.path.isdir(path)
    ]
    data = [f"{root}/usr/share/{name}" for name in ("qemu", "seabios")]
    return Qemu(program=program, libraries=libraries, data=data)


def unpacked_kernel(root: str) -> tuple[str, str]:
    """Return the kernel that was unpacked in *root*, and the directory of its modules.

    Raises:
        HubError: there is none.
    """
    boot = f"{root}/boot"
    names = os.listdir(boot) if os.path.isdir(boot) else []
    version = next((n.removeprefix("vmlinuz-") for n in names if n.startswith("vmlinuz-")), "")
    for base in (f"{root}/lib/modules", f"{root}/usr/lib/modules"):
        if version and os.path.isdir(f"{base}/{version}/kernel"):
            return f"{boot}/vmlinuz-{version}", f"{base}/{version}"
    raise HubError(f"{root} holds no kernel", reason="no-guest")


def unpacked_busybox(root: str) -> str:
    """Return the busybox that was unpacked in *root*.

    Raises:
        HubError: there is none.
    """
    for path in (f"{root}/bin/busybox", f"{root}/usr/bin/busybox"):
        if os.path.isfile(path):
            return path
    return _there_unpacked(f"{root}/bin/busybox")


class _Apt:
    """apt-get and dpkg-deb, all of whose state is below one directory of ours."""

    def __init__(self, directory: str, options: list[str]) -> None:
        self._directory = directory
        self._options = options

    @classmethod
    async def fresh(cls, directory: str) -> _Apt:
        """Return one whose lists are as fresh as the network's."""
        for name in ("lists/partial", "archives/partial"):
            os.makedirs(f"{directory}/apt/{name}")
        user = "root" if os.geteuid() == 0 else ""
        made = cls(
            directory,
            [
                f"--option={option}"
                for option in (
                    f"Dir::State={directory}/apt",
                    f"Dir::State::status={_DPKG_STATUS}",
                    f"Dir::Cache={directory}/apt",
                    "Debug::NoLocking=1",
                    f"APT::Sandbox::User={user}",
                )
            ],
        )
        await made._run("apt-get", "--quiet", "update", within_s=_DOWNLOAD_S)
        return made

    async def ask(self, program: str, *arguments: str) -> str:
        return await self._run(program, *arguments, within_s=_ASK_S)

    async def download(self, *packages: str) -> None:
        await self._run("apt-get", "--quiet", "download", *packages, within_s=_DOWNLOAD_S)

    async def download_with_needs(self, package: str) -> None:
        """Fetch *package* and what it needs and the system has not."""
        arguments = ("--yes", "--download-only", "--no-install-recommends", "install", package)
        await self._run("apt-get", "--quiet", *arguments, within_s=_DOWNLOAD_S)

    async def unpack(self, target: str) -> None:
        """Unpack all that was downloaded."""
        for place in (self._directory, f"{self._directory}/apt/archives"):
            for name in sorted(os.listdir(place)):
                if name.endswith(".deb"):
                    argv = ("dpkg-deb", "--extract", f"{place}/{name}", target)
                    await self._run(*argv, within_s=_UNPACK_S)

    async def _run(self, program: str, *arguments: str, within_s: float) -> str:
        path = find_program(program)
        if path is None:
            raise HubError(f"there is no {program}", reason="tool")
        options = self._options if program.startswith("apt") else []
        environment = dict(os.environ) | {"LC_ALL": "C"}
        # dpkg insists on what a user's PATH may lack.
        environment["PATH"] = environment.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
        try:
            return await run(
                [path, *options, *arguments],
                cwd=self._directory,
                env=environment,
                within_s=within_s,
            )
        except ToolFailed as error:
            words = "\n".join(error.stderr.strip().splitlines()[-5:])
            raise HubError(f"`{program} {' '.join(arguments)}`: {words}", reason="tool") from error


def _named_program(variable: str, path: str) -> str:
    if found := find_program(path):
        return found
    raise Refused(f"{variable}={path}: no such program", reason="no-such-program")


def _there(variable: str, path: str, holds: Callable[[str], bool]) -> None:
    if not holds(path):
        raise Refused(f"{variable}={path}: not there", reason="no-such-program")


def _there_unpacked(path: str) -> str:
    if not os.path.isfile(path):
        raise HubError(f"{path} is missing", reason="tool")
    return path
