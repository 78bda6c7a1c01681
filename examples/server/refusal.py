"""An error answer in JSON, with the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Final

from aiohttp import web

_NONE: Final[Mapping[str, str]] = {}


class Refusal(web.HTTPException):
    """Is raised by a handler; ``retry_after`` is in seconds, where a later try may succeed,
    and ``more`` is what the body has beside the error.
    """

    def __init__(
        self,
        status: int,
        why: str,
        headers: Mapping[str, str] = _NONE,
        retry_after: float | None = None,
        **more: object,
    ) -> None:
        self.status_code = status
        wait = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
        text = json.dumps({"error": why, **more})
        super().__init__(text=text, content_type="application/json", headers={**headers, **wait})
