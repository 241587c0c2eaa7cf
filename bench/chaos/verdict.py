"""What a campaign found, and how it is told."""

from __future__ import annotations

import json
import sys
from collections import Counter

from bench.chaos.plan import Options
from bench.chaos.stage import Stage

_SHOWN = 20


class Verdict:
    """Figures and violations. Any violation fails the campaign."""

    def __init__(self, name: str, options: Options) -> None:
        """Print the seed: whatever happens, the plan can be replayed."""
        self.name = name
        self.figures: Counter[str] = Counter()
        self.violations: list[str] = []
        self._options = options
        self._print(
            f"chaos {name}: seed {options.seed}, {options.processes} processes, "
            f"{options.seconds:g} s"
        )

    def wrong(self, sentence: str) -> None:
        """Note a violation."""
        self.violations.append(sentence)

    def look_into(self, stage: Stage) -> None:
        """Keep the place of a campaign that went wrong, if that is wanted."""
        if self.violations and self._options.rest.keep:
            self._print(f"  kept: {stage.place}")
            stage.keep()

    def report(self) -> int:
        """Print everything; return the exit status."""
        seed = self._options.seed
        if self._options.as_json:
            found = {
                "campaign": self.name,
                "seed": seed,
                "processes": self._options.processes,
                "seconds": self._options.seconds,
                "figures": dict(self.figures),
                "violations": self.violations,
            }
            sys.stdout.write(json.dumps(found) + "\n")
            return 1 if self.violations else 0
        for figure, count in self.figures.items():
            self._print(f"  {figure:34} {count:10,}")
        for sentence in self.violations[:_SHOWN]:
            self._print(f"  VIOLATION (seed {seed}): {sentence}")
        if len(self.violations) > _SHOWN:
            self._print(f"  … and {len(self.violations) - _SHOWN:,} more (seed {seed})")
        self._print(f"  {len(self.violations):,} violations (seed {seed})")
        return 1 if self.violations else 0

    def _print(self, line: str) -> None:
        out = sys.stderr if self._options.as_json else sys.stdout
        out.write(f"{line}\n")
        out.flush()
