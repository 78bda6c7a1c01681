"""The version of the package, also that of its instrumentation scope."""

__version__ = "0.1.0"
