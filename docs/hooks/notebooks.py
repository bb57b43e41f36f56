"""MkDocs hook: show each notebook as a page, and offer the notebook itself for download."""

import json
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def page_of(notebook: Path) -> str:
    """Return the Markdown of a notebook's cells, without outputs."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    title, _, rest = "\n\n".join(parts).partition("\n\n")
    link = f'<a href="{notebook.name}" download>Download the notebook</a>'
    return f"{title}\n\n{link}\n\n{rest}\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        path = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, path, content=page_of(notebook)))
    return files
