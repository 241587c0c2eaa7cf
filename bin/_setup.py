"""Make .venv and fetch fossil: the work of bin/setup, once that has found a Python.

Standard library only: it runs before anything is installed. A set-up builds a whole new
environment beside the old one and shows it by one rename, so whatever kills it, and
whenever, .venv is missing, old or complete, never half made (docs/adr/0005-set-up.md).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
OUR_FOSSIL = TOOLS / "bin" / "fossil"
PRIVATE_APT = TOOLS / "apt"
VM_PARTS = TOOLS / "cache" / "bones" / "vm"
SHIM_MARK = "# bones-substrate shim; written by bin/setup --shim"
PIP_WITH_PYTHON_OPTION = (22, 3)


class SetupError(Exception):
    """Set-up cannot go on; the message says what a person should do."""


def say(words: str) -> None:
    """Talk on stderr; stdout belongs to the verb that wanted the set-up."""
    print(f"setup: {words}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Report the body of the ``with`` in one line, with its seconds."""
    began = time.monotonic()
    yield
    say(f"{name}, {time.monotonic() - began:.1f} s")


def run(*argv: str | Path, cwd: Path = ROOT, within: dict[str, str] | None = None) -> None:
    """Run a tool to its end; what it printed matters only if it fails."""
    tool = subprocess.run(
        argv,
        cwd=cwd,
        env=scrubbed_environment() | (within or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if tool.returncode:
        words = shlex.join(map(str, argv))
        raise SetupError(f"`{words}` failed ({tool.returncode}):\n{tool.stdout.strip()}")


def scrubbed_environment() -> dict[str, str]:
    """Return the environment less what would send pip or Python elsewhere.

    The user's index, proxy and certificates (the other PIP_ variables) stay in force.
    """
    elsewhere = {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in elsewhere and not name.startswith("PYTHON")
    }
    if not Path("~").expanduser().is_absolute():  # a uid without a home
        kept["HOME"] = str(TOOLS)
    # dpkg insists on ldconfig, which a user's PATH may lack.
    kept["PATH"] = kept.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
    return kept


class Lock(NamedTuple):
    """A requirements lock as it stood when set-up looked at it, and the stamp it leaves."""

    path: Path
    stamp: str
    digest: str
    mtime_ns: int

    @classmethod
    def read(cls, name: str, stamp: str) -> Lock:
        """Read the mtime before the bytes: an edit in between only costs a second set-up."""
        path = ROOT / name
        mtime_ns = path.stat().st_mtime_ns
        return cls(path, stamp, hashlib.sha256(path.read_bytes()).hexdigest(), mtime_ns)

    def is_installed(self) -> bool:
        """Tell whether .venv was made from these very bytes; if so, freshen its stamp.

        A lock that was only touched (a checkout, a copy) must not cost an installation.
        """
        stamp = VENV / self.stamp
        try:
            made_from, mtime_ns = stamp.read_text(), stamp.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if made_from == self.digest and mtime_ns != self.mtime_ns:
            with contextlib.suppress(OSError):  # someone else's project: theirs to freshen
                os.utime(stamp, ns=(self.mtime_ns, self.mtime_ns))
        return made_from == self.digest

    def mark(self, environment: Path) -> None:
        """Leave the stamp, which the launchers compare with the lock by mtime alone."""
        stamp = environment / self.stamp
        stamp.write_text(self.digest)
        os.utime(stamp, ns=(self.mtime_ns, self.mtime_ns))


def wanted_locks(*, dev: bool) -> list[Lock]:
    """Return the locks that .venv must satisfy; a .venv with dev tools keeps them."""
    locks = [Lock.read("requirements.lock", ".stamp")]
    if dev:
        locks.append(Lock.read("requirements-dev.lock", ".stamp-dev"))
    return locks


def environment_is_ready(locks: list[Lock]) -> bool:
    """Tell whether .venv is what the locks say and its Python still runs."""
    if not all(lock.is_installed() for lock in locks):
        return False
    with contextlib.suppress(OSError):
        probe = (VENV / "bin" / "python", "-I", "-S", "-c", "pass")
        return subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0
    return False


@contextlib.contextmanager
def the_only_set_up() -> Iterator[None]:
    """Hold the set-up lock; the kernel drops it when we die, so nothing is ever stale."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this project")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The environment


def build_environment(locks: list[Lock]) -> Path:
    """Install the last lock (the dev lock holds the runtime too) into a new environment."""
    environment = Path(tempfile.mkdtemp(prefix="venv-", dir=TOOLS))
    python = environment / "bin" / "python"
    environment.chmod(0o755)
    venv.create(environment, symlinks=True)
    installer = pip()
    with step(f"Python {sys.version.split()[0]} packages of {locks[-1].path.name}"):
        run(
            *installer,
            *("--python", python, "--disable-pip-version-check", "--no-input", "--quiet"),
            *("install", "--require-hashes", "--no-deps", "--no-compile"),
            *("--requirement", locks[-1].path),
        )
    with step("bytecode"), contextlib.suppress(SetupError):  # only speed is lost
        packages = [file.parent for file in ROOT.glob("*/__init__.py")]
        compileall: list[str | Path] = [python, "-I", "-m", "compileall", "-q"]
        compileall += [environment / "lib", *packages]
        try:
            run(*compileall, "-j", "0")
        except SetupError:  # a container without /dev/shm has no worker processes
            run(*compileall)
    for lock in locks:
        lock.mark(environment)
    return environment


def show(environment: Path) -> None:
    """Make .venv mean *environment*, in one rename."""
    link = TOOLS / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(environment.relative_to(ROOT))
    if VENV.is_dir() and not VENV.is_symlink():
        if not (VENV / "pyvenv.cfg").exists():
            raise SetupError(f"{VENV} is not a virtual environment; move it away")
        VENV.rename(tempfile.mkdtemp(prefix="venv-", dir=TOOLS))
    link.replace(VENV)


def sweep() -> None:
    """Remove what nothing needs: replaced environments, downloads, a killed set-up's rest."""
    shown = VENV.resolve()
    for made in (*TOOLS.glob("venv-*"), *TOOLS.glob("deb-*"), PRIVATE_APT):
        if made != shown:
            shutil.rmtree(made, ignore_errors=True)


def pip() -> list[str | Path]:
    """Return the command of a pip that can install into another Python's environment.

    In this order: the base interpreter's own, the wheel kept for ensurepip, and, where a
    distribution ships Python with neither, the wheel out of Debian's package.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        version = importlib.metadata.version("pip").split(".")[:2]
        if tuple(map(int, version)) >= PIP_WITH_PYTHON_OPTION:
            return [sys.executable, "-I", "-m", "pip"]
    places = [Path("/usr/share/python-wheels")]
    if (ensurepip := importlib.util.find_spec("ensurepip")) and ensurepip.origin:
        places.append(Path(ensurepip.origin).parent / "_bundled")
    fetched = TOOLS / "pip" / "usr" / "share" / "python-wheels"
    for place in (*places, fetched):
        for wheel in place.glob("pip-*.whl"):
            return [sys.executable, "-I", wheel / "pip"]
    if not shutil.which("apt-get"):
        raise SetupError(f"{sys.executable} has no pip; install one: {advice('python3-pip')}")
    with step("pip"):
        unpack(download("python3-pip-whl"), TOOLS / "pip")
    return pip()


# Packages of the system


def advice(package: str) -> str:
    """Return the line to type to get *package* where we do not install it ourselves."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    for tool, verb in (
        ("apt-get", "install"),
        ("dnf", "install"),
        ("pacman", "-S"),
        ("apk", "add"),
        ("zypper", "install"),
    ):
        if shutil.which(tool):
            return f"{sudo}{tool} {verb} {package}"
    return f"brew install {package}" if shutil.which("brew") else f"(no package tool) {package}"


APT_IN_USE = threading.Lock()


@functools.cache
def private_apt() -> list[str]:
    """Return an apt-get with fresh lists and a state of its own: it needs no root."""
    for directory in ("lists", "archives"):
        (PRIVATE_APT / directory / "partial").mkdir(parents=True, exist_ok=True)
    options = (
        f"Dir::State={PRIVATE_APT}",
        "Dir::State::status=/var/lib/dpkg/status",
        f"Dir::Cache={PRIVATE_APT}",
        "Debug::NoLocking=1",
        f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}",
    )
    apt = ["apt-get", "--quiet", *(f"--option={option}" for option in options)]
    run(*apt, "update")
    return apt


