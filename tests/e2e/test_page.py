"""The page, the work on the catalog and the widget in a real browser: what a person does, and what one then sees."""

from __future__ import annotations

import base64
import csv
import importlib.util
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import uvicorn
from PIL import Image

import lookalike
from conftest import draw, write_csv
from lookalike import demo
from lookalike.server import keys, listen
from lookalike.server.app import create_app
from lookalike.types import Query

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")
expect = playwright.expect
expect.set_options(timeout=15_000)  # another process of tests has the other core
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH: apt-get install chromium"),
    # Chromium's pipes are closed by the garbage collector when the browser ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--no-first-run"]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    with listen("127.0.0.1", 0, "") as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(15)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> lookalike.Catalog:
    """64 drawn garments, one of them three times: P0001, again1, again2."""
    root = tmp_path_factory.mktemp("shop")
    table = demo.draw(root, 64)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for n in (1, 2):
        shutil.copy(root / rows[0]["image"], root / "images" / f"again{n}.jpg")
        rows.append({**rows[0], "id": f"again{n}", "image": f"images/again{n}.jpg"})
    catalog = lookalike.open(root / "shop.catalog")
    catalog.index(write_csv(table, rows))
    return catalog


def passing(shop: lookalike.Catalog, where: str) -> str:
    """How the page counts the products that pass a filter."""
    return f"of {shop.answer(Query(text='x', where=where)).total} products"


@pytest.fixture(scope="module")
def address(shop: lookalike.Catalog) -> Iterator[str]:
    with served(create_app(shop)) as url:
        yield url


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; at the end, none said anything on the console, and none asked another server than it should."""
    said: list[str] = []
    with ExitStack() as stack:

        def make(url: str, also: tuple[str, ...] = (), **options: Any) -> Any:
            context = browser.new_context(**{"reduced_motion": "reduce", **options})
            stack.callback(context.close)
            context.add_init_script(NOTE)
            page = context.new_page()
            servers = {urlsplit(a).netloc for a in (url, *also)}
            page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda r: said.append(r.url) if _elsewhere(r.url, servers) else None)
            page.goto(url)
            return page

        yield make
    assert [s for s in said if not re.search(r"status of 4\d\d|ERR_FAILED", s)] == []  # the browser's own notes


def _elsewhere(url: str, servers: set[str]) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob") and parts.netloc not in servers


@pytest.fixture
def page(opened: Callable[..., Any], address: str) -> Any:
    return opened(address)


def asks(page: Any) -> Any:
    """The next search that the page sends, as a context manager whose value is the request."""
    return page.expect_request(lambda r: "/api/search" in r.url and "/similar" not in r.url)


# A form with a file in it is not shown by Chromium, so that it is noted before it is sent.
NOTE = """{
  const send = window.fetch;
  window.fetch = (url, options) => {
    if (String(url).includes("/api/search") && options?.body) window.sent = [...options.body];
    return send(url, options);
  };
}"""


def fields(request: Any) -> dict[str, list[str]]:
    """What a search asked for, from its address or its form."""
    if request.method == "GET":
        return parse_qs(urlsplit(request.url).query)
    out: dict[str, list[str]] = {}
    for name, value in request.frame.evaluate("window.sent"):
        out.setdefault(name, []).append(value)
    return out


def ids(page: Any, count: int = 48) -> list[str]:
    expect(page.locator(".lk-results")).to_have_attribute("aria-busy", "false")
    return page.locator(".lk-grid > li").evaluate_all("items => items.map((item) => item.dataset.id)")[:count]


def words(page: Any, text: str) -> Any:
    box = page.get_by_role("searchbox")
    box.fill(text)
    with asks(page) as request:
        box.press("Enter")
    expect(page.locator(".lk-results")).to_have_attribute("aria-busy", "false")
    return fields(request.value)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A blue dress, small in the middle of a wide white photo."""
    garment = Image.open(draw(tmp_path / "garment.jpg", "blue", "dress"))
    image = Image.new("RGB", (300, 200), "white")
    image.paste(garment, (120, 60))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def upload(page: Any, photo: Path) -> dict[str, list[str]]:
    with asks(page) as request:
        page.locator("input[type=file]").first.set_input_files(photo)
    expect(page.locator(".lk-crop")).to_be_visible()
    expect(page.locator(".lk-results")).to_have_attribute("aria-busy", "false")
    return fields(request.value)


