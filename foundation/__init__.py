"""What every package shares: processes, locks, files, the control protocol. No policy.

Standard library only, and only those parts of it that cost nothing to import: a verb that
finds the hub running must finish in about the time that an interpreter takes to start. So
nothing here imports ``re``, ``enum``, ``typing``, ``json``, ``pathlib``, ``dataclasses``,
``socket``, ``signal`` or ``subprocess``; the C modules below them do the same work.
"""
