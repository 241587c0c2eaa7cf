"""What is copied into a guest and out of it: the guest's half of :mod:`orchestrator.copying`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from foundation.errors import HubError, Refused
from hub.render import printable
from orchestrator.backends.qemu import agent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.backends.base import Execution

    Execute = Callable[..., Awaitable[Execution]]
    """As :meth:`orchestrator.backends.base.Machine.execute`."""

_NO_SUCH_PATH = 66
_NO_FILE = 67
_IN_THE_WAY = 68
_NO_ROOM = 69
_ALL = 70
_KILLED = 128 + 9
_TOLD_BYTES = 1000
_BESIDE = re.compile(r"/?\.bones-put-[0-9]+")

# Put the one thing of the archive at $1, which is $2 without slashes at its end, and $3 its
# directory; it takes $4 KiB.
#
# It is unpacked beside its place, hence on the same file system, and moved when it is whole: name
# by name into directories that are there. What a killed one has left is removed by the next one.
# A guest whose memory runs out loses processes to it, so that is looked at first.
_PUT = r"""
is_directory() { [ -d "$1" ] && [ ! -L "$1" ]; }
is_there() { [ -e "$1" ] || [ -L "$1" ]; }
check_place() {
    is_there "$2" || return 0
    if ! is_directory "$1"; then
        is_directory "$2" || return 0
        echo "$2 is a directory, what is copied is no directory"
        exit 68
    fi
    is_directory "$2" || { echo "$2 is no directory, what is copied is a directory"; exit 68; }
    for one in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        if is_there "$one"; then check_place "$one" "$2/${one##*/}"; fi
    done
}
into() {
    local one from=$1 to=$2
    for one in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        if is_directory "$one" && is_directory "$2/${one##*/}"; then
            into "$one" "$2/${one##*/}" && rmdir "$one" || exit
        fi
    done
    set -- "$from"/*; ! is_there "$1" || mv -f -t "$to" "$@" || exit
    set -- "$from"/.[!.]*; ! is_there "$1" || mv -f -t "$to" "$@" || exit
    set -- "$from"/..?*; ! is_there "$1" || mv -f -t "$to" "$@" || exit
}
to=$1 up=$3 need=$4 near=$1
is_directory "$to" || { to=$2 near=$up; }
while [ ! -d "${near:-/}" ]; do near=${near%/*}; done
for old in "$near"/.bones-put-[0-9]*; do
    [ ! -d "$old" ] || kill -0 "${old##*-}" 2>/dev/null || rm -rf "$old"
done
if [ "$need" -gt 256 ]; then
    set -- $(stat -f -c '%t %b %a %S' "${near:-/}")
    free=$(($3 * ($4 / 512) / 2)) kind=disk
    if [ "$1" = 1021994 ]; then
        kind=memory
        while read -r key available _ && [ "$key" != MemAvailable: ]; do :; done </proc/meminfo
        available=$((available - 4096))
        [ "$available" -ge "$free" ] || free=$available
    fi
    [ "$2" = 0 ] || [ "$need" -le "$free" ] || { echo "$kind $free"; exit 69; }
fi
new=$near/.bones-put-$$
mkdir "$new" || exit
trap 'rm -rf "$new"' EXIT
tar -xmof - -C "$new" || exit
for top in "$new"/* "$new"/.[!.]* "$new"/..?*; do
    ! is_there "$top" || break
done
is_there "$top" || { echo "the archive is empty" >&2; exit 1; }
check_place "$top" "$to"
[ -d "$up" ] || mkdir -p "$up" || exit
if is_directory "$top" && is_directory "$to"; then
    into "$top" "$to"
else
    [ ! -L "$to" ] || rm -f "$to" || exit
    mv -f -T "$top" "$to"
fi
"""

# Pack $1, of which $3 in the directory $2 is the name; if it is a link, where that leads.
_GET = """
[ -e "$1" ] || exit 66
[ ! "$1" -ef / ] || exit 70
[ -f "$1" ] || [ -d "$1" ] || exit 67
follow=
if [ ! -L "$1" ]; then :
elif [ -d "$1" ]; then set -- "$1" "$1" .
else follow=-h; fi
tar -c $follow -f - -C "$2" "./$3"
"""


async def put(execute: Execute, guest: str, tar: bytes, path: str) -> None:
    """Unpack *tar* as *path*; see :meth:`orchestrator.backends.base.Machine.put`.

    Raises:
        Refused: something else is in its place (``in-the-way``), or *path* is no name
            (``bad-path``).
        HubError: there is no room for it (``no-room``); the guest could not, in its words
            (``put``).
    """
    to = path if path.startswith("/") else f"./{path}"  # a name may begin with a dash
    bare = to.rstrip("/")
    place, _slash, name = bare.rpartition("/")
    if not path or name == "..":
        raise Refused(f"{path!r} is no name for a copy", reason="bad-path")
    need_kb = len(tar) >> 10
    argv = ["sh", "-c", _PUT, "put", to, bare, place or "/", str(need_kb)]
    done = await execute(argv, stdin=tar)
    if done.status == 0:
        return
    if done.status == _IN_THE_WAY:
        raise Refused(f"{guest}: {_text(done.stdout)}", reason="in-the-way")
    raise _failure(guest, path, need_kb, done)


def _failure(guest: str, path: str, need_kb: int, done: Execution) -> HubError:
    words = _words(done)
    hint = "; all but /data is kept in a guest's memory"
    if done.status == _NO_ROOM:
        kind, _space, free_kb = _text(done.stdout).partition(" ")
        free_mb = int(free_kb) >> 10 if re.fullmatch("[0-9]{1,15}", free_kb) else 0
        wrong = f"it takes {(need_kb >> 10) + 1} MB, and {free_mb} MB are free"
        if kind != "memory":
            hint = ""
    elif done.status == _KILLED:
        wrong = "what unpacked it was killed"
    elif "No space left on device" in words:
        wrong, hint = "nothing more can be written there", ""
    else:
        return HubError(f"{guest} could not unpack {path}: {words}", reason="put")
    return HubError(f"{guest} has no room for {path}: {wrong}{hint}", reason="no-room")


async def get(execute: Execute, guest: str, path: str) -> bytes:
    """Return an archive of *path*; see :meth:`orchestrator.backends.base.Machine.get`.

    Raises:
        Refused: there is no *path* (``no-such-path``), it is a pipe or the like (``no-file``), all
            of the guest (``bad-path``), or too large to be collected (``too-large``).
        HubError: the guest could not, in its words (``get``).
    """
    place, slash, name = path.rstrip("/").rpartition("/")
    if not name:
        raise _all(path)
    if path.endswith("/") or name in (".", ".."):
        place, name = path, "."
    elif not place:
        place = slash or "."
    try:
        done = await execute(["sh", "-c", _GET, "get", path, place, name])
    except HubError as error:
        if error.reason != "too-much-output":
            raise
        raise Refused(
            f"{path} of {guest} is more than {agent.MOST_COLLECTED >> 20} MiB, which is the most "
            "that is copied at once: copy its parts",
            reason="too-large",
        ) from None
    if done.status == _NO_SUCH_PATH:
        raise Refused(f"{guest} has no {path}", reason="no-such-path")
    if done.status == _ALL:
        raise _all(path)
    if done.status == _NO_FILE:
        raise Refused(f"{path} of {guest} is neither file nor directory", reason="no-file")
    if done.status:
        raise HubError(f"{guest} could not pack {path}: {_words(done)}", reason="get")
    return done.stdout


def _all(path: str) -> Refused:
    return Refused(f"{path!r} is all of the guest: name what is to be copied", reason="bad-path")


def _words(done: Execution) -> str:
    return _text(done.stderr) or f"exit status {done.status}"


def _text(said: bytes) -> str:
    """Return the end of what a guest *said*, as one line that steers no terminal."""
    lines = said[-_TOLD_BYTES:].decode("utf-8", "replace").split("\n")
    return _BESIDE.sub("", "; ".join(printable(line) for line in lines if line))
