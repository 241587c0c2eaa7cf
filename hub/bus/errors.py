"""What the server and nats-py complain of, in our words and as our errors. Pure."""

from __future__ import annotations

from typing import NamedTuple

import nats.errors

from foundation.errors import HubError, NotRunning, Refused, Unavailable
from hub.wording import starting

LOST = (
    nats.errors.OutboundBufferLimitError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    OSError,
    RuntimeError,  # uvloop's word for a socket that is closed already
)
"""What nats-py raises where there is no connection any more."""
IMPOSSIBLE = (
    nats.errors.BadSubjectError,
    nats.errors.BadHeaderError,
    nats.errors.MaxPayloadError,
)
"""What it raises where a message or a subject can never be sent."""
ENDED = "bus-ended"
_PUBLISH = "permissions violation for publish to "
_SUBSCRIPTION = "permissions violation for subscription to "


class ForeignServerError(nats.errors.Error):
    """Another server than ours has our address."""


class NoServerError(nats.errors.Error):
    """Whoever has our address does not speak NATS."""


class Denied(NamedTuple):
    """What the server does not let our key do; nats-py has put *subject* in lower case."""

    subject: str
    listening: bool
    """A subscription; else a publish."""


def words(error: Exception | None) -> str:
    """Return the words of the server, or of nats-py, in *error*."""
    if isinstance(error, nats.errors.AuthorizationError):
        return "authorization violation"
    return (str(error or "") or type(error).__name__).removeprefix("nats: ").strip("'")


def refuses(text: str) -> bool:
    """Tell whether the server's *text* means that it does not know our key (any more)."""
    return text.lower().startswith(("authorization violation", "user authentication"))


def denied(text: str) -> Denied | None:
    """Return what the server's *text* denies; None if it is about something else."""
    if not text.startswith((_PUBLISH, _SUBSCRIPTION)):
        return None
    subject = text.partition('"')[2].partition('"')[0]
    return Denied(subject, listening=text.startswith(_SUBSCRIPTION))


def is_a_bug(error: Exception) -> bool:
    """Tell whether *error* is none of the network's, nor of NATS."""
    return not isinstance(error, nats.errors.Error | OSError)


def impossible(what: str, error: Exception) -> Refused:
    """Return that *what* can never be sent or heard, by *error* of nats-py."""
    return Refused(f"{what}: {words(error)}", reason="bus-impossible")


def kept_out(url: str, text: str) -> HubError:
    """Return that the server at *url* does not let us in, with its *text*."""
    if refuses(text):
        return Refused(f"the server at {url} refused our key: {text}", reason="denied")
    return Unavailable(f"the server at {url} let us not in: {text}", reason="bus-failed")


def why_not(url: str, error: Exception) -> HubError:
    """Return why the server at *url* let us not in at first."""
    if isinstance(error, ForeignServerError):
        return foreign(url)
    if isinstance(error, NoServerError) or not isinstance(error, nats.errors.Error):
        return unheard(url, error)
    return kept_out(url, words(error))


def foreign(url: str) -> Unavailable:
    """Return that the server at *url* is none of ours."""
    return Unavailable(f"another workspace's server answers at {url}", reason="bus-foreign")


def ended(url: str) -> Unavailable:
    """Return that the server at *url* ended the connection before it had let us in."""
    return Unavailable(f"the server at {url} ended the connection", reason=ENDED)


def unheard(url: str, error: Exception) -> HubError:
    """Return why nobody at *url* hears us: the server has hung up, or there is none."""
    if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
        return ended(url)
    return NotRunning(f"no bus answers at {url} ({error}): `{starting()}`", reason="not-running")
