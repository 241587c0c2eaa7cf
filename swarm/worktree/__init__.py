"""A slot's worktree: made from a template, compared with its base, brought along with trunk."""

from swarm.worktree.worktree import Worktree

__all__ = ["Worktree"]
