"""Set-up and the launchers, in copies of the project that install one tiny wheel, offline."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE_PYTHON = Path(os.path.realpath(sys.executable))
ENTRY = """
def main():
    import sys
    print(repr([__name__.split(".")[0], sys.executable, sys.argv[1:]]))
"""


class Project(NamedTuple):
    """A copy of the project as a fresh clone has it, with stubs for its packages."""

    root: Path
    environment: dict[str, str]

    def run(
        self, *argv: str | Path, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=cwd or self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *argv: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def set_up(self) -> None:
        done = self.run("bin/setup")
        assert done.returncode == 0, done.stderr

    def lock(self, version: str, *, digest: str | None = None) -> None:
        """Write a lock for *version* of the tiny wheel, made on the way."""
        wheel = tiny_wheel(Path(self.environment["PIP_FIND_LINKS"]), version)
        digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
        (self.root / "requirements.lock").write_text(f"tiny=={version} --hash=sha256:{digest}\n")

    def installed(self) -> str:
        """Return the tiny wheel's version as the environment's own Python sees it."""
        asked = "import tiny; print(tiny.VERSION)"
        return self.run(self.root / ".venv/bin/python", "-I", "-c", asked).stdout.strip()

    def environments(self) -> list[Path]:
        return list((self.root / ".tools").glob("venv-*"))


def tiny_wheel(directory: Path, version: str) -> Path:
    path = directory / f"tiny-{version}-py3-none-any.whl"
    about = f"tiny-{version}.dist-info"
    files = {
        "tiny.py": f"VERSION = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{about}/RECORD,,"]
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            rows.append(f"{name},sha256={digest.rstrip(b'=').decode()},{len(text)}")
            wheel.writestr(name, text)
        wheel.writestr(f"{about}/RECORD", "\n".join(rows) + "\n")
    return path


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "it's a project"
    shutil.copytree(ROOT / "bin", root / "bin", ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("hub", "orchestrator"):
        (root / package).mkdir()
        (root / package / "__init__.py").touch()
        (root / package / "entry.py").write_text(ENTRY)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    environment = {
        "PATH": f"{BASE_PYTHON.parent}:/usr/bin:/bin",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_INDEX": "1",
        "PIP_NO_CACHE_DIR": "1",
        "HUB_FOSSIL": "true",
    }
    fresh = Project(root, environment)
    fresh.lock("1")
    return fresh


@pytest.fixture
def ready(project: Project) -> Project:
    """Return the project set up, without the second that pip takes."""
    environment = project.root / ".tools" / "venv-made"
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", environment], check=True)
    library = next(environment.glob("lib/python3*/site-packages"))
    (library / "tiny.py").write_text("VERSION = '1'\n")
    stamp_as_installed(project, environment)
    (project.root / ".venv").symlink_to(".tools/venv-made")
    return project


def stamp_as_installed(project: Project, environment: Path) -> None:
    lock = project.root / "requirements.lock"
    stamp = environment / ".stamp"
    stamp.write_text(hashlib.sha256(lock.read_bytes()).hexdigest())
    os.utime(stamp, ns=(0, lock.stat().st_mtime_ns))


def snapshot(root: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}


def expect_entry(
    done: subprocess.CompletedProcess[str], project: Project, name: str, *argv: str
) -> None:
    python = str(project.root / ".venv/bin/python")
    assert (done.stdout, done.returncode) == (repr([name, python, list(argv)]) + "\n", 0), done


# The launchers


@pytest.mark.parametrize(
    ("where", "command"),
    [
        (".", "{root}/bin/hub"),
        (".", "bin/hub"),
        (".", "./bin/hub"),
        (".", "sh bin/hub"),
        ("bin", "./hub"),
        ("bin", "sh hub"),
        ("hub", "../bin/hub"),
        ("hub", ".././bin/../bin/hub"),
        (".", "env PATH=bin hub"),
        ("bin", "env PATH=. hub"),
        ("/", "env PATH={root}/bin hub"),
        ("/", "env PATH={links}:/usr/bin hub"),
        ("{links}", "./hub"),
        ("{links}", "./again"),
        ("{links}", "sh relative"),
        ("{links}", "folder/hub"),
        ("{links}/folder", "./hub"),
        ("{links}", "whole/bin/hub"),
        ("/", "env -i {root}/bin/hub"),
        ("/", "env PYTHONHOME=/nowhere PYTHONPATH={links} PYTHONSTARTUP=x {root}/bin/hub"),
        ("/", "env CDPATH={links} PWD=/nowhere {root}/bin/hub"),
        (".", "env PWD=/nowhere bin/hub"),
    ],
)
def test_hub_starts_however_it_is_called(
    ready: Project, tmp_path: Path, where: str, command: str
) -> None:
    links = tmp_path / "links to it"
    links.mkdir()
    (links / "hub").symlink_to(ready.root / "bin/hub")
    (links / "again").symlink_to("hub")
    (links / "relative").symlink_to(f"../{ready.root.name}/bin/hub")
    (links / "folder").symlink_to(ready.root / "bin")
    (links / "whole").symlink_to(ready.root)
    (links / "sys.py").write_text("raise SystemExit('the caller reached our Python')\n")
    argv = [word.format(root=ready.root, links=links) for word in command.split()]
    # Looked up by env, so that PATH= takes effect on the launcher's own name.
    done = ready.run("env", *argv, "status", cwd=ready.root / where.format(links=links))
    if "whole/" in command:
        expect_entry(done, ready._replace(root=links / "whole"), "hub", "status")
    else:
        expect_entry(done, ready, "hub", "status")


def test_hub_starts_in_a_deleted_directory(ready: Project, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = 'rmdir "$1" && exec "$2/bin/hub" status'
    done = ready.run("sh", "-c", command, "sh", gone, ready.root, cwd=gone)
    expect_entry(done, ready, "hub", "status")


@pytest.mark.parametrize("name", ["hub", "bones"])
def test_arguments_pass_unharmed_and_no_program_is_run_on_the_way(
    ready: Project, name: str
) -> None:
    entry = "hub" if name == "hub" else "orchestrator"
    argv = ("", "a b", "*", "--", "-c", "it's", "\n", "$HOME", "\\n")
    done = ready.run(ready.root / "bin" / name, *argv, PATH="/nowhere")
    expect_entry(done, ready, entry, *argv)


def test_the_launchers_differ_in_their_names_only() -> None:
    hub, bones = ((ROOT / "bin" / name).read_text() for name in ("hub", "bones"))
    renamed = hub.replace("hub.entry", "orchestrator.entry").replace(
        "--before hub", "--before bones"
    )
    assert renamed == bones


def test_a_moved_project_still_starts(ready: Project, tmp_path: Path) -> None:
    moved = ready._replace(root=ready.root.rename(tmp_path / "moved"))
    expect_entry(moved.run(moved.root / "bin/hub", "status"), moved, "hub", "status")


# Not set up


@pytest.mark.parametrize(
    "words",
    [
        "hub",
        "hub status",
        "hub stop",
        "hub --help",
        "hub --version",
        "hub start --help",
        "bones status",
        "bones hub stop",
        "bones swarm run",
        "bones swarm start -- up",
        "bones -- up",
    ],
)
def test_other_verbs_say_that_nothing_is_set_up_and_install_nothing(
    project: Project, words: str
) -> None:
    name, *verb = words.split()
    before = snapshot(project.root)
    done = project.run(f"bin/{name}", *verb)
    said = f"{name}: not set up, run `{project.root}/bin/hub start --detach`"
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert snapshot(project.root) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "hub --json restart",
        "hub run -- agent --help",
        "bones hub start",
    ],
)
def test_verbs_that_start_something_set_up_first(project: Project, words: str) -> None:
    name, *verb = words.split()
    done = project.run(f"bin/{name}", *verb)
    expect_entry(done, project, "hub" if name == "hub" else "orchestrator", *verb)
    assert "setup --shim" in done.stderr
    assert project.installed() == "1"
    again = project.run(f"bin/{name}", *verb)
    expect_entry(again, project, "hub" if name == "hub" else "orchestrator", *verb)
    assert again.stderr == ""


# The stamp


def test_a_lock_that_was_only_touched_is_stamped_again_without_an_installation(
    ready: Project,
) -> None:
    lock = ready.root / "requirements.lock"
    mtime_ns = lock.stat().st_mtime_ns
    for touched_ns in (mtime_ns + 10**18, mtime_ns - 10**9, mtime_ns + 1):  # 2057: no loop
        os.utime(lock, ns=(touched_ns, touched_ns))
        done = ready.run("bin/hub", "status")
        expect_entry(done, ready, "hub", "status")
        assert done.stderr == ""
        assert (ready.root / ".venv/.stamp").stat().st_mtime_ns == touched_ns
    assert [path.name for path in ready.environments()] == ["venv-made"]


@pytest.mark.slow
@pytest.mark.parametrize("age_ns", [-1, 1, 10**18])
def test_a_changed_lock_is_noticed_whatever_its_age(ready: Project, age_ns: int) -> None:
    lock = ready.root / "requirements.lock"
    mtime_ns = lock.stat().st_mtime_ns
    ready.lock("2")
    os.utime(lock, ns=(0, mtime_ns + age_ns))
    assert ready.run("bin/hub", "status").returncode == 3
    assert ready.installed() == "1"
    expect_entry(ready.run("bin/hub", "start"), ready, "hub", "start")
    assert ready.installed() == "2"
    assert len(ready.environments()) == 1


@pytest.mark.slow
def test_a_failed_set_up_says_why_and_leaves_the_old_environment(ready: Project) -> None:
    ready.lock("2", digest="0" * 64)
    done = ready.run("bin/hub", "start")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "HASHES" in done.stderr
    assert ready.installed() == "1"


@pytest.mark.slow
def test_an_environment_whose_python_is_gone_is_made_anew(ready: Project) -> None:
    python = ready.root / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert ready.run("bin/hub", "status").returncode == 3
    ready.set_up()
    assert ready.installed() == "1"


@pytest.mark.slow
def test_a_virtual_environment_of_another_tool_is_replaced_and_a_folder_is_not(
    project: Project,
) -> None:
    other = project.root / ".venv"
    other.mkdir()
    done = project.run("bin/setup")
    assert (done.returncode, other.is_symlink()) == (1, False)
    assert "is not a virtual environment" in done.stderr
    (other / "pyvenv.cfg").touch()
    project.set_up()
    assert project.installed() == "1"


# Interruptions and company


@pytest.mark.slow
def test_of_three_first_starts_at_once_one_installs_and_all_run(project: Project) -> None:
    starts = [project.start("bin/hub", "start") for _ in range(3)]
    said = [start.communicate() for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    assert sum("packages of" in words for _, words in said) == 1
    assert len(project.environments()) == 1
    assert project.installed() == "1"


@pytest.mark.slow
@pytest.mark.faults
def test_a_set_up_killed_at_any_moment_leaves_no_half_and_the_next_one_converges(
    ready: Project,
) -> None:
    ready.lock("2")
    for moment in range(10):
        setting_up = ready.start("bin/setup")
        try:
            setting_up.communicate(timeout=0.15 * moment)
        except subprocess.TimeoutExpired:
            # Odd: set-up alone, and what it ran lives on beside the next one.
            victim = setting_up.pid if moment % 2 else -setting_up.pid
            os.kill(victim, signal.SIGKILL)
            setting_up.wait()
        for pipe in (setting_up.stdout, setting_up.stderr):
            assert pipe is not None
            pipe.close()
        # Always a whole environment: the old one, or the new one.
        assert ready.installed() in {"1", "2"}
    ready.set_up()
    assert ready.installed() == "2"
    assert len(ready.environments()) == 1
    assert ready.run("bin/setup").stderr == ""


@pytest.mark.slow
def test_the_callers_python_and_pip_settings_do_not_lead_set_up_astray(project: Project) -> None:
    done = project.run(
        *("env", "--unset=HOME", "bin/setup"),
        PYTHONHOME="/nowhere",
        PYTHONPATH="/nowhere",
        PIP_USER="1",
        PIP_TARGET="/nowhere",
    )
    assert done.returncode == 0, done.stderr
    assert project.installed() == "1"


# Fossil


def path_without(tmp_path: Path, *missing: str) -> str:
    """Return a PATH that has every program of this system but *missing*."""
    farm = tmp_path / "farm"
    farm.mkdir()
    for program in (*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()):
        link = farm / program.name
        if program.name not in missing and not link.is_symlink():
            link.symlink_to(program)
    (farm / "python3").unlink(missing_ok=True)
    (farm / "python3").symlink_to(BASE_PYTHON)
    return str(farm)


def test_a_named_fossil_that_does_not_exist_is_reported_at_once(project: Project) -> None:
    done = project.run("bin/setup", HUB_FOSSIL="/nowhere/fossil")
    assert (done.returncode, done.stderr) == (
        1,
        "setup: HUB_FOSSIL=/nowhere/fossil: no such program\n",
    )


def test_a_system_without_apt_is_told_what_to_type_before_anything_is_installed(
    project: Project, tmp_path: Path
) -> None:
    path = path_without(tmp_path, "fossil", "apt-get", "pacman", "apk", "zypper")
    dnf = Path(path) / "dnf"
    dnf.unlink(missing_ok=True)
    dnf.symlink_to("true")
    done = project.run("bin/setup", PATH=path, HUB_FOSSIL="")
    assert done.returncode == 1
    assert done.stderr.endswith("dnf install fossil\n")
    assert project.environments() == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
@pytest.mark.skipif(not shutil.which("apt-get"), reason="fetches a Debian package")
def test_without_root_fossil_comes_out_of_its_package_and_runs(
    project: Project, tmp_path: Path
) -> None:
    nobody = 65534
    for file in (tmp_path, *tmp_path.rglob("*")):
        os.chown(file, nobody, nobody, follow_symlinks=False)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o111)
    path = path_without(tmp_path, "fossil")
    become = ("setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups")
    done = project.run(*become, "bin/setup", PATH=path, HUB_FOSSIL="")
    assert done.returncode == 0, done.stderr
    fossil = project.root / ".tools/bin/fossil"
    assert "fossil version" in project.run(fossil, "version").stdout
    assert project.run(*become, "bin/setup", PATH=path, HUB_FOSSIL="").stderr == ""


# Commands on PATH


def test_a_shim_finds_the_project_and_no_other_file_is_overwritten(
    ready: Project, tmp_path: Path
) -> None:
    commands = tmp_path / "commands"
    for _ in range(2):  # the second time over our own
        assert ready.run("bin/setup", "--shim", commands).returncode == 0
        expect_entry(ready.run(commands / "hub", "a b", cwd=tmp_path), ready, "hub", "a b")
    (commands / "hub").unlink()
    (commands / "bones").write_text("mine")
    done = ready.run("bin/setup", "--shim", commands)
    assert (done.returncode, (commands / "hub").exists()) == (1, False)
    assert (commands / "bones").read_text() == "mine"


# The locks and the wheel


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split()[0].split("==") for line in lines if line[:1].isalnum())


def test_the_locks_agree_and_name_no_host_and_no_place() -> None:
    assert pins("requirements.lock").items() <= pins("requirements-dev.lock").items()
    for name in ("requirements.lock", "requirements-dev.lock"):
        lock = (ROOT / name).read_text()
        assert "://" not in lock
        assert "file:" not in lock
        assert "--index" not in lock
        assert "--find-links" not in lock


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_both_commands_and_nothing_else(tmp_path: Path) -> None:
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d")
    subprocess.run((*build, tmp_path), cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (commands,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert "bones = orchestrator.entry:main\nhub = hub.entry:main" in (
            archive.read(commands).decode()
        )
    packages = {"foundation", "owner", "slotgc", "hub", "swarm", "orchestrator"}
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops <= packages
