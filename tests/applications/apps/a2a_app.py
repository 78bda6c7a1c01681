"""An agent that streams its work, by the A2A SDK: its JSON-RPC and its REST routes."""

import asyncio
import sys

import uvicorn
from a2a.helpers import new_task_from_user_message, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Part
from starlette.applications import Starlette


class Writer(AgentExecutor):
    """Writes its artifact in parts; answers a greeting at once; waits where it is asked to."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        text = context.get_user_input()
        if text == "hello":
            await event_queue.enqueue_event(new_text_message("hello", role="ROLE_AGENT"))
            return
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        for number in range(4):
            await updater.add_artifact(
                [Part(text=f"part {number}\n\n")], "text", append=number > 0, last_chunk=number == 3
            )
        if text == "fail":
            raise LookupError("nothing there")
        if text == "wait":
            await asyncio.Event().wait()
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


def main() -> None:
    port, public = int(sys.argv[1]), "http://localhost"
    card = AgentCard(
        name="Writer",
        description="Writes in parts",
        version="1.0.0",
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        capabilities=AgentCapabilities(streaming=True),
        supported_interfaces=[
            AgentInterface(protocol_binding="JSONRPC", url=f"{public}/rpc", protocol_version="1.0")
        ],
        skills=[AgentSkill(id="write", name="Write", description="Writes", tags=["text"])],
    )
    handler = DefaultRequestHandler(Writer(), InMemoryTaskStore(), card)
    app = Starlette(
        routes=[
            *create_agent_card_routes(card),
            *create_jsonrpc_routes(handler, "/rpc"),
            *create_rest_routes(handler, path_prefix="/v1"),
        ]
    )
    uvicorn.run(app, port=port, timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
