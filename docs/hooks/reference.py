"""MkDocs hook: write the API reference, with every name of `rankmon.__all__` and its namespaces.

A class or function of `rankmon` has a page, and so has each namespace, with all of its names.
"""

import importlib
import inspect
from types import ModuleType
from typing import Any

import rankmon

# `rankmon.measurement` has the building blocks of a probe, and `rankmon.keras` imports Keras: both
# are no names of `rankmon.__all__`.
NAMESPACES = sorted(
    {name for name in rankmon.__all__ if isinstance(getattr(rankmon, name), ModuleType)}
    | {"keras", "measurement"}
)
NAMES = [name for name in rankmon.__all__ if name not in NAMESPACES]


def summary(value: Any) -> str:
    """Return the first sentence of a docstring, or nothing for a value without its own."""
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return ""
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ").replace("|", r"\|")


def namespace_page(namespace: str) -> str:
    """Return the page of a namespace; names that `rankmon` has too are links."""
    module = importlib.import_module(f"rankmon.{namespace}")
    shared = [name for name in module.__all__ if name in NAMES]
    lines = [f"# rankmon.{namespace}", inspect.getdoc(module) or ""]
    if shared:
        lines.append("Also names of `rankmon`: " + ", ".join(map(link, shared)) + ".")
    lines += [f"::: rankmon.{namespace}.{name}" for name in module.__all__ if name not in shared]
    return "\n\n".join(lines)


def link(name: str) -> str:
    """Return a link to the page of a name of `rankmon`."""
    return f"[`{name}`](rankmon.{name}.md)"


def index_page() -> str:
    """Return the list of all names with their first sentences."""
    lines = ["# Reference", "", "Every public name, with the first sentence of its description."]
    lines += ["", "## rankmon", "", "| name | |", "|---|---|"]
    lines += [f"| {link(name)} | {summary(getattr(rankmon, name))} |" for name in NAMES]
    for namespace in NAMESPACES:
        module = importlib.import_module(f"rankmon.{namespace}")
        lines += ["", f"## rankmon.{namespace}", "", "| name | |", "|---|---|"]
        for name in module.__all__:
            page = f"rankmon.{namespace}.md#rankmon.{namespace}.{name}"
            where = link(name) if name in NAMES else f"[`{name}`]({page})"
            lines.append(f"| {where} | {summary(getattr(module, name))} |")
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
                    {group: [f"api/rankmon.{n}.md" for n in names]}
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
