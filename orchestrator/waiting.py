"""What has become of members, and waiting until they are up."""

from __future__ import annotations

import select
import time

from foundation.errors import HubError, Unavailable
from orchestrator import holding, protocol
from orchestrator.protocol import OVER, Status, status_from_json
from orchestrator.requests import connect
from orchestrator.store import no_such

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.store import Store
    from orchestrator.wire import Wire

    Announce = Callable[[str], None]


_AGAIN_S = 0.02


def get_status(store: Store, name: str) -> Status:
    """Return the state of member *name*, as its holder says; without one, as the disk does.

    Raises:
        Refused: no holder has it, and it does not exist (``no-such-vm``).
        Unavailable: its holder does not answer (``no-answer``).
    """
    deadline_s = time.monotonic() + protocol.ANSWER_WITHIN_S
    while True:
        wire = connect(store, name)
        if wire is not None:
            with wire:
                try:
                    answer = wire.ask(protocol.STATUS, within_s=protocol.ANSWER_WITHIN_S)
                    return status_from_json(answer)
                except Unavailable as error:
                    if error.reason != "gone":  # it ended just now, or has let go of it
                        raise
        has = holding.holder(store, name)
        if has is None:
            break
        if time.monotonic() > deadline_s:  # no longer just about to end
            raise holding.silent(name, has)
        time.sleep(_AGAIN_S)
    if not store.exists(name):
        raise no_such(name)
    return from_disk(store, name)


def from_disk(store: Store, name: str) -> Status:
    """Return the state of member *name*, which no holder has, as its files tell it."""
    ended = store.ended(name)
    holder = store.holder_of(name)
    if ended:
        why, reason = str(ended.get("error", "")), str(ended.get("reason", ""))
        state = protocol.ERROR
    else:
        killed = holder is not None  # one that ends in order takes its pidfile along
        why = f"its holder, process {holder.pid}, was killed" if holder is not None else ""
        reason, state = "holder-killed" if killed else "", protocol.STOPPED
    return Status(name=name, pid=0, running=False, ip="", state=state, error=why, reason=reason)


def wait_members(
    store: Store,
    names: Sequence[str],
    timeout_s: float,
    announce: Announce | None = None,
) -> dict[str, Status]:
    """Wait until all *names* are running and have their address; return their states.

    *announce* is told once, in words, what is done once per machine (downloads), which does not
    count: *timeout_s* is what the boot itself may take.

    Raises:
        HubError: one of them will not be up; the message names it and says why.
        Unavailable: they were not up in time (``boot-timeout``). They go on booting.
        Refused: one does not exist (``no-such-vm``).
    """
    found: dict[str, Status] = {}
    wires: dict[int, Wire] = {}
    clock = _BootClock(timeout_s, announce)
    try:
        for name in names:
            wire = connect(store, name)
            if wire is None:
                raise _not_up(get_status(store, name))
            wires[wire.fileno()] = wire
            wire.send(protocol.WAIT)
        poll = select.poll()
        for fd in wires:
            poll.register(fd, select.POLLIN)
        while wires:
            ready = poll.poll(clock.left_s() * 1000)
            if not ready:
                raise _late([wire.member for wire in wires.values()], timeout_s)
            for fd, _events in ready:
                status = _take(store, wires[fd], clock)
                if status is not None:
                    found[status.name] = status
                    poll.unregister(fd)
                    wires.pop(fd).close()
        return {name: found[name] for name in names}
    finally:
        for wire in wires.values():
            wire.close()


def _take(store: Store, wire: Wire, clock: _BootClock) -> Status | None:
    """Read what has come on *wire*; return the status of one that is up.

    Raises: as :func:`wait_members`.
    """
    try:
        wire.fill(0.0)
        while (message := wire.next()) is not None:
            if "data" in message:
                status = status_from_json(message["data"])
                if status.state in OVER:
                    raise _not_up(status)
                clock.forget(wire.member)
                return status
            progress = message.get("progress")
            if isinstance(progress, dict):
                status = status_from_json(progress.get("status"))
                clock.note(wire.member, status.state, str(progress.get("note", "")))
    except Unavailable as error:
        if error.reason != "gone":
            raise
        raise _not_up(get_status(store, wire.member)) from None
    return None


class _BootClock:
    """The time that boots may take, which stands still during a download."""

    def __init__(self, timeout_s: float, announce: Announce | None) -> None:
        self._now_s = time.monotonic()
        self._boot_left_s = timeout_s
        self._download_left_s = protocol.DOWNLOAD_WITHIN_S
        self._downloading: set[str] = set()
        self._announce = announce

    def left_s(self) -> float:
        """Return how long may still be waited for the next news."""
        self._pass()
        if self._downloading:
            return max(0.0, self._download_left_s)
        return max(0.0, self._boot_left_s)

    def note(self, name: str, state: str, words: str) -> None:
        """Take note that *name* is in *state*, with *words* on what takes long."""
        self._pass()
        if state != protocol.DOWNLOADING:
            self._downloading.discard(name)
            return
        self._downloading.add(name)
        if self._announce is not None:
            announce, self._announce = self._announce, None
            announce(words or "getting what VMs need, once on this machine")

    def forget(self, name: str) -> None:
        """Take note that *name* is up."""
        self._pass()
        self._downloading.discard(name)

    def _pass(self) -> None:
        now_s = time.monotonic()
        passed_s, self._now_s = now_s - self._now_s, now_s
        if self._downloading:
            self._download_left_s -= passed_s
        else:
            self._boot_left_s -= passed_s


def _not_up(status: Status) -> HubError:
    if status.state == protocol.ERROR:
        return HubError(f"VM {status.name}: {status.error}", reason=status.reason or "vm-failed")
    why = f" ({status.error})" if status.error else ""
    return HubError(f"VM {status.name} is {status.state}{why}, not booting", reason="not-running")


def _late(names: list[str], timeout_s: float) -> Unavailable:
    return Unavailable(
        f"not up after {timeout_s:g} s: {', '.join(sorted(names))}; `bones vm logs` shows what a "
        "console says",
        reason="boot-timeout",
    )
