"""``otel-sse doctor``: each cause of missing telemetry is made to occur, and is found by name."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from e2e.commands import BIN, OTEL_SSE, Done, environment, otel_sse
from e2e.environments import with_version, without
from e2e.otlp_servers import grpc_receiver, http_answering, silent
from helpers.otlp import Receiver
from helpers.processes import ALONE, APPS
from helpers.raw_client import RawClient
from helpers.servers import free_port, refusing_port
from packaging.requirements import Requirement

from otel_sse import frameworks
from otel_sse.instrumentor import SSEInstrumentor

# All that otel-sse needs is there: see ``test_a_healthy_application_passes_every_stage``.
STAGES = (
    *("command_started", "sdk_ready", "instrumentors_loaded", "request_seen", "stream_detected"),
    *("messages_counted", "traces_exported", "metrics_exported", "logs_exported"),
)
INSTRUMENT = "opentelemetry-instrument"
# Unlike opentelemetry-instrument's script, this runs whichever Python is given.
MODULE = (
    "import sys; from opentelemetry.instrumentation.auto_instrumentation import run; "
    "sys.argv[0] = 'opentelemetry-instrument'; run()"
)


def uvicorn(port: int) -> list[str]:
    return ["uvicorn", "examined:app", "--port", str(port), "--timeout-graceful-shutdown", "1"]


async def examine(
    receiver: Receiver,
    *command: str,
    path: str = "/events",
    env: dict[str, str] | None = None,
    **options: Any,
) -> Done:
    """The doctor's report on a command that exports to ``receiver``."""
    variables = {**receiver.environment, **ALONE, **(env or {})}
    url = ["--url", path] if path else []
    return await otel_sse(
        *(
            "doctor",
            "--json",
            "--for",
            "150s",
            *url,
            "--",
            *(command or [INSTRUMENT, *uvicorn(free_port())]),
        ),
        cwd=APPS,
        env=variables,
        **options,
    )


async def checked(*arguments: str, **env: str) -> Done:
    """The doctor's report on this environment."""
    return await otel_sse("doctor", "--json", *arguments, env={**ALONE, **env})


def over_http(endpoint: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }


async def test_a_healthy_application_passes_every_stage(receiver: Receiver) -> None:
    """Status 0; what it reports as exported is what a real receiver got."""
    done = await examine(receiver)
    assert done.status == 0, done
    assert list(done.stages) == list(STAGES)
    assert set(done.stages.values()) == {"ok"}
    assert done.document["exports"] == {"traces": "ok", "metrics": "ok", "logs": "ok"}
    assert done.problems == set()
    detail = {each["name"]: each["detail"] for each in done.document["stages"]}
    assert detail["stream_detected"] == "/events"
    assert "SSE /events" in detail["traces_exported"]
    assert receiver.spans("SSE /events")
    assert receiver.records("sse.connection.closed")
    assert receiver.value("sse.server.messages") >= 5
    assert int(detail["messages_counted"].partition(";")[0]) >= 5


async def test_a_stream_that_ends_at_once_is_seen_too(receiver: Receiver) -> None:
    """Nothing of it is live any more when the doctor looks."""
    done = await examine(receiver, path="/short")
    assert done.status == 0, done
    assert set(done.stages.values()) == {"ok"}


async def test_it_waits_for_a_stream_of_somebody_else(receiver: Receiver) -> None:
    """Without --url the doctor names the port, and a client opens the stream."""
    port = free_port()
    readers: list[asyncio.Task[None]] = []

    async def read() -> None:
        client = await RawClient.get(port, "/events")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await client.reader.readuntil(b"data: 99999\n\n")
        await client.close()

    def on_line(line: str) -> None:
        if "Open a stream now" in line:
            assert f"127.0.0.1:{port}" in line
            readers.append(asyncio.create_task(read()))

    done = await examine(receiver, INSTRUMENT, *uvicorn(port), path="", env={}, on_line=on_line)
    await asyncio.gather(*readers)
    assert done.status == 0, done
    assert set(done.stages.values()) == {"ok"}


