"""The way out of a cluster's network: slirp, in a QEMU that has no machine.

It turns what guests send into connections of this very process, and connections to loopback ports
into the guests' own: no root, no interface. It runs under QEMU's own seccomp filter, if it has
one, which lets it start nothing. What it may be sent is the switch's business
(:mod:`orchestrator.net.policy`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING, Self

from foundation.errors import HubError, Refused, ToolFailed, Unavailable
from foundation.spawn import spawn_child
from orchestrator.net.addresses import GATEWAY, NAME_SERVER, NETWORK
from orchestrator.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foundation.spawn import SpawnedChild

LOOPBACK = "127.0.0.1"

_MONITOR, _PORT = 3, 4
"""The numbers that its two sockets have in it."""
ANSWER_WITHIN_S = 10.0
"""What is asked of it takes it no time at all, if it runs."""
_SAID_BYTES = 4096
_FAILS_WITHIN_S = 1.0
"""One whose monitor has closed is about to exit, and has said why."""
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Gateway:
    """One running gateway; it dies with us. :meth:`start` makes it, :meth:`wait` tells its end."""

    def __init__(self, child: SpawnedChild, said: int) -> None:
        """Own *child* and *said*, where it writes its errors."""
        self.pid = child.pid
        self._pidfd = child.pidfd
        self._said = said
        self._qmp: Qmp | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @classmethod
    async def start(
        cls, qemu: str, port: socket.socket, *, env: Mapping[str, str], confined: bool = True
    ) -> Self:
        """Start a gateway whose frames go through *port*, and return it when it serves.

        *qemu* is the path of ``qemu-system-x86_64``, *env* its environment; *confined*: under its
        seccomp filter, which a build may lack. *port*, an AF_UNIX datagram socket, is closed here,
        whatever happens. For the main thread: the kernel ends the gateway with the thread that
        spawned it.

        Raises:
            HubError: it cannot be started (``gateway``).
        """
        ours, theirs = socket.socketpair()
        try:
            with port, theirs:
                sockets = {_MONITOR: theirs.fileno(), _PORT: port.fileno()}
                child, said = _spawn([qemu, *_words(confined=confined)], sockets, env)
        except OSError as error:
            ours.close()
            raise HubError(f"no gateway for the network: {error}", reason="gateway") from None
        gateway = cls(child, said)
        try:
            gateway._qmp = await Qmp.open(ours)
        except Unavailable:
            status, words = await gateway._failed()
            raise ToolFailed([qemu], status, words, reason="gateway") from None
        except BaseException:
            gateway.kill()
            raise
        return gateway

    async def forward(self, host_port: int, ip: str, port: int) -> None:
        """Forward connections to *host_port* on this host's loopback to TCP *port* of *ip*.

        Raises:
            Refused: the host's port is taken (``port-taken``).
            Unavailable: it has ended (``gateway``), or does not answer (``gateway-silent``): it
                may do it later, but for an :meth:`unforward`.
        """
        said = await self._monitor(f"hostfwd_add slirp tcp:{LOOPBACK}:{host_port}-{ip}:{port}")
        if said:
            raise Refused(
                f"port {host_port} of {LOOPBACK} is in use, or not for everybody to have ({said})",
                reason="port-taken",
            )

    async def unforward(self, host_port: int) -> None:
        """Forward *host_port* no longer; connections that exist go on. Again is no error.

        Raises:
            Unavailable: it has ended (``gateway``), or does not answer (``gateway-silent``): it
                does this before anything that it is asked later.
        """
        await self._monitor(f"hostfwd_remove slirp tcp:{LOOPBACK}:{host_port}")

    async def wait(self) -> int:
        """Return its exit status when it has ended, negative for a signal. Any number may wait."""
        return await asyncio.shield(self._ended)

    def said(self) -> str:
        """Return the end of what it wrote on standard error; "" once it is closed."""
        if self._said < 0:
            return ""
        size = os.fstat(self._said).st_size
        tail = os.pread(self._said, _SAID_BYTES, max(0, size - _SAID_BYTES))
        return tail.decode(errors="replace").strip()

    def kill(self) -> None:
        """End it, which has nothing to save, and let go of all that was its; again is no error."""
        if not self._ended.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
            self._reap()
        if self._qmp is not None:
            self._qmp.abort()
        if self._said >= 0:
            os.close(self._said)
            self._said = -1

    async def _failed(self) -> tuple[int, str]:
        """Return how it ended and what it said, of one that does not serve."""
        try:
            async with asyncio.timeout(_FAILS_WITHIN_S):
                await self.wait()
        except TimeoutError:
            pass
        words = self.said()
        self.kill()
        return self._ended.result(), words

    async def _monitor(self, line: str) -> str:
        if self._qmp is None or self._ended.done():
            raise Unavailable("the network's gateway has ended", reason="gateway")
        try:
            return await self._qmp.monitor(line, timeout_s=ANSWER_WITHIN_S)
        except Unavailable as error:
            if error.reason == "qmp-gone":
                raise Unavailable(
                    f"the network's gateway has ended: {error}", reason="gateway"
                ) from None
            raise Unavailable(
                f"the network's gateway did not answer within {ANSWER_WITHIN_S:g} s",
                reason="gateway-silent",
            ) from None

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        _pid, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._ended.set_result(os.waitstatus_to_exitcode(status))


def _spawn(
    argv: list[str], sockets: dict[int, int], env: Mapping[str, str]
) -> tuple[SpawnedChild, int]:
    """Return the child and a descriptor of what it writes; *sockets* by their numbers in it."""
    said = os.memfd_create("said")
    try:
        with open(os.devnull, "rb") as null:
            files = {0: null.fileno(), 1: said, 2: said, **sockets}
            return spawn_child(argv, env=env, cwd="/", files=files), said
    except BaseException:
        os.close(said)
        raise


def _words(*, confined: bool) -> list[str]:
    user = f"user,id=slirp,net={NETWORK},host={GATEWAY},dns={NAME_SERVER},ipv6=off"
    return [
        *("-M", "none", "-nodefaults", "-no-user-config", "-display", "none"),
        *(("-sandbox", _SANDBOX) if confined else ()),
        *("-chardev", f"socket,id=qmp,fd={_MONITOR}", "-mon", "qmp,mode=control"),
        *("-netdev", f"dgram,id=port,local.type=fd,local.str={_PORT}", "-netdev", user),
        *("-netdev", "hubport,id=inside,hubid=0,netdev=port"),
        *("-netdev", "hubport,id=outside,hubid=0,netdev=slirp"),
    ]
