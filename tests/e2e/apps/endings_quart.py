"""A Quart application whose streams end in every way."""

from endings_messages import PLAIN, TYPE, messages
from quart import Quart, Response

app = Quart(__name__)


@app.get("/stream/<ending>")
async def stream(ending: str) -> Response:
    if ending == "raises-before":
        raise LookupError(ending)
    if ending == "plain":
        return Response(b"plain", content_type=PLAIN)
    response = Response(messages(ending), content_type=TYPE)
    if ending == "times-out":
        response.timeout = 0.2
    return response
