"""``bin/bench NAME [options]``: measure or torment, print a table, exit 1 on a miss."""

from __future__ import annotations

import importlib
import sys

_BENCHES = (
    "start",
    "seed",
    "setup",
    "owner",
    "kill",
    "herd",
    "commit",
    "join",
    "vm",
    "vm-cycles",
    "chaos",
)


def main() -> None:
    """Run the benchmark that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in _BENCHES:
        asked = name in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(
            f"usage: bin/bench {'|'.join(_BENCHES)} [--help]\n"
        )
        sys.exit(0 if asked else 2)
    sys.exit(importlib.import_module(f"bench.{name.replace('-', '_')}").main(sys.argv[2:]))


if __name__ == "__main__":
    main()
