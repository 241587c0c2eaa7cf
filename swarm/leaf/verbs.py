"""The verbs that a leaf answers; what they mean on the wire stands in :mod:`swarm.slot`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from foundation.errors import HubError, Refused, Unavailable
from foundation.failpoint import hit
from hub.commits import Conflicted
from hub.wording import several
from slotgc import treepath
from swarm.leaf.committing import A_PATH_S, MANY
from swarm.leaf.life import SERVING
from swarm.leaf.running import Running
from swarm.leaf.server import LIST_BYTES as _LIST_BYTES
from swarm.leaf.server import fitting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from swarm.leaf.leaf import Leaf
    from swarm.leaf.server import Client

    Verb = Callable[[dict[str, Any], Client], Awaitable[dict[str, Any]]]

COMMIT_WITHIN_S = 30.0
_UPDATE_WITHIN_S = 60.0
_LEARN_WITHIN_S = 0.5
_LEARN_AGAIN_S, _LEARN_AGAIN_AT_MOST_S = 0.2, 10.0
_SETTLE_AFTER_S = 0.3
_LEAVE_WITHIN_S = 2.0
_NAMED = 20
"""How many paths an event names."""


class Verbs:
    """What can be asked of one leaf."""

    def __init__(self, leaf: Leaf) -> None:
        """Answer for *leaf*."""
        self._leaf = leaf
        self._settling: asyncio.TimerHandle | None = None
        self._is_learning = False
        self._verbs: dict[str, Verb] = {
            "join": self._join,
            "status": self._status,
            "changes": self._changes,
            "commit": self._commit,
            "update": self._update,
            "close": self._close,
            "run": Running(leaf, self).run,
        }

    def find(self, name: object) -> Verb:
        """Return the verb called *name*.

        Raises:
            Refused: there is none (``unknown-verb``).
        """
        verb = self._verbs.get(str(name))
        if verb is None:
            raise Refused(f"a leaf knows no verb {name!r:.80}", reason="unknown-verb")
        return verb

    async def _join(self, _request: dict[str, Any], _client: Client) -> dict[str, Any]:
        return {**self._leaf.info(), "joined": False}

    async def _status(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        leaf, committer = self._leaf, self._leaf.committer
        if committer.pending is not None and not (leaf.link.away or leaf.order.locked()):
            await self.learn()
        changes = await self._changes(request, client) if request.get("changes") else {}
        landed, commits = self._landed()
        return {
            **leaf.info(),
            "joined": False,
            "phase": leaf.phase,
            "hub": leaf.link.away or "ready",
            "since": leaf.joined_at,
            "commits": commits,
            "landed": landed,
            "pending": "" if committer.pending is None else committer.pending.id,
            "events_waiting": leaf.events.waiting,
            "agent": 0 if leaf.agent is None else leaf.agent.pid,
            **changes,
        }

    async def _changes(self, request: dict[str, Any], _client: Client) -> dict[str, Any]:
        async with self._leaf.order:
            self._leaf.check()
            found = self._leaf.worktree.changes()
        if request.get("after") is not None:
            after = treepath.from_json(request["after"])
            found = tuple(one for one in found if one.path > after)
        rows = fitting(
            [treepath.to_json(one.path), one.kind, one.hash, one.base_kind, one.base_hash]
            for one in found
        )
        more = len(found) - len(rows)
        return {"checkin": self._leaf.worktree.checkin, "changes": rows, "more": more}

    # --- commit ----------------------------------------------------------------------------

    async def _commit(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        message = request["message"]
        if not isinstance(message, str) or not message.strip():
            raise Refused("a commit needs a message: -m TEXT", reason="no-message")
        rows = request.get("paths")
        paths = None if rows is None else [treepath.from_json(row) for row in rows]
        return await self.commit(message, paths, _deadline_s(request, COMMIT_WITHIN_S), client)

    async def commit(
        self,
        message: str,
        paths: list[bytes] | None,
        deadline_s: float,
        client: Client | None = None,
    ) -> dict[str, Any]:
        """Commit; one that *client* does not live to hear of is told to who asks next.

        Raises: as :meth:`swarm.leaf.committing.Committer.commit`.
        """
        leaf = self._leaf
        if self._settling is not None:
            self._settling.cancel()
        async with leaf.order:
            leaf.check()

            def announce(paths: int) -> None:
                if client is not None:
                    left_s = deadline_s - _now_s() + 2 * paths * A_PATH_S  # to land, to note it
                    client.progress({"phase": "landing", "total": paths, "patience_s": left_s})

            if len(leaf.worktree.base.files) >= MANY:
                announce(len(leaf.worktree.base.files))
                await asyncio.sleep(0)  # it is sent before the loop does nothing but read files
            try:
                landed, files = await leaf.committer.commit(message, paths, deadline_s, announce)
            except Unavailable:
                leaf.begin(self.keep_learning())
                raise
            except Conflicted as error:
                named = [treepath.to_json(one.path) for one in error.conflicts[:_NAMED]]
                leaf.events.announce("conflict", paths=named, count=len(error.conflicts))
                raise
            self.settle_soon()
            if client is not None and client.gone.done():
                leaf.committer.untold = landed, files
        return {
            "checkin": landed.checkin,
            "parent": landed.parent,
            "time": landed.time,
            "message": landed.message,
            "files": files,
            "merged": fitting(treepath.to_json(path) for path, _kind, _name in landed.merged),
            "left_out": fitting(
                [treepath.to_json(one.path), one.reason] for one in leaf.worktree.skipped
            ),
            "new": landed.new,
        }

    def settle_soon(self) -> None:
        """Have the check-out follow once nobody commits any more: a pause will do for all.

        And what the next commit needs be at hand.
        """
        if self._settling is not None:
            self._settling.cancel()
        self._settling = asyncio.get_running_loop().call_later(
            _SETTLE_AFTER_S, lambda: self._leaf.begin(self._settle())
        )

    async def _settle(self) -> None:
        async with self._leaf.order:
            try:
                self._leaf.check()
                self._leaf.worktree.settle()
                self._leaf.worktree.warm()
            except (HubError, OSError) as error:
                self._leaf.note("warning", "not-settled", error=str(error))

    async def learn(self) -> None:
        """Learn what became of a commit that was not answered; what is not known stays so."""
        try:
            async with self._leaf.order:
                await self._leaf.committer.settle(_now_s() + _LEARN_WITHIN_S)
        except (HubError, OSError) as error:
            self._leaf.note("warning", "commit-unknown", error=str(error))

    async def keep_learning(self) -> None:
        """Ask for the commit that was not answered until that is known, or the hub is away."""
        leaf, wait_s = self._leaf, _LEARN_AGAIN_S
        if self._is_learning:
            return
        self._is_learning = True
        try:
            while leaf.committer.pending is not None and not leaf.link.away:
                if leaf.phase not in SERVING:
                    return
                await self.learn()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LEARN_AGAIN_AT_MOST_S)
        finally:
            self._is_learning = False

    # --- update ----------------------------------------------------------------------------

    async def _update(self, request: dict[str, Any], _client: Client) -> dict[str, Any]:
        leaf = self._leaf
        deadline_s = _deadline_s(request, _UPDATE_WITHIN_S)
        async with leaf.order:
            leaf.check()
            await leaf.committer.settle(deadline_s)
            done = leaf.worktree.update(markers=bool(request.get("markers")))
        if done.checkin != done.previous:
            count = done.files + len(done.merged) + len(done.conflicted)
            leaf.events.announce(
                "updated", checkin=done.checkin, previous=done.previous, files=count
            )
        return {
            "checkin": done.checkin,
            "previous": done.previous,
            "files": done.files,
            "merged": fitting(map(treepath.to_json, done.merged), _LIST_BYTES // 2),
            "conflicted": fitting(map(treepath.to_json, done.conflicted), _LIST_BYTES // 2),
        }

    # --- close -----------------------------------------------------------------------------

    async def _close(self, request: dict[str, Any], _client: Client) -> dict[str, Any]:
        result = request.get("result")
        if result not in ("success", "fail"):
            raise Refused(f"a slot is closed as success or fail, not {result!r}", reason="result")
        return await self.close(
            result,
            artifact=bool(request.get("artifact", True)),
            summary=str(request.get("summary") or ""),
            deadline_s=_deadline_s(request, COMMIT_WITHIN_S),
        )

    async def close(
        self, result: str, *, artifact: bool, summary: str, deadline_s: float
    ) -> dict[str, Any]:
        """Announce that the slot is closed, have its key revoked, and end when that is answered.

        Raises:
            Refused: an agent runs; or it is no success: something is not committed, or nothing
                was, and an *artifact* is wanted. Nothing was done.
            Unavailable: that it is closed cannot be stored: nothing was done.
        """
        leaf, committer = self._leaf, self._leaf.committer
        if leaf.agent is not None:
            raise Refused(
                f"slot {leaf.name} runs an agent, pid {leaf.agent.pid}: end it first",
                reason="busy",
            )
        async with leaf.order:
            leaf.check()
            await committer.settle(deadline_s)
            changed = [one.path for one in leaf.worktree.changes()]
            checkin, commits = self._landed()
            if result == "success":
                self._require_success(changed, commits, artifact=artifact)
            data = {
                "slot": leaf.name,
                "result": result,
                "checkin": checkin,
                "commits": commits,
                "changes": len(changed),
            }
            leaf.closing(begins=True)
            try:
                left_s = max(0.0, deadline_s - _now_s())
                await leaf.events.tell("closed", within_s=left_s, summary=summary, **data)
            except BaseException as error:
                leaf.closing(begins=False)
                if isinstance(error, Unavailable):
                    raise Unavailable(
                        f"slot {leaf.name} stays: that it is closed cannot be stored ({error}); "
                        "see `hub status`, then close it again",
                        reason="hub-away",
                    ) from None
                raise
            hit("close.announced")
            over = leaf.closed()  # before anybody who waits has his turn
        try:
            await leaf.link.leave(_LEAVE_WITHIN_S)
        except HubError as error:  # its epoch ends with the next join at the latest
            leaf.note("warning", "not-left", error=str(error))
        hit("close.left")
        asyncio.get_running_loop().call_soon(leaf.stop, over)  # after the answer
        return data

    def _require_success(self, changed: list[bytes], commits: int, *, artifact: bool) -> None:
        name = self._leaf.name
        nothing = "" if commits else "has committed nothing since it was joined"
        if changed:
            count = "1 change" if len(changed) == 1 else f"{len(changed)} changes"
            shown = several([treepath.show(path) for path in changed])
            has = f"{nothing}, and has {count}" if nothing else f"has {count}"
            raise Refused(
                f"slot {name} {has} that nobody committed ({shown}): commit or undo them, or "
                "close with --result fail, and they are rescued",
                reason="uncommitted",
            )
        if nothing and artifact:
            raise Refused(
                f"slot {name} {nothing}: commit first, or close with --no-artifact or "
                "--result fail",
                reason="no-artifact",
            )

    def _landed(self) -> tuple[str, int]:
        """Return the slot's last check-in since the join, and how many there are.

        With those that a stock ``fossil commit`` made, as far as the worktree has noticed them.
        """
        leaf, committer = self._leaf, self._leaf.committer
        last = leaf.stock.notice(leaf.worktree.checkin, committer.landed)
        return last, committer.commits + leaf.stock.commits


def _deadline_s(request: dict[str, Any], default_s: float) -> float:
    """Return until when, of the loop's clock, *request* is to be answered."""
    within_s = request.get("timeout_s")
    return _now_s() + (float(within_s) if isinstance(within_s, int | float) else default_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
