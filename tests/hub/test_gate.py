"""The gate: what does not pass the project's command does not land; bones.toml; the gate's tree."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError, Refused, Unavailable
from foundation.workspace import MARK, Workspace
from hub.project import NAME, Project, ProjectFile
from hub.trees import Entry
from hub.trunk.gate import CHECKIN, OUTPUT_BYTES, Gate
from hub.trunk.gate_tree import GateTree
from tests.hub.gitrepo import EXECUTABLE, FILE, LINK, ODD_NAMES, Tree, read_tree
from tests.support import CODE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODES = {"file": FILE, "exec": EXECUTABLE, "link": LINK}
CHECKIN_NAME = "c" * 64
Files = dict[bytes, Entry]


class Contents(dict[str, bytes]):
    """Contents by hash."""

    def entry(self, kind: str, content: bytes) -> Entry:
        name = hashlib.sha3_256(content).hexdigest()
        self[name] = content
        return Entry(kind, name)

    def tree(self, files: Mapping[bytes, Entry]) -> Tree:
        return {path: (MODES[one.kind], self[one.hash]) for path, one in files.items()}


@pytest.fixture
def contents() -> Contents:
    return Contents()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(str(tmp_path / "repo"))
    Path(made.templates).mkdir(parents=True)
    return made


@pytest.fixture
def gate(workspace: Workspace) -> Iterator[Gate]:
    made = Gate(workspace)
    yield made
    made.close()


def verify(workspace: Workspace, command: str, **more: object) -> None:
    lines = [f"verify = '''{command}'''", *(f"{name} = {value}" for name, value in more.items())]
    write_project(workspace, "\n".join(["[trunk]", *lines]))


def write_project(workspace: Workspace, text: str) -> None:
    Path(workspace.root, NAME).write_text(text)


def checked(gate: Gate, contents: Contents, files: Files) -> HubError | None:
    return gate.check(files, contents.__getitem__, CHECKIN_NAME)


# --- the command --------------------------------------------------------------------------


def test_what_passes_the_command_may_land_and_what_does_not_may_not(
    workspace: Workspace, gate: Gate, contents: Contents
) -> None:
    verify(workspace, "echo looking; grep -q right a")
    assert checked(gate, contents, {b"a": contents.entry("file", b"right\n")}) is None
    error = checked(gate, contents, {b"a": contents.entry("file", b"wrong\n")})
    assert isinstance(error, Refused)
    assert error.reason == "verify-failed"
    assert "grep -q right a" in str(error)
    assert "exited with status 1" in str(error)
    assert str(error).endswith("It said:\nlooking")


def test_without_a_command_everything_may_land_and_nothing_is_made(
    workspace: Workspace, gate: Gate, contents: Contents
) -> None:
    assert not gate.is_closed()
    assert checked(gate, contents, {b"a": contents.entry("file", b"")}) is None
    assert os.listdir(workspace.templates) == []
    verify(workspace, "true")
    assert gate.is_closed()


def test_a_project_file_that_makes_no_sense_lets_nothing_land(
    workspace: Workspace, gate: Gate, contents: Contents
) -> None:
    write_project(workspace, "[trunk]\nverfy = 'true'\n")
    assert gate.is_closed()
    error = checked(gate, contents, {})
    assert isinstance(error, Refused)
    assert error.reason == "project-file"
    assert "trunk.verfy is unknown" in str(error)


def test_the_command_sees_the_tree_the_check_in_and_no_secret(
    workspace: Workspace, contents: Contents
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/ada",
        "LC_ALL": "C.UTF-8",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "HUB_PASSWORD": "s3cret",
        "BONES_SLOT": "auth",
    }
    verify(workspace, "pwd; ls -A; env; cat; test ! -e /dev/fd/3; false")
    made = Gate(workspace, environment=environment)
    error = checked(
        made, contents, {b"src/a": contents.entry("file", b""), b"b": contents.entry("file", b"")}
    )
    made.close()
    said = str(error).partition("It said:\n")[2].splitlines()
    assert said[:3] == [f"{workspace.templates}/gate/tree", "b", "src"]
    names = {line.partition("=")[0] for line in said[3:]}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "PATH", "HOME", "LC_ALL", MARK, CHECKIN, "GIT_CEILING_DIRECTORIES",
    }  # fmt: skip
    assert f"{CHECKIN}={CHECKIN_NAME}" in said
    assert f"{MARK}={workspace.root}" in said


def test_of_a_long_output_the_end_is_told(
    workspace: Workspace, gate: Gate, contents: Contents
) -> None:
    verify(
        workspace,
        "head -c 300000 /dev/zero | tr '\\0' x; printf '\\033[31mthe\\033[0m \\001end\\n'; exit 3",
    )
    error = str(checked(gate, contents, {}))
    assert error.endswith("xxxthe end")
    assert "The last 64 KiB" in error
    assert "status 3" in error
    assert len(error) < OUTPUT_BYTES + 1000


def test_a_command_that_does_not_exist_fails_in_its_own_words(
    workspace: Workspace, gate: Gate, contents: Contents
) -> None:
    verify(workspace, "no-such-program --ever")
    error = str(checked(gate, contents, {}))
    assert "status 127" in error
    assert "no-such-program" in error.rpartition("It said:")[2]


def test_a_command_that_takes_too_long_is_ended_with_all_it_started(
    workspace: Workspace, gate: Gate, contents: Contents, tmp_path: Path
) -> None:
    verify(
        workspace, f"sleep 1000 & echo $! > {tmp_path}/pid; echo begun; wait", verify_timeout_s=0.3
    )
    error = checked(gate, contents, {})
    assert isinstance(error, Refused)
    assert error.reason == "verify-timeout"
    assert "was ended after 0.3 s" in str(error)
    assert str(error).endswith("begun")
    eventually(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cwd").exists())


def test_what_a_command_leaves_behind_is_ended_and_not_waited_for(
    workspace: Workspace, gate: Gate, contents: Contents, tmp_path: Path
) -> None:
    verify(workspace, f"sleep 1000 & echo $! > {tmp_path}/pid")
    began = time.monotonic()
    assert checked(gate, contents, {}) is None
    assert time.monotonic() - began < 5
    eventually(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cwd").exists())


def test_a_gate_that_stops_ends_the_command_at_once(
    workspace: Workspace, gate: Gate, contents: Contents, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "begun")
    verify(workspace, f"echo > {tmp_path}/begun; sleep 1000")
    answers: list[HubError | None] = []
    thread = threading.Thread(target=lambda: answers.append(checked(gate, contents, {})))
    thread.start()
    (tmp_path / "begun").read_text()
    gate.stop()
    thread.join(10)
    assert isinstance(answers[0], Unavailable)
    assert isinstance(checked(gate, contents, {}), Unavailable), "and every later one"


GUARD = """
import sys
from foundation.workspace import Workspace
from hub.trunk.gate import Gate
Gate(Workspace(sys.argv[1])).check({}, {}.__getitem__, "c" * 64)
"""


@pytest.mark.faults
def test_a_trunk_that_is_killed_takes_the_command_and_all_it_started_along(
    workspace: Workspace, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "begun")
    verify(
        workspace,
        f"(echo > {tmp_path}/begun; exec sleep 1000) & echo $! > {tmp_path}/pid; sleep 1000",
    )
    trunk = subprocess.Popen(
        [sys.executable, "-c", GUARD, workspace.root],
        cwd=CODE,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    )
    (tmp_path / "begun").read_text()
    eventually((tmp_path / "pid").exists)
    trunk.send_signal(signal.SIGKILL)
    trunk.wait()
    eventually(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cwd").exists())


# --- bones.toml ---------------------------------------------------------------------------


def test_a_project_without_a_file_asks_for_nothing(tmp_path: Path) -> None:
    assert ProjectFile(str(tmp_path)).read() == Project()


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = ProjectFile(str(tmp_path))
    (tmp_path / NAME).write_text("[trunk]\nverify = 'one'\nverify_timeout_s = 9\n[other]\nx = 1\n")
    assert file.read() == Project(verify="one", verify_timeout_s=9.0)
    (tmp_path / NAME).write_text("[trunk]\nverify = 'two'\nverify_timeout_s = 9\n[other]\nx = 1\n")
    assert file.read().verify == "two"
    (tmp_path / NAME).write_text("[trunk\n")
    with pytest.raises(Refused):
        file.read()
    (tmp_path / NAME).unlink()
    assert file.read() == Project()
    (tmp_path / "shared").write_text("[trunk]\nverify = 'shared'\n")
    (tmp_path / NAME).symlink_to("shared")
    assert file.read().verify == "shared"


def test_a_file_that_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NAME).write_text("[trunk]\nverify = 'one'\n")
    old = (tmp_path / NAME).stat().st_ctime_ns + 2_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: old)
    file = ProjectFile(str(tmp_path))
    assert file.read().verify == "one"
    monkeypatch.setattr(os, "open", None)
    assert file.read().verify == "one"


NONSENSE = [
    ("[trunk]\nverify = 3", "trunk.verify must be a command"),
    ("[trunk]\nverify = ''", "trunk.verify is empty"),
    ("[trunk]\nverify = ' '", "trunk.verify is empty"),
    ('[trunk]\nverify = "a\\u0000b"', "trunk.verify must be a command"),
    ("[trunk]\nverify_timeout_s = '9'", "trunk.verify_timeout_s must be a number"),
    ("[trunk]\nverify_timeout_s = 0", "trunk.verify_timeout_s must be a number"),
    ("[trunk]\nverify_timeout_s = nan", "trunk.verify_timeout_s must be a number"),
    ("[trunk]\nverify_timeout_s = true", "trunk.verify_timeout_s must be a number"),
    ("[trunk]\nverify_timeout_s = 1e9", "at most 86400"),
    ("[trunk]\nverfy = 'make'", "trunk.verfy is unknown"),
    ("trunk = 3", "trunk must be a table"),
    ("[trunk", "it is not TOML"),
    ("x = " + "[" * 5000, "it is not TOML"),
    ("\udcff", "it is not UTF-8"),
    ("#" * (1 << 21), "longer than"),
]


def test_what_makes_no_sense_is_refused_with_file_key_and_way_out(tmp_path: Path) -> None:
    for text, fault in NONSENSE:
        (tmp_path / NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
        file = ProjectFile(str(tmp_path))
        for _ in range(2):
            with pytest.raises(Refused) as raised:
                file.read()
            assert raised.value.reason == "project-file"
            assert str(raised.value).startswith(f"{tmp_path}/{NAME}: ")
            assert fault in str(raised.value)
            assert "until it is corrected" in str(raised.value)


def test_a_pipe_in_place_of_the_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(Refused, match="not a regular file"):
        ProjectFile(str(tmp_path)).read()


# --- the tree -----------------------------------------------------------------------------


def tree_in(place: Path) -> Tree:
    return read_tree(place / "gate/tree")


def test_the_tree_follows_any_row_of_check_ins(tmp_path: Path, contents: Contents) -> None:
    dice = random.Random(3)
    entries = [
        contents.entry(kind, b"%d" % n) for n in range(3) for kind in ("file", "exec", "link")
    ]
    paths = [*ODD_NAMES, b"d/e", b"d/e/f", b"d/e/f/g", b"d", b"h/i"]
    tree = GateTree(str(tmp_path / "gate"))
    for turn in range(40):
        files = {path: dice.choice(entries) for path in dice.sample(paths, dice.randint(0, 30))}
        files = {p: e for p, e in files.items() if not any(p.startswith(q + b"/") for q in files)}
        if turn % 10 == 9:
            tree = GateTree(str(tmp_path / "gate"))  # a trunk that was started again
        tree.move(files, contents.__getitem__)
        assert tree_in(tmp_path) == contents.tree(files)


def test_only_what_differs_is_written(tmp_path: Path, contents: Contents) -> None:
    tree = GateTree(str(tmp_path / "gate"))
    files = {b"d/%d" % n: contents.entry("file", b"%d" % n) for n in range(20)}
    tree.move(files, contents.__getitem__)
    files[b"d/3"] = contents.entry("exec", b"new")
    del files[b"d/4"]
    read = []

    def content(name: str) -> bytes:
        read.append(contents[name])
        return contents[name]

    tree.move(files, content)
    assert read == [b"new"]
    GateTree(str(tmp_path / "gate")).move(files, content)
    assert read == [b"new"]
    assert tree_in(tmp_path) == contents.tree(files)


SPOILING = {
    "edited": "echo more >> d/a",
    "edited as long as before": "printf XXXXX > d/a",
    "deleted": "rm -r d",
    "a directory instead of a file": "rm d/a; mkdir -p d/a/b; touch d/a/b/c",
    "a link instead of a file": "ln -sf ../../../outside/a d/a",
    "a link instead of a directory": "rm -r d; ln -s ../../outside d",
    "a link to what was the directory": "mv d e; ln -s e d",
    "a file instead of a directory": "rm -r d; touch d",
    "a pipe": "rm d/a; mkfifo d/a",
    "modes": "chmod +x d/a; chmod -x d/run; chmod 000 d/b",
    "closed directories": "chmod 000 d",
    "another link": "ln -sf elsewhere d/link",
    "hard links to the outside": "ln -f ../../outside/a d/a",
    "the tree itself": "cd ..; mv tree was; ln -s ../outside tree",
    "all of it": "cd ..; rm -rf tree paths",
}
WIPED = ("the tree itself", "all of it", "closed directories")


@pytest.mark.parametrize("spoiling", SPOILING)
def test_what_the_command_did_to_the_check_in_s_files_is_taken_back(
    workspace: Workspace, contents: Contents, spoiling: str
) -> None:
    outside = Path(workspace.templates, "outside")
    outside.mkdir()
    (outside / "a").write_bytes(b"other")
    files = {
        b"d/a": contents.entry("file", b"first"),
        b"d/b": contents.entry("file", b"b"),
        b"d/run": contents.entry("exec", b"run"),
        b"d/link": contents.entry("link", b"a"),
        b"top": contents.entry("file", b"top"),
    }
    gates = [Gate(workspace), Gate(workspace)]
    for spoiled, looking in ((gates[0], gates[0]), (gates[0], gates[1])):
        verify(workspace, f"mkdir -p cache; touch cache/warm; {SPOILING[spoiling]}")
        assert checked(spoiled, contents, files) is None
        files[b"top"] = contents.entry("file", files[b"top"].hash.encode())
        verify(workspace, "rm -rf ../seen; cp -a . ../seen")
        assert checked(looking, contents, files) is None
        seen = read_tree(Path(workspace.templates, "gate/seen"))
        assert {path: seen.get(path) for path in files} == contents.tree(files)
        assert read_tree(outside) == {b"a": (FILE, b"other")}
        if spoiling not in WIPED:
            assert b"cache/warm" in seen, "caches stay"
    for one in gates:
        one.close()


def test_a_file_left_by_the_command_gives_way_to_one_of_a_check_in(
    workspace: Workspace, gate: Gate, contents: Contents
) -> None:
    verify(workspace, "mkdir -p out/deep; touch out/deep/x plain")
    assert checked(gate, contents, {}) is None
    files = {b"out": contents.entry("file", b"o"), b"plain/y": contents.entry("file", b"y")}
    verify(workspace, "true")
    assert checked(gate, contents, files) is None
    assert read_tree(Path(workspace.templates, "gate/tree")) == contents.tree(files)


def test_a_machine_that_crashed_leaves_nothing_to_trust(tmp_path: Path, contents: Contents) -> None:
    files = {b"a": contents.entry("file", b"a")}
    GateTree(str(tmp_path / "gate")).move(files, contents.__getitem__)
    (tmp_path / "gate/tree/left").touch()
    noted = (tmp_path / "gate/paths").read_bytes()
    (tmp_path / "gate/paths").write_bytes(b"another boot\0" + noted.partition(b"\0")[2])
    GateTree(str(tmp_path / "gate")).move(files, contents.__getitem__)
    assert tree_in(tmp_path) == contents.tree(files)


MOVER = """
import hashlib, sys
from hub.trees import Entry
from hub.trunk.gate_tree import GateTree
contents = {}
def entry(kind, content):
    name = hashlib.sha3_256(content).hexdigest()
    contents[name] = content
    return Entry(kind, name)
GateTree(sys.argv[1]).move(
    {b"d/%d" % n: entry("file", b"new %d" % n) for n in range(5)}, contents.__getitem__
)
"""


@pytest.mark.faults
@pytest.mark.parametrize("point", ["gate.removed", "gate.noted", "gate.written", "gate.written@4"])
def test_a_move_that_was_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path, contents: Contents, point: str
) -> None:
    older = {b"d/%d" % n: contents.entry("exec", b"old %d" % n) for n in range(2, 9)}
    GateTree(str(tmp_path / "gate")).move(older, contents.__getitem__)
    done = subprocess.run(
        [sys.executable, "-c", MOVER, tmp_path / "gate"],
        cwd=CODE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CODE), "HUB_FAILPOINT": point},
    )
    assert done.returncode == -signal.SIGKILL
    files = {b"d/1": contents.entry("file", b"new 1"), b"d/8": older[b"d/8"]}
    GateTree(str(tmp_path / "gate")).move(files, contents.__getitem__)
    assert tree_in(tmp_path) == contents.tree(files)
