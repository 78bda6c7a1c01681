"""``make demo``: the reference server, a small Starlette application, and their clients."""
