"""Pushing artifacts to the Fossil server: the part of its sync protocol that a writer needs.

One request a connection, which the server closes. A reply never says that something was stored:
whoever pushes looks for it in the repository.
Source: "The Fossil Sync Protocol"; fossil 2.21 xfer.c.
"""

from __future__ import annotations

import hashlib
import socket
from typing import NamedTuple

from foundation.atomic import read_bounded
from foundation.errors import Refused
from hub.fossil_repo import HUB_USER, password_digest
from hub.seed import password_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from foundation.workspace import Workspace

REPLY_LIMIT = 1 << 20
CONNECTED_WITHIN_S = 5.0
ANSWERED_WITHIN_S = 60.0
"""Fossil waits 15 s for a lock, and takes 3 s to store 100 MiB on a quiet machine."""
ANSWERED_BYTES_PER_S = 50_000
"""So much longer it may take for each byte: a check-in of 50,000 changes, 5 MB, some 20 s."""

_CLIENT = b"pragma client-version 22100 20230226 192424\n"
_SERVER_CODE = b"0" * 40  # whose we are; nobody looks at it
_HASH_DIGITS = 64


class SilentError(ConnectionError):
    """The server took a connection and gave no answer, or not all of one."""


class Reply(NamedTuple):
    """What the server answered: a claim."""

    status: int
    errors: tuple[str, ...]
    """Its own words, one each."""
    missing: tuple[str, ...]
    """Artifacts that something names and that it does not have."""


class Login(NamedTuple):
    """As whom to push, and to which project."""

    project_code: str
    secret: str
    """What Fossil stores instead of the password, and takes for it."""


def read_login(workspace: Workspace, project_code: str) -> Login:
    """Return the login of the hub's own user.

    Raises:
        Refused: there is no password for it (``creds-missing``).
    """
    path = password_path(workspace, HUB_USER)
    try:
        password = read_bounded(path, 1024).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise Refused(
            f"cannot log in to Fossil: {error}. Put {path} back from a backup, or give the user "
            f"{HUB_USER} a new password with `fossil user password` and write it there",
            reason="creds-missing",
        ) from None
    return Login(project_code, password_digest(project_code, HUB_USER, password))


def read_url(workspace: Workspace) -> str:
    """Return where the hub recorded that its Fossil server answers, ``http://127.0.0.1:8765``.

    Raises:
        OSError: it recorded nothing.
    """
    try:
        return read_bounded(workspace.fossil_url, 1024).decode("ascii").strip()
    except ValueError as error:
        raise OSError(f"{workspace.fossil_url}: {error}") from None


def message(login: Login, artifacts: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the body of a push of *artifacts*, (hash, content), what names others after them.

    The signature is over the body itself, so it may be sent again as it is, any time.
    """
    parts = [_CLIENT, b"push %s %s\n" % (_SERVER_CODE, login.project_code.encode())]
    for name, content in artifacts:
        parts += (b"file %s %d\n" % (name.encode(), len(content)), content)
    digest = hashlib.sha1(usedforsecurity=False)
    for part in parts:
        digest.update(part)
    nonce = digest.hexdigest()
    signature = hashlib.sha1((nonce + login.secret).encode(), usedforsecurity=False).hexdigest()
    card = f"login {HUB_USER} {nonce} {signature}\n".encode()
    return b"".join((card, *parts))


def post(url: str, body: bytes) -> Reply:
    """Send *body* to the server at *url* and return its answer.

    Raises:
        SilentError: whoever listens there gave no answer; it may have been stored or not.
        OSError: nobody listens there.
    """
    host, _, port = url.rpartition("//")[2].rstrip("/").partition(":")
    if not port.isdigit():
        raise OSError(f"{url!r:.80} is no address")
    head = (
        "POST /xfer HTTP/1.0\r\n"
        f"Host: {host}:{port}\r\n"
        "Content-Type: application/x-fossil-uncompressed\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((host, int(port)), CONNECTED_WITHIN_S) as connection:
        connection.settimeout(ANSWERED_WITHIN_S + len(body) / ANSWERED_BYTES_PER_S)
        try:
            connection.sendall(head)
            connection.sendall(body)
            reply = bytearray()
            while chunk := connection.recv(65_536):
                reply += chunk
                if len(reply) > REPLY_LIMIT:
                    break
        except OSError as error:
            raise SilentError(f"{url} did not answer: {error}") from None
    return parse(bytes(reply))


def parse(reply: bytes) -> Reply:
    """Return what the HTTP response *reply* says.

    Raises:
        SilentError: it is none, or was cut off.
    """
    head, separator, body = reply.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not separator or len(words) < 2 or words[0][:5] != b"HTTP/" or not words[1].isdigit():  # noqa: PLR2004 - version, status
        raise SilentError(f"the server answered {reply[:80]!r}")
    errors, missing = [], []
    if head.lower().find(b"content-type: application/x-fossil") >= 0:
        for line in body.split(b"\n"):
            card, _, rest = line.partition(b" ")
            if card == b"error":
                errors.append(_text(rest))
            elif card == b"gimme" and len(rest) == _HASH_DIGITS:
                missing.append(rest.decode("ascii", "replace"))
    elif body:
        errors.append(_said(body))
    return Reply(int(words[1]), tuple(errors), tuple(missing))


def _text(token: bytes) -> str:
    return token.replace(b"\\s", b" ").replace(b"\\n", b" ").decode("utf-8", "replace")


def _said(page: bytes) -> str:
    """Return what an error page of Fossil says, in one line."""
    text = page.partition(b'class="generalError">')[2] or page
    return text.partition(b"<")[0].decode("utf-8", "replace").strip()[:500] or "an error page"
