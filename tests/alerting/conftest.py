"""Fixtures of the alerting tests."""

from pathlib import Path

import pytest
from alerting.promtool import render


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of rules for the SDK's export interval, and for the documented short one."""
    folders = {}
    for seconds in (60, 15):
        folders[seconds] = tmp_path_factory.mktemp(f"rules{seconds}")
        render(folders[seconds], OTEL_METRIC_EXPORT_INTERVAL=seconds * 1000)
    return folders
