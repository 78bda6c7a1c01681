"""Options: a keyword wins, a bad keyword raises, a bad variable warns and keeps the default."""

import logging
from dataclasses import fields

import pytest

from otel_sse.config import Config, Options, load


def test_defaults_are_the_documented_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options and variables, the configuration is the documented default."""
    for name in vars(Config()):
        monkeypatch.delenv("OTEL_PYTHON_SSE_" + name.upper(), raising=False)
    assert vars(load({})) == {
        "excluded_urls": None,
        "message_events": frozenset({"span"}),
        "message_event_detail": "edges",
        "lifecycle_events": "all",
        "segment_seconds": 300.0,
        "stall_seconds": 60.0,
        "slow_send_seconds": 0.5,
        "event_types": frozenset(),
        "capture_event_id": False,
        "propagate": False,
        "shutdown_seconds": 10.0,
        "final_events": frozenset(
            {"message_stop", "response.completed", "response.failed", "response.incomplete"}
        ),
    }


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("message_events", "span,log", frozenset({"span", "log"})),
        ("message_events", "NONE", frozenset()),
        ("message_event_detail", "ALL", "all"),
        ("lifecycle_events", "closed", "closed"),
        ("segment_seconds", "12.5", 12.5),
        ("stall_seconds", "0", 0.0),
        ("slow_send_seconds", "2", 2.0),
        ("event_types", "token, done ,", frozenset({"token", "done"})),
        ("capture_event_id", "true", True),
        ("propagate", "True", True),
        ("shutdown_seconds", "25", 25.0),
        ("final_events", "done, end", frozenset({"done", "end"})),
    ],
)
def test_a_variable_and_a_keyword_are_read_alike(
    name: str, value: str, parsed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option is taken from its environment variable, and the same word as a keyword."""
    monkeypatch.setenv("OTEL_PYTHON_SSE_" + name.upper(), value)
    assert getattr(load({}), name) == parsed
    monkeypatch.delenv("OTEL_PYTHON_SSE_" + name.upper())
    assert getattr(load({name: value}), name) == parsed


BAD = [
    ("message_events", "spans"),
    ("message_events", "none,span"),
    ("message_event_detail", "some"),
    ("lifecycle_events", "yes"),
    ("segment_seconds", "0"),
    ("segment_seconds", "soon"),
    ("segment_seconds", "nan"),
    ("stall_seconds", "-1"),
    ("slow_send_seconds", "inf"),
    ("capture_event_id", "perhaps"),
    ("propagate", "1"),
    ("shutdown_seconds", "0"),
    ("shutdown_seconds", "inf"),
    ("excluded_urls", "([a-z"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_keyword_raises_what_to_write_instead(name: str, value: str) -> None:
    """The error names the option, the value and what it takes."""
    with pytest.raises(ValueError, match=name) as raised:
        load({name: value})
    assert repr(value) in str(raised.value)
    assert "it takes" in str(raised.value)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_variable_warns_and_keeps_the_default(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Telemetry never stops an application: the environment cannot raise. Several instrumentors
    read it, and one warns.
    """
    variable = "OTEL_PYTHON_SSE_" + name.upper()
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("otel_sse.config._warned", set())
    with caplog.at_level(logging.WARNING, "otel_sse"):
        configs = [load({}) for _ in range(2)]
    for config in configs:
        assert getattr(config, name) == getattr(Config(), name)
    (record,) = caplog.records
    assert variable in record.getMessage()
    assert value in record.getMessage()
    assert "it takes" in record.getMessage()


def test_type_checkers_know_each_option() -> None:
    """What a middleware takes as a keyword argument is what there is."""
    assert Options.__annotations__.keys() == {each.name for each in fields(Config)}


def test_an_unknown_option_is_a_type_error_that_lists_the_known() -> None:
    """A misspelt keyword raises; the error lists the options."""
    with pytest.raises(TypeError, match="segment_seconds"):
        load({"segments": 3})


def test_a_keyword_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument decides, even where the variable is bad."""
    monkeypatch.setenv("OTEL_PYTHON_SSE_STALL_SECONDS", "bad")
    assert load({"stall_seconds": 5}).stall_seconds == 5


def test_excluded_urls_fall_back_to_the_common_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own variable wins over OTEL_PYTHON_EXCLUDED_URLS, which holds where ours is absent."""
    monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", "health,/metrics$")
    config = load({})
    assert config.excludes("http://localhost/healthz")
    assert config.excludes("http://localhost/metrics")
    assert not config.excludes("http://localhost/metrics/events")
    monkeypatch.setenv("OTEL_PYTHON_SSE_EXCLUDED_URLS", "events")
    assert load({}).excludes("http://localhost/metrics/events")
    assert not load({}).excludes("http://localhost/healthz")
