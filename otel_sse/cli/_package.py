"""All that the command line takes from the rest of the package, in one place."""

import logging
from typing import Final

from otel_sse import config
from otel_sse.version import __version__

__all__ = ["OPTION_PREFIX", "OPTION_VARIABLES", "__version__", "bad_option", "excludes", "install"]

OPTION_PREFIX: Final = "OTEL_PYTHON_SSE_"
OPTION_VARIABLES: Final = tuple(
    OPTION_PREFIX + name.upper() for name in config.Config.__dataclass_fields__
)


def install(extra: str) -> str:
    """The command that installs otel-sse with an extra. It is on no package index yet, where its
    name may be anybody's.
    """
    return f"pip install '/path/to/checkout[{extra}]'"


def bad_option(variable: str, value: str) -> str | None:
    """Why this value of one of ``OPTION_VARIABLES`` is bad; None where it is good."""
    name = variable.removeprefix(OPTION_PREFIX).lower()
    try:
        logging.getLogger("otel_sse").disabled = True
        config.load({name: value})
    except (TypeError, ValueError) as error:
        return str(error).partition(": it takes ")[2] or str(error)
    finally:
        logging.getLogger("otel_sse").disabled = False
    return None


def excludes(patterns: str, url: str) -> bool:
    """Whether the option ``excluded_urls`` excludes a URL (scheme, host and path)."""
    try:
        return config.load({"excluded_urls": patterns}).excludes(url)
    except ValueError:
        return False
