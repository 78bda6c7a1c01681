"""Exception groups on every Python that is supported."""

import builtins
import importlib
from typing import Any

_Group: Any = getattr(builtins, "ExceptionGroup", None)
if _Group is None:  # Python 3.10, where anyio brings it
    _Group = importlib.import_module("exceptiongroup").ExceptionGroup


def group(error: Exception) -> Exception:
    """A group of one, as a task group raises it."""
    made: Exception = _Group("unhandled errors in a TaskGroup", [error])
    return made
