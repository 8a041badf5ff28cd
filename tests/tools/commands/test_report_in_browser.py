"""The page of `edm2 report` in a real browser: sliders, plots, keys, phones, and no request."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from command_line import succeed
from playwright.sync_api import Browser, Page, expect, sync_playwright
from report_pages import pretend_sweep

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDE, PHONE = 1280, 400

FIGURES = """() => {
    const [page] = performance.getEntriesByType("navigation");
    return {interactive: page.domInteractive, loaded: page.loadEventEnd};
}"""
"""Times of the browser, in milliseconds since it began to open the page."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root needs that
        yield running
        running.close()


@pytest.fixture(scope="module")
def one(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Page of a run with scores at two times."""
    folder = tmp_path_factory.mktemp("one")
    pretend_sweep(folder, times=(256, 512))
    out = folder / "report.html"
    succeed("report", tiny_run, "--sweep", folder, "--cache", folder / "cache", "--steps", 2, "--out", out)
    return out


@pytest.fixture(scope="module")
def several(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Page of three runs without scores."""
    folder = tmp_path_factory.mktemp("several")
    runs = [f"{name}={tiny_run}" for name in ("first", "second", "third")]
    out = folder / "report.html"
    succeed("report", *runs, "--cache", folder / "cache", "--std", "0.05,0.1", "--steps", 2, "--out", out)
    return out


class Opened:
    """A page in a browser of this width, and what went on behind it."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.evaluate("ready")

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.complaints == []
        fetched = [url for url in self.requests if not url.startswith(("data:", "file:"))]
        assert fetched == []


def shown(page: Page, run: int = 0) -> str:
    """Source of the grid that a run shows."""
    return page.locator(f'[data-run="{run}"] img').get_attribute("src") or ""


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_keys_on_the_sliders_change_pictures_captions_and_commands(browser: Browser, one: Path, width: int):
    with Opened(browser, one, width) as page:
        expect(page.locator("#shown-ema")).to_have_text("0.1")  # the best
        caption, code = page.locator("[data-run] figcaption"), page.locator("[data-run] code")
        expect(caption).to_contain_text("EMA length 0.1 at 512 images; FD-pixels 1")
        before = shown(page)
        page.locator("#slider-ema").press("ArrowRight")
        expect(page.locator("#shown-ema")).to_have_text("0.15")
        expect(caption).to_contain_text("EMA length 0.15 at 512 images")
        expect(code).to_contain_text("--std 0.15")
        assert shown(page) != before
        page.locator("#slider-ema").press("Home")
        expect(caption).to_contain_text("raw at 512 images")
        expect(code).to_contain_text("raw-weights.safetensors")
        page.locator("#slider-time").press("ArrowLeft")
        expect(page.locator("[data-run] .stage")).to_contain_text("not stored")
        page.locator("#slider-ema").press("ArrowRight")
        expect(caption).to_contain_text("EMA length 0.05 at 256 images; FD-pixels")
        expect(code).to_contain_text("--at 256")
        assert page.locator("[data-run] img").get_attribute("alt")


def test_the_curve_stands_over_the_slider_and_chooses_lengths(browser: Browser, one: Path):
    with Opened(browser, one, WIDE) as page:
        points = page.locator("#curve svg .mark-symbol.role-mark").first.locator("path")
        boxes = [point.bounding_box() for point in points.all()]
        slider = page.locator("#slider-ema").bounding_box()
        assert slider is not None
        ends = [box["x"] + box["width"] / 2 for box in boxes if box is not None]
        first, last = slider["x"] + 8, slider["x"] + slider["width"] - 8  # where the middle of the thumb goes
        steps = int(page.locator("#slider-ema").get_attribute("max") or 0)
        assert max(ends) == pytest.approx(last, abs=2)
        assert min(ends) == pytest.approx(first + (last - first) / steps, abs=2)  # raw weights are not scored here
        points.last.click()
        expect(page.locator("#shown-ema")).to_have_text("0.2")


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("name", ["one", "several"])
def test_all_plots_are_drawn_and_nothing_is_wider_than_the_screen(
    browser: Browser, request: pytest.FixtureRequest, name: str, width: int
):
    with Opened(browser, request.getfixturevalue(name), width) as page:
        charts = page.locator("[data-chart]").all()
        assert len(charts) >= 4
        for chart in charts:
            chart.scroll_into_view_if_needed()
            expect(chart.locator("svg .mark-line path").first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_plots_zoom_by_button_and_wheel(browser: Browser, one: Path):
    with Opened(browser, one, WIDE) as page:
        chart = page.locator("[data-chart]").first
        chart.scroll_into_view_if_needed()
        expect(chart.locator("svg .mark-line path").first).to_be_attached()

        def span() -> float:
            return page.evaluate("(() => { const [a, b] = views.get(plots[0]).scale('x').domain(); return b - a; })()")

        before = span()
        page.get_by_role("button", name="Zoom in: ").first.click()
        page.wait_for_function("views.get(plots[0]).scale('x').domain()[0] > 0")
        assert span() == pytest.approx(before / 2, rel=0.05)
        page.get_by_role("button", name="Reset zoom: ").first.click()
        page.wait_for_timeout(200)
        assert span() == pytest.approx(before)
        chart.hover()
        page.keyboard.down("Shift")
        page.mouse.wheel(0, -200)
        page.wait_for_timeout(200)
        assert span() < before


def test_several_runs_show_the_same_seeds_side_by_side(browser: Browser, several: Path):
    with Opened(browser, several, WIDE) as page:
        assert page.locator("[data-run]").count() == 3
        tops = [box["y"] for figure in page.locator("[data-run]").all() if (box := figure.bounding_box())]
        assert max(tops) - min(tops) < 2
        assert shown(page, 0) == shown(page, 1)  # of the same run


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "several"])
def test_the_page_is_accessible_in_both_schemes(
    browser: Browser, request: pytest.FixtureRequest, name: str, scheme: str
):
    """Labels, contrast, alternative texts, keys: no violation that axe-core knows."""
    with Opened(browser, request.getfixturevalue(name), WIDE, scheme) as page:
        for chart in page.locator("[data-chart]").all():
            chart.scroll_into_view_if_needed()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(18, 22, 28)") == (scheme == "dark")


def test_the_page_is_light_and_soon_ready(browser: Browser, one: Path):
    assert one.stat().st_size < 3e6
    with Opened(browser, one, PHONE) as page:
        figures = page.evaluate(FIGURES)
        assert figures["interactive"] < 10_000  # 0.3 seconds on an idle core; this one may be busy