def action(page: Any, name: str, of: str) -> Any:
    """A button on the card of a product; it is there for the keyboard and while the pointer is over the card."""
    card = page.locator(f'.lk-grid > li[data-id="{of}"] lookalike-card')
    card.scroll_into_view_if_needed()
    card.hover()
    return card.get_by_role("button", name=name)


def test_words_filter_address_and_back(page: Any, shop: lookalike.Catalog):
    assert words(page, "red shirt")["lexical"] == ["0.3"]  # words alone match titles, too
    expect(page).to_have_url(re.compile(r"text=red\+shirt"))
    assert "lexical" not in page.url
    page.get_by_role("checkbox", name=re.compile("^Blue")).check()
    expect(page).to_have_url(re.compile("where="))
    blue = passing(shop, "colour = 'Blue'")
    expect(page.get_by_text(blue)).to_be_visible()
    page.reload()
    expect(page.get_by_text(blue)).to_be_visible()
    page.go_back()
    expect(page.get_by_text("of 66 products")).to_be_visible()
    expect(page.get_by_role("searchbox")).to_have_value("red shirt")


def test_a_broken_filter_in_the_address_is_told(page: Any, address: str):
    page.goto(f"{address}/?text=red&where=colur%3D'x'")
    expect(page.get_by_text(re.compile("did you mean 'colour'"))).to_be_visible()


def test_an_uploaded_photo_is_searched_and_taken_away_again(page: Any, photo: Path):
    upload(page, photo)
    assert len(ids(page)) == 48
    assert "photo" not in page.url
    expect(page.locator(".lk-score").first).to_contain_text("%")
    page.get_by_role("button", name="Remove: Your photo").click()
    expect(page.locator(".lk-crop")).to_be_hidden()
    page.go_back()
    expect(page.locator(".lk-crop img")).to_be_visible()  # the history has kept a small copy


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_photo_is_pasted_and_dropped(page: Any, photo: Path, how: str):
    script = """([how, content]) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], "found.png", { type: "image/png" }));
      const options = { bubbles: true, cancelable: true, composed: true };
      if (how === "drop") document.body.dispatchEvent(new DragEvent("dragover", { ...options, dataTransfer: data }));
      document.body.dispatchEvent(how === "drop" ? new DragEvent("drop", { ...options, dataTransfer: data })
        : new ClipboardEvent("paste", { ...options, clipboardData: data }));
    }"""
    expect(page.locator(".lk-grid > li").first).to_be_visible()
    with asks(page) as request:
        page.evaluate(script, [how, base64.b64encode(photo.read_bytes()).decode()])
    assert request.value.method == "POST"
    expect(page.locator(".lk-crop img")).to_be_visible()
    expect(page.locator(".lk-overlay")).to_be_hidden()


def test_what_is_no_photo_is_told(page: Any, tmp_path: Path):
    (tmp_path / "notes.jpg").write_text("no photo")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.jpg")
    expect(page.get_by_role("alert")).to_contain_text("notes.jpg was left out")


def test_the_garment_is_guessed_and_a_box_is_drawn_by_mouse_and_keys(page: Any, photo: Path):
    box = eval_box(upload(page, photo)["crop"])
    assert box[0] > 0.3 and box[2] < 0.7, box  # the drawing stands in the middle of much white
    area = page.locator(".lk-crop img").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return area["x"] + x * area["width"], area["y"] + y * area["height"]

    with asks(page) as request:
        page.mouse.move(*at(0.05, 0.1))
        page.mouse.down()
        page.mouse.move(*at(0.2, 0.4))
        page.mouse.move(*at(0.5, 0.9))
        page.mouse.up()
    drawn = eval_box(fields(request.value)["crop"])
    assert drawn == pytest.approx([0.05, 0.1, 0.5, 0.9], abs=0.02)
    with asks(page) as request:
        page.locator(".lk-box").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowUp")
    moved = eval_box(fields(request.value)["crop"])
    assert moved == pytest.approx([drawn[0] + 0.02, drawn[1], drawn[2] + 0.02, drawn[3] - 0.02], abs=0.002)
    with asks(page) as request:
        page.get_by_role("button", name="Whole photo", exact=True).click()
    assert "crop" not in fields(request.value)
    page.go_back()
    expect(page.get_by_role("button", name="Search with the whole photo")).to_be_visible()


def eval_box(value: list[str]) -> list[float]:
    return [float(n) for n in re.findall(r"[\d.]+", value[0])]


