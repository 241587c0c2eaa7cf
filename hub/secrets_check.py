"""Tracked files that look like secrets, judged by their names alone."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_NAMES = frozenset(
    (
        b".envrc",
        b".netrc",
        b"_netrc",
        b".npmrc",
        b".pypirc",
        b".pgpass",
        b".htpasswd",
        b".git-credentials",
        b".dockercfg",
        b".vault-token",
        b"credentials",
        b"credentials.json",
        b"secrets.json",
        b"secrets.yml",
        b"secrets.yaml",
        b"service-account.json",
        b"id_rsa",
        b"id_dsa",
        b"id_ecdsa",
        b"id_ed25519",
        b"terraform.tfstate",
        b"kubeconfig",
    )
)
_ENDINGS = (
    b".pem",
    b".p12",
    b".pfx",
    b".key",
    b".kdbx",
    b".jks",
    b".keystore",
    b".ppk",
    b"_rsa",
    b"_dsa",
    b"_ecdsa",
    b"_ed25519",
)
_PATHS = (b".aws/credentials", b".docker/config.json", b".kube/config")
_HARMLESS = (b".example", b".sample", b".template", b".dist", b".tmpl", b".pub")


def looks_like_secret(path: bytes) -> bool:
    """Return whether a file of that name usually holds a secret, such as a private key."""
    path = path.lower()
    name = path.rpartition(b"/")[2]
    if name.endswith(_HARMLESS):
        return False
    if name == b".env" or name.startswith(b".env."):
        return not any(word in name for word in _HARMLESS)
    return (
        name in _NAMES
        or name.endswith(_ENDINGS)
        or any(path == tail or path.endswith(b"/" + tail) for tail in _PATHS)
    )


def likely_secrets(paths: Iterable[bytes]) -> list[bytes]:
    """Return those of *paths* that look like secrets, in their order."""
    return [path for path in paths if looks_like_secret(path)]
