"""Commit objects. Pure."""

from __future__ import annotations

from typing import NamedTuple

_CRUD = dict.fromkeys(map(ord, "<>\n\0"), " ")


class Person(NamedTuple):
    """Who git says made a commit."""

    name: str
    email: str

    def at(self, time_s: int) -> str:
        """Return it as a line of a commit or a log has it, in UTC."""
        return f"{_clean(self.name) or 'nobody'} <{_clean(self.email)}> {time_s} +0000"


class Draft(NamedTuple):
    """A commit that has no parent yet."""

    tree: bytes
    """Raw."""
    author: Person
    time_s: int
    message: str

    def content(self, parent: str) -> bytes:
        """Return the object, on *parent* ("": it is the first)."""
        who = self.author.at(self.time_s)
        above = f"parent {parent}\n" if parent else ""
        message = self.message.replace("\0", "\N{REPLACEMENT CHARACTER}").strip("\n")
        text = f"{above}author {who}\ncommitter {who}\n\n{message}\n"
        return b"tree %s\n%s" % (self.tree.hex().encode(), text.encode("utf-8", "backslashreplace"))

    @property
    def subject(self) -> str:
        """The first line of the message, for a log."""
        return self.message.strip("\n").split("\n", 1)[0].replace("\0", "")


def _clean(text: str) -> str:
    return text.translate(_CRUD).strip(" .,:;\"'\\")
