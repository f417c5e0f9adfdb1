"""Takes the pictures of the report in docs/images/: python docs/pictures.py demo/demo.duckdb

The store should be the demo's: its passages are docstrings of open packages. Needs Chromium, and Pillow to make the
pictures small.
"""

import io
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from chromium import Browser  # noqa: E402
from PIL import Image  # noqa: E402

from labelstore.report import page  # noqa: E402
from labelstore.store.label_store import LabelStore  # noqa: E402

FOLDER = ROOT / "docs" / "images"
PHONE = (375, 780)


def main(store: Path) -> None:
    """The leaderboard, the explorer in the dark, and three views on a phone."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report = page.write(LabelStore(store), folder / "report.html").path
        with Browser(folder / "profile") as browser:
            browser.open(report, 1280, 960)
            keep("report.png", [taken(browser, folder)])
            browser.open(report, 1280, 900, dark=True)
            show(browser, "#queries")
            browser.run("document.querySelector('#e-columns [data-kind=student] .passage').focus()")
            keep("report-queries.png", [taken(browser, folder)])
            browser.open(report, *PHONE, mobile=True)
            views = []
            for selector in ("#leaderboard", "#cost .chart", "#differences"):
                show(browser, selector)
                views.append(taken(browser, folder))
            keep("report-phone.png", views)


def show(browser: Browser, selector: str) -> None:
    browser.run(f"document.querySelector({selector!r}).scrollIntoView({{behavior: 'instant'}})")


def taken(browser: Browser, folder: Path) -> Image.Image:
    browser.screenshot(folder / "shot.png")
    return Image.open(io.BytesIO((folder / "shot.png").read_bytes())).convert("RGB")


def keep(name: str, views: list[Image.Image]) -> None:
    """The views side by side, in few colours."""
    gap = 24
    width = sum(view.width for view in views) + gap * (len(views) - 1)
    sheet = Image.new("RGB", (width, views[0].height), "white")
    left = 0
    for view in views:
        sheet.paste(view, (left, 0))
        left += view.width + gap
    FOLDER.mkdir(exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)
    print(f"docs/images/{name}: {(FOLDER / name).stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
