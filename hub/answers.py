"""What the hub answers on its control socket; the verbs are those of :mod:`foundation.control`."""

from __future__ import annotations

import os

from foundation import control
from foundation.errors import HubError, Refused, to_wire
from hub.child import last_words
from hub.discovery import SERVERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hub.clients import Client
    from hub.supervisor import Supervisor


class Answers:
    """Serves the requests of clients, for one supervisor."""

    def __init__(self, hub: Supervisor) -> None:
        """Speak for *hub*."""
        self._hub = hub

    def serve(self, client: Client, request: dict[str, Any]) -> None:
        """Serve one request."""
        hub = self._hub
        verb = request.get("verb")
        if verb == "stop":  # whatever its version: `hub restart` must be able to heal
            client.send({"data": {"pid": os.getpid()}})
            hub.stop(str(request.get("reason") or "asked to"))
            return
        try:
            control.check_version(request)
            if hub.phase == "ready":
                hub.still_here()
            if hub.phase == "draining":
                raise hub.failure or hub.stopping()
            if verb == "status":
                client.send({"data": self.status()})
            elif verb == "show":
                self._show(client, request.get("arguments"))
            elif verb == "start":
                self._revive_failed()
                hub.clients.wait(client)
                self.release_waiting()
            else:
                raise Refused(f"the hub knows no verb {verb!r}", reason="unknown-verb")
        except HubError as error:
            client.send({"error": to_wire(error)})
        except OSError as error:  # no client's request is worth the hub
            client.send({"error": to_wire(HubError(str(error), reason="system"))})

    def _revive_failed(self) -> None:
        for child in self._hub.children.values():
            if child.phase == "failed":
                self._hub.log.write("info", "revived", child=child.spec.name)
                try:
                    child.revive()
                except OSError as error:
                    raise HubError(
                        f"{child.spec.name} cannot be started: {error}", reason="child-failed"
                    ) from None

    def release_waiting(self) -> None:
        """Answer the clients that wait for readiness, if there is an answer."""
        hub = self._hub
        if hub.phase != "ready" or hub.info is None:
            return
        servers = [hub.children[name] for name in SERVERS]
        failed = [child for child in servers if child.phase == "failed"]
        if failed:
            name, exit_ = failed[0].spec.name, failed[0].last_exit
            way_out = "mend it and run `hub start` again, or see `hub logs`"
            if exit_ is not None and hub.servers.lost_port(name, exit_.output):
                way_out = "`hub restart` takes another port"
            error = HubError(
                f"{name} keeps failing and was given up: {last_words(exit_)}; {way_out}",
                reason="child-failed",
            )
            hub.clients.release({"error": to_wire(error)})
        elif all(child.phase == "ready" for child in servers):
            hub.clients.release({"data": hub.info.as_dict()})

    def status(self) -> dict[str, Any]:
        """Return what `hub status` shows; its shape is :class:`hub.status.HubStatus`."""
        hub = self._hub
        return {
            "phase": hub.phase,
            "info": None if hub.info is None else hub.info.as_dict(),
            "identity": hub.identity.as_dict(),
            "children": [child.as_dict() for child in hub.children.values()],
            "versions": hub.servers.versions,
            "events_lost": 0 if hub.outbox is None else hub.outbox.lost,
        }

    def _show(self, client: Client, arguments: object) -> None:
        """Answer with what the command line *arguments* prints; see :mod:`hub.fast`.

        Raises:
            HubError: that takes more than showing.
        """
        from hub.showing import show  # noqa: PLC0415 - loaded before readiness

        words = arguments if isinstance(arguments, list) else []
        shown = show(words, self._hub.workspace, self.status())
        client.send({"data": {**shown.as_dict(), "pid": os.getpid()}})
        if words[0] == "stop":
            self._hub.stop("asked to")
