"""The page in a real browser: what a person does, and what the address bar and the back button then hold."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

import lookalike
from lookalike.server import listen
from lookalike.server.app import create_app

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH: apt-get install chromium"),
    # Chromium's pipes are closed by the garbage collector when the browser ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def address(catalog: lookalike.Catalog) -> Iterator[str]:
    with listen("127.0.0.1", 0, "") as bound:
        server = uvicorn.Server(uvicorn.Config(create_app(catalog), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(15)


@pytest.fixture
def page(browser, address: str) -> Iterator[object]:
    opened = browser.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(address)
    yield opened
    opened.close()
    assert [s for s in said if "400 (Bad Request)" not in s] == []  # the browser's own note of a refused filter


def test_words_filter_address_and_back(page, address: str):
    expect = playwright.expect
    page.get_by_role("searchbox").fill("red shirt")
    with page.expect_request(lambda request: "lexical=0.3" in request.url):  # words alone match titles, too
        page.get_by_role("searchbox").press("Enter")
    expect(page).to_have_url(re.compile(r"text=red\+shirt"))
    assert "lexical" not in page.url
    expect(page.get_by_text(re.compile(r"12 products"))).to_be_visible()
    page.get_by_role("checkbox", name=re.compile("^Blue")).check()
    expect(page).to_have_url(re.compile("where="))
    expect(page.get_by_text(re.compile(r"\b3 products"))).to_be_visible()
    page.reload()
    expect(page.get_by_text(re.compile(r"\b3 products"))).to_be_visible()
    page.go_back()
    expect(page.get_by_text(re.compile(r"12 products"))).to_be_visible()


def test_a_photo_then_more_like_a_result(page, tmp_path: Path):
    expect = playwright.expect
    page.locator("input[type=file]").first.set_input_files(tmp_path / "img" / "1.jpg")
    expect(page.locator("lookalike-search")).to_contain_text("blue shirt")
    page.get_by_role("button", name=re.compile("blue dress")).first.click()
    expect(page).to_have_url(re.compile("like=p05"))


def test_a_broken_filter_in_the_address_is_told(page, address: str):
    page.goto(f"{address}/?text=red&where=colur%3D'x'")
    playwright.expect(page.get_by_text(re.compile("did you mean 'colour'"))).to_be_visible()
