"""The trunk process: the one that writes to the repository and the bus on behalf of the hub.

Started by the supervisor as ``python -I -c "…; from hub.trunk import main; main()" ROOT``; see
:mod:`hub.trunk.service`. Beside it, in its process group, runs the nursery of leaves.
"""


def main() -> None:
    """Serve the workspace that ``sys.argv[1]`` names until told to stop."""
    import os  # noqa: PLC0415
    import signal  # noqa: PLC0415
    import sys  # noqa: PLC0415

    from foundation.workspace import Workspace  # noqa: PLC0415
    from hub.trunk import nursery, service  # noqa: PLC0415

    try:
        leaves = nursery.open_nursery(Workspace(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - without new leaves trunk still serves the old ones
        service.log("error", "no-nursery", error=repr(error))
    else:

        def child_ended(_number: int, _frame: object) -> None:
            if leaves.was_told_to_end():  # so are we: a stop tells the whole process group
                os._exit(0)
            if leaves.ended():
                service.log("error", "nursery-ended", pid=leaves.pid)
                os._exit(1)  # only a new trunk can fork a new one; the supervisor starts it at once

        signal.signal(signal.SIGCHLD, child_ended)
    service.main(sys.argv[1])
