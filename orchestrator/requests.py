"""What a client asks of a guest: run, put, get, forward, logs. Output is handed on as it comes."""

from __future__ import annotations

from foundation.errors import HubError, Unavailable
from foundation.record import Record
from orchestrator import protocol
from orchestrator.store import no_such
from orchestrator.wire import Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from orchestrator.store import Store
    from orchestrator.wire import Message

    Output = Callable[[int, bytes], None]
    """Gets 1 or 2, for stdout or stderr, and bytes."""

MOST_COLLECTED = 256 << 20
"""Bytes of a command's output that are kept for who does not take them as they come."""
_FOR_EVER_S = 1e6
"""A command says nothing for as long as it likes; the holder's end is news at once."""
_BLOCK = 1 << 16


class Ran(Record):
    """A command that has run in a guest."""

    status: int
    """0 to 255, as a shell tells it."""
    stdout: bytes = b""
    """What it wrote, if nobody asked for that as it came."""
    stderr: bytes = b""


def connect(store: Store, name: str) -> Wire | None:
    """Return a connection to the holder of member *name*, None if it has none.

    Raises:
        Refused: no member can be called so.
        HubError: its socket cannot be reached (``socket``).
    """
    path = store.place(name).socket
    try:
        return Wire.open(path, name)
    except OSError as error:
        raise HubError(f"{path} cannot be reached: {error}", reason="socket") from None


def reach(store: Store, name: str) -> Wire:
    """Return a connection to the holder of *name*.

    Raises:
        Refused: there is no such member (``no-such-vm``).
        Unavailable: it is not running (``not-running``).
    """
    wire = connect(store, name)
    if wire is not None:
        return wire
    if not store.exists(name):
        raise no_such(name)
    raise Unavailable(f"VM {name} is not running: `bones vm up {name}`", reason="not-running")


def execute(
    store: Store,
    name: str,
    argv: Sequence[str],
    *,
    stdin: Iterable[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    output: Output | None = None,
    note: Callable[[str], None] | None = None,
    timeout_s: float | None = None,
) -> Ran:
    """Run *argv* in the guest to its end; with *output*, that gets what it writes, as it comes.

    *note* is told, in words, what it waits for before it begins.

    Interrupted, or not over after *timeout_s*, it is killed with all that it has started.

    Raises:
        Unavailable: it was not over in time (``timed-out``).
        HubError: the guest ended, or its holder (``vm-ended``, ``gone``, ``not-running``); without
            *output*, it wrote more than MOST_COLLECTED (``too-much-output``).
    """
    if timeout_s is not None and not 0 < timeout_s <= protocol.RUN_AT_MOST_S:
        raise ValueError(f"timeout_s={timeout_s!r}: a positive number of seconds is needed")
    within_s = _FOR_EVER_S if timeout_s is None else timeout_s + protocol.STOP_WITHIN_S
    collected: dict[int, list[bytes]] = {1: [], 2: []}
    room = MOST_COLLECTED

    def take(progress: Message) -> None:
        nonlocal room
        if isinstance(words := progress.get("note"), str):
            if note is not None:
                note(words)
            return
        which, content = progress.get("out"), protocol.unpack(progress.get("bytes"))
        if which not in (1, 2):
            raise Unavailable(f"{which!r} is no output", reason="protocol")
        if output is not None:
            output(which, content)
            return
        room -= len(content)
        if room < 0:
            raise HubError(
                f"{argv[0]} wrote more than {MOST_COLLECTED >> 20} MiB, and was ended: have it "
                "write to a file, or take its output as it comes",
                reason="too-much-output",
            )
        collected[which].append(content)

    with reach(store, name) as wire:
        asked = {"argv": list(argv), "env": dict(env or {}), "cwd": cwd}
        wire.send(protocol.EXEC, **asked, stdin=stdin is not None, timeout_s=timeout_s)
        if stdin is not None:
            wire.upload(stdin, protocol.STOP_WITHIN_S)
        answer = wire.answer(within_s=within_s, progress=take)
    return Ran(
        status=answer["status"], stdout=b"".join(collected[1]), stderr=b"".join(collected[2])
    )


def put(store: Store, name: str, tar: Iterable[bytes], path: str) -> None:
    """Make *path* in the guest of the one thing in a tar archive, which *tar* yields in pieces.

    Raises:
        Refused: something else is in its place (``in-the-way``).
        Refused: it is larger than UPLOAD_LIMIT (``too-large``).
        HubError: as :func:`execute`.
    """
    with reach(store, name) as wire:
        wire.send(protocol.PUT, path=path)
        wire.upload(tar, protocol.STOP_WITHIN_S)
        wire.answer(within_s=_FOR_EVER_S)


def get(store: Store, name: str, path: str, take: Callable[[bytes], object]) -> None:
    """Have *take* get, in pieces, a tar archive of the guest's *path*.

    Raises:
        Refused: there is none (``no-such-path``).
        HubError: as :func:`execute`.
    """
    with reach(store, name) as wire:
        wire.send(protocol.GET, path=path)

        def hand_on(progress: Message) -> None:
            take(protocol.unpack(progress.get("bytes")))

        wire.answer(within_s=_FOR_EVER_S, progress=hand_on)


def forward(store: Store, name: str, guest_port: int, host_port: int = 0) -> int:
    """Have a port of this host's loopback lead to TCP *guest_port* of the guest; return which.

    It does so until the member ends, or :func:`unforward`. *host_port* 0: any that is free, or the
    one that leads there already.

    Raises:
        Refused: *host_port* is taken (``port-taken``).
        HubError: the VM is not up (``not-running``); its network has no gateway, or a silent one
            (``gateway``, ``gateway-silent``).
    """
    with reach(store, name) as wire:
        answer = wire.ask(
            protocol.FORWARD,
            within_s=protocol.STOP_WITHIN_S,
            guest_port=guest_port,
            host_port=host_port,
        )
    port: int = answer["host_port"]
    return port


def forwards(store: Store, name: str) -> dict[int, int]:
    """Return which ports of 127.0.0.1 lead to the guest, and to which of its ports each.

    Raises:
        HubError: the VM is not running (``not-running``).
    """
    with reach(store, name) as wire:
        answer = wire.ask(protocol.FORWARDS, within_s=protocol.ANSWER_WITHIN_S)
    return {one["host_port"]: one["guest_port"] for one in answer["forwards"]}


def unforward(store: Store, name: str, host_port: int) -> bool:
    """Have *host_port* lead to the guest no longer, cut what is connected; False: it did not.

    Raises:
        HubError: the VM is not running (``not-running``); the network's gateway is silent, and may
            go on to listen there for a while (``gateway-silent``).
    """
    with reach(store, name) as wire:
        answer = wire.ask(protocol.UNFORWARD, within_s=protocol.STOP_WITHIN_S, host_port=host_port)
    return answer["ended"] is True


def logs(store: Store, name: str, *, follow: bool = False) -> Iterator[bytes]:
    """Yield what the console of *name* has said; with *follow*, and says, until the member ends.

    Raises:
        Refused: there is no such member (``no-such-vm``).
        HubError: its holder ended meanwhile (``gone``).
    """
    wire = connect(store, name) if follow else None
    if wire is not None:
        with wire:
            wire.send(protocol.LOGS, follow=True)
            while "data" not in (message := wire.receive(_FOR_EVER_S)):
                yield protocol.unpack(message.get("progress", {}).get("bytes"))
        return
    if not store.exists(name):
        raise no_such(name)
    try:
        with open(store.place(name).console, "rb") as file:
            while chunk := file.read(_BLOCK):
                yield chunk
    except FileNotFoundError:
        return
