"""The event types that are exported by their name."""

from types import TracebackType

from otel_sse.telemetry.cardinality import EventTypes


def test_the_last_place_goes_to_one_of_two_threads() -> None:
    """The other's type, which had seen that there is room, is _OTHER."""
    types = EventTypes()

    class Overtaken:
        def __enter__(self) -> None:
            types._free = 0

        def __exit__(
            self, kind: type | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None: ...

    types._lock = Overtaken()  # type: ignore[assignment]
    assert types.names[types.index_of("late")] == "_OTHER"
    assert "late" not in types.names
