"""A Litestar application whose streams end in every way."""

from endings_messages import PLAIN, TYPE, messages
from litestar import Litestar, Request, Response, get
from litestar.response import Stream


@get("/stream/{ending:str}")
async def stream(request: Request) -> Response:
    ending = request.path_params["ending"]
    if ending == "raises-before":
        raise LookupError(ending)
    if ending == "plain":
        return Response("plain", media_type=PLAIN)
    return Stream(messages(ending), media_type=TYPE)


app = Litestar([stream])
