"""The ``bones`` command line, and VM clusters: ``from orchestrator import Cluster, VM``.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orchestrator.cluster import VM, Cluster

__all__ = ["VM", "Cluster"]


def __getattr__(name: str) -> object:
    """Return the public name *name*, loaded now."""
    if name not in __all__:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    value: object = getattr(importlib.import_module("orchestrator.cluster"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, those that nobody has asked for yet among them."""
    return __all__
