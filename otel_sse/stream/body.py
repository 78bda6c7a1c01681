"""Bodies that are read like files: the responses of urllib3 and http.client.

An observed response gets a subclass of its own class, whose methods record what they read. So no
other response pays for it, and one that is observed is recorded to its end, also where the hooks
have been removed meanwhile. At the stream's end it gets its class back.
"""

from __future__ import annotations

import threading
from abc import ABCMeta
from collections.abc import Callable, Generator, Mapping
from functools import wraps
from types import FunctionType, MethodType
from typing import Any, ClassVar, Final

from otel_sse.stream.nested import ObservedStream

# In a response that is observed: its ``BodyReader``.
_KEY: Final = "_otel_sse"
# What io sets before it closes an object that is freed.
_FINALIZING: Final = "_finalizing"

Original = Callable[..., Any]

_classes: Final[dict[tuple[type, type], type]] = {}


class BodyReader:
    """Calls the stream around each read of one response's body.

    A read may call another one, and the library may close its response in a read that fails: only
    the outer call is observed.

    Attributes:
        methods: by the name of a response's method, the name of the one here that observes it. It
            gets the response, the original and its arguments.
        stream: where it is recorded.

    """

    __slots__ = ("_kind", "_reading", "stream")

    methods: ClassVar[Mapping[str, str]]

    def __init__(self, stream: ObservedStream) -> None:
        self.stream = stream
        # The response's own class.
        self._kind: type | None = None
        # The thread that is in a read.
        self._reading: int | None = None

    @classmethod
    def make_method(cls, kind: type, name: str) -> Original:
        """The method ``name`` of the subclass of ``kind``."""
        observer = cls.methods[name]

        @wraps(getattr(kind, name))
        def method(body: Any, *args: Any, **kwargs: Any) -> Any:
            # Looked up at each call: another instrumentation may patch it at any time.
            original = getattr(kind, name).__get__(body)
            reader = reader_of(body)
            if reader is None or reader.is_reading():
                return original(*args, **kwargs)
            return getattr(reader, observer)(body, original, *args, **kwargs)

        return method

    def is_complete(self, body: Any) -> bool:
        """Whether all of the body has been read."""
        raise NotImplementedError

    def is_broken(self, body: Any, error: BaseException) -> bool:
        """Whether what a read raised is the end of the body; it may be a wrong argument only."""
        raise NotImplementedError

    def observe(self, body: Any) -> None:
        """Records what is read of ``body`` from now on."""
        self._kind = type(body)
        body.__class__ = observing_class(self._kind, type(self))
        vars(body)[_KEY] = self
        self.check_complete(body)

    def is_reading(self) -> bool:
        """Whether this thread is in a read."""
        return self._reading == threading.get_ident()

    def read(self, body: Any, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Observes what gives the bytes that it has read."""
        data = self.wait(body, original, *args, **kwargs)
        self.on_data(body, data)
        return data

    def wait(self, body: Any, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Observes what may wait for bytes; ``on_data`` follows."""
        before, self._reading = self._reading, threading.get_ident()
        self.stream.wait_started()
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            self.on_error(body, error)
            raise
        finally:
            self._reading = before

    def on_error(self, body: Any, error: BaseException) -> None:
        """A read raised ``error``."""
        self.stream.wait_ended()
        if self.is_broken(body, error):
            self.end(body, error)

    def on_data(self, body: Any, data: bytes | None) -> None:
        if data:
            self.stream.on_chunk(data, waited=True)
        else:
            self.stream.wait_ended()
        self.check_complete(body)

    def check_complete(self, body: Any) -> None:
        if self.is_complete(body):
            self.end(body, completed=True)

    def iterate(self, body: Any, chunks: Any) -> Generator[bytes, None, None]:
        """``chunks``, a generator, each of them recorded."""
        try:
            while (chunk := self.wait(body, next, chunks, None)) is not None:
                self.stream.on_chunk(chunk, waited=True)
                yield chunk
            self.check_complete(body)
        except GeneratorExit as error:
            chunks.close()
            if self.is_broken(body, error):
                self.end(body, error)
            raise

    def close(self, body: Any, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Observes what gives the rest up, before it breaks a read in another thread."""
        if _FINALIZING in vars(body):
            self.stream.on_owner_freed()
        else:
            self.end(body)
        return original(*args, **kwargs)

    def end(
        self, body: Any, error: BaseException | None = None, *, completed: bool = False
    ) -> None:
        self.stream.close(error, completed=completed)
        self.let_go(body)

    def let_go(self, body: Any) -> None:
        if vars(body).pop(_KEY, None) is not None:
            body.__class__ = self._kind


def reader_of(body: Any) -> BodyReader | None:
    """What observes ``body``, if anything does."""
    reader: BodyReader | None = vars(body).get(_KEY)
    return reader


def end_if_observed(body: Any) -> None:
    """The rest of ``body`` is given up, in a way that passes none of its methods."""
    if body is not None and (reader := reader_of(body)) is not None:
        reader.end(body)


def observing_class(kind: type, reader: type[BodyReader]) -> type:
    """The subclass of ``kind`` whose methods ``reader`` observes, those that it has.

    Raises:
        TypeError: it cannot be made.

    """
    made = _classes.get((kind, reader))
    if made is None:
        made = _classes[kind, reader] = _make_class(kind, reader)
    return made


def _make_class(kind: type, reader: type[BodyReader]) -> type:
    namespace: dict[str, Any] = {
        name: reader.make_method(kind, name) for name in reader.methods if hasattr(kind, name)
    }
    # Not io's, which is none of Python's.
    if isinstance(getattr(kind, "__del__", None), FunctionType):
        namespace["__del__"] = _freeing(kind)
    return make_subclass(kind, namespace)


class _Silent:
    """A base whose subclasses are announced to no other one."""

    def __init_subclass__(cls) -> None:
        """In place of the application's own."""


def make_subclass(kind: type, namespace: dict[str, Any]) -> type:
    """A subclass of ``kind``, of the same name and layout, for objects that are ``kind``'s.

    An application's ``__init_subclass__`` or metaclass is not called: it may register classes, or
    refuse them.
    """
    names = ("__module__", "__qualname__", "__doc__")
    namespace = {
        **{name: getattr(kind, name) for name in names},
        "__slots__": (),
        **namespace,
    }
    announces = isinstance(kind.__init_subclass__, MethodType)
    meta: Any = type(kind)
    # ABCMeta keeps a cache for each class.
    new: Any = (ABCMeta if issubclass(meta, ABCMeta) else type).__new__
    made: type = new(meta, kind.__name__, (_Silent, kind) if announces else (kind,), namespace)
    return made


def _freeing(kind: Any) -> Original:
    """For a class whose own ``__del__`` closes the response. Any lock may be held then."""

    @wraps(kind.__del__)
    def free(body: Any) -> None:
        reader = reader_of(body)
        if reader is not None:
            reader.let_go(body)
            reader.stream.on_owner_freed()
        kind.__del__(body)

    return free