async def test_workers_are_followed(receiver: Receiver) -> None:
    """Uvicorn starts them anew, each a Python of its own; one of them serves the stream."""
    # uvicorn kills a worker that takes longer to start than this, in seconds.
    limit = ("--timeout-worker-healthcheck", "100")
    command = [INSTRUMENT, *uvicorn(free_port()), "--workers", "2", *limit]
    done = await examine(receiver, *command)
    assert done.status == 0, done
    assert set(done.stages.values()) == {"ok"}
    assert "sdk-before-fork" not in done.codes


async def test_not_under_opentelemetry_instrument(receiver: Receiver) -> None:
    """The stream is there, nothing records it; the remedy is the command to type."""
    command = uvicorn(free_port())
    done = await examine(receiver, *command)
    assert done.status == 1
    # One cause, one problem; what follows from it is seen at the stages.
    assert done.problems == {"not-instrumented"}
    remedy = done.finding("not-instrumented")["remedy"]
    assert remedy.endswith(f"{INSTRUMENT} {' '.join(command)}")
    assert done.stages["command_started"] == done.stages["request_seen"] == "ok"
    assert done.stages["sdk_ready"] == done.stages["stream_detected"] == "problem"


async def test_a_provider_is_missing(receiver: Receiver) -> None:
    """The application sets up traces by hand, and neither metrics nor logs."""
    done = await examine(
        receiver,
        *uvicorn(free_port()),
        env={"EXAMINED_SETUP": "traces"},
    )
    assert done.status == 1
    missing = [each for each in done.document["findings"] if each["code"] == "no-provider"]
    assert [each["summary"].split()[5].rstrip(":") for each in missing] == ["metrics", "logs"]
    assert done.stages["traces_exported"] == "ok", done
    assert done.stages["metrics_exported"] == done.stages["logs_exported"] == "problem"


@pytest.mark.parametrize(
    ("distribution", "code"),
    [
        ("otel-sse", "otel-sse-missing"),
        ("opentelemetry-sdk", "sdk-missing"),
        ("opentelemetry-distro", "distro-missing"),
        ("opentelemetry-exporter-otlp-proto-http", "exporter-missing"),
    ],
)
async def test_a_package_is_missing(
    distribution: str, code: str, receiver: Receiver, tmp_path: Path
) -> None:
    """The command runs in an environment without it: it is named, with pip's command."""
    python = str(without(tmp_path / "venv", distribution))
    command = [python, "-c", MODULE, python, "-m", *uvicorn(free_port())]
    done = await examine(receiver, *command)
    assert done.status == 1
    assert code in done.problems, done
    assert "pip install" in done.finding(code)["remedy"]
    assert done.document["environment"]["executable"] == python


async def test_the_framework_is_too_old(receiver: Receiver, tmp_path: Path) -> None:
    """What the instrumentor takes, and what is installed. The server's sees the stream."""
    python = str(with_version(tmp_path / "venv", "starlette", "0.20.0"))
    done = await examine(receiver, *(python, "-c", MODULE, python, "-m", *uvicorn(free_port())))
    assert done.status == 1
    finding = done.finding("framework-unsupported")
    assert "sse_starlette" in finding["summary"]
    assert "starlette 0.20.0" in finding["summary"]
    assert done.stages["stream_detected"] == "ok"


