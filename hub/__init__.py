"""The hub: per workspace, a Fossil server and a NATS JetStream server under one supervisor.

``from hub.start import start``, ``from hub.stop import stop``, ``from hub.status import
status``: this package re-exports nothing, so that a fast verb imports only what it uses.
"""

__version__ = "0.1.0"