def test_a_box_is_drawn_by_touch(opened: Callable[..., Any], address: str, photo: Path):
    page = opened(address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    upload(page, photo)
    area = page.locator(".lk-crop img").bounding_box()
    session = page.context.new_cdp_session(page)

    def touch(kind: str, x: float, y: float) -> None:
        at = {"x": area["x"] + x * area["width"], "y": area["y"] + y * area["height"]}
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if kind == "touchEnd" else [at]})

    with asks(page) as request:
        touch("touchStart", 0.05, 0.05)
        touch("touchMove", 0.1, 0.3)
        touch("touchMove", 0.3, 0.6)
        touch("touchEnd", 0, 0)
    assert eval_box(fields(request.value)["crop"]) == pytest.approx([0.05, 0.05, 0.3, 0.6], abs=0.03)


def test_photo_and_words_are_balanced_by_a_slider(page: Any, photo: Path):
    upload(page, photo)
    expect(page.get_by_role("slider")).to_be_hidden()
    assert "weights" not in words(page, "in red")
    with asks(page) as request:
        page.get_by_role("slider").fill("0.9")
    assert '"text":0.9' in fields(request.value)["weights"][0]
    expect(page).to_have_url(re.compile("balance=0.9"))
    by_words = ids(page, 8)
    with asks(page):
        page.get_by_role("slider").fill("0.1")
    expect(page).to_have_url(re.compile("balance=0.1"))
    assert ids(page, 8) != by_words
    with asks(page):
        page.get_by_role("button", name="Remove: Your photo").click()
    expect(page.get_by_role("slider")).to_be_hidden()
    expect(page.get_by_role("searchbox")).to_have_value("in red")


def test_more_like_and_less_like_and_without(page: Any):
    words(page, "dress")
    first = ids(page)[0]
    with asks(page) as request:
        action(page, "More like this", first).click()
    assert fields(request.value)["like"] == [first]
    expect(page).to_have_url(re.compile(f"like={first}"))
    assert first not in ids(page)
    other = ids(page, 1)[0]
    with asks(page) as request:
        action(page, "Less like this", other).click()
    assert f'"like":["{other}"]' in fields(request.value)["not"][0]
    expect(page).to_have_url(re.compile(f"unlike={other}"))
    assert other not in ids(page)
    page.get_by_label("Without").fill("stripes")
    with asks(page) as request:
        page.get_by_label("Without").press("Enter")
    assert '"text":["stripes"]' in fields(request.value)["not"][0]
    with asks(page) as request:
        page.get_by_role("button", name="Remove: without stripes").click()
    with asks(page) as request:
        page.get_by_role("button", name=re.compile("^Remove: Less like")).click()
    assert "not" not in fields(request.value)
    second = ids(page, 2)[1]
    with asks(page) as request:
        action(page, "Add to the search", second).click()
    assert fields(request.value)["like"] == [first, second]


def test_a_colour_is_picked_from_the_palette_and_from_the_photo(page: Any, photo: Path):
    with asks(page) as request:
        page.get_by_role("button", name="Red", exact=True).click()
    assert fields(request.value)["colour"] == ["#c8262c"]
    expect(page).to_have_url(re.compile("colour=%23c8262c"))
    expect(page.locator(".lk-results")).to_have_attribute("aria-busy", "false")
    found = page.locator(".lk-grid > li .lk-title").all_text_contents()[:6]
    assert sum(bool(re.search("Red|Maroon|Orange", title)) for title in found) >= 5, found
    expect(page.get_by_role("button", name="Red", exact=True)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Remove the colour Red").click()
    expect(page).not_to_have_url(re.compile("colour"))
    upload(page, photo)
    with asks(page) as request:
        page.locator(".lk-mine .lk-swatch").first.click()
    red, green, blue = bytes.fromhex(fields(request.value)["colour"][0][1:])
    assert blue > red and blue > green  # the garment's, not the white around it


def test_a_number_is_filtered_over_its_bars_and_sorted_by(page: Any, shop: lookalike.Catalog):
    words(page, "shirt")
    bars = page.locator(".lk-bars")
    bars.scroll_into_view_if_needed()
    area = bars.bounding_box()
    with asks(page) as request:
        page.mouse.move(area["x"] + 2, area["y"] + 20)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] / 4, area["y"] + 20)
        page.mouse.up()
    assert re.fullmatch(r"price >= [\d.]+ and price <= [\d.]+", fields(request.value)["where"][0])
    page.get_by_label("Price, least").fill("10")
    page.get_by_label("Price, most").fill("20")
    with asks(page) as request:
        page.get_by_label("Price, most").press("Enter")
    assert fields(request.value)["where"] == ["price >= 10 and price <= 20"]
    expect(page.get_by_text(passing(shop, "price between 10 and 20"))).to_be_visible()
    with asks(page) as request:
        page.get_by_label("Sort").select_option("Price, high to low")
    assert fields(request.value)["sort"] == ["-price"]
    prices = [shop.product(i)["attributes"]["price"] for i in ids(page)]
    assert len(prices) > 5 and prices == sorted(prices, reverse=True)
    expect(page).to_have_url(re.compile("sort=-price"))
    page.get_by_role("button", name=re.compile("^Remove the filter Price")).click()
    expect(page.get_by_text("of 66 products")).to_be_visible()


