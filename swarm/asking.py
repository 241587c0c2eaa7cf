"""Asking a person before something goes that does not come back."""

from __future__ import annotations

import sys

from foundation.errors import Usage
from hub import output
from hub.render import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def agreed(lines: Iterable[str], *, as_json: bool) -> bool:
    """Show *lines*, what would be done, and ask whether to go on.

    Raises:
        Usage: there is nobody to ask (``not-confirmed``).
    """
    if not as_json:
        for line in lines:
            output.say(printable(line), program="bones")
    if as_json or not (sys.stdin and sys.stdin.isatty()):
        raise Usage(
            "nobody here to ask: --yes does it, --dry-run only says what it would do",
            reason="not-confirmed",
        )
    sys.stderr.write("bones: go on? [y/N] ")
    sys.stderr.flush()
    answer = ""
    try:
        answer = sys.stdin.readline()
    finally:
        if not answer:  # interrupted, or at the end: the line is still open
            sys.stderr.write("\n")
    return answer.strip().lower() in ("y", "yes")
