"""What the hub runs: binaries, versions, ports and the specification of each child."""

from __future__ import annotations

import os
import sys

from foundation.errors import Corrupt, HubError
from foundation.workspace import MARK
from hub import discovery, fossil, nats, ports
from hub.child import ChildSpec
from hub.creds import intact
from hub.probe import Probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from foundation.workspace import Workspace
    from hub.discovery import Discovery
    from hub.reactor import Reactor

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Servers:
    """The children of one hub: chosen once, described again at every (re)start."""

    def __init__(self, reactor: Reactor, workspace: Workspace, previous: Discovery | None) -> None:
        """Describe the children of *workspace*; *previous* is what the last hub wrote."""
        self._reactor = reactor
        self._workspace = workspace
        self._previous = previous
        self._ports: dict[str, int] = {}
        self._avoided: set[int] = set()
        self._nonce = os.urandom(12).hex()
        self.fossil = ""
        self.nats = ""
        self.versions: dict[str, str] = {}
        self.tools: dict[str, list[Any]] = {}

    def find(self) -> None:
        """Find both binaries and check that they will do.

        A version is asked for only when the binary changed: it costs a process. nats-server
        tells its own in its greeting.

        Raises:
            Refused: one is missing or not supported.
        """
        self.fossil, self.nats = fossil.find(), nats.find_server()
        self.tools = {"fossil": _stamp(self.fossil), "nats": _stamp(self.nats)}
        before = self._previous
        if before is not None and before.tools.get("fossil") == self.tools["fossil"]:
            self.versions["fossil"] = str(before.versions.get("fossil", ""))
        else:
            self.versions["fossil"] = fossil.version_of(self.fossil)

    def prepared(self) -> bool:
        """Tell whether the repository and the credentials are there.

        Raises:
            Corrupt: something else stands in the repository's place.
        """
        repository = self._workspace.repository
        there = os.path.lexists(repository)
        if there and not os.path.isfile(repository):  # fossil would serve what is in a directory
            raise repository_corrupt(repository)
        repository = self._workspace.repository
        seeding = os.path.lexists(f"{repository}.seeding")  # killed when it was all but done
        return os.path.lexists(repository) and not seeding and intact(self._workspace)

    def port(self, name: str) -> int:
        """Return the port that server *name* was given, 0 before that."""
        return self._ports.get(name, 0)

    def avoid(self, port: int) -> None:
        """Never choose *port* again: somebody else took it while we were about to."""
        self._avoided.add(port)

    @property
    def fossil_url(self) -> str:
        """Where the Fossil server answers."""
        return f"http://{ports.LOOPBACK}:{self._ports['fossil']}"

    @property
    def nats_url(self) -> str:
        """Where the NATS server answers."""
        return f"nats://{ports.LOOPBACK}:{self._ports['nats']}"

    def spec(self, name: str, *, pinned: int | None) -> ChildSpec:
        """Return how to run child *name*, its port chosen and its configuration written.

        Raises:
            Refused: the *pinned* port is taken.
            OSError: the configuration cannot be written.
        """
        if name == "trunk":
            return self._trunk()
        recorded = self._workspace.fossil_url if name == "fossil" else self._workspace.nats_url
        candidates = (discovery.recorded_port(recorded), ports.DEFAULT[name])
        # Ours so far, or about to be: the kernel would call it free until it is bound.
        used = self._avoided | set(self._ports.values())
        port = ports.choose(name, pinned=pinned, preferred=[p for p in candidates if p not in used])
        self._ports[name] = port
        return self._fossil(port) if name == "fossil" else self._nats(port)

    def _fossil(self, port: int) -> ChildSpec:
        fossil.settle(self._workspace.state)
        return ChildSpec(
            name="fossil",
            argv=fossil.server_argv(self.fossil, self._workspace, port),
            env={**fossil.environment(self._workspace.state), MARK: self._workspace.root},
            cwd=self._workspace.state,
            ready_line=fossil.READY_LINE,
            probe=lambda timeout_s, done: Probe(
                self._reactor,
                port,
                fossil.PROBE,
                until_line=False,
                timeout_s=timeout_s,
                done=lambda answer, error: done(error or _judge_http(answer)),
            ),
        )

    def _nats(self, port: int) -> ChildSpec:
        nats.write_config(self._workspace, port=port, server_name=self._nonce)
        return ChildSpec(
            name="nats",
            argv=nats.argv(self.nats, self._workspace),
            env={"PATH": os.defpath, "HOME": self._workspace.nats, MARK: self._workspace.root},
            cwd=self._workspace.nats,
            ready_line=b"Server is ready",
            probe=lambda timeout_s, done: Probe(
                self._reactor,
                port,
                b"",
                until_line=True,
                timeout_s=timeout_s,
                done=lambda answer, error: done(error or self._judge_info(answer)),
            ),
        )

    def _trunk(self) -> ChildSpec:
        # For a nats-server that is restarted: not from the files of a later version.
        import hub.trunk.registry  # noqa: F401, PLC0415

        program = (
            "import sys; sys.path.insert(0, sys.argv.pop(1)); from hub.trunk import main; main()"
        )
        # HUB_*, LANG and the like: what the person set for the hub holds for all of it.
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return ChildSpec(
            name="trunk",
            argv=[sys.executable, "-I", "-c", program, _HERE, self._workspace.root],
            env={**env, MARK: self._workspace.root},
            cwd=self._workspace.state,
            ready_line=b"trunk ready",
            probe=None,
            woken=True,
        )

    def _judge_info(self, answer: bytes) -> str:
        """Return what is wrong with a nats-server's greeting, "" if it is ours and healthy."""
        try:
            info = nats.parse_info(answer)
            nats.check_version(str(info.get("version", "")))
        except (ValueError, HubError) as error:
            return str(error)
        if info.get("server_name") != self._nonce:
            return "another nats-server answers on our port"
        if not info.get("jetstream"):
            return "JetStream is disabled (is the disk full?)"
        self.versions["nats"] = str(info["version"])
        return ""

    def lost_port(self, name: str, output: list[bytes]) -> bool:
        """Tell whether server *name* ended because somebody else took its port."""
        said = b"\n".join(output)
        if name == "fossil":
            return fossil.PORT_TAKEN in said
        return b"address already in use" in said


def repository_corrupt(path: str) -> Corrupt:
    """Return the error for a trunk that is none."""
    return Corrupt(
        f"{path} is not a Fossil repository any more. Move it away to have a new one seeded from "
        "git, or put a backup in its place; `hub doctor` says more",
        reason="repository-corrupt",
    )


def _judge_http(answer: bytes) -> str:
    """Return what is wrong with Fossil's answer, "" if it served a page or asked for a login."""
    status = answer.partition(b"\r\n")[0].split()
    if not status[1:] or not status[0].startswith(b"HTTP/"):
        return "the responder does not speak HTTP"
    if status[1][:1] not in b"234":
        return f"HTTP status {status[1].decode('ascii', 'replace')}"
    return ""


def _stamp(path: str) -> list[Any]:
    status = os.stat(path)
    return [path, status.st_size, status.st_mtime_ns, status.st_ino]
