"""The trunk process: the one that writes to the bus on behalf of the hub.

Today it owns the streams and publishes the supervisor's outbox. Started by the supervisor as
``python -I -c "…; from hub.trunk import main; main()" ROOT``; see :mod:`hub.trunk.service`.
"""


def main() -> None:
    """Serve the workspace that ``sys.argv[1]`` names until told to stop."""
    import sys  # noqa: PLC0415

    from hub.trunk import service  # noqa: PLC0415

    service.main(sys.argv[1])