def test_more_variety(page: Any):
    words(page, "red dress")
    plain = ids(page, 12)
    with asks(page) as request:
        page.get_by_role("switch", name="More variety").check()
    assert fields(request.value)["diversity"] == ["0.5"]
    expect(page).to_have_url(re.compile("variety=1"))
    assert ids(page, 12) != plain


def test_votes_order_the_search_at_once_and_are_kept(page: Any, shop: lookalike.Catalog):
    words(page, "dress")
    last = ids(page)[20]
    with page.expect_response("**/api/feedback") as kept, asks(page) as request:
        action(page, "A good match", last).click()
    assert kept.value.status == 204
    assert fields(request.value)["feedback"] == [f'{{"up":["{last}"],"down":[]}}']
    expect(page).to_have_url(re.compile(f"up={last}"))
    assert ids(page).index(last) < 20
    pressed = page.locator(f'.lk-grid > li[data-id="{last}"]').get_by_role("button", name="A good match")
    expect(pressed).to_have_attribute("aria-pressed", "true")
    expect(pressed).to_be_focused()  # although the cards were made anew
    page.get_by_role("button", name="Forget the votes").click()
    expect(page).not_to_have_url(re.compile("up="))


@pytest.fixture(scope="module")
def double(shop: lookalike.Catalog) -> dict[str, Any]:
    """A product with two photos."""
    return next(p for p in map(shop.product, shop.snapshot().ids) if len(p["photos"]) == 2)


def card(page: Any, identity: str) -> Any:
    return page.locator(f'.lk-grid > li[data-id="{identity}"] .lk-card')


def test_hits_say_why_and_show_their_photos_and_open_what_is_folded(page: Any, double: dict[str, Any], address: str):
    page.goto(f"{address}/?like=P0002")
    expect(page.locator(".lk-about:has(.lk-same, .lk-other)").first).to_be_visible()
    while (fold := page.get_by_role("button", name=re.compile(r"^\+2 alike"))).count() == 0:
        before = len(ids(page, 999))
        page.get_by_role("button", name="Show more").scroll_into_view_if_needed()
        expect(page.locator(".lk-grid > li")).not_to_have_count(before)
    assert "again2" not in ids(page, 999)
    fold.click()
    assert {"again1", "again2", "P0001"} - set(ids(page, 999)) == {"again1", "again2"}
    expect(page.locator(".lk-folded")).to_have_count(2)
    fold.click()
    expect(page.locator(".lk-folded")).to_have_count(0)
    words(page, double["title"])
    photo = card(page, double["id"]).locator(".lk-photo")
    expect(photo.locator(".lk-dotted i")).to_have_count(2)
    before = photo.locator("img").evaluate("image => image.srcset")
    photo.hover(position={"x": photo.bounding_box()["width"] - 4, "y": 60})
    assert photo.locator("img").evaluate("image => image.srcset") != before


def test_a_product_opens_with_its_photos_and_what_is_like_it(
    page: Any, opened: Callable[..., Any], address: str, double: dict[str, Any]
):
    words(page, double["title"])
    card(page, double["id"]).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name=double["title"])).to_be_visible()
    expect(page).to_have_url(re.compile(rf"text=.*product={double['id']}"))
    first = dialog.locator(".lk-large").get_attribute("src")
    dialog.get_by_role("button", name="Photo 1 of 2").click()
    one = dialog.locator(".lk-large").get_attribute("src")
    dialog.get_by_role("button", name="Photo 2 of 2").click()
    assert first in (one, first) and dialog.locator(".lk-large").get_attribute("src") != one
    expect(dialog.locator("dd", has_text=double["attributes"]["category"])).to_be_visible()
    expect(dialog.locator(".lk-strip lookalike-card")).to_have_count(8)
    shared = opened(page.url).get_by_role("dialog")
    expect(shared.get_by_role("heading", name=double["title"])).to_be_visible()
    dialog.locator(".lk-strip .lk-card").first.click()
    expect(page).not_to_have_url(re.compile(f"product={double['id']}"))
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    expect(page).not_to_have_url(re.compile("product="))
    card(page, double["id"]).click()
    page.go_back()
    expect(dialog).to_be_hidden()
    page.go_forward()
    with asks(page):
        dialog.get_by_role("button", name="More like this").click()
    expect(dialog).to_be_hidden()
    expect(page).to_have_url(re.compile(rf"\?like={double['id']}$"))


