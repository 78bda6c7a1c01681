"""The command line itself: arguments, help and exit status."""

import argparse
import errno
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from otel_sse.cli._package import __version__, install
from otel_sse.cli.variables import HEADER_NAME, is_endpoint

_NEEDS: Final = ("anyio", "h2", "httpx", "psutil", "rich")
_USAGE: Final = 2
# Of a file to which the output is redirected.
_DISK_ERRORS: Final = (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC)
_MAX_SECONDS: Final = 86400.0
_MAX_CLIENTS: Final = 1000
_STATUS: Final = "exit status: 0 no problem found, 1 problems found, 2 wrong usage or no report"

_MAIN: Final = f"""\
commands:
  doctor   why telemetry is missing, and what to do about it
  probe    read an event stream, and judge it

examples:
  otel-sse doctor
  otel-sse doctor -- opentelemetry-instrument uvicorn app:app
  otel-sse probe http://localhost:8000/events

{_STATUS}
"""
_DOCTOR: Final = f"""\
examples:
  otel-sse doctor
      checks this environment: packages, variables, and one empty export of each signal
  otel-sse doctor -- opentelemetry-instrument uvicorn app:app
      starts the command, and waits until you open a stream of it
  otel-sse doctor --url /events -- opentelemetry-instrument uvicorn app:app
      opens the stream itself

{_STATUS}
"""
_PROBE: Final = f"""\
examples:
  otel-sse probe http://localhost:8000/events
  otel-sse probe --for 1m --json https://example.com/events
  otel-sse probe -H 'Authorization: Bearer ...' -d '{{"question": "Why?"}}' \\
      -H 'Content-Type: application/json' http://localhost:8000/chat
  otel-sse probe --resume http://localhost:8000/events
      disconnects, reconnects with Last-Event-ID, and looks for lost and repeated messages
  otel-sse probe --clients 50 --for 30s http://localhost:8000/events

{_STATUS}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``otel-sse``; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:
        # Closed by the shell (``>&-``): the exit status is all that is wanted.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        parser = _parser()
        args, unknown = parser.parse_known_args(_before_command(given))
        if unknown:
            parser.error(
                f"unrecognized arguments: {' '.join(unknown)}"
                + ("; put -- in front of a command" if args.command == "doctor" else "")
            )
    except SystemExit as done:
        return int(done.code or 0)
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        sentence = f"otel-sse {args.command} needs more packages: {install('cli')}"
        if args.json:
            print(json.dumps({"schema": 1, "command": args.command, "error": sentence}))
        print(sentence, file=sys.stderr)
        return _USAGE
    return _run(args, _command(given))


def _run(args: argparse.Namespace, command: list[str]) -> int:
    # Imported here, because the plain package has none of what these need.
    try:
        from otel_sse.cli.output import Output

        output = Output(as_json=args.json)
        if args.command == "probe":
            from otel_sse.cli import probe

            report = probe.run(args, output)
        else:
            from otel_sse.cli import doctor

            report = doctor.run(args, command, output)
        output.report(report)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` is a use, not an error.
        _discard_output()
        return 0
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _discard_output()
        print(f"otel-sse cannot write its report: {error.strerror}", file=sys.stderr)
        return _USAGE
    except KeyboardInterrupt:
        return 130
    return int(report.exit)


def _discard_output() -> None:
    """Python writes what is left at exit, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _before_command(given: Sequence[str]) -> list[str]:
    return list(given[: given.index("--")]) if "--" in given else list(given)


def _command(given: Sequence[str]) -> list[str]:
    return list(given[given.index("--") + 1 :]) if "--" in given else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-sse",
        description="Tools for Server-Sent Events and their telemetry.",
        epilog=_MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"otel-sse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{doctor,probe}")
    _add_doctor(commands)
    _add_probe(commands)
    return parser


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    doctor = commands.add_parser(
        "doctor",
        usage="otel-sse doctor [options] [-- command ...]",
        description="Finds why telemetry is missing, with the remedy.",
        epilog=_DOCTOR,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.add_argument(
        "--url", help="open this stream: a URL, or a path of the server that the command starts"
    )
    doctor.add_argument(
        "--for",
        dest="seconds",
        type=duration,
        default=60.0,
        metavar="TIME",
        help="how long to wait for the start, then for a stream: 30s, 2m (default: 60s)",
    )


def _add_probe(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    probe = commands.add_parser(
        "probe",
        usage="otel-sse probe [options] URL",
        description="Reads an event stream, shows its messages, and judges it.",
        epilog=_PROBE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    probe.add_argument("url", type=_url, metavar="URL")
    probe.add_argument("-X", "--method", help="HTTP method (default: GET, with -d POST)")
    probe.add_argument(
        "-H",
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a header of the request; may be repeated",
    )
    probe.add_argument(
        "-d", "--data", type=_data, metavar="BODY", help="body of the request; @FILE reads a file"
    )
    probe.add_argument("--last-event-id", metavar="ID", help="resume after this id")
    probe.add_argument("--http2", action="store_true", help="use HTTP/2, also without TLS")
    probe.add_argument("--insecure", action="store_true", help="do not check the certificate")
    probe.add_argument(
        "--for",
        dest="seconds",
        type=duration,
        default=10.0,
        metavar="TIME",
        help="how long to read: 30s, 5m, 1h (default: 10s)",
    )
    probe.add_argument("--messages", type=_count, metavar="N", help="stop after N messages")
    kind = probe.add_mutually_exclusive_group()
    kind.add_argument(
        "--resume", action="store_true", help="disconnect half way, and reconnect with the last id"
    )
    kind.add_argument(
        "--clients", type=_clients, default=1, metavar="N", help="read with N clients at once"
    )
    probe.add_argument("-q", "--quiet", action="store_true", help="do not show the messages")
    probe.add_argument("--json", action="store_true", help="print one JSON document at the end")


def duration(text: str) -> float:
    """Seconds of ``500ms``, ``30s``, ``30``, ``5m`` or ``1h``."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)):
        if text.endswith(unit):
            try:
                value = float(text[: len(text) - len(unit)]) * factor
            except ValueError:
                break
            if 0 < value <= _MAX_SECONDS:
                return value
            break
    raise argparse.ArgumentTypeError(f"{text!r} is no time: write 500ms, 30s, 5m or 1h, up to 24h")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of messages")
    return int(text)


def _clients(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_CLIENTS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: it takes a number of clients from 1 to {_MAX_CLIENTS}"
        )
    return int(text)


def _url(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    if not is_endpoint(url) or urlsplit(url).scheme not in ("http", "https"):
        raise argparse.ArgumentTypeError(f"{text!r} is no http:// or https:// URL")
    return url


def _header(text: str) -> tuple[str, str]:
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not HEADER_NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r} is no header: write 'Name: value'")
    if not value.isascii() or not value.replace("\t", " ").isprintable():
        raise argparse.ArgumentTypeError(
            f"the value of {name} may have printable ASCII characters alone: encode the others"
        )
    return name, value


def _data(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    try:
        with open(text[1:], "rb") as file:
            return file.read()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text[1:]}: {error.strerror}") from error
