"""The helpers' assertions tell what they compared."""

import pytest

pytest.register_assert_rewrite("e2e.streams")