async def test_no_framework_is_there(receiver: Receiver, tmp_path: Path) -> None:
    """None of those that otel-sse instruments."""
    needed = {
        Requirement(target.requires).name
        for kind in SSEInstrumentor.__subclasses__()
        for target in kind.targets
        if target.requires is not None and kind.__module__ == frameworks.__name__
    }
    python = str(without(tmp_path / "venv", *needed))
    server = "import http.server as s; s.HTTPServer(('127.0.0.1', {}), None).serve_forever()"
    done = await examine(
        receiver,
        *(python, "-c", MODULE, python, "-c", server.format(free_port())),
        env={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    )
    assert "framework-absent" in done.problems, done
    # Asked over gRPC, which it does not speak, it is then asked what it speaks.
    assert {each.rpartition(": ")[2] for each in receiver.errors} <= {
        "ValueError('content type None')"
    }
    receiver.errors.clear()


async def test_an_instrumentor_is_disabled(receiver: Receiver) -> None:
    """By its name in the variable, and the server's, which would see the stream."""
    disabled = ALONE["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] + ",sse_starlette,sse_asgi"
    done = await examine(receiver, env={"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled})
    assert done.status == 1
    finding = done.finding("instrumentor-disabled")
    assert "sse_starlette" in finding["summary"]
    assert done.stages["stream_detected"] == "problem"
    assert done.problems == {"instrumentor-disabled"}


async def test_an_instrumentor_is_called_twice(receiver: Receiver) -> None:
    """In the application and by opentelemetry-instrument: a warning, the telemetry is there."""
    done = await examine(receiver, env={"EXAMINED_SETUP": "twice"})
    assert done.status == 0, done
    assert done.finding("instrumented-twice")["level"] == "warning"
    assert done.stages["traces_exported"] == "ok"


async def test_the_sdk_is_set_up_twice(receiver: Receiver) -> None:
    """The application's own provider comes second and is not used: one problem."""
    done = await examine(receiver, env={"EXAMINED_SETUP": "provider"})
    assert done.problems == {"sdk-twice"}, done
    assert "TracerProvider" in done.finding("sdk-twice")["summary"]


async def test_contrib_is_beside() -> None:
    """A note: both work, one of them makes a span of each chunk."""
    done = await otel_sse("doctor", "--json", env={"OTEL_TRACES_EXPORTER": "console"})
    assert done.finding("contrib-beside")["level"] == "note"
    quiet = await checked(OTEL_TRACES_EXPORTER="console")
    assert "contrib-beside" not in quiet.codes


async def test_metrics_and_logs_are_off(receiver: Receiver) -> None:
    """Traces alone come out."""
    done = await examine(
        receiver, env={"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    )
    assert done.codes == {"metrics-exporter-off", "logs-exporter-off"}, done
    assert done.stages["traces_exported"] == "ok"
    assert done.stages["metrics_exported"] == done.stages["logs_exported"] == "problem"
    assert receiver.spans("SSE")
    assert receiver.metrics() == set()


async def test_the_url_is_excluded(receiver: Receiver) -> None:
    """The variable and its pattern are named."""
    done = await examine(receiver, env={"OTEL_PYTHON_EXCLUDED_URLS": "health,event"})
    assert done.status == 1
    assert "OTEL_PYTHON_EXCLUDED_URLS=health,event" in done.finding("url-excluded")["summary"]
    assert done.stages["request_seen"] == "ok"
    assert done.stages["stream_detected"] == "problem"


async def test_the_sampler_drops_all(receiver: Receiver) -> None:
    """Metrics and logs come out, spans do not."""
    done = await examine(receiver, env={"OTEL_TRACES_SAMPLER": "always_off"})
    assert done.problems == {"sampler-drops-all"}, done
    assert [each["code"] for each in done.document["findings"]].count("sampler-drops-all") == 1
    assert done.stages["sdk_ready"] == "problem"
    assert done.stages["traces_exported"] == "problem"
    assert done.stages["metrics_exported"] == done.stages["logs_exported"] == "ok", done


async def test_the_sdk_is_disabled(receiver: Receiver) -> None:
    """By the variable of the specification."""
    done = await examine(receiver, env={"OTEL_SDK_DISABLED": "true"})
    assert done.problems == {"sdk-disabled"}, done
    assert receiver.spans() == []


async def test_a_variable_is_bad(receiver: Receiver) -> None:
    """A bad value and a misspelt name; the stream is recorded with the default."""
    done = await examine(
        receiver,
        env={"OTEL_PYTHON_SSE_STALL_SECONDS": "soon", "OTEL_PYTHON_SSE_SEGMENT_SECOND": "9"},
    )
    assert done.status == 1
    assert "OTEL_PYTHON_SSE_STALL_SECONDS" in done.finding("bad-variable")["summary"]
    assert "OTEL_PYTHON_SSE_SEGMENT_SECONDS" in done.finding("unknown-variable")["remedy"]
    assert done.stages["traces_exported"] == "ok"
    assert done.codes == {"bad-variable", "unknown-variable"}, done


async def test_the_exporter_of_a_variable_does_not_exist(receiver: Receiver) -> None:
    """One misspelt exporter stops all of OpenTelemetry, and is the one problem."""
    done = await examine(receiver, env={"OTEL_TRACES_EXPORTER": "oltp"})
    assert done.codes == {"exporter-missing"}, done
    assert "'otlp'" in done.finding("exporter-missing")["remedy"]


GUNICORN = "from opentelemetry.instrumentation.auto_instrumentation import initialize\n"
POST_FORK = GUNICORN + "def post_fork(server, worker):\n    initialize()\n"


@pytest.mark.parametrize("post_fork", [True, False])
async def test_a_fork_without_post_fork(
    post_fork: bool, receiver: Receiver, tmp_path: Path
) -> None:
    """The SDK was set up in gunicorn's master, before the worker that serves was forked."""
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(POST_FORK if post_fork else "")
    gunicorn = [
        *("gunicorn", "--bind", f"127.0.0.1:{free_port()}"),
        *("--worker-class", "uvicorn_worker.UvicornWorker", "--graceful-timeout", "2"),
        "examined:app",
    ]
    done = await examine(
        receiver,
        *([] if post_fork else [INSTRUMENT]),
        *gunicorn,
        # opentelemetry-instrument takes --config for an option of its own.
        env={"GUNICORN_CMD_ARGS": f"--config {config}"},
    )
    assert done.stages["stream_detected"] == "ok", done
    assert ("sdk-before-fork" in done.codes) is not post_fork, done
    if not post_fork:
        assert "post_fork" in done.finding("sdk-before-fork")["remedy"]
        assert done.finding("sdk-before-fork")["level"] == "warning"


async def test_the_response_is_no_stream(receiver: Receiver) -> None:
    """Another media type, or another path."""
    done = await examine(receiver, path="/plain")
    assert (done.status, "media-type" in done.problems) == (1, True)
    done = await examine(receiver, path="/nowhere")
    assert "request-refused" in done.problems


async def test_nobody_opens_a_stream(receiver: Receiver) -> None:
    """The doctor waits as long as it was asked to, and no longer."""
    done = await otel_sse(
        *("doctor", "--json", "--for", "8s", "--", INSTRUMENT, *uvicorn(free_port())),
        cwd=APPS,
        env={**receiver.environment, **ALONE},
    )
    assert done.status == 1
    assert done.problems <= {"no-request", "not-listening"}
    assert done.problems


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("no-such-command",), "command-not-started"),
        (("uvicorn", "nowhere:app"), "command-ended"),
        (("sleep", "30"), "no-python"),
    ],
)
async def test_the_command_is_wrong(command: tuple[str, ...], code: str) -> None:
    """It does not exist, it ends, it is no Python."""
    done = await otel_sse("doctor", "--json", "--for", "10s", "--", *command, cwd=APPS)
    assert done.status == 1
    assert code in done.problems, done


@pytest.mark.parametrize(
    ("program", "summary", "remedy"),
    [
        (["no-such-server"], "exit status", "its program installed"),
        (["uvicorn", "nowhere:app"], 'Could not import module "nowhere"', "Correct that"),
    ],
)
async def test_the_cause_of_an_early_end_is_shown(
    program: list[str], summary: str, remedy: str
) -> None:
    """The command's own error, and not the telemetry that a console exporter prints after it."""
    console = dict.fromkeys(
        (f"OTEL_{signal}_EXPORTER" for signal in ("TRACES", "METRICS", "LOGS")), "console"
    )
    done = await otel_sse(
        *("doctor", "--json", "--for", "30s", "--", INSTRUMENT, *program),
        cwd=APPS,
        env={**ALONE, **console},
    )
    assert done.problems == {"command-ended"}, done
    assert summary in done.finding("command-ended")["summary"], done
    assert remedy in done.finding("command-ended")["remedy"], done


async def test_ctrl_c_ends_with_the_report_so_far(receiver: Receiver) -> None:
    """The command is stopped, and what was seen is reported."""
    done = await examine(receiver, path="", interrupt_at="Open a stream now")
    assert done.document["interrupted"] is True
    assert done.stages["command_started"] == "ok"
    assert done.stages["sdk_ready"] == "ok", done


async def test_nothing_listens() -> None:
    """The collector is not there: one problem for all three signals."""
    port = refusing_port()
    done = await checked(**over_http(f"http://127.0.0.1:{port}"))
    assert done.status == 1
    (finding,) = [each for each in done.document["findings"] if each["level"] == "problem"]
    assert finding["code"] == "exporter-unreachable"
    assert finding["summary"].startswith("traces, metrics, logs: ")
    assert f"127.0.0.1:{port}" in finding["summary"]
    grpc_done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    assert grpc_done.problems == {"exporter-unreachable"}


async def test_the_host_does_not_exist() -> None:
    """A misspelt host name."""
    done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.invalid:4317")
    assert done.problems == {"exporter-unreachable"}
    assert "collector.invalid" in done.finding("exporter-unreachable")["summary"]


async def test_a_real_receiver_takes_an_empty_export_of_each_signal(receiver: Receiver) -> None:
    """Over HTTP and over gRPC: status 0, and the receiver counted three."""
    done = await checked(**over_http(receiver.endpoint))
    assert (done.status, receiver.exports) == (0, 3), done
    with grpc_receiver() as (endpoint, calls):
        done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert done.status == 0, done
    assert sorted(call.split(".")[3] for call in calls) == ["logs", "metrics", "trace"]


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "500 Broken"])
async def test_a_receiver_over_http_refuses(status: str) -> None:
    """With its status; 401 asks for credentials."""
    async with http_answering(status) as endpoint:
        done = await checked(**over_http(endpoint))
    assert done.problems == {"exporter-refused"}
    finding = done.finding("exporter-refused")
    assert status.split()[0] in finding["summary"]
    assert ("OTEL_EXPORTER_OTLP_HEADERS" in finding["remedy"]) is status.startswith("401")


async def test_a_receiver_over_grpc_refuses() -> None:
    """With its status; a receiver of traces alone refuses the other two."""
    with grpc_receiver(grpc.StatusCode.UNAUTHENTICATED) as (endpoint, _):
        done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert "UNAUTHENTICATED" in done.finding("exporter-refused")["summary"]
    with grpc_receiver(only=".trace.") as (endpoint, _):
        done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert done.document["exports"] == {
        "traces": "ok",
        "metrics": "exporter-refused",
        "logs": "exporter-refused",
    }


async def test_the_protocol_does_not_fit_the_port(receiver: Receiver) -> None:
    """GRPC to the HTTP port, and HTTP to the gRPC port: the remedy is the other protocol."""
    done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    assert done.problems == {"exporter-wrong-protocol"}, done
    assert "http/protobuf" in done.finding("exporter-wrong-protocol")["remedy"]
    with grpc_receiver() as (endpoint, _):
        done = await checked(**over_http(endpoint))
    assert done.problems == {"exporter-wrong-protocol"}, done
    assert "PROTOCOL=grpc" in done.finding("exporter-wrong-protocol")["remedy"]
    # What is refused over HTTP by the probe itself is no fault of the receiver.
    receiver.errors.clear()


async def test_a_receiver_does_not_answer() -> None:
    """It is given up after some seconds."""
    with silent() as endpoint:
        done = await checked(**over_http(endpoint), OTEL_LOGS_EXPORTER="console")
    assert done.problems == {"exporter-no-answer"}


async def test_an_endpoint_without_tls_is_asked_for_it() -> None:
    """https:// to a receiver that has none."""
    with grpc_receiver() as (endpoint, _):
        secure = endpoint.replace("http:", "https:")
        done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT=secure)
    assert done.problems == {"exporter-tls"}, done


