"""What git's ignore rules say of new files: git's to say, asked without a new git each time.

A commit of new files would else cost a process, several times as much as all the rest of it. So
one ``git check-ignore`` stays and is asked again, as long as none of the files that it may have
read its rules from has changed. It knows no index, so what it takes for ignored is asked of a
fresh one, which leaves out what was added by force.
"""

from __future__ import annotations

import os

from foundation.atomic import read_bounded, write_all
from foundation.errors import HubError, Refused
from foundation.spawn import find_program
from hub import git as user_git
from hub.tool import Tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    Stamp = tuple[int, int, int, int] | None

_AT_MOST = 64
"""More paths at once are worth a process of their own."""
_AT_ONCE_BYTES = 2048
"""What is asked before an answer is read: a pipe of a user who has many holds 8 KiB, and two who
each wait for the other to read wait for ever."""
_ANSWER_BYTES = 65536
_SUBMODULE = b"160000 "
_FILE = b"file:"
_LONGEST_BYTES = 1 << 20
_FIELDS = 4
"""A record of ``check-ignore -v -n -z``: source, line, pattern, path; the first three empty if no
pattern matches. Source: git-check-ignore(1)."""


class Rules:
    """The rules of one worktree. :meth:`close` ends the git that was asked."""

    def __init__(self, worktree: str) -> None:
        """Ask nothing yet."""
        self._worktree = worktree
        self._tool: Tool | None = None
        self._questions = -1
        self._read: dict[bytes, Stamp] = {}
        self._shared: tuple[bytes, ...] = ()

    def ignored(self, paths: Collection[bytes]) -> frozenset[bytes]:
        """Return those of *paths* that git ignores; what is in its index it does not.

        Raises:
            HubError: git cannot say (``git-missing``, ``slot-git``).
        """
        if not paths:
            return frozenset()
        doubted = paths if len(paths) > _AT_MOST else self._matched(paths)
        return ignored(self._worktree, doubted) if doubted else frozenset()

    def warm(self) -> None:
        """Have a git ready for the first question.

        Raises:
            HubError, OSError: it cannot be started.
        """
        if self._tool is None:
            self._start()

    def close(self) -> None:
        """End what was started."""
        if self._tool is not None:
            os.close(self._questions)
            self._tool.__exit__(None, None, None)
            self._tool = None

    def _matched(self, paths: Collection[bytes]) -> Collection[bytes]:
        """Return those of *paths* that match a pattern; all of them if nobody could say."""
        stamps = {name: _stamp(name) for name in self._sources(paths)}
        if self._tool is None or any(self._read.get(n, at) != at for n, at in stamps.items()):
            self.close()
            self._start()
            stamps = {name: _stamp(name) for name in self._sources(paths)}
        assert self._tool is not None
        self._read |= stamps
        try:
            matched: list[bytes] = []
            for some in _in_parts(paths):
                write_all(self._questions, _lines(some))
                patterns = self._patterns(len(some))
                matched += [path for path, one in zip(some, patterns, strict=True) if one]
        except OSError:
            self.close()  # it ended: a fresh one says why
            return paths
        return matched

    def _patterns(self, count: int) -> list[bytes]:
        """Read *count* records; return the pattern of each, b"" where none matched.

        Raises:
            OSError: there are no more records.
        """
        assert self._tool is not None
        answer = b""
        while answer.count(b"\0") < count * _FIELDS:
            more = self._tool.stdout.read1(_ANSWER_BYTES)
            if not more:
                raise OSError("git check-ignore ended")
            answer += more
        return answer.split(b"\0")[2::_FIELDS]

    def _start(self) -> None:
        program, env = _git(self._worktree)
        # Before it is started: what changes from now on is seen.
        self._shared = tuple(_shared(env))
        if _may_name_another(self._sources(())):
            self._shared += tuple(_configurations(program, env, self._worktree))
            self._shared += (_excludes_file(program, env, self._worktree),)
        self._read = {name: _stamp(name) for name in self._sources(())}
        read, self._questions = os.pipe2(os.O_CLOEXEC)
        argv = [program, "-C", self._worktree, "-c", "core.fsmonitor=false", "check-ignore"]
        argv += ["--no-index", "--verbose", "--non-matching", "-z", "--stdin"]
        try:
            self._tool = Tool(argv, env=env, stdin=read)
        except BaseException:
            os.close(self._questions)
            raise
        finally:
            os.close(read)

    def _sources(self, paths: Collection[bytes]) -> Iterator[bytes]:
        """Yield the files that rules for *paths* may stand in."""
        top = os.fsencode(self._worktree) + b"/"
        yield top + b".git/info/exclude"
        yield top + b".git/config"
        yield top + b".git/config.worktree"
        yield from self._shared
        above = {b""}
        for path in paths:
            while (path := path.rpartition(b"/")[0]) and path not in above:
                above.add(path)
        for directory in above:
            yield top + (directory + b"/" if directory else b"") + b".gitignore"


