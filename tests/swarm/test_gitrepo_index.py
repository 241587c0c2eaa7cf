"""An index as bytes: updates against a dictionary, and files that are no index."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.gitrepo.index import Owner, Stamp, entry
from swarm.gitrepo.objects import FORMATS
from swarm.gitrepo.segments import Index, NeedsGit

SHA1 = FORMATS["sha1"]
_OWNER = Owner(1, 2, 3)
_NAMES = st.sampled_from([b"a", b"a-", b"a.", b"b", b"x" * 5000, *(b"%02d" % n for n in range(60))])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map(b"/".join)
_UPDATES = st.dictionaries(_PATHS, st.one_of(st.none(), st.integers(0, 9)), max_size=120)


def _entry(path: bytes, number: int) -> bytes:
    stamp = Stamp(number, number, number, number)
    name = hashlib.sha1(b"%d" % number).digest()
    return entry(path, 0o100644, name, stamp, _OWNER, absent=number == 9)


def _consistent(changes: dict[bytes, int | None]) -> dict[bytes, int | None]:
    """Return *changes* without files where the same changes have a directory."""
    added = {path for path, number in changes.items() if number is not None}
    return {
        path: number
        for path, number in changes.items()
        if number is None or not any(other.startswith(path + b"/") for other in added)
    }


@given(updates=st.lists(_UPDATES, min_size=1, max_size=6))
def test_updates_have_the_outcome_of_a_dictionary(updates: list[dict[bytes, int | None]]) -> None:
    index = Index(SHA1)
    model: dict[bytes, bytes] = {}
    for update in updates:
        changes = {
            path: None if number is None else _entry(path, number)
            for path, number in _consistent(update).items()
        }
        index.update(changes)
        for path, raw in changes.items():
            model.pop(path, None)
            if raw is None:
                continue
            for other in list(model):
                if other.startswith(path + b"/") or path.startswith(other + b"/"):
                    del model[other]
            model[path] = raw
        content = b"".join(index.pieces())
        assert content[12:-20] == b"".join(model[path] for path in sorted(model))
        assert int.from_bytes(content[8:12], "big") == len(index) == len(model)
        assert content[-20:] == hashlib.sha1(content[:-20]).digest()
    again = Index.parse(content, SHA1, 0)
    again.update({b"one more": _entry(b"one more", 1)})
    index.update({b"one more": _entry(b"one more", 1)})
    assert b"".join(again.pieces()) == b"".join(index.pieces())
    for path, raw in model.items():
        assert again.get(path) == raw


@given(cut=st.integers(0, 3000), at=st.integers(0, 3000), byte=st.integers(0, 255))
def test_what_is_cut_is_refused_and_what_is_damaged_does_nothing_worse(
    cut: int, at: int, byte: int
) -> None:
    index = Index(SHA1)
    index.update({b"%d" % number: _entry(b"%d" % number, number % 9) for number in range(40)})
    content = b"".join(index.pieces())
    cut = min(cut, len(content) - 21)
    with pytest.raises((ValueError, NeedsGit)):
        Index.parse(content[:cut], SHA1, 0)
    damaged = bytearray(content)
    damaged[min(at, len(content) - 1)] = byte
    for piece in (damaged, damaged[:cut]):  # cut to 32 bytes, with 0 for its count, it is empty
        try:
            Index.parse(bytes(piece), SHA1, 0)
        except (ValueError, NeedsGit):
            pass
