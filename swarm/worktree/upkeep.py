"""Fossil's check-out and the git repository of a worktree, kept as its base is.

They are there for the tools that agents know. What a stock command did to the check-out is noticed
and adopted; what is lost is made anew; what somebody has locked waits. None of it stops a commit.
"""

from __future__ import annotations

import os
import time

from foundation.errors import Corrupt, HubError, Refused, Unavailable
from foundation.failpoint import hit
from hub.wording import several
from slotgc import treepath
from slotgc.removal import remove_tree
from swarm.gitrepo.reading import ObjectReader
from swarm.gitrepo.repo import File
from swarm.worktree import doubt, gitside, going_back, making
from swarm.worktree.checkout import Checkout, VFile
from swarm.worktree.gitside import GitSide, Mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from foundation.workspace import Workspace
    from hub.repository import CheckinRow, Repository
    from slotgc.base import Base, Row
    from swarm.worktree.gitside import GoneBack
    from swarm.worktree.going_back import Version
    from swarm.worktree.ledger import Ledger

_SECOND_NS = 1_000_000_000
_YOUNG_NS = 2 * _SECOND_NS
"""A file changed twice within a second looks the same to Fossil: one that young it must read."""


class Upkeep:
    """Keeps both for the worktree of one slot."""

    def __init__(
        self,
        workspace: Workspace,
        slot: str,
        directory: str,
        repository: Repository,
        ledger: Ledger,
    ) -> None:
        """Keep them in the slot's *directory* as *ledger* says."""
        self._workspace = workspace
        self._slot = slot
        self._directory = directory
        self._worktree = f"{directory}/wt"
        self._repository = repository
        self._ledger = ledger
        self._checkout = Checkout(self._worktree)
        self._git = GitSide(self._worktree, slot)
        self._behind = False
        """The check-out is not at the base's check-in."""
        self._doubtful = False
        """It may not have the base's files."""
        self._unwritten = ""
        self.went_back: frozenset[bytes] = frozenset()
        """Where git was taken back, the base with it, to before others' work."""
        self._beyond: frozenset[bytes] = frozenset()
        self._in_doubt: frozenset[bytes] | None = None
        """None: it is still to be read."""
        self._why_in_doubt = gitside.LOST
        self._back_from = ""
        """The commit that git was taken back from."""

    @property
    def trouble(self) -> str:
        """Why not all is as it should be, in words; the next look sees to it."""
        return self._unwritten or self._git.trouble

    def refuse_unnamed(self, paths: Collection[bytes]) -> None:
        """Refuse those of *paths* that a commit must name, as it may take back others' work.

        Where git was taken back to what trunk never had, so that the base cannot follow, and where
        nobody can tell.

        Raises:
            Refused: one is (``gone-back``).
        """
        in_doubt = (self._in_doubt or frozenset()).intersection(paths)
        if in_doubt:
            words = doubt.words(self._why_in_doubt, self._git.commit, in_doubt, self._base)
            raise _gone_back(in_doubt, words)
        beyond = self._beyond.intersection(paths)
        if beyond:
            raise _gone_back(
                beyond,
                "git was taken back to before trunk began, and others have changed that since: "
                f"`git checkout {self._back_from[:10]} -- PATH` brings back what was here; "
                "to commit it as it is, name it",
            )

    @property
    def _base(self) -> Base:
        return self._ledger.base

    def close(self) -> None:
        """Do what waited, and let go."""
        try:
            self.settle()
        finally:
            self._checkout.close()

    def take_up(self) -> None:
        """See to all that may have happened while nobody was there.

        Raises:
            HubError: git cannot be made, or trunk cannot be read.
        """
        try:
            if not self._git.is_gone():
                self._git.share(self._workspace.git_dir())
                self._know(self._git.left(self._base.git_refs))
            self._look_at_checkout()
            self._catch_git_up()
        except OSError as error:
            raise self._hopeless(error) from None

    def look(self) -> None:
        """Notice what was done to them; adopt it, or mend them.

        Raises:
            HubError: as :meth:`take_up`.
        """
        try:
            self._look_at_checkout()
            self._have_git()
            self._follow_git_back()
            self._have_git()  # it may be found to have lost what all was built on
            self._look_at_doubts()
        except OSError as error:
            raise self._hopeless(error) from None

    def _hopeless(self, error: OSError) -> HubError:
        return HubError(f"{self._worktree} cannot be looked after: {error}", reason="worktree")

    def settle(self) -> None:
        """Do what may wait until nobody does: move the check-out to the base's check-in.

        And what git had to wait for. 1 ms for a thousand files; nothing where there is nothing.
        """
        self._know(self._git.flush(self._base.git_refs))
        try:
            if self._doubtful:
                self._mend_checkout()
            elif self._behind:
                rid = self._repository.checkin(self._base.checkin).rid
                self._checkout.move(self._base.checkin, rid)
            self._behind = self._doubtful = False
        except Unavailable:
            return  # a stock command is at it
        except Corrupt:
            self._doubtful = True  # look() finds it damaged, and another one is made

    def warm(self) -> None:
        """Read ahead what the first :meth:`record` needs.

        Raises:
            HubError, OSError: it cannot be read.
        """
        self._git.warm()

    # --- after a commit or an update ---------------------------------------------------------

    def record(self, rows: Mapping[bytes, Row], removed: Collection[bytes], *, moved: bool) -> None:
        """Have the check-out know *rows*; if it cannot be now, it is mended later.

        *moved*: the base's check-in is another one now, which :meth:`settle` brings.
        """
        self._behind |= moved
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
            self._checkout.record(files, removed)
        except HubError:
            self._doubtful = True

    def commit_to_git(
        self, files: Mapping[bytes, File | None], message: str, *, mark: Mark, time_s: int
    ) -> dict[str, str]:
        """Have git know *files*; return what becomes of the references that the base knows."""
        return self._git.record(files, message, mark=mark, time_s=time_s, refs=self._base.git_refs)

    def update_git(self, at: CheckinRow, paths: Collection[bytes]) -> None:
        """Have git know what the base has at *paths*, of check-in *at*."""
        self.went_back = frozenset()
        files = self._base.files
        rows = {path: files[path] for path in paths if path in files}
        removed = [path for path in paths if path not in files]
        self._know(
            self._git.record(
                gitside.contents(self._repository, rows, removed, self._base.indexed_ns),
                gitside.words(at),
                mark=Mark(at.hash, self._base.checkin),
                time_s=gitside.seconds(at.time),
                refs=self._base.git_refs,
            )
        )

    def _know(self, refs: Mapping[str, str]) -> None:
        """Write down where our references are now."""
        if not refs:
            return
        known = self._base
        try:
            self._ledger.change(
                checkin=known.checkin, indexed_ns=known.indexed_ns, rows={}, refs=refs
            )
            self._unwritten = ""
        except OSError as error:
            self._unwritten = str(error)

    # --- the check-out -----------------------------------------------------------------------

    def _look_at_checkout(self) -> None:
        if self._checkout.is_untouched():
            return
        seen = self._checkout.look()
        if seen is None or seen.repository != self._workspace.repository:
            self._doubtful = True
        elif seen.checkin != seen.left:
            if self._is_on_trunk(seen.checkin):
                self._adopt(seen.checkin)
            self._doubtful = True
        elif seen.checkin != self._base.checkin and not self._behind:
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
            was = self._base.files.get(path)
            if was is None or (was[0], was[2]) != (kind, name):
                rows[path] = (kind, self._repository.size(name), name, 0, 0, 0)
            else:
                rows[path] = was
        self._repository.forget()
        self._ledger.become(self._base.replace(checkin=checkin, files=rows))
        hit("adopt.based")
        self._catch_git_up()

    def _mend_checkout(self) -> None:
        """Make the check-out what the base is; make one if there is none."""
        known = self._base
        rid = self._repository.checkin(known.checkin).rid
        seen = self._checkout.look()
        if seen is None or seen.repository != self._workspace.repository:
            making.replace_checkout(
                self._directory, self._workspace, self._repository, known, rid, self._slot
            )
            self._checkout.close()
            self._checkout.look()
            return
        there = self._checkout.files()
        changed: dict[bytes, VFile] = {}
        for path, row in known.files.items():
            one = there.pop(path, None)
            content_rid = self._repository.rid(row[2])
            if content_rid is not None and one != (content_rid, row[0]):
                changed[path] = VFile(content_rid, row[0], 0)
        if changed or there:
            self._checkout.record(changed, there)
        if seen.checkin != known.checkin or seen.left != known.checkin:
            self._checkout.move(known.checkin, rid)

    # --- git ---------------------------------------------------------------------------------

    def _catch_git_up(self) -> None:
        """Let git have what the base has and it has not; make a new one if there is none."""
        at = self._repository.checkin(self._base.checkin)
        if self._git.is_gone():
            self._make_git(at)
            return
        paths = gitside.missing(self._repository, self._git.mark, self._slot, self._base)
        if paths:
            self.update_git(at, paths)

    def _follow_git_back(self) -> None:
        """Have the base be what git was taken back to, where others have changed that since.

        A file that is as the base has it stays so (``git reset --soft``). One that is as neither of
        the two was changed after a ``git reset --hard`` past others' work, or before one that
        left the files alone: to take the older one for its base is right for the former, and no
        harm to the latter, as what both sides have merges.
        """
        gone = self._git.gone_back()
        if gone is None:
            return
        if isinstance(gone, gitside.Untold):
            if gone.moved:
                known_ones = self._git.doubtful() if self._in_doubt is None else self._in_doubt
                self._in_doubt = known_ones | self._find_doubts()
                self._why_in_doubt = gone.why
            self._git.followed(gone)
            return
        known = self._base
        theirs: dict[bytes, Version | None] = {}
        beyond = set()
        for path, here in going_back.there(self._worktree, known, gone.back.files).items():
            row = known.files.get(path)
            now = None if row is None else (row[0], row[2])
            if here == now:
                continue
            was = gone.back.version(path)
            then = None if was is None else (was.kind, was.name)
            if now == then or not (gone.moved or here == then):
                continue
            if not going_back.others_have_changed(self._repository, self._slot, path, now, was):
                continue  # the slot takes back its own work: that is a change
            if was is None or self._repository.has(was.name):
                theirs[path] = was
            else:
                beyond.add(path)
        if gone.moved:
            self._beyond = frozenset(beyond)
            self.went_back, self._back_from = frozenset(), gone.ours
            if self._in_doubt:
                self._in_doubt -= gone.back.files.keys()
        if theirs:
            removed = [path for path, was in theirs.items() if was is None]
            rows = going_back.rows(theirs)
            self._ledger.change(
                checkin=known.checkin, indexed_ns=known.indexed_ns, rows=rows, removed=removed
            )
            hit("back.based")
            self.record(rows, removed, moved=False)
            self.went_back |= theirs.keys()
        if theirs or gone.moved:
            self._take_git_back(gone)
        self._git.followed(gone)

    def _take_git_back(self, gone: GoneBack) -> None:
        """Have our branch be what the base is, where that has followed git back."""
        if gone.is_ours and self._base.git_refs.get(gitside.REF) == gone.ours:
            # What it was taken back from is on trunk, and no work of the agent's is on it.
            self._know({gitside.REF: gone.now})
        known = self._base.files
        files: dict[bytes, File | None] = {}
        for path in gone.back.files:
            row, was = known.get(path), gone.back.version(path)
            if was is None and row is None:
                files[path] = None
            elif was is not None and row is not None and row[:3:2] == (was.kind, was.name):
                files[path] = File(was.kind, was.content)
        if not files or self._git.waits:
            return
        self._know(
            self._git.record(
                files,
                f"back to {gone.back.commit[:10]}",
                mark=self._git.mark,
                time_s=time.time_ns() // _SECOND_NS,
                refs=self._base.git_refs,
            )
        )

    def _have_git(self) -> None:
        if self._git.is_gone():
            self._make_git(self._repository.checkin(self._base.checkin))

    def _look_at_doubts(self) -> None:
        """Have no doubt in what is as the base has it: whatever it becomes is the slot's work."""
        if self._in_doubt is None:
            self._in_doubt = self._git.doubtful()
        if self._in_doubt:
            self._in_doubt = doubt.still(self._worktree, self._base, self._in_doubt)

    def _find_doubts(self) -> frozenset[bytes]:
        form = gitside.form_of(self._base.git_refs.get(gitside.REF, ""))
        reader = ObjectReader(f"{self._workspace.git_dir()}/objects", form)
        return doubt.find(self._worktree, self._base, self._repository, self._slot, reader, form)

    def _make_git(self, at: CheckinRow) -> None:
        doubtful = self._find_doubts()
        git = f"{self._worktree}/.git"
        if os.path.isdir(f"{git}/objects"):
            # It may be the agent's. Beside the worktree it counts as work.
            os.rename(git, f"{self._directory}/git-{time.time_ns()}")
        else:
            _remove(git)
        gitside.make(
            self._workspace,
            self._repository,
            self._worktree,
            self._slot,
            at=at,
            rows=self._base.files,
            seen_ns=self._base.indexed_ns,
            doubtful=doubtful,
        )
        self._git = GitSide(self._worktree, self._slot)
        head, refs = gitside.references(self._worktree)
        known = self._base.replace(git_head=head, git_refs=refs, git_since_ns=time.time_ns())
        self._ledger.become(known)
        self._in_doubt, self._why_in_doubt = doubtful, gitside.LOST


def _gone_back(paths: Collection[bytes], words: str) -> Refused:
    shown = several([treepath.show(path) for path in sorted(paths)])
    return Refused(f"{shown}: {words}", reason="gone-back")


def _remove(path: str) -> None:
    """Remove a directory with all in it, or whatever else *path* is."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        remove_tree(path)
