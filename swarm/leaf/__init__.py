"""A leaf: the living process of one slot, from its join to its close.

It holds the slot's ``leaf.lock`` and its lease, keeps in memory what the worktree last agreed
with trunk on, speaks to trunk over the bus with a key of its own, and serves ``leaf.sock``.
"""
