"""Which messages can be sent as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foundation.errors import Refused
from hub.nats import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER_BYTES = len("NATS/1.0\r\n\r\n")
_FIELD_BYTES = len(": \r\n")


def checked(
    subject: str, payload: bytes, headers: Mapping[str, str] | None
) -> dict[str, str] | None:
    """Return *headers* as nats-py wants them.

    Raises:
        Refused: the server would read something else, or end the connection for the size, in
            which nats-py does not count the headers; or nats-py would change a header's value.
    """
    wrong = ""
    size = len(payload)
    labels = None
    if headers:
        labels = dict(headers)
        size += _HEADER_BYTES
        for name, value in labels.items():
            size += len(name) + len(value.encode()) + _FIELD_BYTES
            if not name or "\r" in value or "\n" in value:
                wrong = f"no header: {name!r}: {value!r}"
    if not subject or subject[0] == "." or subject[-1] == "." or ".." in subject:
        wrong = f"{subject!r} is no subject"
    if size > MAX_PAYLOAD_BYTES:
        wrong = f"{size} bytes, of {MAX_PAYLOAD_BYTES} that the bus takes in a message"
    if wrong:
        raise Refused(f"{subject}: {wrong}", reason="bus-impossible")
    return labels
