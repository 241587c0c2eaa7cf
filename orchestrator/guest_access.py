"""What a cluster's guests need to reach the hub, and nothing more."""

from __future__ import annotations

from foundation.record import Record
from hub import logins


class GuestAccess(Record):
    """Where the hub is for now, and the credentials of one cluster's guests."""

    cluster: str
    nats_port: int
    """On the host's loopback, and of the gateway once that lets it through; 0: no hub is ready."""
    fossil_port: int
    seed: str
    """Of the nkey with which all guests of the cluster log in to NATS; a secret."""
    fossil_login: str
    fossil_password: str

    def files(self, gateway: str, member: str) -> dict[str, bytes]:
        """Return files for the guest *member*, which reaches the hub at the address *gateway*.

        ``nats.nk`` the seed; ``nats.inbox`` the only prefix of inboxes that it may listen to;
        ``nats.subject`` where it may publish, ``vm.<cluster>.<member>.guest``, and what is below.
        While a hub is ready, ``nats.url`` and ``fossil.url`` as well, this one with login and
        password in it. One line each.
        """
        texts = {
            "nats.nk": self.seed,
            "nats.inbox": f"_INBOX_{logins.of_guests(self.cluster)}",
            "nats.subject": f"vm.{self.cluster}.{member}.guest",
        }
        if self.nats_port:
            texts["nats.url"] = f"nats://{gateway}:{self.nats_port}"
        if self.fossil_port:
            login = f"{self.fossil_login}:{self.fossil_password}"
            texts["fossil.url"] = f"http://{login}@{gateway}:{self.fossil_port}/"
        return {name: f"{text}\n".encode() for name, text in texts.items()}
