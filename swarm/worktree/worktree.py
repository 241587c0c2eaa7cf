"""A slot's worktree as its leaf has it: files, base, Fossil's check-out, git's repository.

The base is the truth: what differs from it is the slot's work. The check-out and the repository
are kept like it, for the tools that agents know, and are mended from it.

Whatever is killed when: a file of trunk's that is in the worktree already while the base does not
know it looks like a change, which trunk has; so it lands as nothing, or updates as nothing.
"""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from foundation.errors import Corrupt, HubError, Refused, Unavailable
from foundation.failpoint import hit
from hub.commits import Conflicted, Proposal
from hub.repository import Repository
from hub.wording import several
from slotgc import artifact, base, treepath
from slotgc.beneath import INTO, BlockedError, enter
from slotgc.leaf import slot_directory
from slotgc.removal import remove_tree
from swarm.gitrepo.repo import File
from swarm.worktree import gitside, making, sight, updating
from swarm.worktree.checkout import Checkout, VFile
from swarm.worktree.gitside import GitSide
from swarm.worktree.ignoring import Rules
from swarm.worktree.ledger import Ledger
from swarm.worktree.placing import Judged, Placer
from swarm.worktree.reading import Reader
from swarm.worktree.updating import Planner, Updated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from foundation.workspace import Workspace
    from hub.commits import Change, Landed
    from hub.repository import CheckinRow
    from slotgc.base import Base, Row
    from swarm.worktree.sight import Skipped
    from swarm.worktree.template import Progress
    from swarm.worktree.updating import Plan

