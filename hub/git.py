"""Reading a git repository exactly, and without leaving a trace in it.

No reference, index, object, hook or work tree file of the user's is written: what git must
write to find uncommitted changes (an index, the objects of changed files) goes to a scratch
directory of ours. Two caches that git keeps for itself are beyond our reach: reading a split
index renews the time of its ``sharedindex`` file, as any ``git status`` does, and a clean
filter may store what it pleases (git-lfs: content under ``.git/lfs``).
"""

from __future__ import annotations

import os

from foundation.errors import Corrupt, HubError, Refused
from foundation.spawn import find_program
from hub.git_errors import explain, partial_clone
from hub.tool import Tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from foundation.workspace import Workspace

    Entry = tuple[bytes, bytes, bytes]
    """(mode, object id, path): mode as git prints it, id in hex, path in git's bytes."""

REGULAR, EXECUTABLE, SYMLINK, SUBMODULE = b"100644", b"100755", b"120000", b"160000"
_GONE = b"000000"

_CHUNK_BYTES = 1 << 16

_QUIET = {
    # Whatever the user's configuration says: run nothing of theirs but the filters, change
    # nothing outside the scratch directory, and fail for no style reason.
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.splitIndex": "false",
    "core.untrackedCache": "false",
    "core.safecrlf": "false",
    "core.fsync": "none",
    "core.quotePath": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    # The defaults map whole packs and cache 96 MB of delta bases.
    "core.packedGitWindowSize": "1m",
    "core.packedGitLimit": "16m",
    "core.deltaBaseCacheLimit": "16m",
    "core.bigFileThreshold": "8m",
}


