"""The git repository of a slot's worktree, written without running git.

:class:`swarm.gitrepo.repo.GitRepo` makes one, and gives it a commit for each check-in of the slot.
"""
