"""What a holder answers on its members' sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.errors import Refused, Unavailable
from orchestrator import protocol
from orchestrator.backends.base import Window
from orchestrator.holder.console import Console
from orchestrator.protocol import OVER
from orchestrator.store import Options, check_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from orchestrator.holder.connection import Client
    from orchestrator.holder.holder import Holder
    from orchestrator.holder.member import Member

    Verb = Callable[[dict[str, Any], Client], Awaitable[dict[str, Any]]]

OUTLIVE = frozenset({protocol.STOP, protocol.ADD_MEMBER})
"""What is begun is finished, whether its client waits or not."""
_PORTS = 65536
_LARGEST = 10_000


class Verbs:
    """The verbs of :mod:`orchestrator.protocol`."""

    def __init__(self, holder: Holder) -> None:
        """Answer for *holder*."""
        self._holder = holder
        self._verbs: dict[str, Verb] = {
            protocol.STATUS: self._status,
            protocol.WAIT: self._wait,
            protocol.LIST: self._list,
            protocol.ADD_MEMBER: self._add,
            protocol.STOP: self._stop,
            protocol.EXEC: self._exec,
            protocol.TERMINAL: self._terminal,
            protocol.PUT: self._put,
            protocol.GET: self._get,
            protocol.LOGS: self._logs,
            protocol.FORWARD: self._forward,
            protocol.FORWARDS: self._forwards,
            protocol.UNFORWARD: self._unforward,
            protocol.BIND: self._bind,
            protocol.BIND_ACK: self._ack,
        }

    async def answer(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        """Return what *request* is answered.

        Raises:
            HubError: it is refused.
        """
        verb = request.get("verb")
        known = self._verbs.get(verb) if isinstance(verb, str) else None
        if known is None:
            raise Refused(f"a holder knows no verb {verb!r}", reason="unknown-verb")
        return await known(request, client)

    def _member(self, client: Client) -> Member:
        return self._holder.member(client.member)

    # --- states ----------------------------------------------------------------------------

    async def _status(self, _request: dict[str, Any], client: Client) -> dict[str, Any]:
        return self._member(client).status().as_dict()

    async def _wait(self, _request: dict[str, Any], client: Client) -> dict[str, Any]:
        async for status, note in self._member(client).changes():
            if status.state == protocol.RUNNING or status.state in OVER:
                return status.as_dict()
            client.progress(status=status.as_dict(), note=note)
        raise AssertionError("the last state is over")

    async def _list(self, _request: dict[str, Any], _client: Client) -> dict[str, Any]:
        return {"members": [status.as_dict() for status in self._holder.statuses()]}

    async def _add(self, request: dict[str, Any], _client: Client) -> dict[str, Any]:
        name = check_name(_text(request["name"]))
        options = Options.from_json(request.get("options", {}))
        created = not self._holder.store.exists(name)
        member = await self._holder.add(name, options)
        network = self._holder.parts.network
        if member.state == protocol.RUNNING and network.trouble:
            await network.open(lambda _words: None)  # else its boot does that
        return {**member.status().as_dict(), "created": created}

    async def _stop(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        return await self._holder.stop(client.member, protocol.seconds(request.get("timeout_s")))

    # --- a guest ---------------------------------------------------------------------------

    async def _exec(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        if request.get("stdin"):
            client.expect_upload()
        argv, env = _command(request), _environment(request)
        cwd = _text(request.get("cwd", ""))
        within_s = _limit(request.get("timeout_s"))
        self._member(client).running()  # before anything is uploaded for nothing
        stdin = await client.upload() if request.get("stdin") else b""
        machine = self._member(client).running()
        behind: list[BaseException] = []
        if machine.is_busy:
            words = f"{client.member} runs as many commands as it can: waiting for one to end"
            client.progress(note=words, out=2, bytes="")

        def output(which: int, content: bytes) -> None:
            try:
                client.output(content, out=which)
            except BaseException as error:  # noqa: BLE001 - raised below, not in the backend
                behind.append(error)
                running.cancel()

        running = asyncio.ensure_future(
            machine.execute(argv, stdin=stdin, env=env, cwd=cwd, output=output)
        )
        limit = asyncio.timeout(within_s)
        try:
            async with limit:
                done = await running
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unavailable(
                f"{argv[0]} had not ended after {within_s:g} s, and was killed", reason="timed-out"
            ) from None
        except asyncio.CancelledError:
            if behind:
                raise behind[0] from None
            running.cancel()
            raise
        return {"status": done.status}

    async def _terminal(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        status = await (
            self._member(client)
            .running()
            .terminal(
                _command(request),
                env=_environment(request),
                window=_window(request),
                keys=_typed(client),
                output=client.output,
            )
        )
        return {"status": status}

    async def _put(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        client.expect_upload()
        self._member(client).running()
        tar = await client.upload()
        await self._member(client).running().put(tar, _text(request["path"]))
        return {}

    async def _get(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        tar = await self._member(client).running().get(_text(request["path"]))
        for at in range(0, len(tar), protocol.CHUNK):
            client.output(tar[at : at + protocol.CHUNK])
            await client.drain()
        return {}

    async def _logs(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        member = self._member(client)
        console = Console(self._holder.store.place(client.member).console)
        over = asyncio.ensure_future(_over(member))
        try:
            while True:
                last = over.done()  # before the last look, or its last words are lost
                while chunk := console.read():
                    client.output(chunk)
                    await client.drain()
                if last or not request.get("follow"):
                    return {}
                await console.grown(over)
        finally:
            over.cancel()
            console.close()

    async def _forward(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        self._member(client).running()
        guest_port = _port(request["guest_port"], least=1)
        host_port = _port(request.get("host_port", 0), least=0)
        network = self._holder.parts.network
        return {"host_port": await network.forward(client.member, guest_port, host_port)}

    async def _forwards(self, _request: dict[str, Any], client: Client) -> dict[str, Any]:
        self._member(client)
        found = self._holder.parts.network.forwards(client.member)
        return {"forwards": [{"host_port": one, "guest_port": found[one]} for one in sorted(found)]}

    async def _unforward(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        self._member(client)
        host_port = _port(request["host_port"], least=1)
        return {"ended": await self._holder.parts.network.unforward(client.member, host_port)}

    # --- binding ---------------------------------------------------------------------------

    async def _bind(self, _request: dict[str, Any], _client: Client) -> dict[str, Any]:
        return {"version": protocol.PROTOCOL_VERSION}

    async def _ack(self, _request: dict[str, Any], client: Client) -> dict[str, Any]:
        parent = self._holder.launch.parent
        if not parent or client.pid != parent:  # 0 is one whom our pid namespace does not show
            raise Refused(
                "only the process that launched a bound holder can bind itself to it",
                reason="not-the-parent",
            )
        client.bound = True
        self._holder.boot()
        return {}


async def _over(member: Member) -> None:
    async for _status in member.changes():
        pass


async def _typed(client: Client) -> AsyncIterator[bytes | Window]:
    while True:
        message = codec.loads_object(await client.next_line())
        yield protocol.unpack(message["bytes"]) if "bytes" in message else _window(message)


def _window(message: dict[str, Any]) -> Window:
    rows, columns = message.get("rows"), message.get("columns")
    if type(rows) is int and type(columns) is int and min(rows, columns) >= 0:
        return Window(min(rows, _LARGEST), min(columns, _LARGEST))
    raise Refused(f"{rows!r} times {columns!r} is no window", reason="protocol")


def _command(request: dict[str, Any]) -> list[str]:
    argv = _texts(request["argv"])
    if not argv:
        raise Refused("a command is needed", reason="protocol")
    return argv


def _environment(request: dict[str, Any]) -> dict[str, str]:
    env = request.get("env") or {}
    if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
        raise Refused("env: names and texts are needed", reason="protocol")
    return env


def _port(value: object, *, least: int) -> int:
    if type(value) is not int or not least <= value < _PORTS:
        raise Refused(f"{value!r} is no port", reason="protocol")
    return value


def _limit(value: object) -> float | None:
    """Return the time that a command has, None if that is not limited."""
    if value is None:
        return None
    return protocol.seconds(value, at_most_s=protocol.RUN_AT_MOST_S)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused(f"{value!r}: a text is needed", reason="protocol")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refused(f"{value!r}: texts are needed", reason="protocol")
    return value
