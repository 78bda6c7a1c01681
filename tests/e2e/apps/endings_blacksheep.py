"""A BlackSheep application whose streams end in every way."""

from collections.abc import AsyncIterator

from blacksheep import Application, Content, Response, StreamedContent, get
from endings_messages import PLAIN, TYPE, messages

app = Application()


@get("/stream/{ending}")
async def stream(ending: str) -> Response:
    if ending == "raises-before":
        raise LookupError(ending)
    if ending == "plain":
        return Response(200, content=Content(PLAIN.encode(), b"plain"))

    async def body() -> AsyncIterator[bytes]:
        async for message in messages(ending):
            yield message

    return Response(200, content=StreamedContent(TYPE.encode(), body))
