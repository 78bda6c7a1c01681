"""LiteLLM's proxy with mock answers, read by the SDK of OpenAI."""

from typing import ClassVar

from applications.promises import Promises
from applications.runs import Application


class TestLiteLLM(Promises):
    """It lets its streams drain for 30 s, but is killed after 10, as ``docker stop`` does."""

    application = Application(
        environment="litellm",
        # Not by --config, which opentelemetry-instrument takes for one of its own options.
        command="litellm --host 127.0.0.1 --port {port}",
        client="litellm_client.py",
        live=1,
        varies=(
            (r"x-litellm-[^\n]*\n", ""),
            (r"content-length: \d+", "content-length: N"),
            (r'"created":\d+', '"created":TIME'),
            (r'"id":"[^"]*"', '"id":"ID"'),
        ),
        env={"CONFIG_FILE_PATH": "litellm_config.yaml", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        kill_seconds=10,
    )
    routes: ClassVar = {("POST", "/v1/chat/completions"): "/v1/chat/completions"}
    client_reasons: ClassVar = {"completed": 1, "client_close": 1, "disconnected": 1}
