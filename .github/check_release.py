"""Checks that built files belong to a tag and to a repository: else the release stops.

``check_release.py TAG URL FILE...``
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path


def metadata_of(file: Path) -> Message:
    """The metadata of a wheel, or of a source distribution."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
            return message_from_bytes(archive.read(name))
    with tarfile.open(file) as archive_:
        (member,) = (
            each
            for each in archive_.getnames()
            if each.count("/") == 1 and each.endswith("/PKG-INFO")
        )
        content = archive_.extractfile(member)
        assert content is not None
        return message_from_bytes(content.read())


def faults(tag: str, url: str, metadata: Message) -> list[str]:
    """What is wrong, a sentence each."""
    found = []
    if tag != f"v{metadata['Version']}":
        found.append(f"the tag {tag} is not that of version {metadata['Version']}")
    urls = dict(each.split(", ", 1) for each in metadata.get_all("Project-URL", ()))
    if urls.get("Source") != url:
        found.append(f"[project.urls] names {urls.get('Source')}, and this is {url}")
    return found


def main(tag: str, url: str, *files: str) -> int:
    """Prints every fault; the exit status is 1 if there is one."""
    found = [
        f"{name}: {each}" for name in files for each in faults(tag, url, metadata_of(Path(name)))
    ]
    if {Path(name).suffix for name in files} != {".whl", ".gz"}:
        found.append("there are not both a wheel and a source distribution")
    print("\n".join(found) or f"{len(files)} files are of {tag} and {url}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