def environment() -> dict[str, str]:
    """Return the environment for git: the user's, without what would redirect it.

    Every GIT_ variable goes: a hook or an alias that starts us exports GIT_DIR and
    GIT_INDEX_FILE, and GIT_CONFIG_… may say anything. SUDO_UID too: it makes root trust what
    the calling user owns. Replacements are off, because the tree that HEAD names is wanted,
    not one that stands in for it; and so is the network: a missing object is an error.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") and name != "SUDO_UID"
    }
    return env | {
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",  # understood from 2.44 on; the line above serves older ones
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C.UTF-8",  # we read its messages
        "LANGUAGE": "",
    }


class Git:
    """The repository around one workspace, read through the user's own git."""

    def __init__(self, workspace: Workspace, scratch: str) -> None:
        """Look at *workspace*; write what must be written below the directory *scratch*.

        Raises:
            Refused: ``git-missing``, ``not-git``, ``dubious-ownership``.
        """
        program = find_program("git")
        if program is None:
            raise Refused(
                "git is not installed, or not in PATH: `sudo apt-get install git`",
                reason="git-missing",
            )
        self._root = workspace.root
        self._argv = [program, *_options(_QUIET)]
        self._env = environment()
        self.scratch = scratch
        self._index = self._look_around()
        self._common = os.path.realpath(workspace.git_dir())

    def _look_around(self) -> str:
        """Return the path of the index, after making sure that this is a work tree's top."""
        out = self._ask(
            "rev-parse", "--is-inside-work-tree", "--show-prefix", "--git-path", "index"
        ).split(b"\n", 2)
        if out[0] != b"true" or out[1] != b"":
            raise Refused(
                f"{self._root} is not the top of a git work tree: git takes its .git for "
                "something else; run `git status` there",
                reason="not-git",
            )
        return os.path.join(self._root, os.fsdecode(out[2][:-1]))

    def head(self) -> str | None:
        """Return the id of the commit that HEAD names; None before the first commit.

        Raises:
            Corrupt: HEAD's branch is there and names nothing.
        """
        with self.run("rev-parse", "--quiet", "--verify", "HEAD") as tool:
            out = tool.stdout.read().strip()
            if tool.wait() == 0:
                return out.decode("ascii")
            if tool.said():
                raise self.failure(tool)
        branch = os.fsdecode(self._ask("symbolic-ref", "HEAD").strip())
        if os.path.lexists(f"{self._common}/{branch}"):
            raise Corrupt(
                f"{self._root}: {branch} is damaged and names no commit; `git fsck`, "
                f"and `git reflog` for what it was",
                reason="repository-corrupt",
            )
        return None

    def user_name(self) -> str | None:
        """Return the ``user.name`` that git would put on a commit; None if it has none."""
        with self.run("config", "--get", "user.name") as tool:
            name = tool.stdout.read().decode("utf-8", "replace").strip()
            return name if tool.wait() == 0 and name else None

    def tree(self, commit: str) -> Iterator[Entry]:
        """Yield every file below the tree of *commit*, in the order of the paths' bytes."""
        with self.run("ls-tree", "-r", "-z", "--full-tree", commit) as tool:
            for record in _split(tool, b"\0"):
                meta, _tab, path = record.partition(b"\t")
                mode, _type, oid = meta.split(b" ")
                yield mode, oid, path
            self.expect_success(tool)

    def start_changes(self, commit: str | None) -> Changes | None:
        """Begin to look for uncommitted changes of tracked files; None if there is no index.

        No index is a clone without a check-out: nothing was ever there to be changed.
        """
        if not self._copy_index():
            return None
        os.makedirs(f"{self.scratch}/objects/pack", 0o700, exist_ok=True)
        return Changes(self, commit)

    def contents(self, oids: Iterable[bytes], *, big_bytes: int) -> Contents:
        """Return the contents of blobs in the order of *oids*, to be entered and iterated."""
        return Contents(self, oids, big_bytes)

    def _copy_index(self) -> bool:
        """Copy the index with its time: git trusts a file's stat only if it is older."""
        try:
            source = os.open(self._index, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        with os.fdopen(source, "rb") as file, open(f"{self.scratch}/index", "wb") as copy:
            found = os.fstat(source)
            while chunk := file.read(1 << 20):
                copy.write(chunk)
            copy.flush()
            os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
        return True

    def run(self, *args: str, known: bool | None = None, stdin: bytes = b"") -> Tool:
        """Start git; for :class:`Changes` and :class:`Contents`.

        With *known* None it works on the user's index and objects. Otherwise on the scratch
        index and, written to ours, on objects: with or without knowing the user's.
        """
        env = self._env
        if known is not None:
            env = env | {
                "GIT_INDEX_FILE": f"{self.scratch}/index",
                "GIT_OBJECT_DIRECTORY": f"{self.scratch}/objects",
            }
        if known:
            env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = _quoted(f"{self._common}/objects")
        return Tool([*self._argv, *args], env=env, cwd=self._root, stdin=stdin)

    def _ask(self, *args: str) -> bytes:
        with self.run(*args) as tool:
            out = tool.stdout.read()
            self.expect_success(tool)
        return out

    def expect_success(self, tool: Tool) -> None:
        """Wait for *tool*, whose output was read; raise what its failure means."""
        if tool.wait() != 0:
            raise self.failure(tool)

    def failure(self, tool: Tool) -> HubError:
        """Return what the failure of *tool* means."""
        return explain(
            ["git", *tool.argv[len(self._argv) :]],
            tool.wait(),
            tool.said(),
            self._root,
            self.scratch,
        )

    def missing(self, oid: bytes) -> HubError:
        """Return the error for an object that the repository should have and has not."""
        name = oid.decode("ascii", "replace")
        with self.run(
            "config", "--get-regexp", r"^(extensions\.partialclone|remote\..*\.promisor)$"
        ) as tool:
            partial = bool(tool.stdout.read().strip())
        if partial:
            return partial_clone(self._root, f"lacks object {name}")
        return Corrupt(
            f"{self._root}: git object {name} is missing; `git fsck` lists the damage, "
            "`git fetch` from a good clone may mend it",
            reason="repository-corrupt",
        )


class Changes:
    """The search for uncommitted changes: made at once, running beside us until finished."""

    def __init__(self, git: Git, commit: str | None) -> None:
        """Start comparing files with the scratch index; use :meth:`Git.start_changes`."""
        self._git = git
        self._commit = commit
        # Hashes what looks changed and writes nothing; what is as it was is marked so, in
        # the scratch index. The full index: add would have to read trees for a sparse one.
        self._tool = git.run(
            "-c",
            "index.sparse=false",
            "update-index",
            "-q",
            "--unmerged",
            "--ignore-missing",
            "--ignore-submodules",
            "--refresh",
            "--force-write-index",
            known=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tool.__exit__(kind, error, trace)

    def finish(self) -> tuple[list[Entry], list[bytes]]:
        """Return what differs from the commit: changed or new entries, and removed paths.

        The filters of the user's configuration have been applied, as a commit would.
        """
        self._tool.stdout.read()
        if self._tool.wait() not in (0, 1):  # 1: something is changed, or unmerged
            raise self._git.failure(self._tool)
        self._stage()
        return self._all_staged() if self._commit is None else self._against(self._commit)

    def contents(self, oids: Iterable[bytes], *, big_bytes: int) -> Contents:
        """Return the contents of blobs as :meth:`Git.contents` does, changed files included."""
        return Contents(self._git, oids, big_bytes, known=True)

    def _stage(self) -> None:
        """Put what is changed in the work tree into the scratch index.

        Git marks an object that it would have written, had it not been there, as recently
        used: it sets the time of the user's file. So the writer knows no objects but those
        that it must read, the old contents of what is changed, in a pack of our own.
        """
        old = self._old_contents()
        if old is None:
            return
        if old:
            pack = f"{self._git.scratch}/objects/pack/pack"
            with self._git.run(
                "pack-objects",
                "-q",
                "--window=0",
                pack,
                known=True,
                stdin=b"".join([b"%s\n" % oid for oid in old]),
            ) as tool:
                tool.stdout.read()
                self._git.expect_success(tool)
        with self._git.run("add", "-u", "--", ".", known=False) as tool:
            tool.stdout.read()
            self._git.expect_success(tool)

    def _old_contents(self) -> set[bytes] | None:
        """Return the ids that the index has for what is changed; None if nothing is."""
        old: set[bytes] = set()
        nothing, unmerged = True, False
        with self._git.run(
            "diff-files",
            "--raw",
            "-z",
            "--no-renames",
            "--no-abbrev",
            "--ignore-submodules=all",
            known=True,
        ) as tool:
            records = _split(tool, b"\0")
            for meta in records:
                next(records)
                nothing = False
                mode, _mode, oid, _oid, status = meta.split(b" ")
                unmerged = unmerged or status == b"U"
                if status in (b"M", b"T") and mode != b":" + SUBMODULE:
                    old.add(oid)
            self._git.expect_success(tool)
        if unmerged:
            old.update(oid for mode, oid, _path in self._listed("-u") if mode != SUBMODULE)
        return None if nothing else old

    def _all_staged(self) -> tuple[list[Entry], list[bytes]]:
        return list(self._listed("-s")), []

    def _listed(self, what: str) -> Iterator[Entry]:
        with self._git.run("ls-files", what, "-z", known=True) as tool:
            for record in _split(tool, b"\0"):
                meta, _tab, path = record.partition(b"\t")
                mode, oid, _stage = meta.split(b" ")
                yield mode, oid, path
            self._git.expect_success(tool)

    def _against(self, commit: str) -> tuple[list[Entry], list[bytes]]:
        changed: list[Entry] = []
        removed: list[bytes] = []
        with self._git.run(
            "diff-index",
            "--cached",
            "--raw",
            "-z",
            "--no-renames",
            "--no-abbrev",
            "--ignore-submodules=all",
            commit,
            known=True,
        ) as tool:
            records = _split(tool, b"\0")
            for meta in records:
                _old_mode, mode, _old, oid, _status = meta.split(b" ")
                path = next(records)
                if mode == _GONE:
                    removed.append(path)
                else:
                    changed.append((mode, oid, path))
            self._git.expect_success(tool)
        return changed, removed


class Contents:
    """Blobs read through one ``git cat-file --batch``.

    Iterate for ``(oid, size, content)``. A blob of *big_bytes* or more has content None and
    must be taken from :meth:`chunks` before the next step.
    """

    def __init__(
        self, git: Git, oids: Iterable[bytes], big_bytes: int, *, known: bool | None = None
    ) -> None:
        """Use :meth:`Git.contents` or :meth:`Changes.contents`."""
        self._git = git
        self._oids = oids
        self._big_bytes = big_bytes
        self._left = 0
        wanted = b"".join([b"%s\n" % oid for oid in oids])
        self._tool = git.run("cat-file", "--batch", "--buffer", known=known, stdin=wanted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tool.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[tuple[bytes, int, bytes | None]]:
        readline, read = self._tool.stdout.readline, self._tool.stdout.read
        for oid in self._oids:
            answer = readline().split(b" ")
            if answer[-1] == b"missing\n":
                raise self._git.missing(oid)
            if len(answer) != 3 or answer[0] != oid:  # noqa: PLR2004
                raise self._broken(oid)
            size = int(answer[2])
            if size >= self._big_bytes:
                self._left = size
                yield oid, size, None
                assert self._left == 0, "a big blob was not read to its end"
                read(1)
                continue
            content = read(size + 1)
            if len(content) != size + 1:
                raise self._broken(oid)
            yield oid, size, content[:-1]
        self._git.expect_success(self._tool)

    def chunks(self) -> Iterator[bytes]:
        """Yield the content of the big blob at hand, piece by piece."""
        while self._left:
            chunk = self._tool.stdout.read(min(self._left, 1 << 18))
            if not chunk:
                raise self._broken(b"")
            self._left -= len(chunk)
            yield chunk

    def _broken(self, oid: bytes) -> HubError:
        if self._tool.wait() == 0:
            return Corrupt(
                f"git gave no content for object {oid.decode('ascii', 'replace')}: `git fsck`",
                reason="repository-corrupt",
            )
        return self._git.failure(self._tool)


def _options(settings: dict[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _split(tool: Tool, mark: bytes) -> Iterator[bytes]:
    """Yield the records that end in *mark* as they come, without holding them all."""
    rest = b""
    while chunk := tool.stdout.read1(_CHUNK_BYTES):
        records = (rest + chunk).split(mark)
        rest = records.pop()
        yield from records


def _quoted(path: str) -> str:
    """Return *path* as git's list variables take one: C-quoted, or a colon would split it."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
