"""Streams an agent's answers by the A2A SDK's client, by JSON-RPC and by REST."""

import asyncio
import sys

import httpx
from a2a.client import ClientConfig, create_client
from a2a.helpers import get_stream_response_text, new_text_message
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, SendMessageRequest

BINDINGS = {"JSONRPC": "/rpc", "HTTP+JSON": "/v1"}
root = f"http://127.0.0.1:{sys.argv[1]}"


def card(binding: str) -> AgentCard:
    """The agent's card; the one that it publishes names its public address."""
    url = root + BINDINGS[binding]
    return AgentCard(
        capabilities=AgentCapabilities(streaming=True),
        supported_interfaces=[
            AgentInterface(protocol_binding=binding, url=url, protocol_version="1.0")
        ],
    )


async def stream(binding: str, text: str, last: str = "") -> None:
    """Prints the answers until one has the text ``last``."""
    async with httpx.AsyncClient(timeout=60) as http:
        config = ClientConfig(httpx_client=http, supported_protocol_bindings=list(BINDINGS))
        client = await create_client(card(binding), config)
        request = SendMessageRequest(message=new_text_message(text, role="ROLE_USER"))
        answers = client.send_message(request)
        try:
            async for answer in answers:
                if last:
                    if get_stream_response_text(answer).strip() == last:
                        opened.set()
                else:
                    print(binding, answer.WhichOneof("payload"), get_stream_response_text(answer))
        except Exception as error:
            print(text, repr(error))


async def main() -> None:
    for binding in BINDINGS:
        for text in ("hello", "write", "fail"):
            await stream(binding, text)
    for binding in BINDINGS:
        opened.clear()
        reader = asyncio.create_task(stream(binding, "wait", "part 3"))
        await opened.wait()
        reader.cancel()
        await asyncio.wait([reader])
    readers = []
    for binding in BINDINGS:
        opened.clear()
        readers.append(asyncio.create_task(stream(binding, "wait", "part 3")))
        await opened.wait()
    print("ready", flush=True)
    await asyncio.wait(readers)


opened = asyncio.Event()
asyncio.run(main())
