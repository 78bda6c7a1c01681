"""The compose file and what its services are given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from examples.commands import EXAMPLES

COMPOSE: Final = EXAMPLES / "compose"
FILE: Final = COMPOSE / "compose.yaml"
DOCKERFILE: Final = COMPOSE / "Dockerfile"
PROJECT: Final = yaml.safe_load(FILE.read_text())
SERVICES: Final[dict[str, Any]] = PROJECT["services"]
WORKERS: Final = [name for name in SERVICES if name.startswith("worker-")]


def binds() -> Iterator[tuple[str, Path, str]]:
    """Service, file or folder, and where it is seen; what is mounted is never written."""
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, target, *mode = mount.split(":")
            if source.startswith("."):
                assert mode == ["ro"], mount
                yield name, (COMPOSE / source).resolve(), target


def mounted(service: str, path: str) -> Path:
    """The file of this repository that the service sees there."""
    for name, source, target in binds():
        if name == service and (path == target or path.startswith(target + "/")):
            return source / path[len(target) :].lstrip("/")
    raise AssertionError(f"{service} sees no {path}")