def download(*packages: str) -> list[Path]:
    """Fetch Debian packages into .tools and return the files."""
    with APT_IN_USE:  # pip's and fossil's step may both come here
        target = Path(tempfile.mkdtemp(prefix="deb-", dir=TOOLS))
        run(*private_apt(), "download", *packages, cwd=target)
        return list(target.glob("*.deb"))


def unpack(files: list[Path], target: Path) -> None:
    """Unpack Debian packages as *target*, shown by one rename."""
    new = Path(tempfile.mkdtemp(prefix="deb-", dir=TOOLS))
    for file in files:
        run("dpkg-deb", "--extract", file, new)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def fossil_is_there() -> bool:
    """Tell whether the hub will find a fossil: named, on PATH, or fetched before."""
    if named := os.environ.get("HUB_FOSSIL"):
        if shutil.which(named):
            return True
        raise SetupError(f"HUB_FOSSIL={named}: no such program")
    if shutil.which("fossil"):
        return True
    with contextlib.suppress(SetupError, OSError):
        run(OUR_FOSSIL, "version")
        return True
    return False


def fetch_fossil() -> None:
    """Install fossil as the system's package where we may, else into .tools."""
    with step("fossil"):
        if os.geteuid() == 0:
            install = ("apt-get", "install", "--yes", "--no-install-recommends", "fossil")
            options = ("--option=DPkg::Lock::Timeout=120", "--quiet")
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            try:
                run(*install, *options, within=quiet)
            except SetupError:  # no lists yet, or stale ones
                run("apt-get", "update", *options)
                run(*install, *options, within=quiet)
        else:
            unpack_fossil()


