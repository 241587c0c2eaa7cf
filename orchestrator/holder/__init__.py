"""The holder: one process that owns a cluster, its network and every VM on it."""

from __future__ import annotations

from orchestrator.holder.launch import get_runner_vm_names, is_runner
from orchestrator.holder.pidfile import remove_pidfile, write_pidfile
from orchestrator.holder.process import run

__all__ = ["get_runner_vm_names", "is_runner", "remove_pidfile", "run", "write_pidfile"]
