"""Which kernel modules a guest loads, in which order, out of a kernel's package."""

from __future__ import annotations

import gzip
import lzma
import os
import struct

from foundation.errors import HubError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NEEDED = ("virtio_pci", "virtio_net", "virtio_console", "virtio_blk")
"""Loaded at boot."""

_SIGNED = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">8xI")
_PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".ko.xz": lzma.decompress,
    ".ko.gz": gzip.decompress,
}


class Modules:
    """The modules of one kernel."""

    def __init__(self, directory: str) -> None:
        """Read which there are, and which are part of the kernel, in *directory*."""
        self._directory = directory
        self._paths: dict[str, tuple[str, str]] = {}
        for place, _directories, names in os.walk(f"{directory}/kernel"):
            for file in names:
                name, dot, suffix = file.partition(".")
                if dot + suffix in _PACKED:
                    self._paths[_plain(name)] = f"{place}/{file}", dot + suffix
        self._builtin: set[str] = set()
        try:
            with open(f"{directory}/modules.builtin", encoding="utf-8") as lines:
                self._builtin = {
                    _plain(os.path.basename(line.strip()).partition(".")[0]) for line in lines
                }
        except FileNotFoundError:
            pass  # then whatever is not there is missed by name

    def in_order(self, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
        """Return *wanted* and what they need, each after what it needs: names and contents.

        Raises:
            HubError: one is neither there nor part of the kernel (``no-module``).
        """
        found: dict[str, bytes] = {}
        for name in wanted:
            self._collect(_plain(name), found, ())
        return list(found.items())

    def _collect(self, name: str, found: dict[str, bytes], above: tuple[str, ...]) -> None:
        if name in found or name in self._builtin or name in above:
            return
        if name not in self._paths:
            raise HubError(f"{self._directory} has no module {name}", reason="no-module")
        path, suffix = self._paths[name]
        with open(path, "rb") as file:
            content = unsigned(_PACKED[suffix](file.read()))
        for needed in needs(content):
            self._collect(needed, found, (*above, name))
        found[name] = content


def unsigned(module: bytes) -> bytes:
    """Return *module* without its signature, which takes a guest longer to verify than to load it.

    Source: Linux, scripts/sign-file.c and ``struct module_signature``.
    """
    if not module.endswith(_SIGNED):
        return module
    end = len(module) - len(_SIGNED) - _SIGNATURE.size
    (length,) = _SIGNATURE.unpack_from(module, end)
    return module[: end - length]


def needs(module: bytes) -> list[str]:
    """Return the names of the modules that *module*, an ELF object, says it depends on."""
    start = module.find(b"\0depends=")
    if start < 0:
        return []
    start += len(b"\0depends=")
    listed = module[start : module.index(b"\0", start)].decode()
    return [_plain(name) for name in listed.split(",") if name]


def _plain(name: str) -> str:
    """A module's file may be called with dashes where its name has underscores."""
    return name.replace("-", "_")
