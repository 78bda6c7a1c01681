"""What a forked child does first, so that nothing of its parent's is reported twice."""

import os
from collections.abc import Callable


def run_in_forked_child(callback: Callable[[], None]) -> None:
    """Has every forked child run ``callback`` before it goes on; nothing where there is no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)
