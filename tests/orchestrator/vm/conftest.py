"""What tests of VMs get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator.session import reap
from orchestrator.store import Store
from tests.orchestrator.vm.holders import bugs, end_holders
from tests.orchestrator.vm.qemus import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an empty store; whatever holds something of it is ended, and had no bug."""
    made = Store(tmp_path / "vms")
    yield made
    end_holders(made)
    reap()
    assert bugs(made) == []


@pytest.fixture(autouse=True)
def _one_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have holders use what set-up has fetched: one image and one template for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE.parent.parent))
