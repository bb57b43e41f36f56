"""MkDocs hook: write the API reference, with every name of `rankmon.__all__` and its namespaces.

A class or function of `rankmon` has a page, and so has each namespace, with all of its names.
"""

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import rankmon


def listed(path: Path) -> list[str]:
    """Return the names in `__all__` of a file, without importing what it imports."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def namespaces() -> dict[str, list[str]]:
    """Return the names of each public namespace: the package's files, and folders in `__all__`.

    Files without an `__all__` only redirect old names.
    """
    package = Path(rankmon.__file__).parent
    files = {path.stem: path for path in package.glob("*.py") if not path.stem.startswith("__")}
    folders = {path.parent.name: path for path in package.glob("*/__init__.py")}
    files |= {name: path for name, path in folders.items() if name in rankmon.__all__}
    return {name: names for name, path in sorted(files.items()) if (names := listed(path))}


NAMESPACES = namespaces()
NAMES = [name for name in rankmon.__all__ if name not in NAMESPACES]


def value_of(namespace: str, name: str | None = None) -> Any:
    """Return a namespace or a value of it; None if it needs a package that is not installed."""
    try:
        module = importlib.import_module(f"rankmon.{namespace}")
    except ModuleNotFoundError:
        return None
    return module if name is None else getattr(module, name)


def text_of(value: Any) -> str:
    """Return a docstring, or nothing for a value without its own."""
    documented = inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, ModuleType)
    return (inspect.getdoc(value) or "") if documented else ""


def summary(value: Any) -> str:
    """Return the first paragraph of a docstring for the cell of a table."""
    return text_of(value).partition("\n\n")[0].replace("\n", " ").replace("|", r"\|")


def namespace_page(namespace: str) -> str:
    """Return the page of a namespace; names that `rankmon` has too are links."""
    names = NAMESPACES[namespace]
    shared = [name for name in names if name in NAMES]
    lines = [f"# rankmon.{namespace}", text_of(value_of(namespace))]
    if shared:
        lines.append("Also names of `rankmon`: " + ", ".join(map(link, shared)) + ".")
    lines += [f"::: rankmon.{namespace}.{name}" for name in names if name not in shared]
    return "\n\n".join(lines)


def link(name: str) -> str:
    """Return a link to the page of a name of `rankmon`."""
    return f"[`{name}`](rankmon.{name}.md)"


def index_page() -> str:
    """Return the list of all names with their first sentences."""
    lines = ["# Reference", "", "Every public name, with the first sentence of its description."]
    lines += ["", "## rankmon", "", "| name | |", "|---|---|"]
    lines += [f"| {link(name)} | {summary(getattr(rankmon, name))} |" for name in NAMES]
    for namespace, names in NAMESPACES.items():
        lines += ["", f"## rankmon.{namespace}", "", "| name | |", "|---|---|"]
        for name in names:
            page = f"rankmon.{namespace}.md#rankmon.{namespace}.{name}"
            where = link(name) if name in NAMES else f"[`{name}`]({page})"
            lines.append(f"| {where} | {summary(value_of(namespace, name))} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Return the Markdown of each page of the reference by its path in the site."""
    found = {"api/index.md": index_page()}
    for name in NAMES:
        options = "    options:\n      heading_level: 1\n"
        found[f"api/rankmon.{name}.md"] = (
            f"---\ntitle: {name}\n---\n\n::: rankmon.{name}\n{options}"
        )
    return found | {f"api/rankmon.{name}.md": namespace_page(name) for name in NAMESPACES}


def on_config(config: Any) -> Any:
    """Put the pages below the navigation's entry for the reference."""
    classes = [name for name in NAMES if inspect.isclass(getattr(rankmon, name))]
    groups = {
        "Classes": classes,
        "Functions": [name for name in NAMES if name not in classes],
        "Namespaces": NAMESPACES,
    }
    for entry in config["nav"]:
        if "Reference" in entry:
            entry["Reference"] = [
                {"All names": "api/index.md"},
                *(
                    {group: [f"api/rankmon.{name}.md" for name in names]}
                    for group, names in groups.items()
                ),
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the site."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files