def test_scrolling_brings_more_and_the_back_button_comes_back_to_the_place(page: Any):
    words(page, "dress")
    assert len(ids(page, 200)) == 48
    with page.expect_request(re.compile("offset=48")):
        page.mouse.wheel(0, 20_000)
    expect(page.locator(".lk-grid > li")).to_have_count(64)  # two are folded under another
    found = ids(page, 200)
    assert len(found) == len(set(found))
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    page.evaluate("scrollTo(0, 2000)")
    before = page.evaluate("scrollY")
    words(page, "bag")
    assert page.evaluate("scrollY") < 500
    page.go_back()
    expect(page.locator(".lk-grid > li")).to_have_count(len(found))
    assert page.evaluate("scrollY") == pytest.approx(before, abs=300)


def test_a_shared_link_shows_the_same(page: Any, opened: Callable[..., Any], address: str):
    query = "text=red+dress&without=bag&unlike=P0009&colour=%23c8262c&where=gender+in+('Men')&sort=-price&variety=1&up=P0004"
    page.goto(f"{address}/?{query}")
    found = ids(page)
    assert found
    assert ids(opened(f"{address}/?{query}")) == found
    for name in ("the filter Gender: Men", "the colour Red", ": without bag", ": Less like"):
        expect(page.get_by_role("button", name=re.compile(f"^Remove ?{name}"))).to_be_visible()
    page.get_by_role("button", name="Clear all").click()
    expect(page).to_have_url(re.compile(r"\?text=red.dress&unlike=P0009&sort=-price&variety=1$"))


def test_corrected_words_and_no_good_match_are_told(page: Any):
    words(page, "quilbeck")
    expect(page.get_by_text("Showing results for quillbeck instead of quilbeck.")).to_be_visible()
    words(page, "red scarf")
    expect(page.locator(".lk-honest")).to_be_empty()
    words(page, "wooden garden furniture for a lawyer")
    expect(page.get_by_text("No good match.")).to_be_visible()


def test_by_keyboard_alone(page: Any):
    expect(page.locator(".lk-grid > li").first).to_be_visible()

    def focused() -> str:
        return page.evaluate("""() => {
          const { activeElement: at } = document.querySelector("lookalike-search").shadowRoot;
          return at ? [at.className, at.getAttribute("aria-label") ?? at.textContent].join("|") : "";
        }""")

    for _ in range(4):
        page.keyboard.press("Tab")
        if "lk-words" in focused():
            break
    page.keyboard.type("green bag")
    with asks(page):
        page.keyboard.press("Enter")
    for _ in range(6):
        page.keyboard.press("Tab")
        if "lk-skip" in focused():
            break
    page.keyboard.press("Enter")
    assert "lk-results" in focused()
    expect(page.locator(".lk-results")).to_have_attribute("aria-busy", "false")
    for _ in range(8):
        page.keyboard.press("Tab")
        if "lk-card" in focused():
            break
    first = focused()
    page.keyboard.press("ArrowDown")
    assert "lk-card" in focused() and focused() != first
    page.keyboard.press("ArrowUp")
    assert focused() == first
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert focused() == first
    page.keyboard.press("Tab")  # into the card's actions, which come into sight
    expect(page.locator(".lk-actions").first).to_have_css("opacity", "1")
    with asks(page):
        page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("like="))
    expect(page.locator(".lk-results")).to_have_attribute("aria-busy", "false")
    assert "lk-results" in focused()


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_sticks_out(opened: Callable[..., Any], address: str, photo: Path, width: int):
    page = opened(address, viewport={"width": width, "height": 780}, has_touch=True, is_mobile=True)
    upload(page, photo)
    words(page, "in a very bright red, if there is one of that kind")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    page.get_by_text("Filters").click()
    expect(page.get_by_role("button", name="Navy", exact=True)).to_be_visible()
    page.get_by_text("Filters").click()
    page.get_by_role("button", name=re.compile("^Actions: ")).first.tap()
    expect(page.locator(".lk-actions").first).to_be_visible()
    page.locator(".lk-card").first.tap()
    expect(page.get_by_role("dialog").locator(".lk-strip lookalike-card").first).to_be_visible()
    assert page.get_by_role("dialog").evaluate("node => node.scrollWidth <= node.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_where_the_visitor_wants_it(opened: Callable[..., Any], address: str):
    for scheme, dark in (("dark", True), ("light", False)):
        page = opened(address, color_scheme=scheme)
        colours = page.evaluate("""() => [document.body, document.querySelector("lookalike-search")]
          .map((node) => getComputedStyle(node).backgroundColor.match(/\\d+/g).map(Number))""")
        assert all((max(colour[:3]) < 60) == dark for colour in colours), colours


def test_a_server_that_is_gone_is_told_and_tried_again(page: Any):
    words(page, "dress")
    page.route("**/api/search**", lambda route: route.abort())
    page.get_by_role("searchbox").fill("bag")
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute("**/api/search**")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_be_hidden()


# ------------------------------------------------------------------------------------------------------- widget


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, shop: lookalike.Catalog) -> Iterator[tuple[str, str]]:
    """The example shop on one origin, and on another the server that it asks: their addresses."""
    root = tmp_path_factory.mktemp("elsewhere")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as web:
        origin = f"http://127.0.0.1:{web.server_address[1]}"
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        with served(create_app(shop, cors=(origin,))) as server:
            text = (EXAMPLES / "shop.html").read_text()
            assert text.count("http://127.0.0.1:8000") == 1
            (root / "shop.html").write_text(text.replace("http://127.0.0.1:8000", server))
            (root / "favicon.ico").write_bytes(b"")
            yield f"{origin}/shop.html", server
        web.shutdown()
        thread.join(15)


