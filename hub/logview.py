"""The verb ``logs``."""

from __future__ import annotations

import sys
import time

from foundation.workspace import Workspace
from hub import output, verbs
from hub.logs import NAMES, tail
from hub.logs import follow as follow_log

_LOOK_EVERY_S = 0.1


@output.verb("hub.logs")
def logs(*, root: str | None, name: str | None, follow: bool, count: int, as_json: bool) -> int:
    """Print the last *count* lines of one log or of all, and with *follow* what comes."""
    workspace = Workspace.find(verbs.root_or_default(root))
    names = NAMES if name is None else (name,)
    paths = {each: f"{workspace.logs}/{each}.log" for each in names}
    followers = {each: follow_log(path) for each, path in paths.items()} if follow else {}
    for followed in followers.values():
        next(followed)  # takes its place at the end, before the tails are read
    last = [(each, line) for each in names for line in tail(paths[each], count)]
    if not last and not follow and not as_json:
        output.say(f"no logs yet in {workspace.logs}")
        return 0
    if as_json and not follow:
        lines = [{"log": each, "line": _text(line)} for each, line in last]
        output.print_data("hub.logs", {"lines": lines})
        return 0
    for each, line in last:
        _print(each, line, alone=name is not None, as_json=as_json)
    while followers:
        news = [(each, line) for each, lines in followers.items() for line in next(lines)]
        for each, line in news:
            _print(each, line, alone=name is not None, as_json=as_json)
        if not news:
            time.sleep(_LOOK_EVERY_S)
    return 0


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


def _print(name: str, line: bytes, *, alone: bool, as_json: bool) -> None:
    if as_json:
        output.print_data("hub.logs", {"log": name, "line": _text(line)})
    else:
        output.line(_text(line) if alone else f"{name:6} {_text(line)}")
    sys.stdout.flush()
