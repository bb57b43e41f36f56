"""Test the site: every public name is in its reference, and it loads nothing from elsewhere."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import rankmon
from paths import ROOT

LOADED = {"img": "src", "link": "href", "script": "src", "source": "src", "iframe": "src"}


@pytest.fixture(scope="module")
def reference():
    """The hook that writes the pages of the reference."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/hooks/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_names(reference) -> list[str]:
    """All names as they are imported; those of a namespace that `rankmon` has too appear once."""
    names = [f"rankmon.{name}" for name in reference.NAMES]
    for namespace, listed in reference.NAMESPACES.items():
        shared = [name for name in listed if name in reference.NAMES]
        module = importlib.import_module(f"rankmon.{namespace}") if shared else None
        assert all(getattr(module, name) is getattr(rankmon, name) for name in shared)
        names += [f"rankmon.{namespace}.{name}" for name in set(listed) - set(shared)]
    return names


def test_every_public_name_has_its_page(reference):
    assert {*reference.NAMES, *reference.NAMESPACES} >= {*rankmon.__all__, "measurement"}
    for namespace in set(reference.NAMESPACES) & {*rankmon.__all__, "measurement"}:
        module = importlib.import_module(f"rankmon.{namespace}")
        assert reference.NAMESPACES[namespace] == module.__all__
    pages = reference.pages()
    text = "\n".join(pages.values())
    for name in public_names(reference):
        assert len(re.findall(rf"^::: {re.escape(name)}$", text, re.MULTILINE)) == 1, name
        assert f"`{name.rpartition('.')[2]}`" in pages["api/index.md"]


class Resources(HTMLParser):
    """Collects what a page loads, and the ids of its elements."""

    def __init__(self):
        super().__init__()
        self.loaded, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if attrs.get(LOADED.get(tag)) and attrs.get("rel") != "canonical":
            self.loaded.append(attrs[LOADED[tag]])


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_serves_all_that_it_loads(reference, tmp_path):
    if not os.environ.get("CI"):
        pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: Resources() for path in tmp_path.rglob("*.html")}
    for path, page in pages.items():
        page.feed(path.read_text())
        for source in page.loaded:
            assert not re.match(r"(?:https?:)?//", source), (path.name, source)
            if path.name != "404.html":  # its links are absolute
                assert (path.parent / source.partition("?")[0]).exists(), (path.name, source)
    ids = set().union(*(page.ids for page in pages.values()))
    assert set(public_names(reference)) <= ids
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text()), style.name
    assert 'class="arithmatex"' in (tmp_path / "theory.html").read_text()
    assert not (tmp_path / "hooks").exists()
