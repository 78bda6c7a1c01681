"""The pages as a site: ``make docs`` builds them with Sphinx, MyST and furo."""

import re
from pathlib import Path

from sphinx.application import Sphinx

from otel_sse import __version__

HERE = Path(__file__).resolve().parent

project = "otel-sse"
author = "The otel-sse authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns: list[str] = []
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
autoclass_content = "both"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"otel-sse {__version__}"
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False


def _name_files(app: Sphinx, docname: str, source: list[str]) -> None:
    """A link to a file of the repository that is no page becomes its path: the site lacks it."""
    page = HERE / f"{docname}.md"

    def named(match: re.Match[str]) -> str:
        text, link = match.groups()
        path = link.partition("#")[0]
        if re.match(r"\w+:|#", link) or not path:
            return match[0]
        target = (page.parent / path).resolve()
        if target.is_relative_to(HERE) and target.suffix in {".md", ".png", ".svg"}:
            return match[0]
        name = str(target.relative_to(HERE.parent))
        bare = text.strip("`")
        return f"`{name}`" if bare and bare.rstrip("/") in f"docs/{name}" else f"{text} (`{name}`)"

    blocks = re.split(r"(?ms)(^ *```.*?^ *```$)", source[0])
    blocks[::2] = [re.sub(r"(?<!!)\[([^]]*)\]\(([^)\s]+)\)", named, each) for each in blocks[::2]]
    source[0] = "".join(blocks)


def setup(app: Sphinx) -> None:
    """Sphinx's hook."""
    app.connect("source-read", _name_files)