async def test_a_certificate_that_cannot_be_read_is_named() -> None:
    """Not the endpoint, nor its protocol."""
    with grpc_receiver() as (endpoint, _):
        secure = endpoint.replace("http:", "https:")
        nowhere = {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/file"}
        done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT=secure, **nowhere)
    assert done.problems == {"exporter-tls"}, done
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in done.finding("exporter-tls")["summary"]


async def test_a_proxy_is_asked_where_the_exporters_ask_it(receiver: Receiver) -> None:
    """Over HTTP; over gRPC nothing is claimed. Its password is not shown."""
    proxy = f"http://me:s3cret@127.0.0.1:{refusing_port()}"
    variables = {"http_proxy": proxy, "no_proxy": "", "NO_PROXY": ""}
    done = await checked(**over_http(receiver.endpoint), **variables)
    assert done.problems == {"exporter-unreachable"}, done
    assert "NO_PROXY" in done.finding("exporter-unreachable")["remedy"]
    assert "s3cret" not in str(done)
    done = await checked(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **variables)
    assert (done.status, done.document["exports"]) == (
        0,
        dict.fromkeys(("traces", "metrics", "logs"), "proxy"),
    )


async def test_a_header_of_any_text_is_sent_as_the_exporter_sends_it(receiver: Receiver) -> None:
    """What is no name of a header is left out, as it is there."""
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer %C3%BC,bad header=1"}
    done = await checked(**over_http(receiver.endpoint), **headers)
    assert done.status == 0, done


