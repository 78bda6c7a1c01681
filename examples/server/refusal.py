"""An answer that says in JSON what is wrong."""

from aiohttp import web
from aiohttp.typedefs import LooseHeaders


def refusal(status: int, why: str, headers: LooseHeaders | None = None) -> web.Response:
    return web.json_response({"error": why}, status=status, headers=headers)
