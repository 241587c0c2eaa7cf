"""The keys with which the hub's own processes and a person log in to the bus.

A seed (the secret) per role in ``creds/nats-<role>.nk``, and ``creds/nats-users.json`` with
the public keys: ``{"hub": {"public": "U…", "seed": "<digest of the seed's file>"}, …}``, so
that a later start proves the files intact without loading the cryptography.
"""

from __future__ import annotations

import os

from foundation import codec
from foundation.atomic import read_bounded, remove, write_file
from foundation.errors import Refused
from hub.nats import ROLES, users_path
from hub.nkey import has_form

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

_SEED_LIMIT = 1024
_USERS_LIMIT = 65_536


def seed_path(workspace: Workspace, role: str) -> str:
    """Return the file that holds the seed of *role*."""
    return f"{workspace.creds}/nats-{role}.nk"


def read_seed(workspace: Workspace, role: str) -> str:
    """Return the seed of *role*.

    Raises:
        Refused: there is none that we may read, or it is none (``creds-missing``).
    """
    path = seed_path(workspace, role)
    try:
        content = read_bounded(path, _SEED_LIMIT)
        if _public_key(content) is None:
            raise ValueError(f"{path} holds no key")
        return content.decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise Refused(
            f"cannot log in to the bus as {role}: {error}; `hub restart` makes the "
            "credentials, as the user who owns the workspace",
            reason="creds-missing",
        ) from None


def new_key() -> tuple[str, str]:
    """Return the seed and the public key of a new user of the bus: of one epoch of a slot."""
    content = _new_seed()
    public = _public_key(content)
    assert public is not None, "a seed that we made decodes"
    return content.decode("ascii"), public


def ensure_creds(workspace: Workspace) -> None:
    """Make what is missing or unusable of the keys and leave the rest alone.

    Call it as the holder of hub.lock, before :func:`hub.nats.write_config`. Every file is
    written whole, the list of public keys last, so a kill anywhere leaves what the next call
    completes. A seed that decodes is kept: only its public key is derived again.

    Raises:
        OSError: something cannot be written.
        Refused: a directory stands where a key belongs (``creds-missing``).
    """
    os.makedirs(workspace.creds, 0o700, exist_ok=True)
    os.chmod(workspace.creds, 0o700)
    known = _known_users(workspace)
    users = {role: _ensure_role(workspace, role, known.get(role)) for role in ROLES}
    if users != known:
        _remove_leftovers(workspace)
        write_file(users_path(workspace), codec.dumps(users).encode() + b"\n")


def intact(workspace: Workspace) -> bool:
    """Tell whether every key is there and as it was made. Cheap, and changes nothing."""
    known = _known_users(workspace)
    for role in ROLES:
        entry = known.get(role)
        try:
            digest = _digest(read_bounded(seed_path(workspace, role), _SEED_LIMIT))
        except (OSError, ValueError):
            return False
        if not isinstance(entry, dict) or entry.get("seed") != digest:
            return False
        if not has_form(entry.get("public")):
            return False
    return True


def _ensure_role(workspace: Workspace, role: str, known: object) -> dict[str, str]:
    """Return the entry of *role*, whose seed is in place and private afterwards."""
    path = seed_path(workspace, role)
    if os.path.isdir(path) and not os.path.islink(path):
        raise Refused(
            f"{path} is a directory where a key belongs: remove it", reason="creds-missing"
        )
    content = _private_content(path)
    if content is not None:
        digest = _digest(content)
        if isinstance(known, dict) and known.get("seed") == digest:
            public = str(known.get("public"))
            if has_form(public):
                return {"public": public, "seed": digest}
        derived = _public_key(content)
        if derived is not None:
            return {"public": derived, "seed": digest}
    content = _new_seed() + b"\n"
    write_file(path, content)
    derived = _public_key(content)
    assert derived is not None, "a seed that we made decodes"
    return {"public": derived, "seed": _digest(content)}


def _private_content(path: str) -> bytes | None:
    """Return what the file at *path* holds and take it from others' eyes; None if unusable."""
    try:
        content = read_bounded(path, _SEED_LIMIT)
        status = os.lstat(path)
        if status.st_uid != os.geteuid() and os.geteuid() != 0:
            return None
        if status.st_mode & 0o777 != 0o600:  # noqa: PLR2004
            os.chmod(path, 0o600)
    except (OSError, ValueError):
        return None
    return content


def _known_users(workspace: Workspace) -> dict[str, object]:
    try:
        return codec.loads_object(read_bounded(users_path(workspace), _USERS_LIMIT))
    except (OSError, ValueError):
        return {}


def _remove_leftovers(workspace: Workspace) -> None:
    """Remove what a writer that was killed left: it may hold a seed that nobody uses."""
    for name in os.listdir(workspace.creds):
        if name.startswith("nats-") and name.endswith(".tmp"):
            remove(f"{workspace.creds}/{name}")


def _digest(content: bytes) -> str:
    try:
        from _blake2 import blake2b  # noqa: PLC0415 - hashlib loads OpenSSL
    except ImportError:
        from hashlib import blake2b  # noqa: PLC0415
    return blake2b(content, digest_size=16).hexdigest()


def _new_seed() -> bytes:
    import nkeys  # noqa: PLC0415

    seed: bytes = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed


def _public_key(content: bytes) -> str | None:
    """Return the public key of the seed in *content*; None if it is not a user's seed."""
    import nkeys  # noqa: PLC0415

    try:
        key = nkeys.from_seed(bytearray(content.strip()))
        public: str = key.public_key.decode()
    except Exception:  # noqa: BLE001 - binascii, nacl and its own errors, by the byte at fault
        return None
    return public if has_form(public) else None
