"""A leaf's process: born of the nursery with a connection, ended by a close, a signal or a loss."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from typing import Any

import uvloop

from foundation import codec
from foundation.control import VERSION, LineBuffer, encode
from foundation.errors import HubError, Refused, Unavailable, to_wire
from foundation.title import set_title
from foundation.workspace import MARK, SLOT_MARK, Workspace
from hub import slotname
from swarm.leaf.leaf import Leaf

time.strptime("2026", "%Y")  # it imports when it is first called: now, once for all leaves

_REQUEST_WITHIN_S = 10.0
_SEND_WITHIN_S = 1.0
_JOIN_WITHIN_S = 60.0
_BLOCK = 65536


def begin(root: str, connection: socket.socket) -> int:
    """Be the leaf that whoever is at *connection* asks for; return the exit status.

    The nursery calls it, in a process of its own that has nothing else open.
    """
    asker = Asker(connection)
    try:
        return uvloop.run(_live(Workspace(root), asker))
    except HubError as error:
        asker.refuse(error)
        return error.exit_code
    except OSError as error:
        asker.refuse(HubError(f"the slot cannot be joined: {error}", reason="system"))
        return 1
    except Exception as error:  # noqa: BLE001 - the last stop: to whoever asked, and into leaf.log
        traceback.print_exc()
        sys.stderr.flush()
        asker.refuse(HubError(f"a bug in the leaf: {error!r}", reason="bug"))
        return 1


async def _live(workspace: Workspace, asker: Asker) -> int:
    request = asker.request()
    if request.get("verb") != "join":
        raise Refused(f"the nursery knows no verb {request.get('verb')!r}", reason="unknown-verb")
    name = request.get("slot")
    name = slotname.check(name if isinstance(name, str) else "")
    marks = {MARK: workspace.root, SLOT_MARK: name}
    set_title(["bones-leaf", name], marks)
    os.environ.update(marks)
    leaf = Leaf(workspace, name, str(request.get("task") or ""))
    within_s = request.get("timeout_s")
    try:
        info = await leaf.join(
            within_s=float(within_s) if isinstance(within_s, int | float) else _JOIN_WITHIN_S,
            progress=asker.progress,
        )
        asker.answer(info)
        if not info["joined"]:
            return 0
        await leaf.live()
    finally:
        await leaf.end()
    return 0


class Asker:
    """Whoever has asked for this leaf; from the answer on it is none of its business."""

    def __init__(self, connection: socket.socket) -> None:
        """Own *connection*."""
        self._socket: socket.socket | None = connection

    def request(self) -> dict[str, Any]:
        """Return the request.

        Raises:
            Refused: it is none.
            Unavailable: it did not come in time, or is of another version.
        """
        assert self._socket is not None
        lines = LineBuffer()
        deadline_s = time.monotonic() + _REQUEST_WITHIN_S
        try:
            whole: list[bytes] = []
            while not whole:
                self._socket.settimeout(max(0.001, deadline_s - time.monotonic()))
                chunk = self._socket.recv(_BLOCK)
                if not chunk:
                    raise Unavailable("whoever asked for a leaf has gone", reason="gone")
                whole = lines.feed(chunk)
            request = codec.loads_object(whole[0])
        except TimeoutError:
            raise Unavailable("no request came", reason="no-request") from None
        except ValueError as error:
            raise Refused(f"the request is not understood: {error}", reason="protocol") from None
        if request.get("v") != VERSION:
            raise Unavailable(
                f"the hub speaks protocol version {VERSION}, this program version "
                f"{request.get('v')}: `hub restart` brings up a hub of this version",
                reason="protocol-version",
            )
        return request

    def progress(self, **progress: Any) -> None:
        """Tell of progress, if it is still there to hear it."""
        self._send({"progress": progress})

    def answer(self, data: dict[str, Any]) -> None:
        """Give the answer and let it go."""
        self._send({"data": data})
        self._close()

    def refuse(self, error: HubError) -> None:
        """Say why there is no slot for it, and let it go."""
        self._send({"error": to_wire(error)})
        self._close()

    def _send(self, message: dict[str, Any]) -> None:
        if self._socket is None:
            return
        try:
            self._socket.settimeout(_SEND_WITHIN_S)
            self._socket.sendall(encode(message))
        except OSError:
            self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
