"""Git repositories as odd as they come, and what Fossil makes of them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping

Tree = dict[bytes, tuple[bytes, bytes]]
"""path → (git mode, content)"""

FILE, EXECUTABLE, LINK = b"100644", b"100755", b"120000"
FOSSIL = shutil.which("fossil") or "fossil"

ODD_NAMES = [
    b"plain.txt",
    b"with space",
    b" leading space",
    b"trailing space ",
    b"new\nline",
    b"tab\there",
    b"carriage\rreturn",
    b"vertical\vtab\fand feed",
    b'quote"s',
    b"it's",
    b"back\\slash",
    b"back\\nslash n",
    b"lat\xedn-1",
    "ünïcödé/日本/🦀".encode(),
    b"-leading-dash",
    b"--option=value",
    b"glob*?[a-z]",
    b"colon:name",
    b"C:/drive",
    b"a.b",
    b"a/b",
    b"a-b",
    b"dir.with.dots/...",
    b"..twodots",
    b"\x01control\x7f",
    b"$HOME `id` ;&|<>",
    b"#hash",
    b"~tilde",
    b"%41",
    b"manifest",
    b"x" * 200,
]


class GitRepo:
    """A git repository below *root*, driven by the real git, with its own HOME."""

    def __init__(self, root: Path, *, options: tuple[str, ...] = ()) -> None:
        self.root = root
        self.home = root.parent / f"{root.name}.home"
        self.home.mkdir(exist_ok=True)
        root.mkdir(exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main", *options)
        self.git("config", "user.name", "Ada Lovelace")
        self.git("config", "user.email", "ada@example.org")

    @property
    def env(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    def git(self, *args: str | bytes, stdin: bytes = b"", env: Mapping[str, str] = {}) -> bytes:
        done = subprocess.run(
            ["git", *args],
            cwd=self.root,
            env=self.env | dict(env),
            input=stdin,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout.strip()

    def commit(self, files: Mapping[str | bytes, bytes | str] = {}) -> str:
        """Write *files*, add everything, commit; return the commit's id."""
        self.write(files)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a commit")
        return self.git("rev-parse", "HEAD").decode()

    def write(self, files: Mapping[str | bytes, bytes | str]) -> None:
        for name, content in files.items():
            path = os.path.join(os.fsencode(self.root), os.fsencode(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(os.fsdecode(path)).write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )

    def commit_tree(self, tree: Tree, *, check_out: bool = True) -> str:
        """Commit exactly *tree* by plumbing, whatever the names; return the commit's id."""
        stream = [
            b"commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 0\ndeleteall\n"
        ]
        for path, (mode, content) in tree.items():
            if mode == b"160000":
                stream.append(b"M 160000 %s %s\n" % (content, _quoted(path)))
            else:
                size = len(content)
                stream.append(b"M %s inline %s\ndata %d\n" % (mode, _quoted(path), size))
                stream.append(content + b"\n")
        self.git("fast-import", "--quiet", "--force", stdin=b"".join(stream))
        if check_out:
            self.git("reset", "--quiet", "--hard")
        return self.git("rev-parse", "HEAD").decode()

    def snapshot(self) -> dict[str, tuple[int, int, bytes]]:
        """Return mode, mtime and content of everything in .git, except info/exclude."""
        found = {}
        for directory, below, names in os.walk(self.root / ".git"):
            for name in below + names:
                path = Path(directory, name)
                info = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
                key = str(path.relative_to(self.root))
                if key not in (".git/info", ".git/info/exclude"):
                    found[key] = (info.st_mode, info.st_mtime_ns, content)
        return found

    def workspace(self) -> Workspace:
        workspace = Workspace(str(self.root))
        workspace.make_state()
        return workspace


def _quoted(path: bytes) -> bytes:
    return b'"%s"' % b"".join(
        b"\\%03o" % byte if byte < 0x20 or byte in b'"\\' else bytes((byte,)) for byte in path
    )


def fossil(*args: str, cwd: Path, stdin: bytes = b"") -> bytes:
    """Run the stock fossil with a home of its own."""
    home = cwd / ".fossil-home"
    home.mkdir(exist_ok=True)
    env = {"USER": "test", "FOSSIL_HOME": str(home), "HOME": str(home), "PATH": os.defpath}
    done = subprocess.run(
        [FOSSIL, *args], cwd=cwd, env=env, input=stdin, capture_output=True, check=False
    )
    assert done.returncode == 0, (args, done.stdout[-2000:], done.stderr)
    return done.stdout


def checked_out(repository: str | Path, into: Path, version: str = "trunk") -> Tree:
    """Return what stock Fossil checks out of *repository*, read from the disk."""
    tree = into / "tree"
    tree.mkdir(parents=True)
    fossil("open", str(repository), version, cwd=tree)
    assert fossil("changes", cwd=tree) == b""
    found = read_tree(tree)
    fossil("close", "--force", cwd=tree)
    return found


def read_tree(top: Path) -> Tree:
    """Return the files below *top* as git would name them, without Fossil's own."""
    found: Tree = {}
    root = os.fsencode(top)
    for directory, below, names in os.walk(root):
        for name in names + [one for one in below if os.path.islink(os.path.join(directory, one))]:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, root)
            if relative.startswith((b".fslckout", b".fossil-home")):
                continue
            found[relative] = _read(path)
    return found


def _read(path: bytes) -> tuple[bytes, bytes]:
    if os.path.islink(path):
        return LINK, os.readlink(path)
    with open(path, "rb") as file:
        mode = EXECUTABLE if os.fstat(file.fileno()).st_mode & 0o100 else FILE
        return mode, file.read()
