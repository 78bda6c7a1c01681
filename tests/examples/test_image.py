"""What the compose file makes of the reference server: the image holds what the server needs, and
HAProxy and the server take what they are given.
"""

import ast
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Final

from examples.commands import EXAMPLES
from examples.composed import COMPOSE, DOCKERFILE, SERVICES, WORKERS
from helpers.otlp import Receiver
from helpers.processes import CONTRIB, INSTRUMENT
from helpers.servers import free_port
from helpers.tools import tool
from helpers.waiting import wait_until
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SERVER: Final = EXAMPLES / "server"
CHECKOUT: Final = EXAMPLES.parent
ENVIRONMENT: Final[dict[str, str]] = SERVICES[WORKERS[0]]["environment"]


def copied() -> Iterator[tuple[Path, str]]:
    """What the Dockerfile copies from the checkout, and where to."""
    for sources in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE):
        *froms, to = sources.split()
        for each in froms:
            yield CHECKOUT / each, to


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    """The ignore file lets through what the Dockerfile copies, and nothing else."""
    lines = (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    let = {line[1:] for line in lines if line.startswith("!")}
    sources = {str(source.relative_to(CHECKOUT)) for source, _ in copied()}
    assert sources == let
    assert [each for each in sources if not (CHECKOUT / each).exists()] == []


def test_what_the_server_imports_is_installed() -> None:
    """Each distribution that the running server imports of is one that the image's pip installs."""
    homes = packages_distributions()
    installed = _installed()
    imported = _imported()
    assert {"aiohttp", "opentelemetry"} <= imported
    assert [
        module
        for module in sorted(imported - {"otel_sse", *sys.stdlib_module_names})
        if not {canonicalize_name(each) for each in homes[module]} & installed
    ] == []


def _imported() -> set[str]:
    """The packages of others that the server imports, from its start on, and in functions too."""
    waiting, seen = ["__main__"], set()
    found: set[str] = set()
    while waiting:
        file = SERVER / f"{waiting.pop()}.py"
        if file in seen or not file.exists():
            continue
        seen.add(file)
        for module, names in _imports(ast.parse(file.read_text())):
            package, _, rest = module.partition(".")
            if package != "server":
                found.add(package)
            else:
                waiting += [rest] if rest else names
    assert len(seen) > 10
    return found


def _imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.name, []) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [each.name for each in node.names]


def _installed() -> set[str]:
    """The distributions of the group ``demo`` and the extra ``otlp``, with what they need."""
    project = (CHECKOUT / "pyproject.toml").read_text()
    (group,) = re.findall(r"^demo = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    (needed,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    wanted = [Requirement(each) for each in re.findall(r'"(.*?)"', group + needed)]
    wanted += map(Requirement, ("opentelemetry-distro", "opentelemetry-exporter-otlp"))
    found: set[str] = set()
    while wanted:
        name = canonicalize_name(wanted.pop().name)
        if name not in found:
            found.add(name)
            with contextlib.suppress(ModuleNotFoundError):
                wanted += [
                    each
                    for each in map(Requirement, requires(name) or ())
                    if not each.marker or each.marker.evaluate({"extra": ""})
                ]
    return found


def test_the_image_serves_and_ends_as_composed(tmp_path: Path) -> None:
    """The files of the image alone, a worker's environment but for the addresses: it is healthy by
    the image's own check, shows its status, and ends well at the signal.
    """
    for source, to in copied():
        if to.startswith("/srv/"):
            target = tmp_path / to.lstrip("/")
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    (home,) = re.findall(r"^WORKDIR /(srv.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE.read_text(), re.M)
    port = free_port()
    with Receiver() as receiver:
        # Its memory is that of a process that tests; its addresses are this machine's.
        own = {**ENVIRONMENT, **receiver.environment, "SSE_SERVER_HOST": "127.0.0.1"}
        own = {**own, "SSE_SERVER_PORT": str(port), "SSE_SERVER_REDIS_URL": ""}
        # Its only instrumentation beside ours is the system's.
        own["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = CONTRIB
        server = subprocess.Popen(
            [str(INSTRUMENT), sys.executable, "-m", "server"],
            cwd=tmp_path / home,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            health = [sys.executable, *json.loads(check)[1:]]
            health = [each.replace(":8080/", f":{port}/") for each in health]
            wait_until(
                lambda: (
                    server.poll() is not None
                    or subprocess.call(health, stderr=subprocess.DEVNULL) == 0
                )
            )
            assert server.poll() is None, server.communicate()[0]
            assert _get(port, "/status") == 200
            assert _get(port, "/alerts") == 200
        finally:
            server.send_signal(signal.SIGTERM)
            output, _ = server.communicate(timeout=30)
        assert server.returncode == 0, output
        assert receiver.metrics() >= {"sse.server.connections_per_client.max"}
        assert receiver.metrics() >= {"process.memory.usage"}


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_haproxy_takes_its_environment() -> None:
    """The server's own file, as mounted, with the workers' addresses: all that it asks for."""
    environment = SERVICES["haproxy"]["environment"]
    file = SERVER / "haproxy.cfg"
    assert set(re.findall(r"\$\{(\w+)", file.read_text())) == environment.keys()
    checked = subprocess.run(
        [tool("haproxy"), "-c", "-f", str(file)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_server_takes_its_environment() -> None:
    """Every variable is one of the server's, of each worker alike; a wrong one would be refused."""
    assert all(SERVICES[each]["environment"] == ENVIRONMENT for each in WORKERS)
    code = "from server.settings import load; load()"
    wrong: dict[str, str] = {"SSE_SERVER_PROT": "8080"}
    for extra, status in (({}, 0), (wrong, 1)):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=EXAMPLES,
            env={**os.environ, **ENVIRONMENT, **extra},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == status, ran.stderr