def hear(page: Any) -> None:
    """Keep what the elements tell the page from now on in ``window.heard``, as [name, detail]."""
    page.evaluate("""() => {
      window.heard = [];
      for (const name of ["search", "results", "click", "feedback", "error"]) {
        document.addEventListener(`lookalike-${name}`, (event) => {
          window.heard.push([name, structuredClone(JSON.parse(JSON.stringify(event.detail)))]);
          if (window.refuse === name) event.preventDefault();
        });
      }
    }""")


def test_the_widget_works_in_a_page_of_another_origin(
    opened: Callable[..., Any], elsewhere: tuple[str, str], shop: lookalike.Catalog
):
    url, server = elsewhere
    page = opened(url, also=(server,))
    expect(page.locator("lookalike-search .lk-card").first).to_be_visible()
    page.add_style_tag(content="button { border: 5px solid red; } body { text-transform: uppercase; }")
    hear(page)
    title = shop.product("P0001")["title"]
    words(page, title)
    assert page.url == url  # the address belongs to the shop
    hit = card(page, "P0001")
    expect(hit).to_have_attribute("href", "?product=P0001")
    assert page.locator(".lk-go").evaluate("node => getComputedStyle(node).backgroundColor") == "rgb(23, 105, 74)"
    assert page.locator(".lk-go").evaluate("node => getComputedStyle(node).borderTopWidth") == "0px"
    assert page.locator(".lk-title").first.evaluate("node => getComputedStyle(node).fontStyle") == "italic"
    assert page.locator(".lk-title").first.evaluate("node => getComputedStyle(node).textTransform") == "none"
    page.evaluate("window.refuse = 'click'")
    hit.click()
    assert page.url == url
    told = dict(page.evaluate("window.heard"))
    assert told["search"]["query"]["text"] == title
    assert told["results"]["hits"]
    assert told["click"]["product"] == "P0001"
    page.evaluate("window.refuse = ''")
    hit.click()
    expect(page).to_have_url(re.compile(r"shop.html\?product=P0001"))
    similar = page.locator("lookalike-similar .lk-card")
    expect(similar).to_have_count(6)
    expect(page.get_by_role("heading", name="You may also like")).to_be_visible()
    expect(similar.first.locator("img")).to_have_js_property("complete", True)
    assert similar.first.locator("img").evaluate("image => image.naturalWidth") > 0
    similar.first.click()
    expect(page).not_to_have_url(re.compile("P0001"))


def test_the_widget_takes_a_photo_and_opens_a_product(
    opened: Callable[..., Any], elsewhere: tuple[str, str], photo: Path
):
    url, server = elsewhere
    page = opened(url, also=(server,))
    page.locator("lookalike-search").evaluate("node => node.removeAttribute('product-url')")
    upload(page, photo)
    page.locator(".lk-grid .lk-card").first.click()
    expect(page.get_by_role("dialog").locator(".lk-large")).to_be_visible()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    assert page.url == url


