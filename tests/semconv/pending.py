"""What the registry has and the package does not emit yet; a test fails when it does."""

from typing import Final

# Metrics that otel_sse/semconv.py does not have yet.
METRICS: Final[frozenset[str]] = frozenset()
# Attributes that a metric of the package does not have yet.
ATTRIBUTES: Final[frozenset[tuple[str, str]]] = frozenset()
