"""A slot's worktree as its leaf has it: files, base, Fossil's check-out, git's repository.

The base is the truth: what differs from it is the slot's work. The check-out and the repository
are kept like it, for the tools that agents know, and are mended from it.

Whatever is killed when: a file of the slot's that has landed while the base does not know it looks
like a change, which trunk has; so it lands as nothing, or updates as nothing. A file of others that
is in the worktree already, as an update was stopped halfway, is known for what it is
(:mod:`swarm.worktree.underway`): trunk may not have it any more.
"""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from foundation.errors import Corrupt, HubError, Refused
from foundation.failpoint import hit
from hub.commits import Conflicted, Proposal, decode, encode
from hub.recall import recall
from hub.repository import Repository
from hub.wording import several
from slotgc import artifact, treepath
from slotgc.leaf import slot_directory
from slotgc.removal import remove_tree
from swarm.gitrepo.repo import File
from swarm.worktree import gitside, making, sight, underway, updating
from swarm.worktree.ignoring import Rules
from swarm.worktree.incoming import bring_in
from swarm.worktree.ledger import Ledger
from swarm.worktree.placing import Placer
from swarm.worktree.reading import Reader
from swarm.worktree.underway import Underway
from swarm.worktree.updating import Planner, Updated
from swarm.worktree.upkeep import Upkeep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from foundation.workspace import Workspace
    from hub.commits import Change, Landed
    from hub.repository import CheckinRow
    from slotgc.base import Base, Row
    from swarm.worktree.sight import Skipped
    from swarm.worktree.template import Progress
    from swarm.worktree.updating import Plan


def silent(*, phase: str, done: int = 0, total: int = 0) -> None:
    """Report progress to nobody."""


class Asked(NamedTuple):
    """What was read for a proposal."""

    id: str
    rows: dict[bytes, Row]
    """What the base shall say of the changed files that are there."""
    seen_ns: int
    """When the first was looked at, nanoseconds since the epoch."""


