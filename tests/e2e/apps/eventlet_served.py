"""Serves an application of ``endings_wsgi`` by eventlet's server, with its patches: PORT NAME."""

import eventlet

eventlet.monkey_patch()

import sys  # noqa: E402

import endings_wsgi  # noqa: E402
from eventlet import wsgi  # noqa: E402

if __name__ == "__main__":
    # By default it keeps what it sends until there are 4 KiB.
    wsgi.server(
        eventlet.listen(("127.0.0.1", int(sys.argv[1]))),
        getattr(endings_wsgi, sys.argv[2]),
        log_output=False,
        minimum_chunk_size=1,
    )
