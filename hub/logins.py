"""Whom trunk registers with the bus: a slot by its name, a VM cluster as ``vm:NAME``.

A login is the name that its bearer has on the bus: answers to it go to ``_INBOX_<login>.>``. The
colon keeps a cluster from having the inbox of a slot. The guests of a cluster share a login beside
that of its holder, ``guest:NAME``; it lives and ends with that.
"""

from __future__ import annotations

from foundation.errors import Refused
from hub import slotname

_CLUSTER, _GUEST = "vm:", "guest:"


def of_cluster(name: str) -> str:
    """Return the login of the holder of cluster *name*."""
    return _CLUSTER + name


def of_guests(name: str) -> str:
    """Return the login that the guests of cluster *name* share."""
    return _GUEST + name


def of_fossil(name: str) -> str:
    """Return what Fossil knows the guests of cluster *name* as; no slot is called so."""
    return f"vm.{name}"


def cluster_of(login: str) -> str:
    """Return the cluster whose holder has *login*, "" if it is a slot's."""
    return login.removeprefix(_CLUSTER) if login.startswith(_CLUSTER) else ""


def is_login(text: str) -> bool:
    """Tell whether *text* is what :func:`check` accepts."""
    cluster = cluster_of(text)
    return slotname.has_form(cluster) if cluster else slotname.is_name(text)


def check(login: str) -> str:
    """Return *login*, a slot's or a holder's.

    Raises:
        Refused: it is neither (``slot-name``, ``cluster-name``).
    """
    if not login.startswith(_CLUSTER):
        return slotname.check(login)
    if not is_login(login):
        raise Refused(
            f"{cluster_of(login)[:80]!r} cannot name a VM cluster: at most {slotname.LONGEST} "
            "letters, digits, - and _, the first a letter or a digit",
            reason="cluster-name",
        )
    return login


def kind_of(login: str) -> str:
    """Return ``slot`` or ``cluster``."""
    return "cluster" if login.startswith(_CLUSTER) else "slot"


def title(login: str) -> str:
    """Return *login* in words: ``slot auth``, ``cluster web``."""
    return f"{kind_of(login)} {cluster_of(login) or login}"