async def test_a_bad_propagator_is_one_problem(receiver: Receiver) -> None:
    """Though no instrumentor can be loaded with it."""
    done = await checked(**over_http(receiver.endpoint), OTEL_PROPAGATORS="b4")
    assert done.problems == {"bad-variable"}, done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_what_ends_the_doctor_ends_the_command(
    number: signal.Signals, receiver: Receiver
) -> None:
    """As ``timeout`` does in CI: the report so far comes, and no server is left."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(OTEL_SSE, "doctor", "--json", "--", INSTRUMENT, *uvicorn(port)),
        cwd=APPS,
        env=environment(**ALONE, **receiver.environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async for line in process.stderr:
        if b"Open a stream now" in line:
            process.send_signal(number)
    assert process.stdout is not None
    document = json.loads(await process.stdout.read())
    await process.wait()
    assert document["interrupted"] is True
    assert document["stages"][0]["status"] == "ok"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_the_launcher_is_not_taken_for_the_command(receiver: Receiver) -> None:
    """An isolated Python shows nothing of itself: that is the problem, not how it is started."""
    isolated = ["python", "-I", "-m", *uvicorn(free_port()), "--app-dir", str(APPS)]
    done = await examine(receiver, INSTRUMENT, *isolated)
    assert "no-python" in done.problems, done
    assert "not-instrumented" not in done.problems, done


async def test_a_server_with_a_reloader_has_its_spans(receiver: Receiver, tmp_path: Path) -> None:
    """It notices by its next message that the doctor has gone, and exports after that."""
    app = tmp_path / "reloaded.py"
    app.write_text(
        "import time\n"
        "from flask import Flask, Response\n"
        "app = Flask(__name__)\n"
        "def ticks():\n"
        "    while True:\n"
        "        yield 'data: 1\\n\\n'\n"
        "        time.sleep(0.5)\n"
        "@app.get('/events')\n"
        "def events():\n"
        "    return Response(ticks(), mimetype='text/event-stream')\n"
    )
    flask = ["flask", "--app", str(app), "run", "--debug", "--port", str(free_port())]
    done = await examine(receiver, INSTRUMENT, *flask)
    assert done.stages["traces_exported"] == "ok", done


async def test_the_exports_of_the_command_fail(receiver: Receiver) -> None:
    """What the process itself could not export shows at its stages; its cause, which the empty
    export has found, is the one problem.
    """
    async with http_answering("401 Unauthorized") as endpoint:
        done = await examine(receiver, env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    assert done.problems == {"exporter-refused"}, done
    assert "logged" not in done.codes, done
    assert done.stages["stream_detected"] == "ok"
    assert done.stages["traces_exported"] == "problem"
    assert receiver.exports == 0


async def test_the_report_is_plain_in_a_pipe(receiver: Receiver) -> None:
    """Stages and findings, each on a line, without colours."""
    done = await otel_sse("doctor", env={**ALONE, **over_http(receiver.endpoint)})
    assert done.status == 0
    assert "No problems found" in done.out
    assert "sse_starlette" in done.out
    assert "\x1b" not in done.out + done.err


async def test_the_instrumentors_of_servers_need_no_framework() -> None:
    """Each requirement is named once, and what has none is not reported as missing."""
    done = await otel_sse("doctor", env={**ALONE, "OTEL_TRACES_EXPORTER": "console"})
    lines = {line.split()[1]: line for line in done.out.splitlines() if " sse_" in line}
    assert {"sse_asgi", "sse_wsgi", "sse_django"} <= lines.keys(), done
    for line in lines.values():
        required = line.partition(" is not installed")[0].split(" or ")
        assert len(required) == len(set(required)), line
        assert not line.endswith("  is not installed"), line
    assert lines["sse_asgi"].startswith("✓")


def test_the_command_is_installed() -> None:
    """The console script lies beside Python."""
    assert (BIN / "otel-sse").is_file()
