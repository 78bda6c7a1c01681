"""What tests share. Assertions in helpers show what they compared, as those of tests do."""

import pytest

pytest.register_assert_rewrite(
    *(
        f"helpers.{name}"
        for name in (
            "asgi",
            "client_readers",
            "client_streams",
            "coexistence",
            "framework_cases",
            "streams",
            "waiting",
        )
    )
)
