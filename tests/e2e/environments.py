"""Virtual environments in which something is missing, for real: made of links to this one."""

import sys
import sysconfig
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

_SITE = Path(sysconfig.get_paths()["purelib"])


def without(folder: Path, *distributions: str) -> Path:
    """A new environment in ``folder`` that has all of this one's packages but these, of which some
    may be missing here, too.

    Gives its Python.
    """
    hidden = {
        Path(str(file))
        for name in distributions
        for found in Distribution.discover(name=name)
        for file in found.files or ()
        if not str(file).startswith("..")
    }
    return _linked(folder, hidden)


def with_version(folder: Path, name: str, version: str) -> Path:
    """The same, with one distribution that claims to be of another version."""
    info = next(
        Path(str(file)).parts[0]
        for file in distribution(name).files or ()
        if str(file).endswith("METADATA")
    )
    python = _linked(folder, {Path(info) / "METADATA"})
    metadata = (_SITE / info / "METADATA").read_text()
    true = distribution(name).version
    site = _site(folder)
    (site / info / "METADATA").write_text(
        metadata.replace(f"\nVersion: {true}\n", f"\nVersion: {version}\n", 1)
    )
    return python


def _site(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def _linked(folder: Path, hidden: set[Path]) -> Path:
    if sys.platform == "win32":
        pytest.skip("links need a POSIX system")
    site = _site(folder)
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    (folder / "bin" / "python").symlink_to(base)
    (folder / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n"
    )
    parents = {parent for file in hidden for parent in file.parents}
    _link(_SITE, site, Path(), hidden, parents)
    return folder / "bin" / "python"


def _link(source: Path, target: Path, at: Path, hidden: set[Path], parents: set[Path]) -> None:
    """Links each entry; only a folder in which something is hidden is made anew."""
    for entry in (source / at).iterdir():
        inner = at / entry.name
        if inner in hidden or entry.name == "__pycache__":
            continue
        if inner in parents:
            (target / inner).mkdir()
            _link(source, target, inner, hidden, parents)
            if not any((target / inner).iterdir()):
                (target / inner).rmdir()
        else:
            (target / inner).symlink_to(entry)
