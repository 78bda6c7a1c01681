"""A model of LiteLLM's custom kind, whose answer begins and does not end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from litellm import CustomLLM
from litellm.types.utils import GenericStreamingChunk


class Waiting(CustomLLM):
    async def astreaming(self, *args: Any, **kwargs: Any) -> AsyncIterator[GenericStreamingChunk]:
        yield GenericStreamingChunk(
            text="Wait", is_finished=False, finish_reason="", index=0, tool_use=None, usage=None
        )
        await asyncio.Event().wait()


waiting = Waiting()
