"""The verb ``run``: an agent as the leaf's child, from its start to what is made of its end."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING, Any

from foundation.errors import HubError, Refused, to_wire
from foundation.workspace import MARK, SLOT_MARK
from swarm.leaf.agent import Agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarm.leaf.leaf import Leaf
    from swarm.leaf.server import Client
    from swarm.leaf.verbs import Verbs

WORKTREE_VARIABLE = "BONES_SLOT_WT"
"""In the environment of an agent, beside the marks: its worktree."""
LINE_HEADER = "Hub-Line"
"""On a message of ``slot.SLOT.log``: the number of its first line, from 1."""

_WITHIN_S = 30.0
_PIECE_BYTES = 32 * 1024
"""What is no text becomes six times as long in JSON."""
_NAMED = 20


class Running:
    """Runs agents in one slot, one at a time."""

    def __init__(self, leaf: Leaf, verbs: Verbs) -> None:
        """Run them for *leaf*; *verbs* commit after them."""
        self._leaf = leaf
        self._verbs = verbs

    async def run(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        """Run what *request* asks for, and tell *client* what it says.

        Raises:
            Refused: one runs already (``busy``), or it is no program (``not-executable``).
        """
        leaf = self._leaf
        if leaf.agent is not None:
            raise Refused(
                f"slot {leaf.name} runs an agent already, pid {leaf.agent.pid}", reason="busy"
            )
        argv = [str(word) for word in request["argv"]]
        if not argv:
            raise ValueError("argv is empty")
        directory = leaf.worktree.directory
        environment = {str(name): str(value) for name, value in request["env"].items()}
        environment |= {
            MARK: leaf.workspace.root,
            SLOT_MARK: leaf.name,
            WORKTREE_VARIABLE: directory,
            "PWD": directory,
        }
        detach = bool(request.get("detach"))
        words = _Words(leaf, None if detach else client)
        agent = Agent(
            [_program(argv[0], environment, directory), *argv[1:]],
            environment=environment,
            umask=int(request.get("umask", 0o022)) & 0o777,
            directory=directory,
            lines=words.take,
        )
        leaf.agent = agent
        leaf.events.announce("run-started", pid=agent.pid, argv=argv[:_NAMED])
        client.progress({"pid": agent.pid})
        if detach:
            leaf.begin(self._see_out(agent, request))
            return {"pid": agent.pid}
        client.gone.add_done_callback(lambda _gone: agent.end())
        return await self._until_ended(agent, request)

    async def _see_out(self, agent: Agent, request: dict[str, Any]) -> None:
        """Do what :meth:`_until_ended` does, with nobody to tell."""
        try:
            await self._until_ended(agent, request)
        except HubError as error:
            self._leaf.note("error", "run", reason=error.reason, error=str(error))

    async def _until_ended(self, agent: Agent, request: dict[str, Any]) -> dict[str, Any]:
        """Wait for the end of *agent*; commit what it left, if *request* asks for that."""
        leaf = self._leaf
        status = await agent.wait()
        leaf.agent = None
        data: dict[str, Any] = {"status": status, "checkin": "", "pid": agent.pid}
        if request.get("commit_on_exit"):
            message = str(request.get("message") or f"{leaf.name}: the agent ended with {status}")
            try:
                data["checkin"] = (await self._verbs.commit(message, None, _soon_s()))["checkin"]
            except HubError as error:
                if error.reason != "nothing-to-commit":
                    data["error"] = to_wire(error)
        leaf.events.announce("run-ended", status=status, checkin=data["checkin"])
        return data


class _Words:
    """Where an agent's output goes: leaf.log, the bus, and whoever runs it."""

    def __init__(self, leaf: Leaf, client: Client | None) -> None:
        self._leaf = leaf
        self._client = client
        self._skipped = 0

    def take(self, whole: bytes, first: int) -> None:
        leaf = self._leaf
        if leaf.log is not None:
            leaf.log.write(whole)
        leaf.begin(leaf.link.send(f"slot.{leaf.name}.log", whole, {LINE_HEADER: str(first)}))
        if self._client is None or self._client.gone.done():
            return
        for lines in _in_pieces(whole):
            told = {"lines": lines, "first": first, "skipped": self._skipped}
            first += len(lines)
            if self._client.progress(told):
                self._skipped = 0
            else:
                self._skipped += len(lines)


def _in_pieces(whole: bytes) -> Iterator[list[str]]:
    """Yield the lines of *whole* as text, so many at once as a line of the protocol holds."""
    lines: list[str] = []
    length = 0
    for line in whole.split(b"\n")[:-1]:
        if lines and length + len(line) > _PIECE_BYTES:
            yield lines
            lines, length = [], 0
        lines.append(line.decode("utf-8", "backslashreplace"))
        length += len(line) + 1
    if lines:
        yield lines


def _program(name: str, environment: dict[str, str], directory: str) -> str:
    """Return the path of the program *name*: from the worktree on, or looked up in its PATH."""
    if "/" not in name:
        name = shutil.which(name, path=environment.get("PATH")) or name
    return os.path.join(directory, name)


def _soon_s() -> float:
    return asyncio.get_running_loop().time() + _WITHIN_S
