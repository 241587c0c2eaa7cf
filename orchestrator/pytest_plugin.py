"""Fixtures that give a test VMs of its own: ``vm``, and ``vm_cluster`` for several.

Installed with this package (entry point ``pytest11``)::

    def test_two_guests_see_each_other(vm_cluster):
        first, second = vm_cluster(2).vms
        assert first.execute(["ping", "-c", "1", second.ip]).status == 0

They are named after the test, end with the process however that ends, and are deleted with their
disks. A machine on which VMs cannot be had skips such a test, and says why.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from foundation.errors import HubError
from orchestrator.cluster import VM, Cluster
from orchestrator.store import Store
from orchestrator.targets import of_test, to_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    ClusterOf = Callable[..., Cluster]

_CANNOT = frozenset(
    ("no-qemu", "no-guest", "qemu-version", "no-mke2fs", "download-timeout", "addresses", "cache")
)
"""Reasons of errors that tell of the machine, not of the test."""


@pytest.fixture
def vm_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterOf]:
    """Return a function that starts a cluster: ``vm_cluster(count=1, **options) -> Cluster``.

    *options* are those of :class:`orchestrator.cluster.Cluster`. A test that wants several
    clusters calls it several times.
    """
    made: list[Cluster] = []
    store = Store(tmp_path_factory.mktemp("vms"))

    def cluster(count: int = 1, **options: Any) -> Cluster:
        # With a letter behind: a name that ends in a number is that of a member.
        name = f"{of_test(request.node.name)}-{chr(ord('a') + len(made))}"
        new = Cluster(to_start([name], count), store=store, **options)
        made.append(new)
        try:
            new.start()
        except HubError as error:
            if error.reason in _CANNOT:
                pytest.skip(str(error))
            raise
        return new

    yield cluster
    with ExitStack() as all_of_them:  # whatever becomes of one of them
        for one in made:
            all_of_them.callback(one.destroy)


@pytest.fixture
def vm(vm_cluster: ClusterOf) -> VM:
    """Return a VM that runs."""
    return vm_cluster().vms[0]
