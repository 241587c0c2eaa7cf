"""The front door of ``bones``: that of ``hub``, of slots' verbs and of VMs', as fast as each."""

from __future__ import annotations

import sys

from swarm.plain import COUNT, FILES, FLAG, NAMES, NEEDED, REST, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from swarm.plain import Form

_ROOT: Form = {"--root": ("root", str), "--json": ("as_json", FLAG)}
PLAIN: dict[str, Form] = {
    "up": _ROOT,
    "status": _ROOT,
    "log": {**_ROOT, "-n": ("count", COUNT), "--lines": ("count", COUNT), "--slot": ("slot", str)},
    "diff": {**_ROOT, NAMES: ("old", "new")},
    "revert": {
        **_ROOT,
        "-m": ("message", str),
        "--message": ("message", str),
        NAMES: ("name",),
        NEEDED: ("name",),
    },
    "apply": {**_ROOT, "--branch": ("branch", str), "--dry-run": ("dry_run", FLAG)},
}
VM_PLAIN: dict[str, Form] = {
    "up": {
        **_ROOT,
        FILES: "names",
        "-n": ("count", COUNT),
        "--cpus": ("cpus", COUNT),
        "--mem": ("memory_mb", COUNT),
        "--disk": ("disk_mb", COUNT),
        "--no-egress": ("no_egress", FLAG),
    },
    "down": {
        **_ROOT,
        FILES: "names",
        "--all": ("everything", FLAG),
        "--force": ("force", FLAG),
    },
    "ls": {**_ROOT, "-q": ("quiet", FLAG), "--quiet": ("quiet", FLAG)},
    "cp": {**_ROOT, NAMES: ("source", "target"), NEEDED: ("source", "target")},
    "logs": {
        **_ROOT,
        NAMES: ("name",),
        NEEDED: ("name",),
        "-f": ("follow", FLAG),
        "--follow": ("follow", FLAG),
    },
    "forward": {
        **_ROOT,
        NAMES: ("name", "port"),
        NEEDED: ("name",),
        "--end": ("end", COUNT),
    },
}
_VM_EXEC: dict[str, Form] = {
    "exec": {
        **_ROOT,
        "-i": ("stdin", FLAG),
        "--stdin": ("stdin", FLAG),
        "--cwd": ("cwd", str),
        REST: "words",
        NEEDED: ("words",),
    }
}
VM_ALIASES = {
    "start": "up",
    "stop": "down",
    "halt": "down",
    "list": "ls",
    "shell": "ssh",
    "remove": "rm",
    "destroy": "rm",
    "delete": "rm",
}
"""What VM programs elsewhere call the same."""
_OF_TRUNK = frozenset(("log", "diff", "revert", "apply"))
_FROM_PACKAGES = frozenset(("revert",))
"""What takes more than ours and the standard library."""


def main(arguments: list[str] | None = None) -> None:
    """Run ``bones`` with *arguments* (the command line by default) and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["hub"]:
        from hub.entry import main as hub_main  # noqa: PLC0415

        hub_main(arguments[1:], program="bones hub")
    elif arguments[:1] == ["swarm"]:
        from swarm.entry import main as swarm_main  # noqa: PLC0415

        swarm_main(arguments[1:])
    else:
        if arguments[:1] == ["vm"]:
            plain, run = vm_form(arguments[1:]), _run_vm
        else:
            plain, run = parse(arguments, PLAIN), _run
        if plain is not None:
            from swarm.entry import leave  # noqa: PLC0415

            leave(lambda: run(*plain))
        _activate_site()
        from orchestrator.cli import main as cli_main  # noqa: PLC0415

        cli_main(arguments)


def _run(verb: str, options: dict[str, Any]) -> int:
    if verb in _FROM_PACKAGES:
        _activate_site()
    if verb in _OF_TRUNK:
        from orchestrator import trunk_verbs  # noqa: PLC0415

        return int(getattr(trunk_verbs, verb)(**options))
    from orchestrator import verbs  # noqa: PLC0415

    return int(getattr(verbs, verb)(**options))


def vm_form(arguments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """Return the verb and the options of ``bones vm …``, None if they are not so plain."""
    verb, *others = arguments or [""]
    arguments = [VM_ALIASES.get(verb, verb), *others]
    plain = parse(arguments, _VM_EXEC)
    if plain is None:
        return parse(arguments, VM_PLAIN)
    _verb, options = plain
    name, *words = options.pop("words")
    # The first -- of all follows the name, and a command follows it.
    if words[:1] != ["--"] or arguments.index("--") != len(arguments) - len(words) or not words[1:]:
        return None
    return "execute", {**options, "name": name, "words": words}


def _run_vm(verb: str, options: dict[str, Any]) -> int:
    if options.get("force"):  # what is killed has left logins on the bus
        _activate_site()
    from orchestrator import vm_verbs  # noqa: PLC0415

    return int(getattr(vm_verbs, verb)(**options))


def _activate_site() -> None:
    from hub.entry import activate_site  # noqa: PLC0415

    activate_site()