def ignored(worktree: str, paths: Collection[bytes]) -> frozenset[bytes]:
    """Return those of *paths* that git ignores, asked of a git of its own.

    Raises: as :meth:`Rules.ignored`.
    """
    program, env = _git(worktree)
    try:
        return _asked(program, env, worktree, paths)
    except HubError:
        # Of a path in a submodule git speaks only if it knows no index.
        links = _submodules(program, env, worktree)
        inside = [path for path in paths if path.startswith(links)]
        if not inside:
            raise
    others = [path for path in paths if not path.startswith(links)]
    return _asked(program, env, worktree, inside, "--no-index") | (
        _asked(program, env, worktree, others) if others else frozenset()
    )


def _asked(
    program: str, env: dict[str, str], worktree: str, paths: Iterable[bytes], *options: str
) -> frozenset[bytes]:
    argv = [program, "-c", "core.fsmonitor=false", "check-ignore", *options, "-z", "--stdin"]
    with Tool(argv, env=env, cwd=worktree, stdin=_lines(paths)) as tool:
        answer = tool.stdout.read()
        status = tool.wait()
        if status not in (0, 1):  # 1: none is ignored
            raise HubError(
                f"git cannot say which files it ignores: {tool.said() or 'no reason given'}; "
                f"is {worktree}/.git whole?",
                reason="slot-git",
            )
    return frozenset(answer.split(b"\0")) - {b""}


def _lines(paths: Iterable[bytes]) -> bytes:
    return b"".join(path + b"\0" for path in paths)


def _in_parts(paths: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield *paths* in lists short enough to be asked for at once."""
    part: list[bytes] = []
    length = 0
    for path in paths:
        if part and length + len(path) >= _AT_ONCE_BYTES:
            yield part
            part, length = [], 0
        part.append(path)
        length += len(path) + 1
    if part:
        yield part


def _submodules(program: str, env: dict[str, str], worktree: str) -> tuple[bytes, ...]:
    """Return the submodules in the index, each with a slash."""
    with Tool([program, "ls-files", "--stage", "-z"], env=env, cwd=worktree) as tool:
        entries = tool.stdout.read().split(b"\0")
        tool.wait()
    return tuple(
        entry.partition(b"\t")[2] + b"/" for entry in entries if entry.startswith(_SUBMODULE)
    )


def _git(worktree: str) -> tuple[str, dict[str, str]]:
    program = find_program("git")
    if program is None:
        raise Refused(
            "git is not installed, or not in PATH: it must say which new files it ignores",
            reason="git-missing",
        )
    # By name: were the slot's own repository gone, git would look upward and find the user's.
    where = {"GIT_DIR": f"{worktree}/.git", "GIT_WORK_TREE": worktree}
    return program, user_git.environment() | where


def _shared(env: dict[str, str]) -> Iterator[bytes]:
    """Yield the user's own files of rules. Source: gitignore(5), git-config(1)."""
    home = env.get("HOME", "")
    for directory in {env.get("XDG_CONFIG_HOME") or f"{home}/.config", f"{home}/.config"}:
        yield os.fsencode(f"{directory}/git/ignore")
        yield os.fsencode(f"{directory}/git/config")
    yield os.fsencode(f"{home}/.gitconfig")
    yield b"/etc/gitconfig"


def _may_name_another(configurations: Iterable[bytes]) -> bool:
    """Tell whether one of them may name a file of rules, itself or by including another."""
    for path in configurations:
        try:
            text = read_bounded(os.fsdecode(path), _LONGEST_BYTES).lower()
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return True
        if b"excludesfile" in text or b"include" in text:
            return True
    return False


def _configurations(program: str, env: dict[str, str], worktree: str) -> Iterator[bytes]:
    """Yield the files that git takes its configuration from, and those that they include."""
    argv = [program, "config", "--list", "--show-origin", "--includes", "-z"]
    with Tool(argv, env=env, cwd=worktree) as tool:
        fields = tool.stdout.read().split(b"\0")
        tool.wait()
    top, home = os.fsencode(worktree), os.fsencode(env.get("HOME", ""))
    for origin, setting in zip(fields[::2], fields[1::2], strict=False):
        if not origin.startswith(_FILE):
            continue
        path = os.path.join(top, origin.removeprefix(_FILE))
        yield path
        name, _line, named = setting.partition(b"\n")
        if name.startswith((b"include.", b"includeif.")) and name.endswith(b".path"):
            if named.startswith(b"~/"):
                named = home + named[1:]
            yield os.path.join(os.path.dirname(path), named)


def _excludes_file(program: str, env: dict[str, str], worktree: str) -> bytes:
    argv = [program, "config", "--type=path", "-z", "--get", "core.excludesFile"]
    with Tool(argv, env=env, cwd=worktree) as tool:
        named = tool.stdout.read().rstrip(b"\0")
        tool.wait()
    return os.path.join(os.fsencode(worktree), named) if named else b"/dev/null"


def _stamp(path: bytes) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
