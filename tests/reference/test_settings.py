"""Settings are read once, and a bad one is reported so that it can be corrected."""

import re
from dataclasses import fields

import pytest
from reference.served import EXAMPLES, Worker
from server.app import build
from server.settings import SettingError, Settings, load


def test_nothing_set_is_the_defaults() -> None:
    """Without variables the server starts, and other programs' variables are none of its own."""
    assert load({"PORT": "1", "SSE_MAX_CONNECTIONS": "x", "SSE_SERVER_HOST": " "}) == Settings()


def test_each_kind_is_read() -> None:
    """A text, a whole number, a fraction and a choice come as what they are."""
    settings = load(
        {
            "SSE_SERVER_REDIS_URL": "redis://localhost:1/0",
            "SSE_SERVER_BATCH_SIZE": "5",
            "SSE_SERVER_BATCH_SECONDS": "0",
            "SSE_SERVER_SLOW_CLIENT": "disconnect",
        }
    )
    assert settings == Settings(
        "127.0.0.1",
        8080,
        "redis://localhost:1/0",
        batch_size=5,
        batch_seconds=0.0,
        slow_client="disconnect",
    )


@pytest.mark.parametrize(
    ("variable", "text", "takes"),
    [
        ("SSE_SERVER_PORT", "http", "a whole number of 0 or more, at most 65535"),
        ("SSE_SERVER_PORT", "70000", "a whole number of 0 or more, at most 65535"),
        ("SSE_SERVER_BATCH_SIZE", "0", "a whole number above 0"),
        ("SSE_SERVER_BATCH_SIZE", "1.5", "a whole number above 0"),
        ("SSE_SERVER_IDLE_SECONDS", "nan", "a number above 0"),
        ("SSE_SERVER_AGE_SECONDS", "inf", "a number above 0"),
        ("SSE_SERVER_BATCH_SECONDS", "-1", "a number of 0 or more"),
        ("SSE_SERVER_SLOW_CLIENT", "wait", "drop_oldest or disconnect"),
    ],
)
def test_a_bad_value_is_reported(variable: str, text: str, takes: str) -> None:
    """The message names the variable, the value, and what it takes."""
    with pytest.raises(SettingError) as error:
        load({variable: text})
    assert str(error.value) == f"{variable}={text!r}: it takes {takes}"


def test_an_unknown_variable_is_reported() -> None:
    """A slip of the pen does not pass for a setting."""
    with pytest.raises(SettingError, match="SSE_SERVER_PROT is no variable"):
        load({"SSE_SERVER_PROT": "1"})


def test_the_process_ends_with_2() -> None:
    """The command prints what is wrong, and nothing else, and its exit status is 2."""
    with Worker(heartbeat_seconds="often") as worker:
        assert worker.process.wait(20) == 2
        assert worker.log == ("SSE_SERVER_HEARTBEAT_SECONDS='often': it takes a number above 0\n")


def test_every_setting_is_in_the_readme() -> None:
    """The table has each variable with its default."""
    readme = (EXAMPLES / "server" / "README.md").read_text()
    documented: dict[str, str] = {}
    for names, defaults in re.findall(
        r"^\| (`SSE_SERVER_[^|]+) \| ([^|]+) \|", readme, re.MULTILINE
    ):
        documented.update(zip(names.split(", "), defaults.split(", "), strict=True))
    settings = {
        f"`SSE_SERVER_{field.name.upper()}`": (
            f"`{field.default:g}`" if type(field.default) is float else f"`{field.default}`"
        )
        for field in fields(Settings)
    }
    settings["`SSE_SERVER_THRESHOLDS`"] = "`collector/thresholds.yaml` of the checkout"
    assert documented == {
        name: "none" if default == "``" else default for name, default in settings.items()
    }


@pytest.mark.parametrize("url", ["foo", "http://:s3cret@host", "redis://:s3cret@host:port/0"])
def test_a_bad_url_is_reported_without_its_password(url: str) -> None:
    """The message names the variable and what it takes."""
    with pytest.raises(SettingError) as error:
        build(Settings(redis_url=url))
    assert str(error.value) == "SSE_SERVER_REDIS_URL: it takes redis://host:6379/0"
