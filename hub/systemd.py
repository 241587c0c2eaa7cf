"""The readiness protocol of systemd, for `hub run`."""

from __future__ import annotations

import _socket
import os

VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> bool:
    """Send *state* (``READY=1``) to the service manager; False if there is none.

    Source: sd_notify(3): a datagram to the socket that NOTIFY_SOCKET names; a leading ``@``
    stands for the abstract namespace.
    """
    address = os.environ.get(VARIABLE)
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    except OSError:
        return False  # out of descriptors
    try:
        sock.sendto(state.encode(), address)
    except OSError:
        return False  # the manager is gone: nobody is left to tell
    finally:
        sock.close()
    return True
