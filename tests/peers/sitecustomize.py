"""Imported by each Python that a peer's suite starts: see peer_plugin."""

import os

if "PEERS_MAIN" in os.environ:
    import peer_plugin  # noqa: F401
