"""The pages that are written by docs/generate.py are those that code, registry and tests make."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from otel_sse import config, semconv

ROOT: Final = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES: Final = ("options", "metrics", "attributes", "spans-and-events")


@pytest.mark.parametrize(
    "name", ["compatibility", "endings", *(f"reference/{each}" for each in PAGES)]
)
def test_a_page_is_up_to_date(name: str, generate: ModuleType) -> None:
    """`make docs` writes them; a change of an option, of the registry, or of what the end-to-end
    tests run needs that.
    """
    page = ROOT / "docs" / f"{name}.md"
    assert page.read_text() == generate.pages()[page]


def test_every_framework_is_tested_on_a_server(generate: ModuleType) -> None:
    """Whatever has a server's instrumentor has a row."""
    _, rows = generate.tested.servers()
    listed = {row[0].lower().replace("-", "_") for row in rows}
    hooks = [each for each in generate.tested.targets() if ".servers." in each.hooks]
    assert {each.module.partition(".")[0] for each in hooks} <= listed


def test_every_option_and_every_metric_has_its_place() -> None:
    """Each option with its variable, each metric that is emitted with a section."""
    options = (ROOT / "docs/reference/options.md").read_text()
    for name in vars(config.Config()):
        assert f"| `{name}` | `OTEL_PYTHON_SSE_{name.upper()}`" in options, name
    metrics = (ROOT / "docs/reference/metrics.md").read_text()
    for role in (semconv.SERVER, semconv.CLIENT):
        for metric in role.metrics.values():
            assert f"### {metric.name}\n" in metrics, metric.name
