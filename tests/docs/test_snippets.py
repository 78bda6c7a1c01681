"""The code of the pages: what a reader pastes is valid, and the quick start keeps its promise."""

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Final

import pytest
from helpers.processes import BIN, PATIENCE, serve
from helpers.raw_client import RawClient

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", page.read_text())


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _blocks(page, "python")], ids=lambda page: page.name
)
def test_python_code_is_valid(page: Path) -> None:
    """Each block compiles alone."""
    for code in _blocks(page, "python"):
        compile(code, str(page), "exec")


async def test_the_quick_start_shows_what_the_readme_shows(tmp_path: Path) -> None:
    """The application of the README, by its command, with its variables: each attribute that the
    README shows is on the console, with the reason of a client that disconnects.
    """
    readme = ROOT / "README.md"
    (application,) = _blocks(readme, "python")
    (tmp_path / "app.py").write_text(application)
    shell = "\n".join(_blocks(readme, "sh"))
    command = next(
        line for line in shell.splitlines() if line.startswith("opentelemetry-instrument")
    )
    variables = dict(re.findall(r"(OTEL_\w+_EXPORTER)=(\w+)", shell))
    assert len(variables) == 3
    (shown,) = re.findall(r'(?ms)^```\n("name": .*?)^```$', readme.read_text())
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    with serve(f"{command} --port {{port}}", None, tmp_path, PATH=path, **variables) as served:
        await served.started()
        client = await RawClient.get(served.port, "/ticker")
        await asyncio.wait_for(client.until(b"data: 102\n\n"), PATIENCE)
        client.writer.transport.abort()
        # An answer to another client: the server has seen the disconnect before that.
        other = await RawClient.get(served.port, "/nowhere")
        await asyncio.wait_for(other.until(b"Not Found"), PATIENCE)
        other.writer.transport.abort()
        _, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
    (span,) = re.findall(r'(?ms)^\{\n    "name": "SSE /ticker".*?^\}$', output)
    for name in re.findall(r'"([a-z_.]+)": ', shown):
        assert f'"{name}": ' in span, name
    assert '"sse.close.reason": "client_disconnect"' in span
    assert '"event_name": "sse.connection.closed"' in output
