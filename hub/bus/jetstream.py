"""What JetStream answers: an acknowledgement, a refusal with a code, or what was asked. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from foundation import codec
from foundation.errors import HubError, Unavailable

WRONG_LAST_SEQUENCE = 10071
STREAM_NOT_FOUND = 10059
_UNAVAILABLE = 503


class StreamRefused(HubError):
    """JetStream understood the request and says no; ``code`` is its ``err_code``."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message, reason=f"jetstream-{code}")
        self.code = code


class Ack(NamedTuple):
    """The stream has the message, on disk: its sequence there, and whether it had it before."""

    seq: int
    duplicate: bool


def acknowledgement(subject: str, payload: bytes) -> Ack:
    """Return what a stream answered to a message on *subject*; raises as :func:`answer`."""
    fields = answer(subject, payload)
    seq = fields.get("seq")
    if not isinstance(seq, int):
        raise Unavailable(f"{subject}: {fields} acknowledges nothing", reason="bus-failed")
    return Ack(seq, bool(fields.get("duplicate")))


def answer(subject: str, payload: bytes) -> dict[str, Any]:
    """Return the answer in *payload* to what was asked of *subject*.

    Raises:
        StreamRefused: it is a refusal.
        Unavailable: JetStream is not there now (``bus-unavailable``), or it is no answer at all
            (``bus-failed``).
    """
    try:
        fields = codec.loads_object(payload)
    except ValueError as wrong:
        raise Unavailable(f"{subject}: {wrong}", reason="bus-failed") from None
    error = fields.get("error")
    if isinstance(error, dict):
        if error.get("code") == _UNAVAILABLE:
            raise Unavailable(f"{subject}: {error.get('description')}", reason="bus-unavailable")
        raise StreamRefused(
            f"{subject}: {error.get('description', error)}", code=int(error.get("err_code", 0))
        )
    return fields
