"""Which tracked files the seeding warns about: names alone decide."""

from __future__ import annotations

import pytest

from hub.secrets_check import likely_secrets, looks_like_secret


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        "deploy/.env",
        ".env.production",
        ".envrc",
        "server.pem",
        "certs/SERVER.KEY",
        "deploy_rsa",
        "id_ed25519",
        "ssh/id_rsa",
        "a.p12",
        "a.pfx",
        ".npmrc",
        ".pypirc",
        ".netrc",
        "credentials",
        "config/credentials.json",
        "passwords.kdbx",
        ".aws/credentials",
        "home/.docker/config.json",
        ".git-credentials",
    ],
)
def test_a_name_that_usually_holds_a_secret_is_named(name: str) -> None:
    assert looks_like_secret(name.encode())


@pytest.mark.parametrize(
    "name",
    [
        ".env.example",
        ".env.sample",
        "app/.env.template",
        ".env.local.dist",
        "id_ed25519.pub",
        "environment.py",
        "env",
        "keys.py",
        "credentials.py",
        "docker/config.json",
        "pem",
        "monkey",
        "",
    ],
)
def test_an_example_or_a_lookalike_is_not(name: str) -> None:
    assert not looks_like_secret(name.encode())


def test_names_that_are_not_text_are_judged_too_and_order_is_kept() -> None:
    assert likely_secrets([b"z\xff.pem", b"a", b".env"]) == [b"z\xff.pem", b".env"]
