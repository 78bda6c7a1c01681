"""The pages of docs/reference are those that the code and the registry make."""

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


@pytest.mark.parametrize("name", ["options", "metrics", "attributes", "spans-and-events"])
def test_a_page_is_up_to_date(name: str, generate: ModuleType) -> None:
    """`make docs` writes them; a change of an option or of the registry needs that."""
    page = ROOT / "docs" / "reference" / f"{name}.md"
    assert page.read_text() == generate.pages()[page]


def test_every_option_and_every_metric_has_its_place() -> None:
    """Each option with its variable, each metric that is emitted with a section."""
    options = (ROOT / "docs/reference/options.md").read_text()
    for name in vars(config.Config()):
        assert f"| `{name}` | `OTEL_PYTHON_SSE_{name.upper()}`" in options, name
    metrics = (ROOT / "docs/reference/metrics.md").read_text()
    for role in (semconv.SERVER, semconv.CLIENT):
        for metric in role.metrics.values():
            assert f"### {metric.name}\n" in metrics, metric.name
