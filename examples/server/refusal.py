"""An answer that says in JSON what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Final

from aiohttp import web

_NONE: Final[Mapping[str, str]] = {}


class Refusal(web.HTTPException):
    """Is raised by a handler; ``retry_after`` is in seconds, where it may help to come back."""

    def __init__(
        self,
        status: int,
        why: str,
        headers: Mapping[str, str] = _NONE,
        retry_after: float | None = None,
    ) -> None:
        self.status_code = status
        wait = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
        text = json.dumps({"error": why})
        super().__init__(text=text, content_type="application/json", headers={**headers, **wait})
