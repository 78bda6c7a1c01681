"""The public Python API: what is listed, with its signatures, is there, and is documented."""

import inspect
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import otel_sse
from otel_sse.instrumentor import SSEInstrumentor

REFERENCE: Final = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api.md"
_PROVIDERS: Final = "tracer_provider=None, meter_provider=None, logger_provider=None"
# A change here is a change for users: it needs a fragment of the changelog.
API: Final = {
    "ConnectionInfo": "(id, route, client_address, age, idle, messages, bytes, backlog, "
    "user_agent)",
    "Current.record_dropped": "(self, n=1, reason='unknown')",
    "Current.set_close_reason": "(self, reason)",
    "SSEMiddleware": f"(app, *, {_PROVIDERS}, **options)",
    "SSEWSGIMiddleware": f"(app, *, {_PROVIDERS}, **options)",
    "connections": "()",
    "current": "()",
}
# Made by current() alone.
_NOT_CALLED: Final = {"Current", "__version__"}


def _signature(name: str) -> str:
    made: object = otel_sse
    for part in name.split("."):
        made = getattr(made, part)
    assert callable(made)
    parameters = inspect.signature(made).parameters.values()
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    return str(inspect.Signature(bare))


def test_what_is_listed_is_the_public_api() -> None:
    """`__all__` is sorted, has what is listed here, and the package shows no other name that
    is not a module.
    """
    listed = {name.partition(".")[0] for name in API} | _NOT_CALLED
    assert set(otel_sse.__all__) == listed
    assert otel_sse.__all__ == sorted(otel_sse.__all__)
    shown = {
        name
        for name in dir(otel_sse)
        if not name.startswith("_") and not inspect.ismodule(getattr(otel_sse, name))
    }
    assert shown == listed - {"__version__"}


def test_the_signatures_are_those_that_are_listed() -> None:
    """Names, order and defaults of every parameter."""
    assert {name: _signature(name) for name in API} == API


def test_methods_and_fields_are_those_that_are_listed() -> None:
    """`Current` has no other public method."""
    methods = {f"Current.{name}" for name in vars(otel_sse.Current) if not name.startswith("_")}
    assert methods == {name for name in API if name.startswith("Current.")}


def test_the_reference_has_all_of_it() -> None:
    """Each name of `__all__` and the class of each entry point is on the page, and described."""
    documented = set(re.findall(r"auto\w+:: (\S+)", REFERENCE.read_text()))
    instrumentors = {
        each.value.replace(":", "."): each.load()
        for each in entry_points(group="opentelemetry_instrumentor")
        if each.name.startswith("sse_")
    }
    assert len(instrumentors) == 20
    names = {f"otel_sse.{name}" for name in otel_sse.__all__ if name != "__version__"}
    assert documented == names | instrumentors.keys()
    for cls in instrumentors.values():
        assert issubclass(cls, SSEInstrumentor)
        assert cls.__doc__
    assert all(getattr(otel_sse, name.partition(".")[2]).__doc__ for name in names)
