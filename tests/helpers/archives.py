"""Unpacks source distributions."""

import tarfile
from pathlib import Path


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks a source distribution into an empty folder; the folder of its files."""
    with tarfile.open(sdist) as archive:
        # Python 3.10 and 3.11 have the filter since 3.10.12 and 3.11.4; Debian 12 has 3.11.2.
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    (source,) = folder.iterdir()
    return source
