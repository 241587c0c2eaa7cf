"""A check-in's comment as the message of a git commit, with the trailer that names the check-in.

Pure. Source: git-interpret-trailers(1).
"""

from __future__ import annotations

import re

CHECKIN = "Bones-Checkin"
"""``Bones-Checkin: HASH``, the last line of every commit that apply makes."""

_TRAILER = re.compile(r"[A-Za-z0-9-]+: ?.*")


def message(comment: str, checkin: str) -> str:
    """Return *comment* as a commit message that ends in the trailer for *checkin*.

    The trailer joins the comment's own ones, if it ends in such.
    """
    text = comment.replace("\0", "\N{REPLACEMENT CHARACTER}").replace("\r\n", "\n").strip()
    if not text:
        return f"(no comment)\n\n{CHECKIN}: {checkin}\n"
    _rest, blank, last = text.rpartition("\n\n")
    joined = blank and all(_TRAILER.fullmatch(line) for line in last.split("\n"))
    return f"{text}\n{'' if joined else chr(10)}{CHECKIN}: {checkin}\n"
