"""The errors that a caller may handle; everything else that is raised is a bug.

Each class stands for what the caller may do about it; ``reason`` is a stable slug for
programs (``port-taken``), the message is for people and names the value and the way out.
"""

from __future__ import annotations


class HubError(Exception):
    """The root of all that a caller may handle."""

    exit_code = 1

    def __init__(self, message: str, *, reason: str = "failed") -> None:
        """Say what is wrong in *message*; *reason* is its stable name for programs."""
        super().__init__(message)
        self.reason = reason


class Refused(HubError):
    """The request is wrong, or this place is: the same call will be refused again."""


class Usage(HubError):
    """The command line is wrong."""

    exit_code = 2


class Unavailable(HubError):
    """The thing exists but cannot serve now; the same call may succeed later."""

    exit_code = 75  # EX_TEMPFAIL


class NotRunning(HubError):
    """No hub runs in this workspace."""

    exit_code = 3


class OwnedByAnother(HubError):
    """Another process owns what was asked for."""

    exit_code = 100


class LeaseLost(HubError):
    """A lease is not held any more: stop touching what it stood for."""

    exit_code = 100


class Corrupt(HubError):
    """Stored state is damaged: stop and show it to a person."""


class ToolFailed(HubError):
    """A program that we ran failed."""

    def __init__(self, argv: list[str], status: int, stderr: str, *, reason: str = "tool") -> None:
        """Name the program by *argv*, how it ended by *status* (negative: a signal)."""
        from foundation.spawn import describe_exit  # noqa: PLC0415 - most errors need no process

        super().__init__(
            f"{argv[0]} {describe_exit(status)}: {stderr.strip() or 'no output'}", reason=reason
        )
        self.argv = argv
        self.status = status
        self.stderr = stderr


_BY_NAME: dict[str, type[HubError]] = {
    cls.__name__: cls
    for cls in (
        HubError,
        Refused,
        Usage,
        Unavailable,
        NotRunning,
        OwnedByAnother,
        LeaseLost,
        Corrupt,
    )
}


def to_wire(error: HubError) -> dict[str, str]:
    """Return *error* as it crosses a pipe or a socket: ``{"kind", "reason", "message"}``."""
    kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _BY_NAME)
    return {"kind": kind, "reason": error.reason, "message": str(error)}


def from_wire(wire: object) -> HubError:
    """Return the error that :func:`to_wire` described; an unknown kind becomes the root."""
    fields = wire if isinstance(wire, dict) else {}
    cls = _BY_NAME.get(str(fields.get("kind")), HubError)
    return cls(str(fields.get("message", wire)), reason=str(fields.get("reason", "failed")))
