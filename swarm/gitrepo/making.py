"""A new repository in a worktree: its files but the index.

Its objects are the user's, as alternates: nothing is copied, and nothing that git does here can
write there.
"""

from __future__ import annotations

import os
import shutil

from foundation.atomic import read_bounded, remove
from foundation.errors import Refused
from foundation.failpoint import hit
from slotgc.treepath import CHECKOUT_FILES
from swarm.gitrepo import branch, reading
from swarm.gitrepo.places import LOCK, OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swarm.gitrepo.commits import Person
    from swarm.gitrepo.objects import Format

_DIRECTORIES = (
    "",
    OURS,
    "info",
    "objects",
    "objects/info",
    "objects/pack",
    "refs",
    "refs/heads",
    "refs/tags",
    "logs",
    "logs/refs",
    "logs/refs/heads",
)
_LONGEST_EXCLUDE = 1 << 20

_ATTRIBUTES = b"""\
# Files here are as they are on trunk, which has what git would store: no line endings and no
# filters are applied, whatever .gitattributes says.
* -text -filter -ident -working-tree-encoding
"""


def make(git: str, user_git: str, form: Format, head: str, who: Person, *, exact: bool) -> None:
    """Make the repository *git* (``WORKTREE/.git``), with our branch at commit *head* ("": none).

    *user_git*: the directory of the user's repository. *exact*: see :func:`configuration`. It is
    no repository, to git or to another call of this, before :func:`finish`.

    Raises:
        Refused: there is a repository (``git-exists``).
    """
    if os.path.lexists(f"{git}/HEAD"):
        raise Refused(f"{git} is a repository already", reason="git-exists")
    if os.path.isdir(git):
        shutil.rmtree(git)
    for name in _DIRECTORIES:
        os.mkdir(f"{git}/{name}")
    objects = os.path.realpath(f"{user_git}/objects")
    shallow = _content(f"{user_git}/shallow")
    files = {
        "config": configuration(form, who, exact=exact),
        "description": b"a slot of a swarm\n",
        "info/exclude": _excluded(_content(f"{user_git}/info/exclude")),
        "info/attributes": _ATTRIBUTES,
        "objects/info/alternates": reading.quote(os.fsencode(objects)) + b"\n",
        LOCK: b"",
        f"logs/{branch.REF}": b"",
        "logs/HEAD": b"",
    }
    if shallow:  # or git would miss the parents that a shallow clone has not
        files["shallow"] = shallow
    if head:
        files[branch.REF] = head.encode() + b"\n"
    for name, content in files.items():
        _write(f"{git}/{name}", content)


def finish(git: str) -> None:
    """Give the repository *git*, now that all else is there, its HEAD: our branch."""
    hit("gitrepo.made")
    _write(f"{git}/HEAD.new", f"ref: {branch.REF}\n".encode())
    os.rename(f"{git}/HEAD.new", f"{git}/HEAD")


def configure(git: str, form: Format, who: Person, *, exact: bool) -> None:
    """Write the configuration of a repository that was made, or copied, for another."""
    _write(f"{git}/config.new", configuration(form, who, exact=exact))
    os.rename(f"{git}/config.new", f"{git}/config")


def configuration(form: Format, who: Person, *, exact: bool) -> bytes:
    """Return the content of ``config``.

    *exact*: the index has what the file system says of these very files. If not, they are copies
    with the times of others, and git goes by whole seconds and sizes alone.
    """
    text = f"""\
[core]
	repositoryformatversion = {int(form.name != "sha1")}
	filemode = true
	bare = false
	logallrefupdates = true
	autocrlf = false
	symlinks = true
	ignorecase = false
	precomposeunicode = false
	trustctime = {"true" if exact else "false"}
	checkStat = {"default" if exact else "minimal"}
	splitIndex = false
	fsmonitor = false
	untrackedCache = false
	sparseCheckout = false
[index]
	version = 2
	sparse = false
	skipHash = false
[user]
	name = {who.name}
	email = {who.email}
[commit]
	gpgSign = false
[tag]
	gpgSign = false
[gc]
	auto = 0
[maintenance]
	auto = false
"""
    if form.name != "sha1":
        text += f"[extensions]\n\tobjectFormat = {form.name}\n"
    return text.encode()


def _excluded(theirs: bytes) -> bytes:
    """Return ``info/exclude``: what the user has there, and Fossil's check-out."""
    if theirs and not theirs.endswith(b"\n"):
        theirs += b"\n"
    return theirs + b"".join([b"/%s\n/%s-*\n" % (name, name) for name in CHECKOUT_FILES])


def _content(path: str) -> bytes:
    try:
        return read_bounded(path, _LONGEST_EXCLUDE)
    except (OSError, ValueError):
        return b""


def _write(path: str, content: bytes) -> None:
    remove(path)  # never through a link
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
