"""The site of docs/: built strictly, with the structure that GitHub shows, and readable in a real browser."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import browse_with_log, needs_browser
from markdown_it import MarkdownIt
from support import ROOT, clean_environment

pytest.importorskip("material", reason="mkdocs-material comes with dnabert_rm[docs]")
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
STRUCTURE = {"h1", "h2", "h3", "h4", "ul", "ol", "li", "table", "tr", "pre", "img"}
WINDOW = 500
"""Width in pixels, the narrowest window that the browser has without a display."""
MEASURE = """<script>addEventListener("load", () => setTimeout(() => {
  const shown = [...document.querySelectorAll("article > *")].map(e => e.getBoundingClientRect().right);
  const links = [...document.querySelectorAll("nav.md-nav--primary > ul > li > a")].map(a => a.pathname);
  const wide = document.documentElement.scrollWidth - innerWidth;
  const facts = {window: innerWidth, wide: wide, right: Math.max(...shown), links: links,
      images: [...document.querySelectorAll("article img")].map(i => i.naturalWidth)};
  document.body.setAttribute("data-facts", encodeURIComponent(JSON.stringify(facts)));
}, 500))</script>"""


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the checkout, or of another `mkdocs.yml` in `folder`, into `folder`/site."""
    config = folder / "mkdocs.yml" if (folder / "mkdocs.yml").exists() else ROOT / "mkdocs.yml"
    words = [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", folder / "site"]
    environment = {**clean_environment(), "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stderr
    return folder / "site"


class Server(http.server.ThreadingHTTPServer):
    """A server of a folder. `missing` lists the requests that it had no file for."""

    def __init__(self, folder: Path) -> None:
        self.missing: list[str] = []
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def log_error(self, *_: object) -> None:
        self.server.missing.append(self.path)


@pytest.fixture
def server(site: Path) -> Iterator[Server]:
    with Server(site) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


class Elements(HTMLParser):
    """Count the elements of an HTML text that make its structure, in its `article` if `article` is true."""

    def __init__(self, text: str, article: bool) -> None:
        super().__init__()
        self.counted, self.found = not article, Counter[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counted |= tag == "article"
        if self.counted and tag in STRUCTURE:
            self.found[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self.counted &= tag != "article"


def on_github(text: str) -> Counter[str]:
    return Elements(MarkdownIt("commonmark").enable("table").render(text), article=False).found


def on_the_site(html: str) -> Counter[str]:
    return Elements(html, article=True).found


@pytest.mark.parametrize("page", PAGES)
def test_lists_tables_and_code_are_those_that_github_shows(site: Path, page: str) -> None:
    """Python-Markdown needs an empty line before a list and four spaces for what belongs to a list's item."""
    shown = on_the_site((site / f"{page}.html").read_text())
    assert shown == on_github((ROOT / "docs" / f"{page}.md").read_text())


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loaded = re.compile(r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect)")[^>]*(?:src|href)="?(https?:|//)')
    for page in PAGES:
        assert not loaded.search((site / f"{page}.html").read_text()), page


@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_a_narrow_window_and_has_all_pages_in_its_navigation(
    site: Path, server: Server, tmp_path: Path, page: str
) -> None:
    facts, log = measured(site, server, tmp_path, page)
    assert log == [] and server.missing == []
    assert facts["window"] == WINDOW and facts["wide"] <= 0 and facts["right"] <= WINDOW
    assert sorted(Path(link).stem for link in facts["links"]) == PAGES
    assert all(width > 500 for width in facts["images"])
    assert len(facts["images"]) == on_the_site((site / f"{page}.html").read_text())["img"]


@needs_browser
def test_wide_content_and_errors_are_seen(site: Path, server: Server, tmp_path: Path) -> None:
    broken = '<p style="width: 600px">wide</p><script>missing()</script><img src="none.png"></article>'
    facts, log = measured(site, server, tmp_path, "quickstart", broken)
    assert facts["wide"] > 0 and facts["right"] > WINDOW
    assert [width > 0 for width in facts["images"]] == [True, False], "the page's picture, and the missing one"
    assert any("missing is not defined" in line for line in log)
    assert server.missing == ["/none.png"]


def measured(site: Path, server: Server, folder: Path, page: str, end: str = "</article>") -> tuple[dict, list[str]]:
    """Open a page with `end` as the end of its article. Return its measures and the lines on the console."""
    html = (site / f"{page}.html").read_text()
    copy = site / f"measured_{page}.html"
    copy.write_text(html.replace("</article>", end).replace("</body>", MEASURE + "</body>"))
    words = ["--virtual-time-budget=10000", "--dump-dom", f"http://127.0.0.1:{server.server_port}/{copy.name}"]
    try:
        dom, log = browse_with_log(folder, *words, width=WINDOW)
    finally:
        copy.unlink()
    return json.loads(urllib.request.unquote(re.search(r'data-facts="([^"]+)"', dom)[1])), log


@pytest.mark.parametrize(
    ("live", "dead", "message"),
    [
        ("(two.md#a-heading)", "(three.md)", "link 'three.md'"),
        ("(two.md#a-heading)", "(two.md#no-heading)", "anchor '#no-heading'"),
        ("  - Two: two.md\n", "", 'not included in the "nav"'),
    ],
)
def test_a_dead_link_and_a_page_outside_the_navigation_stop_the_build(
    tmp_path: Path, live: str, dead: str, message: str
) -> None:
    """With the checkout's settings on pages of its own. A link to a file outside docs/ is text."""
    config = (ROOT / "mkdocs.yml").read_text()
    pages = "nav:\n  - One: index.md\n  - Two: two.md\n"
    config = re.sub(r"nav:\n(?:  - .*\n)+", pages, config, count=1)
    config = config.replace("docs/site_hooks.py", os.fspath(ROOT / "docs" / "site_hooks.py"))
    first = "# One\n\n[A heading](two.md#a-heading), [LOG](../dev/LOG.md).\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(config)
    (tmp_path / "docs" / "index.md").write_text(first)
    (tmp_path / "docs" / "two.md").write_text("# Two\n\n## A heading\n")
    built = build(tmp_path)
    assert built.returncode == 0, built.stderr
    html = (tmp_path / "site" / "index.html").read_text()
    assert 'href="two.html#a-heading"' in html and "LOG.md" not in html and ", LOG." in html
    (tmp_path / "mkdocs.yml").write_text(config.replace(live, dead))
    (tmp_path / "docs" / "index.md").write_text(first.replace(live, dead))
    built = build(tmp_path)
    assert built.returncode == 1 and message in built.stderr, built.stderr