class Worktree:
    """The worktree of one slot. Used by one thread at a time, of the process that has leaf.lock."""

    def __init__(
        self,
        workspace: Workspace,
        slot: str,
        repository: Repository,
        ledger: Ledger,
        *,
        owns: bool,
    ) -> None:
        """Take over what is there; :meth:`make` and :meth:`open` call this."""
        self._workspace = workspace
        self._slot = slot
        self._slot_directory = slot_directory(workspace, slot)
        self._scratch = f"{self._slot_directory}/wt.new"
        self.directory = f"{self._slot_directory}/wt"
        """Where the files are."""
        self._repository = repository
        self._owns_repository = owns
        self._ledger = ledger
        self._rules = Rules(self.directory)
        self._upkeep = Upkeep(workspace, slot, self._slot_directory, repository, ledger)
        self._place = _place(self.directory)
        self._asked: Asked | None = None
        self._underway: Underway | None = None
        self.skipped: tuple[Skipped, ...] = ()
        """What the latest look at the worktree left out, and why."""
        self.trouble = ""
        """Why not all could be written down that is known, in words; then more counts as work."""

    # --- making and reviving -----------------------------------------------------------------

    @classmethod
    def make(
        cls,
        workspace: Workspace,
        slot: str,
        repository: Repository | None = None,
        *,
        progress: Progress = silent,
    ) -> Worktree:
        """Make the worktree of *slot* at trunk's tip; the caller holds its leaf.lock.

        Without a *repository* it opens the workspace's, and closes it in the end.

        Raises:
            HubError: it cannot be made.
            ValueError: there is one.
        """
        directory = slot_directory(workspace, slot)
        if os.path.lexists(f"{directory}/wt"):
            raise ValueError(f"{directory}/wt is there already: open it")
        _tidy(directory)
        trunk = repository or Repository(workspace.repository)
        try:
            known = making.make(workspace, slot, directory, trunk, progress)
            ledger = Ledger(directory, known)
            ledger.rewrite()
            hit("worktree.based")
            os.rename(f"{directory}/wt.new", f"{directory}/wt")
        except BaseException as error:
            if repository is None:
                trunk.close()
            if isinstance(error, OSError):
                raise HubError(
                    f"the worktree of slot {slot} cannot be made: {error}", reason="worktree"
                ) from None
            raise
        hit("worktree.made")
        return cls(workspace, slot, trunk, ledger, owns=repository is None)

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        slot: str,
        repository: Repository | None = None,
        *,
        progress: Progress = silent,
    ) -> Worktree:
        """Take up the worktree of *slot* again; one that is not there is made.

        *repository* as in :meth:`make`.

        Raises:
            HubError: it cannot be taken up.
        """
        directory = slot_directory(workspace, slot)
        if not os.path.lexists(f"{directory}/wt"):
            return cls.make(workspace, slot, repository, progress=progress)
        begun = Underway.read(f"{directory}/wt.new")
        if begun is None:
            _tidy(directory)
        if not stat.S_ISDIR(os.lstat(f"{directory}/wt").st_mode):
            raise Corrupt(
                f"{directory}/wt is no directory: move it away, then join again", reason="worktree"
            )
        trunk = repository or Repository(workspace.repository)
        try:
            ledger = Ledger.read(directory) or making.from_checkout(directory, trunk)
            worktree = cls(workspace, slot, trunk, ledger, owns=repository is None)
            worktree._upkeep.take_up()
            worktree._underway = begun
            worktree._note_what_was_brought()
            if begun is not None:
                _tidy(directory)
        except BaseException:
            if repository is None:
                trunk.close()
            raise
        return worktree

    def close(self) -> None:
        """Write what the disk does not know yet, and let go of every file."""
        try:
            self._upkeep.close()
            self._ledger.close()
        except OSError as error:
            self.trouble = str(error)
        finally:
            self._rules.close()
            if self._owns_repository:
                self._repository.close()

    def settle(self) -> None:
        """Do what may wait until nobody does: :meth:`swarm.worktree.upkeep.Upkeep.settle`."""
        self._upkeep.settle()

    def warm(self) -> None:
        """Read and start ahead what a first commit needs; what fails now is told then."""
        try:
            self._rules.warm()
            self._upkeep.warm()
        except (HubError, OSError):
            pass

    @property
    def base(self) -> Base:
        """What the worktree last agreed on with trunk; not to be changed."""
        return self._ledger.base

    @property
    def checkin(self) -> str:
        """The check-in that it is at; single files may be of later ones."""
        return self._ledger.base.checkin

    # --- changes -----------------------------------------------------------------------------

    def changes(self, paths: Sequence[bytes] | None = None) -> tuple[Change, ...]:
        """Return what differs from the base, by path; *paths* as in :meth:`propose`.

        Raises:
            HubError: as :meth:`propose`.
        """
        self._look()
        reader = Reader(self.directory, self.base, self._workspace.spool, None)
        changes = self._read(reader, paths)
        self.settle()
        return tuple(changes)

    def propose(
        self,
        message: str,
        paths: Sequence[bytes] | None = None,
        *,
        id: str,  # noqa: A002 - the wire's word
        epoch: int,
    ) -> Proposal:
        """Return the commit *id* of what differs from the base, for trunk.

        *paths*: only these, files or directories, gone ones too; None: all, new files among them
        that git does not ignore.

        Raises:
            Refused: there is nothing (``nothing-to-commit``), a file still has the conflict
                markers of an update (``unresolved``), or cannot be on trunk, or
                cannot be read (see :mod:`swarm.worktree.sight`, :mod:`swarm.worktree.reading`).
            Unavailable: a file is being written all the time (``being-written``).
            HubError: the worktree cannot be looked at, or is another directory by now.
        """
        self._require_the_same()
        self._look()
        reader = Reader(self.directory, self.base, self._workspace.spool, self._repository.has)
        seen_ns = time.time_ns()
        changes = self._read(reader, paths)
        if not changes:
            raise Refused(self._nothing(), reason="nothing-to-commit")
        self._refuse_markers(one.path for one in changes if one.kind)
        if paths is None:
            self._upkeep.refuse_unnamed([one.path for one in changes])
        self._asked = Asked(id, reader.rows, seen_ns)
        proposal = Proposal(
            id=id,
            slot=self._slot,
            epoch=epoch,
            base=self.checkin,
            message=message,
            changes=tuple(changes),
            contents=reader.contents,
            spooled=tuple(reader.spooled),
        )
        try:
            self._ledger.ask(encode(proposal.replace(contents={}, spooled=())).decode())
        except OSError as error:
            self.trouble = str(error)
        return proposal

    def _look(self) -> None:
        self._upkeep.look()
        self._note_what_was_brought()

    def _read(self, reader: Reader, paths: Sequence[bytes] | None) -> list[Change]:
        seen_ns = time.time_ns()
        if paths is None:
            found = sight.everywhere(self.directory, self.base, self._rules)
        else:
            found = sight.at(
                self.directory, self.base, paths, self._rules, self._ledger.may_be_directory
            )
        changes = reader.changes(found, named=paths is not None)
        self._ledger.refresh(reader.same, seen_ns)
        self.skipped = tuple(found.skipped)
        return changes

    def _nothing(self) -> str:
        words = f"nothing in slot {self._slot} differs from {self.checkin[:10]}"
        if self._upkeep.went_back:
            words += (
                " but for what git was taken back from, which stays on trunk: `bones swarm update` "
                "brings it again, `bones revert` undoes a check-in"
            )
        if not self.skipped:
            return words
        left = several([f"{treepath.show(one.path)} {one.reason}".strip() for one in self.skipped])
        return f"{words}; left out: {left}"

    # --- after a commit ----------------------------------------------------------------------

    def recalled(self) -> tuple[Proposal, Landed] | None:
        """Return the commit that a leaf before us had asked for and not heard of, if it landed.

        The base knows of it now. Only to be asked when no request of that leaf can land any more.

        Raises:
            HubError: trunk cannot be read.
        """
        try:
            proposal = decode(self.base.asked.encode()) if self.base.asked else None
        except ValueError:  # of another version: what it was made of counts as work
            return None
        checkin = None if proposal is None else self._repository.landed(proposal.id)
        if proposal is None or checkin is None:
            return None
        try:
            landed = recall(self._repository, checkin, proposal)
        except Refused:  # another slot's, under the same id: so ours did not land
            return None
        self.landed(proposal, landed)
        return proposal, landed

    def landed(self, proposal: Proposal, landed: Landed) -> None:
        """Have the base know that *proposal* is on trunk as *landed*.

        What trunk merged is brought in, unless the file has changed since it was proposed: then
        its base stays what it was. It has landed, whatever goes wrong here: that is told in
        :attr:`trouble`.
        """
        asked = self._asked
        if asked is None or asked.id != proposal.id:
            asked = self._unasked(proposal)
        self._asked = None
        merged = bring_in(
            landed.merged,
            asked.rows,
            self._repository,
            self.directory,
            self._scratch,
        )
        rows = {path: row for path, row in asked.rows.items() if path not in merged}
        rows.update({path: row for path, row in merged.items() if row is not None})
        removed = [one.path for one in proposal.changes if not one.kind and one.path not in merged]
        follows = landed.new and landed.parent == self.checkin
        hit("landed.merged")
        self._upkeep.record(rows, removed, moved=follows)
        hit("landed.checkout")
        checkin = landed.checkin if follows else self.checkin
        refs = self._record_in_git(rows, removed, proposal, landed, checkin, asked.seen_ns)
        hit("landed.git")
        try:
            self._ledger.change(
                checkin=checkin,
                indexed_ns=asked.seen_ns,
                rows=rows,
                removed=removed,
                refs=refs,
                is_answer=True,
            )
            self.trouble = self._upkeep.trouble
        except OSError as error:
            self.trouble = str(error)
        hit("landed.logged")

    def _record_in_git(
        self,
        rows: Mapping[bytes, Row],
        removed: Iterable[bytes],
        proposal: Proposal,
        landed: Landed,
        checkin: str,
        seen_ns: int,
    ) -> dict[str, str]:
        files: dict[bytes, File | None] = dict.fromkeys(removed)
        for path, row in rows.items():
            content = proposal.contents.get(row[2])
            try:
                if content is None:
                    content = self._repository.content(row[2])
            except HubError:
                return {}  # caught up when the slot is taken up again
            files[path] = File(row[0], content, gitside.stamp(row, seen_ns))
        return self._upkeep.commit_to_git(
            files,
            landed.message,
            mark=gitside.Mark(landed.checkin, checkin),
            time_s=gitside.seconds(landed.time),
        )

    def _unasked(self, proposal: Proposal) -> Asked:
        """Return what is known of a proposal of one who was before us: nothing but contents.

        What trunk merged it has not as it was proposed; if it did not travel with the proposal,
        nothing is known of it, and it stays a change.
        """
        rows: dict[bytes, Row] = {}
        for one in proposal.changes:
            if one.hash in proposal.contents:
                size = len(proposal.contents[one.hash])
            elif one.kind and self._repository.has(one.hash):
                size = self._repository.size(one.hash)
            else:
                continue
            rows[one.path] = (one.kind, size, one.hash, 0, 0, 0)
        return Asked(proposal.id, rows, self.base.indexed_ns)

    # --- update ------------------------------------------------------------------------------

    def update(self, *, markers: bool = False) -> Updated:
        """Bring the worktree to trunk's tip; what was changed here stays changed.

        Raises:
            Conflicted: trunk and the slot changed the same; nothing was touched. With *markers*
                both are left in the file, between markers.
            Refused: files that nobody committed are in the way (``in-the-way``).
            Unavailable: a file was changed meanwhile (``changed-meanwhile``): the update stopped
                halfway, and the next goes on. What it has brought is no change of the slot.
            HubError: it cannot be done.
        """
        self._look()
        to = self._repository.tip()
        previous = self.checkin
        seen_ns = time.time_ns()
        planner = Planner(self.directory, self.base, self._repository, self._slot)
        plan = planner.plan(to, markers=markers)
        self._repository.forget()
        updating.refuse_what_is_in_the_way(plan, self.directory)
        if plan.conflicts:
            raise Conflicted(tuple(plan.conflicts))
        self._underway = begun = Underway(
            to.hash,
            {
                one.path: (one.kind, artifact.of_bytes(one.content))
                for one in plan.writes
                if one.content is not None
            },
            paths=plan.base.keys(),
            seen_ns=seen_ns,
        )
        try:
            self._carry_out(plan, to, seen_ns, begun)
        except OSError as error:
            self._stopped()
            raise HubError(
                f"{self.directory} is updated in part ({_words(error, begun.at)}): update again "
                "when that is mended",
                reason="worktree",
            ) from None
        except HubError:
            self._stopped()
            raise
        self._underway = None
        apart = {*plan.merged, *plan.conflicted}
        return Updated(
            checkin=to.hash,
            previous=previous,
            files=len(plan.base.keys() - apart),
            merged=tuple(plan.merged),
            conflicted=tuple(plan.conflicted),
        )

    def _require_the_same(self) -> None:
        """Refuse to take what stands in the place of the worktree for it."""
        if _place(self.directory) != self._place:
            raise HubError(
                f"{self.directory} is not the directory that was joined: move that back; if it is "
                "gone, `bones swarm close --result fail`, then join again",
                reason="worktree",
            )

    def _refuse_markers(self, paths: Iterable[bytes]) -> None:
        """Refuse those of *paths* that an update has marked and nobody has resolved."""
        marked = self.base.marked
        left = []
        resolved = set()
        for path in marked.keys() & paths:
            try:
                with open(os.fsencode(self.directory) + b"/" + path, "rb") as file:
                    stays = updating.has_markers(file, marked[path])
            except OSError:
                stays = False  # it is not there any more, or no file
            if stays:
                left.append(treepath.show(path))
            else:
                resolved.add(path)
        if resolved:
            self._mark({path: at for path, at in marked.items() if path not in resolved})
        if left:
            raise Refused(
                f"{', '.join(sorted(left)[:5])}: conflict markers are left from the update: "
                "resolve them, then commit",
                reason="unresolved",
            )

    def _mark(self, marked: Mapping[bytes, tuple[str, ...]]) -> None:
        try:
            self._ledger.mark(marked)
        except OSError as error:
            self.trouble = str(error)

    def _stopped(self) -> None:
        """Note what was brought before the update failed; if not now, the next verb does."""
        try:
            self._note_what_was_brought()
        except HubError as error:
            self.trouble = str(error)

    def _note_what_was_brought(self) -> None:
        """Have the base know what an update that stopped halfway has put into the worktree.

        Its check-in stays: every row stands for itself.

        Raises:
            HubError: trunk cannot be read, or it cannot be written down.
        """
        begun = self._underway
        if begun is None:
            return
        try:
            if begun.is_noted:
                self._ledger.rewrite()
            else:
                self._note(begun)
            hit("update.noted")
            underway.forget(self._scratch)
        except OSError as error:
            raise HubError(
                f"{self.directory} is updated in part, which cannot be written down ({error}): try "
                "again when that is mended",
                reason="worktree",
            ) from None
        self._underway = None

    def _note(self, begun: Underway) -> None:
        try:
            at = self._repository.checkin(begun.checkin)
        except Refused:  # purged: it is nobody's work but what is there
            return
        seen_ns = begun.seen_ns or self.base.indexed_ns
        rows, removed = begun.brought(self.directory, self.base, self._repository)
        refs: dict[str, str] = {}
        if rows or removed:
            self._upkeep.record(rows, removed, moved=self.checkin == at.hash)
            refs = self._upkeep.commit_to_git(
                gitside.contents(self._repository, rows, removed, seen_ns),
                gitside.words(at),
                mark=gitside.Mark(at.hash, self.checkin),
                time_s=gitside.seconds(at.time),
            )
        begun.is_noted = True
        self._ledger.change(
            checkin=self.checkin, indexed_ns=seen_ns, rows=rows, removed=removed, refs=refs
        )

    def _carry_out(self, plan: Plan, to: CheckinRow, seen_ns: int, begun: Underway) -> None:
        rows: dict[bytes, Row] = {}
        removed = []
        for path, entry in plan.base.items():
            if entry is None:
                removed.append(path)
            else:
                size = self._repository.size(entry.hash)
                rows[path] = (entry.kind, size, entry.hash, 0, 0, 0)
        for path, status in plan.stays.items():
            if path in rows and path not in plan.merged:
                stamps = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
                rows[path] = (*rows[path][:3], *stamps)
        if plan.marked:  # before the first is written: a kill may come between
            known = self.base.marked
            self._ledger.mark(
                {**known, **{path: (*known.get(path, ()), *at) for path, at in plan.marked.items()}}
            )
            hit("update.marked")
        if plan.deletes or plan.writes:
            begun.write(self._scratch)
        placer = Placer(self.directory, self._scratch)
        try:
            for path, judged in plan.deletes:
                begun.at = path
                placer.delete(path, judged)
                begun.placed[path] = None
            for one in plan.writes:
                begun.at = one.path
                row = self._write(placer, plan, one)
                if row[:3:2] == rows[one.path][:3:2]:
                    begun.placed[one.path] = rows[one.path] = row
                else:
                    begun.placed[one.path] = rows[one.path]
                    # At once: this file, merged a second time, might not go together.
                    self._ledger.change(
                        checkin=self.checkin,
                        indexed_ns=seen_ns,
                        rows={one.path: rows[one.path]},
                    )
        finally:
            placer.close()
        begun.at = b""
        hit("update.written")
        self._ledger.change(checkin=to.hash, indexed_ns=seen_ns, rows=rows, removed=removed)
        hit("update.based")
        self._upkeep.record(rows, removed, moved=True)
        hit("update.checkout")
        self._upkeep.update_git(to, plan.base.keys())
        underway.forget(self._scratch)
        self.settle()

    def _write(self, placer: Placer, plan: Plan, one: updating.Write) -> Row:
        if one.only_kind:
            return placer.set_kind(one.path, one.kind, one.judged)
        content = one.content
        if content is None:
            entry = plan.base[one.path]
            assert entry is not None
            content = self._repository.content(entry.hash)
        return placer.write(one.path, one.kind, content, one.judged)


def _place(directory: str) -> tuple[int, int] | None:
    """Return which directory that is, None if there is none."""
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _words(error: OSError, path: bytes) -> str:
    """Return what *error* says, of the file *path* of the worktree if it is one's."""
    words = error.strerror or str(error)
    return f"{treepath.show(path)}: {words}" if path else words


def _tidy(directory: str) -> None:
    """Remove what one who was killed had in the making."""
    try:
        remove_tree(f"{directory}/wt.new")
    except OSError as error:
        raise HubError(
            f"{directory}/wt.new cannot be removed: {error}", reason="worktree"
        ) from None