FOSSIL_WRAPPER = """\
#!/bin/sh
# Fossil out of its Debian package, with its libraries; the project may move.
fossil=${{0%/*}}/../fossil
LD_LIBRARY_PATH=$fossil/{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}
export LD_LIBRARY_PATH
exec "$fossil/usr/bin/fossil" "$@"
"""


def unpack_fossil() -> None:
    """Put fossil under .tools with the one library a small system may lack, libfuse."""
    (fossil,) = download("fossil")
    asked = ("dpkg-deb", "--field", fossil, "Depends")
    depends = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout
    # The library's package has had three names; the dependency says which it is here.
    names = [word.split()[0] for word in depends.split(",") if word.split()]
    fuse = [name for name in names if name.startswith("libfuse")]
    unpack([fossil, *download(*fuse)] if fuse else [fossil], TOOLS / "fossil")
    libraries = next((TOOLS / "fossil").glob("*/*/libfuse*"), TOOLS / "fossil" / "lib" / "-").parent
    OUR_FOSSIL.parent.mkdir(exist_ok=True)
    new = OUR_FOSSIL.with_suffix(".new")
    new.write_text(FOSSIL_WRAPPER.format(libraries=libraries.relative_to(TOOLS / "fossil")))
    new.chmod(0o755)
    new.replace(OUR_FOSSIL)


FETCH_VM_PARTS = """\
import asyncio, sys
sys.path[:0] = [sys.argv[1]]
from orchestrator.packages import Packages

async def fetch():
    packages = Packages(sys.argv[2])
    await packages.qemu(print)
    await packages.guest(print)

asyncio.run(fetch())
"""


def fetch_vm_parts() -> None:
    """Have what the tests of VMs need: they talk to no other machine, nor fetch anything."""
    with step("QEMU and a kernel"):
        run(sys.executable, "-I", "-c", FETCH_VM_PARTS, ROOT, VM_PARTS)
        (VM_PARTS / "complete").touch()


# The commands


def set_up(*, dev: bool) -> None:
    """Bring .venv and fossil to what the locks say; do nothing where they are."""
    with the_only_set_up():
        has_vm_parts = not dev or (VM_PARTS / "complete").exists()
        dev = dev or (VENV / ".stamp-dev").exists()
        locks = wanted_locks(dev=dev)
        has_environment, has_fossil = environment_is_ready(locks), fossil_is_there()
        if has_environment and has_fossil and has_vm_parts:
            return
        if not has_fossil and not shutil.which("apt-get"):
            raise SetupError(f"fossil is missing; install it: {advice('fossil')}")
        first = not VENV.exists()
        sweep()
        with ThreadPoolExecutor(2) as beside:
            fetched = [] if has_fossil else [beside.submit(fetch_fossil)]
            fetched += [] if has_vm_parts else [beside.submit(fetch_vm_parts)]
            environment = None if has_environment else build_environment(locks)
            for one in fetched:
                one.result()
        if environment:
            show(environment)
        sweep()
        if first:
            say(f"done; `{ROOT}/bin/setup --shim DIR` puts hub and bones into a DIR on PATH")


def write_shims(directory: Path) -> None:
    """Write commands into *directory* that find this project from anywhere."""
    files = {directory / name: ROOT / "bin" / name for name in ("hub", "bones")}
    for shim in files:
        if os.path.lexists(shim) and SHIM_MARK not in shim.read_text(errors="replace"):
            raise SetupError(f"{shim} is not ours; not overwritten")
    directory.mkdir(parents=True, exist_ok=True)
    for shim, launcher in files.items():
        new = shim.with_name(f".{shim.name}.{os.getpid()}")
        new.write_text(f'#!/bin/sh\n{SHIM_MARK}\nexec {shlex.quote(str(launcher))} "$@"\n')
        new.chmod(0o755)
        new.replace(shim)


def main() -> int:
    """Do what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="bin/setup")
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--check", nargs="?", const="setup")
    parser.add_argument("--shim", type=Path)
    asked = parser.parse_args()
    try:
        if sys.platform != "linux":
            raise SetupError("the hub runs on Linux only")
        if asked.check:
            if environment_is_ready(wanted_locks(dev=asked.dev)):
                return 0
            start = f"{ROOT}/bin/hub start --detach"
            print(
                f"{asked.check}: not set up, run `{start}` or `{ROOT}/bin/setup`", file=sys.stderr
            )
            return 3
        if asked.shim:
            write_shims(asked.shim)
        else:
            set_up(dev=asked.dev)
    except (SetupError, OSError, ValueError) as exc:
        say(str(exc))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next run goes on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
