"""The bus as the rest of the hub sees it: connect, publish until acknowledged, request, serve.

A layer over nats-py, because of what nats-py does on its own (measured, ADR 0006, 0012): it gives
up after 60 reconnects, lets a request wait out its timeout when the connection is gone, shows a
refused publish as a timeout, asks a server that refused its key for ever, and takes whoever
listens at an address for the server that did. Everything here outlives a connection, and ends when
the bus is refused: what was asked is asked again, what was subscribed to stays subscribed to, and
whoever listens at our address is told nothing before it has proved to be the server that we mean.
"""

from __future__ import annotations

from hub.bus.bus import Bus
from hub.bus.client import GARBLED
from hub.bus.connection import Login
from hub.bus.jetstream import STREAM_NOT_FOUND, WRONG_LAST_SEQUENCE, Ack, StreamRefused
from hub.bus.listening import Feed
from hub.bus.login import connect, read_url

__all__ = [
    "GARBLED",
    "STREAM_NOT_FOUND",
    "WRONG_LAST_SEQUENCE",
    "Ack",
    "Bus",
    "Feed",
    "Login",
    "StreamRefused",
    "connect",
    "read_url",
]
