"""What tests of slots get: a running hub, whose leaves are ended with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.swarm.leaves import end_leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Hub


@pytest.fixture
def swarm_hub(hub: Hub) -> Iterator[Hub]:
    """Return a hub that runs, in which leaves may be left at the end."""
    hub.start()
    yield hub
    end_leaves(hub.root)


@pytest.fixture
def lone_hub(hub: Hub) -> Iterator[Hub]:
    """Return a hub for the test to start, in which leaves may be left at the end."""
    yield hub
    end_leaves(hub.root)
