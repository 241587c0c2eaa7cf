"""Making a slot's worktree, or a part of it that was lost."""

from __future__ import annotations

import os
import time

from foundation.errors import Corrupt
from foundation.failpoint import hit
from slotgc.base import TICK_NS, Base
from slotgc.removal import remove_tree
from swarm.worktree import checkout, gitside, template
from swarm.worktree.checkout import Checkout
from swarm.worktree.ledger import Ledger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace
    from hub.repository import Repository
    from slotgc.base import Row
    from swarm.worktree.template import Progress


def make(
    workspace: Workspace, slot: str, directory: str, repository: Repository, progress: Progress
) -> Base:
    """Make ``wt.new`` in the slot's *directory*, a worktree at trunk's tip; return its base.

    Raises:
        HubError: there is no template, or what is needed is not on trunk.
        OSError: it cannot be written.
    """
    worktree = f"{directory}/wt.new"
    seen_ns = time.time_ns()
    try:
        with template.hold(workspace, repository, progress) as source:
            rows = template.copied(source, worktree, progress)
            at = source.index.checkin
    except Corrupt:
        remove_tree(worktree)
        with template.renewed(workspace, repository, progress) as source:
            rows = template.copied(source, worktree, progress)
            at = source.index.checkin
    hit("worktree.copied")
    database = f"{worktree}/{checkout.NAME}"
    checkout.readdress(database, workspace.repository, slot)
    gitside.adopt(worktree, slot, rows, seen_ns)
    hit("worktree.adopted")
    tip = repository.tip()
    if tip.hash != at:
        difference = repository.difference(at, tip.hash)
        past_ns = template.past_ns(tip.time)
        written, removed = template.apply(repository, worktree, difference, rows, past_ns, progress)
        copy = Checkout(worktree)
        try:
            copy.record(dict(template.vfiles(repository, written)), removed)
            copy.move(tip.hash, tip.rid)
        finally:
            copy.close()
        files = gitside.contents(repository, written, removed, seen_ns)
        git = gitside.GitSide(worktree, slot)
        git.record(
            files,
            gitside.words(tip),
            mark=gitside.Mark(tip.hash, tip.hash),
            time_s=gitside.seconds(tip.time),
            refs={},
        )
    repository.forget()
    hit("worktree.planted")
    head, refs = gitside.references(worktree)
    return Base(
        checkin=tip.hash,
        # Nobody but us can have changed a file since it was made: none is too young.
        indexed_ns=time.time_ns() + TICK_NS + 1,
        files=rows,
        git_head=head,
        git_refs=refs,
        git_since_ns=time.time_ns(),
    )


def from_checkout(directory: str, repository: Repository) -> Ledger:
    """Return a ledger of the worktree in *directory*, whose base.json is lost, by its check-out.

    Raises:
        Corrupt: that is lost too (``no-base``).
    """
    found = Checkout(f"{directory}/wt")
    try:
        seen = found.look()
        if seen is None or seen.repository != repository.path:
            raise Corrupt(
                f"{directory} has neither base.json nor a check-out, so nobody can tell what was "
                "changed in it: `hub gc` rescues it, then join again",
                reason="no-base",
            )
    finally:
        found.close()
    rows: dict[bytes, Row] = {
        path: (kind, repository.size(name), name, 0, 0, 0)
        for path, (kind, name) in repository.files(seen.checkin).items()
    }
    repository.forget()
    return Ledger(directory, Base(checkin=seen.checkin, indexed_ns=time.time_ns(), files=rows))


def replace_checkout(
    directory: str,
    workspace: Workspace,
    repository: Repository,
    known: Base,
    rid: int,
    slot: str,
) -> None:
    """Put a new check-out of *known*, whose check-in has row *rid*, into the worktree.

    Raises:
        OSError: it cannot be written.
    """
    scratch = f"{directory}/wt.new"
    os.makedirs(scratch, 0o700, exist_ok=True)
    temporary = f"{scratch}/{checkout.NAME}"
    target = f"{directory}/wt/{checkout.NAME}"
    for end in ("", "-journal", "-wal", "-shm"):
        _unlink(temporary + end)
    rows = {path: _unstamped(row) for path, row in known.files.items()}
    files = template.vfiles(repository, rows)
    checkout.create(temporary, workspace.repository, known.checkin, rid, files, slot)
    hit("checkout.new")
    for end in ("-journal", "-wal", "-shm"):
        _unlink(target + end)  # or SQLite would take it for the new one's
    os.rename(temporary, target)
    for end in ("-journal", "-wal", "-shm"):
        _unlink(temporary + end)
    try:
        os.rmdir(scratch)
    except OSError:
        pass  # an update is underway


def _unstamped(row: Row) -> Row:
    """Return *row* of a file that Fossil shall compare by content."""
    return (*row[:3], 0, 0, 0)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
