"""What of ours has failed: logged once, and not tried again. The application never sees it."""

from __future__ import annotations

import logging
from contextlib import suppress

_log = logging.getLogger("otel_sse")


class FailureLog:
    """Remembers the components that have failed."""

    __slots__ = ("failed_components",)

    def __init__(self) -> None:
        self.failed_components: set[str] = set()

    def log_failure_once(self, component: str) -> None:
        """Logs the exception being handled, the first time that ``component`` fails."""
        if component not in self.failed_components:
            self.failed_components.add(component)
            # The log may be exported by the very thing that is broken, and then raise too.
            with suppress(Exception):
                _log.warning("otel_sse: %s failed; this is logged once", component, exc_info=True)