def test_the_widget_sends_the_key_that_it_is_given(
    opened: Callable[..., Any], elsewhere: tuple[str, str], catalog: lookalike.Catalog
):
    url, script = elsewhere
    secret = keys.add(catalog.store.directory, "shop", "search")
    parts = urlsplit(url)
    with served(create_app(catalog, cors=(f"{parts.scheme}://{parts.netloc}",))) as server:
        page = opened(url, also=(script, server))
        place = """([server, key]) => document.body.prepend(Object.assign(document.createElement("section"), {
          innerHTML: `<lookalike-similar product="p00" count="3" server="${server}" key="${key}"></lookalike-similar>` }))"""
        page.evaluate(place, [server, secret])
        photos = page.locator("section lookalike-similar .lk-card img")
        expect(photos).to_have_count(3)
        photos.first.scroll_into_view_if_needed()
        expect(photos.first).to_have_js_property("complete", True)
        assert photos.first.evaluate("image => image.naturalWidth") > 0  # photos are asked for with it, too


# ------------------------------------------------------------------------------------------- work on the catalog


@pytest.fixture
def desk(browser: Any, tmp_path: Path, table: Path) -> Iterator[tuple[str, lookalike.Catalog]]:
    """A server that wants a key, over a catalog of its own: twelve products, and one whose photo is broken."""
    (tmp_path / "img" / "broken.jpg").write_bytes((tmp_path / "img" / "5.jpg").read_bytes()[:200])
    with table.open("a") as file:
        file.write("broken,red bag,img/broken.jpg,Red,Women,9,True,0\n")
    catalog = lookalike.open(tmp_path / "desk.catalog", encoder="fake")
    catalog.index(table)
    with served(create_app(catalog, api_key="secret", source=str(table))) as url:
        yield url, catalog
        for context in browser.contexts:  # what a page still asks for must find the server
            context.close()


def enter(page: Any, key: str) -> None:
    page.get_by_label("API key").last.fill(key)
    page.get_by_role("button", name="Continue").click()


def test_a_product_is_added_changed_and_removed(opened: Callable[..., Any], desk: tuple[str, Any], tmp_path: Path):
    url, catalog = desk
    page = opened(url)
    enter(page, "wrong")
    expect(page.get_by_text("That key was not accepted")).to_be_visible()
    enter(page, "secret")
    page.get_by_role("link", name="Catalog").click()
    add = page.get_by_role("region", name="Add a product")
    add.get_by_label("Id").fill("new/1")
    add.get_by_label("Title").fill("a very new dress")
    shots = [draw(tmp_path / f"new-{n}.jpg", "green", "dress", n) for n in range(3)]
    add.locator("input[type=file]").set_input_files(shots)
    expect(add.get_by_role("img")).to_have_count(3)
    add.get_by_role("button", name="Leave out new-1.jpg").click()
    add.get_by_text("Attributes").click()
    add.get_by_label("Price").fill("12.5")
    add.get_by_label("Colour").fill("Green")
    add.get_by_role("button", name="Add or replace").click()
    expect(add.get_by_text("new/1: 2 added (photos)")).to_be_visible()
    expect(page.get_by_text("13 products, 15 photos")).to_be_visible()
    product = catalog.product("new/1")
    assert product["attributes"] == {"price": 12.5, "colour": "Green"} and len(product["photos"]) == 2

    page.get_by_role("link", name="Lookalike").click()
    words(page, "very new")
    page.locator('.lk-grid > li[data-id="new/1"] .lk-card').click()
    page.get_by_role("link", name="Change or remove it").click()
    find = page.get_by_role("region", name="Change or remove a product")
    expect(find.get_by_text("new/1, 2 photos")).to_be_visible()
    find.get_by_role("button", name="Change").click()
    expect(add.get_by_label("Price")).to_have_value("12.5")
    add.get_by_label("Title").fill("an older dress")
    add.get_by_role("button", name="Add or replace").click()
    expect(add.get_by_text(re.compile("^new/1: "))).to_be_visible()
    assert catalog.product("new/1")["title"] == "an older dress"
    assert catalog.product("new/1")["photos"] == product["photos"]  # none were sent, so they stay
    find.get_by_role("button", name="Remove").click()
    find.get_by_role("button", name="Yes, remove it for good").click()
    expect(find.get_by_text("an older dress was removed.")).to_be_visible()
    assert "new/1" not in catalog.snapshot().ids
    find.get_by_label("Product id").fill("new/1")
    find.get_by_role("button", name="Find").click()
    expect(find.get_by_role("alert")).to_contain_text("no product 'new/1'")


