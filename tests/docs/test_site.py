"""The documentation's site: it builds without a warning, its links lead somewhere, no page is wider than the window."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium import webdriver

from support.launcher import HERE

pytestmark = pytest.mark.server

#: Pixels: a phone and a desktop.
WIDTHS = (390, 1280)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    shutil.copy(HERE.parent / "mkdocs.yml", made)
    for argv in (
        [sys.executable, str(HERE.parent / "docs" / "assemble.py"), str(made / "build" / "pages")],
        [str(Path(sys.executable).with_name("zensical")), "build", "--strict"],
    ):
        done = subprocess.run(argv, cwd=made, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return made / "build" / "site"


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    words = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for word in [*words.split(), "disable-component-update", "disable-sync"]:
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def test_every_page_fits_and_every_link_on_it_leads_somewhere(
    site: Path, server: str, browser: webdriver.Chrome
) -> None:
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "404.html")
    assert "reference/pod-file.html" in pages
    anchors: dict[str, set[str]] = {}
    links: list[tuple[str, str]] = []
    for page in pages:
        for width in WIDTHS:
            browser.set_window_size(width, 900)
            browser.get(f"{server}/{page}")
            wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"{page} is {wide} pixels wider than a window of {width}"
        broken = browser.execute_script(
            "return [...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
        )
        assert not broken, page
        anchors[page] = set(browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)"))
        found = browser.execute_script("return [...document.links].map(link => link.href)")
        links += [(page, link.removeprefix(f"{server}/")) for link in found if link.startswith(server)]
    assert len(links) > 100
    for page, link in links:
        target, _, anchor = link.partition("#")
        target = target or "index.html"
        assert (site / target).exists(), f"{page} leads to {target}"
        assert not anchor or target not in anchors or anchor in anchors[target], f"{page} leads to {link}"
