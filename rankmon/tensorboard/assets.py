"""The static files of the tab: scripts, styles and licenses."""

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

_STATIC = files("rankmon.tensorboard") / "static"
_TYPES = MappingProxyType(
    {".js": "text/javascript", ".css": "text/css", ".txt": "text/plain", ".md": "text/plain"}
)


def static_files() -> Mapping[str, str]:
    """Return the files that are served: name below static/ -> MIME type."""
    found = {}
    folders = [("", _STATIC)]
    while folders:
        prefix, folder = folders.pop()
        for entry in folder.iterdir() if folder.is_dir() else ():
            name = prefix + entry.name
            kind = _TYPES.get(entry.name[entry.name.rfind(".") :])
            if entry.is_dir():
                folders.append((f"{name}/", entry))
            elif kind is not None:
                found[name] = kind
    return found


def static_text(name: str) -> str:
    """Return the text of a file, given its name below static/."""
    return _STATIC.joinpath(*name.split("/")).read_text(encoding="utf-8")