def test_a_refusal_that_comes_late_does_not_ask_for_the_key_again(opened: Callable[..., Any], desk: tuple[str, Any]):
    url, _ = desk
    page = opened(f"{url}/healthz")  # no page yet: its requests are to be held up
    held = []

    def late(route: Any) -> None:
        if (
            held
            or "authorization" in route.request.headers
            or "lookalike_key" in route.request.headers.get("cookie", "")
        ):
            route.continue_()
        else:
            held.append(route)

    page.route("**/api/products?**", late)
    page.goto(url)
    enter(page, "secret")
    expect(page.get_by_role("dialog", name="API key")).to_have_count(0)
    assert held, "the page asks for products at once, without a key"
    # As the server would have answered what was sent without a key; continued now, the browser would add the cookie.
    held[0].fulfill(
        status=401, content_type="application/problem+json", body='{"status": 401, "detail": "a key is wanted"}'
    )
    page.wait_for_timeout(500)
    expect(page.get_by_role("dialog", name="API key")).to_have_count(0)
    expect(page.locator("lookalike-card").first).to_be_visible()


def test_the_quarantine_and_the_indexing_are_watched(opened: Callable[..., Any], desk: tuple[str, Any], tmp_path: Path):
    url, _ = desk
    page = opened(url)
    enter(page, "secret")
    page.goto(f"{url}/#catalog")
    refused = page.get_by_role("region", name="Quarantine")
    expect(refused.get_by_text("1 could not be used, the rest went on.")).to_be_visible()
    expect(refused.get_by_role("listitem")).to_contain_text("broken")
    assert str(tmp_path) not in refused.text_content()
    draw(tmp_path / "img" / "broken.jpg", "red", "bag", 9)
    page.get_by_role("button", name="Index the source again").click()
    expect(page.get_by_text(re.compile("^Last run: 1 added"))).to_be_visible(timeout=15_000)
    expect(refused.get_by_text("Nothing: everything could be used.")).to_be_visible()
    expect(page.get_by_text("13 products, 14 photos")).to_be_visible()


# ------------------------------------------------------------------------------------------------ accessibility


@pytest.fixture(scope="module")
def axe() -> str:
    """The rules of axe-core, which the package axe-playwright-python carries."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-core: pip install axe-playwright-python")
    return Path(found.origin).with_name("axe.min.js").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({"color_scheme": "light"}, ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]),
        ({"color_scheme": "dark"}, ["color-contrast"]),  # all that differs from light
        (
            {"viewport": {"width": 320, "height": 700}, "has_touch": True, "is_mobile": True},
            ["target-size", "meta-viewport"],
        ),
    ],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_nothing_serious(
    opened: Callable[..., Any],
    address: str,
    desk: tuple[str, Any],
    photo: Path,
    axe: str,
    options: Any,
    rules: list[str],
):
    page = opened(address, bypass_csp=True, **options)  # to measure, axe sets styles, which the policy forbids
    asked = f"async () => axe.run({{ runOnly: {rules}, resultTypes: ['violations'] }})"

    def check(state: str) -> None:
        page.evaluate(axe)
        found = page.evaluate(asked)
        assert found["passes"], state  # it has looked into the elements
        serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
        assert serious == [], (
            state,
            [(v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"]) for v in serious],
        )

    expect(page.locator(".lk-grid > li").first).to_be_visible()
    check("start")
    upload(page, photo)
    words(page, "in red")
    page.goto(f"{page.url}&without=bag&unlike=P0009&up=P0005&where=price+%3E%3D+100")
    expect(page.locator(".lk-card").first).to_be_visible()
    check("results")
    page.locator(".lk-card").first.click()
    expect(page.get_by_role("dialog").locator(".lk-strip lookalike-card").first).to_be_visible()
    check("product")
    page.goto(f"{address}/?text=x&where=colur=1")
    expect(page.get_by_role("alert")).to_be_visible()
    check("message")
    page = opened(f"{desk[0]}/#catalog=p00", bypass_csp=True, **options)
    expect(page.get_by_role("dialog")).to_be_visible()
    check("key")
    enter(page, "secret")
    expect(page.get_by_role("region", name="Quarantine")).to_be_visible()
    check("catalog")
