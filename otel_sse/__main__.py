"""``python -m otel_sse``: the same as ``otel-sse``."""

import sys

from otel_sse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