_YOUNG_NS = 2_000_000_000
"""A file changed twice within a second looks the same to Fossil: one that young it must read."""
_SECOND_NS = 1_000_000_000


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
        self.directory = f"{self._slot_directory}/wt"
        """Where the files are."""
        self._repository = repository
        self._owns_repository = owns
        self._ledger = ledger
        self._rules = Rules(self.directory)
        self._checkout = Checkout(self.directory)
        self._git = GitSide(self.directory, slot)
        self._behind = False
        """The check-out is not at the base's check-in."""
        self._doubtful = False
        """It may not have the base's files."""
        self._asked: Asked | None = None
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
        _tidy(directory)
        if not stat.S_ISDIR(os.lstat(f"{directory}/wt").st_mode):
            raise Corrupt(
                f"{directory}/wt is no directory: move it away, then join again", reason="worktree"
            )
        trunk = repository or Repository(workspace.repository)
        try:
            ledger = Ledger.read(directory) or making.from_checkout(directory, trunk)
            worktree = cls(workspace, slot, trunk, ledger, owns=repository is None)
            worktree._look_at_checkout()
            worktree._take_git_up()
        except BaseException:
            if repository is None:
                trunk.close()
            raise
        return worktree

    def close(self) -> None:
        """Write what the disk does not know yet, and let go of every file."""
        try:
            self.settle()
        finally:
            self._rules.close()
            self._checkout.close()
            self._ledger.close()
            if self._owns_repository:
                self._repository.close()

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
        self._look_at_tools()
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
            Refused: there is nothing (``nothing-to-commit``), or a file cannot be on trunk, or
                cannot be read (see :mod:`swarm.worktree.sight`, :mod:`swarm.worktree.reading`).
            Unavailable: a file is being written all the time (``being-written``).
            HubError: the worktree cannot be looked at.
        """
        self._look_at_tools()
        reader = Reader(self.directory, self.base, self._workspace.spool, self._repository.has)
        seen_ns = time.time_ns()
        changes = self._read(reader, paths)
        if not changes:
            raise Refused(self._nothing(), reason="nothing-to-commit")
        self._asked = Asked(id, reader.rows, seen_ns)
        return Proposal(
            id=id,
            slot=self._slot,
            epoch=epoch,
            base=self.checkin,
            message=message,
            changes=tuple(changes),
            contents=reader.contents,
            spooled=tuple(reader.spooled),
        )

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
        if not self.skipped:
            return words
        left = several([f"{treepath.show(one.path)} {one.reason}".strip() for one in self.skipped])
        return f"{words}; left out: {left}"

    # --- after a commit ----------------------------------------------------------------------

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
        merged = self._bring_in(landed, asked)
        rows = {path: row for path, row in asked.rows.items() if path not in merged}
        rows.update({path: row for path, row in merged.items() if row is not None})
        removed = [one.path for one in proposal.changes if not one.kind and one.path not in merged]
        follows = landed.new and landed.parent == self.checkin
        hit("landed.merged")
        self._record(rows, removed)
        hit("landed.checkout")
        checkin = landed.checkin if follows else self.checkin
        refs = self._record_in_git(rows, removed, proposal, landed, checkin, asked.seen_ns)
        hit("landed.git")
        self._behind |= follows
        try:
            self._ledger.change(
                checkin=checkin,
                indexed_ns=asked.seen_ns,
                rows=rows,
                removed=removed,
                refs=refs,
            )
            self.trouble = self._git.trouble
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
            except HubError as error:
                self._git.trouble = str(error)
                return {}  # caught up when the slot is taken up again
            files[path] = File(row[0], content, gitside.stamp(row, seen_ns))
        return self._git.record(
            files,
            landed.message,
            mark=gitside.Mark(landed.checkin, checkin),
            time_s=gitside.seconds(landed.time),
            refs=self.base.git_refs,
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

    def _bring_in(self, landed: Landed, asked: Asked) -> dict[bytes, Row | None]:
        """Write what trunk merged; return the rows, None for what was not to be touched."""
        if not landed.merged:
            return {}
        rows: dict[bytes, Row | None] = {}
        try:
            placer = Placer(self.directory, f"{self._slot_directory}/wt.new")
        except OSError:
            return {path: None for path, _kind, _name in landed.merged}
        try:
            for path, kind, name in landed.merged:
                rows[path] = None
                judged = self._judged(path, asked.rows.get(path))
                if judged is None:
                    continue
                try:
                    if kind:
                        content = self._repository.content(name)
                        rows[path] = placer.write(path, kind, content, judged)
                    else:
                        placer.delete(path, judged)
                except (OSError, HubError):
                    continue  # somebody was faster, or the disk is full: it stays a change
        finally:
            placer.close()
        return rows

    def _judged(self, path: bytes, was: Row | None) -> Judged | None:
        """Return what is at *path* if it is *was* (None: nothing), None if it is not."""
        tree = os.open(self.directory, INTO)
        try:
            parent, last = enter(tree, path)
        except (FileNotFoundError, BlockedError):
            return Judged(None, "", 0) if was is None else None
        finally:
            os.close(tree)
        try:
            status = os.lstat(last, dir_fd=parent)
            kind = base.kind_of(status.st_mode)
            if was is None or kind != was[0] or status.st_size != was[1]:
                return None
            if artifact.of_entry(last, kind, dir_fd=parent) != was[2]:
                return None
            return Judged(status, was[2], 0)
        except FileNotFoundError:
            return Judged(None, "", 0) if was is None else None
        except OSError:
            return None
        finally:
            os.close(parent)

    def _record(self, rows: Mapping[bytes, Row], removed: Iterable[bytes]) -> None:
        """Have the check-out know *rows*; if it cannot be now, it is mended later."""
        young_ns = time.time_ns() - _YOUNG_NS
        files = {}
        try:
            for path, row in rows.items():
                rid = self._repository.rid(row[2])
                if rid is None:
                    self._doubtful = True
                    return
                settled = max(row[3], row[4]) < young_ns
                files[path] = VFile(rid, row[0], row[3] // _SECOND_NS if settled else 0)
            self._checkout.record(files, list(removed))
        except HubError:
            self._doubtful = True

    def settle(self) -> None:
        """Do what may wait until nobody does: move the check-out to the base's check-in.

        And what git had to wait for. 1 ms for a thousand files; nothing where there is nothing.
        """
        self._know(self._git.flush(self.base.git_refs))
        try:
            if self._doubtful:
                self._mend_checkout()
            elif self._behind:
                rid = self._repository.checkin(self.checkin).rid
                self._checkout.move(self.checkin, rid)
            self._behind = self._doubtful = False
        except Unavailable:
            return  # a stock command is at it
        except Corrupt:
            self._doubtful = True  # look() finds it damaged, and another one is made

    # --- the check-out -----------------------------------------------------------------------

    def _look_at_checkout(self) -> None:
        """Notice what stock fossil did: adopt where it went, mend what is gone."""
        if self._checkout.is_untouched():
            return
        seen = self._checkout.look()
        if seen is None or seen.repository != self._workspace.repository:
            self._doubtful = True
        elif seen.checkin != seen.left:
            if self._is_on_trunk(seen.checkin):
                self._adopt(seen.checkin)
            else:
                self._doubtful = True
        elif seen.checkin != self.checkin and not self._behind:
            self._doubtful = True  # somebody was killed between one and the other
        self.settle()

    def _is_on_trunk(self, checkin: str) -> bool:
        try:
            self._repository.line(after=checkin)
        except Refused:
            return False
        return True

    def _adopt(self, checkin: str) -> None:
        """Let the base be *checkin*, to which stock fossil has moved the check-out.

        It leaves no row of another check-in behind. So what differs from it is the slot's.
        """
        rows: dict[bytes, Row] = {}
        for path, (kind, name) in self._repository.files(checkin).items():
            was = self.base.files.get(path)
            if was is None or (was[0], was[2]) != (kind, name):
                rows[path] = (kind, self._repository.size(name), name, 0, 0, 0)
            else:
                rows[path] = was
        self._repository.forget()
        self._ledger.become(self.base.replace(checkin=checkin, files=rows))
        hit("adopt.based")
        self._mend_checkout()
        self._catch_git_up()

    def _mend_checkout(self) -> None:
        """Make the check-out what the base is; make one if there is none."""
        rid = self._repository.checkin(self.checkin).rid
        seen = self._checkout.look()
        if seen is None or seen.repository != self._workspace.repository:
            making.replace_checkout(
                self._slot_directory, self._workspace, self._repository, self.base, rid, self._slot
            )
            self._checkout.close()
            self._checkout.look()
            return
        there = self._checkout.files()
        changed: dict[bytes, VFile] = {}
        for path, row in self.base.files.items():
            one = there.pop(path, None)
            content_rid = self._rid(row[2])
            if content_rid is not None and one != (content_rid, row[0]):
                changed[path] = VFile(content_rid, row[0], 0)
        if changed or there:
            self._checkout.record(changed, list(there))
        if seen.checkin != self.checkin or seen.left != self.checkin:
            self._checkout.move(self.checkin, rid)

    def _rid(self, name: str) -> int | None:
        return self._repository.rid(name)

    # --- git ---------------------------------------------------------------------------------

    def _take_git_up(self) -> None:
        """Have git find its objects again, and what it missed while nobody was there."""
        if not self._git.is_gone():
            try:
                self._git.share(self._workspace.git_dir())
            except OSError as error:
                raise HubError(
                    f"{self.directory}/.git cannot be used: {error}", reason="slot-git"
                ) from None
            self._know(self._git.left(self.base.git_refs))
        self._catch_git_up()

    def _know(self, refs: Mapping[str, str]) -> None:
        """Write down where our references are now."""
        if refs:
            self._ledger.change(
                checkin=self.checkin, indexed_ns=self.base.indexed_ns, rows={}, refs=refs
            )

    def _look_at_tools(self) -> None:
        """Notice what was done to the check-out and the repository; adopt it, or mend them."""
        self._look_at_checkout()
        if self._git.is_gone():
            self._make_git(self._repository.checkin(self.checkin))

    def _catch_git_up(self) -> None:
        """Let git have what the base has and it has not; make a new one if there is none."""
        at = self._repository.checkin(self.checkin)
        if self._git.is_gone():
            self._make_git(at)
            return
        paths = gitside.missing(self._repository, self._git.mark, self._slot, self.base)
        if not paths:
            return
        self._bring_git(at, paths)

    def _bring_git(self, at: CheckinRow, paths: Collection[bytes]) -> None:
        """Let git have what the base has at *paths*."""
        files = self.base.files
        rows = {path: files[path] for path in paths if path in files}
        removed = [path for path in paths if path not in files]
        refs = self._git.record(
            gitside.contents(self._repository, rows, removed, self.base.indexed_ns),
            gitside.words(at),
            mark=gitside.Mark(at.hash, self.checkin),
            time_s=gitside.seconds(at.time),
            refs=self.base.git_refs,
        )
        self._know(refs)

    def _make_git(self, at: CheckinRow) -> None:
        try:
            if os.path.isdir(f"{self.directory}/.git/objects"):
                # It may be the agent's. Beside the worktree it counts as work.
                aside = f"{self._slot_directory}/git-{time.time_ns()}"
                os.rename(f"{self.directory}/.git", aside)
            else:
                _remove(f"{self.directory}/.git")
            gitside.make(
                self._workspace,
                self._repository,
                self.directory,
                self._slot,
                at=at,
                rows=self.base.files,
                seen_ns=self.base.indexed_ns,
            )
        except OSError as error:
            raise HubError(
                f"{self.directory}/.git cannot be made: {error}", reason="slot-git"
            ) from None
        self._git = GitSide(self.directory, self._slot)
        head, refs = gitside.references(self.directory)
        self._ledger.become(
            self.base.replace(git_head=head, git_refs=refs, git_since_ns=time.time_ns())
        )

    # --- update ------------------------------------------------------------------------------

    def update(self, *, markers: bool = False) -> Updated:
        """Bring the worktree to trunk's tip; what was changed here stays changed.

        Raises:
            Conflicted: trunk and the slot changed the same; nothing was touched. With *markers*
                both are left in the file, between markers.
            Refused: files that nobody committed are in the way (``in-the-way``).
            Unavailable: a file was changed meanwhile (``changed-meanwhile``): the update stopped
                halfway, and the next goes on.
            HubError: it cannot be done.
        """
        self._look_at_tools()
        to = self._repository.tip()
        previous = self.checkin
        planner = Planner(self.directory, self.base, self._repository, self._slot)
        plan = planner.plan(to, markers=markers)
        self._repository.forget()
        updating.refuse_what_is_in_the_way(plan)
        if plan.conflicts:
            raise Conflicted(tuple(plan.conflicts))
        try:
            self._carry_out(plan, to)
        except OSError as error:
            raise HubError(
                f"{self.directory} is updated in part ({error}): update again", reason="worktree"
            ) from None
        apart = {*plan.merged, *plan.conflicted}
        return Updated(
            checkin=to.hash,
            previous=previous,
            files=len(plan.base.keys() - apart),
            merged=tuple(plan.merged),
            conflicted=tuple(plan.conflicted),
        )

    def _carry_out(self, plan: Plan, to: CheckinRow) -> None:
        seen_ns = time.time_ns()
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
        placer = Placer(self.directory, f"{self._slot_directory}/wt.new")
        try:
            for path, judged in plan.deletes:
                placer.delete(path, judged)
            for one in plan.writes:
                row = self._write(placer, plan, one)
                if row[2] == rows[one.path][2]:
                    rows[one.path] = row
                else:
                    # At once: this file, merged a second time, might not go together.
                    self._ledger.change(
                        checkin=self.checkin,
                        indexed_ns=seen_ns,
                        rows={one.path: rows[one.path]},
                    )
        finally:
            placer.close()
        hit("update.written")
        self._ledger.change(checkin=to.hash, indexed_ns=seen_ns, rows=rows, removed=removed)
        hit("update.based")
        self._record(rows, removed)
        hit("update.checkout")
        self._behind = True
        self._bring_git(to, plan.base.keys())
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


def _remove(path: str) -> None:
    """Remove a directory with all in it, or whatever else *path* is."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        remove_tree(path)


def _tidy(directory: str) -> None:
    """Remove what one who was killed had in the making."""
    try:
        remove_tree(f"{directory}/wt.new")
    except OSError as error:
        raise HubError(
            f"{directory}/wt.new cannot be removed: {error}", reason="worktree"
        ) from None
