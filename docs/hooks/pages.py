"""MkDocs hook: serve the repository's files to which pages link, so that the site needs no other.

Links of pages are relative in the repository, where they work as well. A link out of docs/ gets the
target's copy in the site's folder `repository`; Markdown files among them are pages.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "logs/README.md")
FRONT = {"README.md": "docs/index.md"}  # the site's own first page takes the place of the README
LINK = re.compile(r'(?P<before>\]\(|(?:href|src)=")(?P<path>[^)"#:]+)(?P<after>#[^)"]*)?(?=[)"])')


def in_repository(page: str) -> str:
    """Return the path in the repository of a page of the site."""
    return page.removeprefix("repository/") if page.startswith("repository/") else f"docs/{page}"


def in_site(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    path = FRONT.get(path, path)
    if path.startswith("docs/notebooks/"):
        path = path.removesuffix(".ipynb") + ".md"  # the page that shows the notebook
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def targets(text: str, page: str) -> list[str]:
    """Return the files of the repository to which a page of the repository links."""
    folder = posixpath.dirname(page)
    paths = (posixpath.normpath(posixpath.join(folder, m["path"])) for m in LINK.finditer(text))
    return [path for path in dict.fromkeys(paths) if (ROOT / path).is_file()]


def with_site_links(text: str, page: str) -> str:
    """Return a page's Markdown with links that are relative to the page in the site."""
    source, here = in_repository(page), posixpath.dirname(page)

    def moved(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["path"]))
        if not (ROOT / path).is_file():
            return match[0]
        return match["before"] + posixpath.relpath(in_site(path), here) + (match["after"] or "")

    return LINK.sub(moved, text)


def with_blank_lines(text: str) -> str:
    """Return Markdown with a blank line before each list, as Python-Markdown needs it."""
    lines: list[str] = []
    fenced = False
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        starts = re.match(r"(?:[-*]|\d+\.) ", line) and lines and not fenced
        if starts and re.match(r"[^\s\-*\d]|\*\*", lines[-1]):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of other folders, and all files to which pages link."""
    from mkdocs.structure.files import File

    for page in PAGES:
        path = str(ROOT / page)
        files.append(File.generated(config, f"repository/{page}", abs_src_path=path))
    sources = [*PAGES, *(in_repository(file.src_uri) for file in files.documentation_pages())]
    for source in filter(lambda source: (ROOT / source).is_file(), dict.fromkeys(sources)):
        for path in targets((ROOT / source).read_text(), source):
            if path.endswith(".ipynb"):
                continue  # has a page
            if files.get_file_from_path(in_site(path)) is None:
                copy = File.generated(config, in_site(path), abs_src_path=str(ROOT / path))
                files.append(copy)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Move the links of a page from the repository to the site."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    return with_blank_lines(with_site_links(markdown, page.file.src_uri))
