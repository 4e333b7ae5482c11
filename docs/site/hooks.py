"""MkDocs hooks: pages from the repository's root, and links from pages to files outside docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages outside docs/ -> their names in the site."""
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, and copies of the other files of the repository that pages link to."""
    sources = {
        f"docs/{file.src_uri}": Path(file.abs_src_path or "").read_text() for file in files.documentation_pages()
    }
    for source, name in PAGES.items():
        sources[source] = (ROOT / source).read_text()
        content = LINK.sub(lambda match, source=source: _relink(match, source), sources[source])
        files.append(File.generated(config, name, content=content))
    for source, text in sources.items():
        for match in LINK.finditer(text):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
            if not target.startswith("docs/") and target not in PAGES and (ROOT / target).is_file():
                name = f"files/{target}"
                if name not in files.src_uris:
                    files.append(File.generated(config, name, content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that lead out of docs/ to the site's copies."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return LINK.sub(lambda match: _relink(match, f"docs/{page.file.src_uri}"), markdown)


def _relink(match: re.Match[str], source: str) -> str:
    """Return a Markdown link of the file ``source``, as a link of its page in the site."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
    name = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}")
    page = PAGES.get(source, source.removeprefix("docs/"))
    return f"{match[1]}{posixpath.relpath(name, posixpath.dirname(page) or '.')}{match[3] or ''}{match[4]}"


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles of docstrings: ``:func:`` before a name in code."""
    return re.sub(r":(?:func|class|meth|mod|attr|data):(?=<code>)", "", html)
