"""The command line: ``otel-sse doctor`` and ``otel-sse probe``. See ``docs/doctor.md``."""
