"""A Falcon application for ASGI whose streams end in every way."""

from endings_messages import PLAIN, TYPE, messages
from falcon.asgi import App, Request, Response


class Stream:
    async def on_get(self, request: Request, response: Response, ending: str) -> None:
        if ending == "raises-before":
            raise LookupError(ending)
        if ending == "plain":
            response.content_type, response.text = PLAIN, "plain"
            return
        response.content_type, response.stream = TYPE, messages(ending)


app = App()
app.add_route("/stream/{ending}", Stream())
