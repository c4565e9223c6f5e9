#!/usr/bin/env python3
"""Shows a page of `quant report` to a browser, scripts off: screenshots light, dark, narrow and as print, and a PDF. Fails
where the page is wider than its window, asks a network for anything, or labels of a plot overlap.

    pip install playwright                                    # drives the system's chromium
    report_screens.py PAGE.html FOLDER [--browser /usr/bin/chromium]
"""

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

VIEWS = {
    "light": dict(color_scheme="light", viewport=dict(width=1200, height=900)),
    "dark": dict(color_scheme="dark", viewport=dict(width=1200, height=900)),
    "narrow": dict(color_scheme="light", viewport=dict(width=390, height=844)),
    "print": dict(color_scheme="dark", viewport=dict(width=700, height=990)),
}


def overlaps(page) -> list[str]:
    """Pairs of names in one plot whose boxes, as drawn, meet."""
    found = []
    for plot in page.query_selector_all("svg.plot"):
        names = [(text.text_content(), text.bounding_box()) for text in plot.query_selector_all("text.name")]
        for i, (a, p) in enumerate(names):
            for b, q in names[:i]:
                wide = min(p["x"] + p["width"], q["x"] + q["width"]) - max(p["x"], q["x"])
                high = min(p["y"] + p["height"], q["y"] + q["height"]) - max(p["y"], q["y"])
                # Boxes are as high as the face's lines and have a halo, which both reach beyond the letters.
                if wide > 4 and high > 0.4 * min(p["height"], q["height"]):
                    found.append(f"{a!r} and {b!r}: {wide:.0f} x {high:.0f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    wrong, asked = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        for name, options in VIEWS.items():
            page = browser.new_context(java_script_enabled=False, **options).new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.emulate_media(media="print" if name == "print" else "screen")
            page.goto(args.page.resolve().as_uri())
            page.screenshot(path=args.folder / f"{name}.png", full_page=True)
            body = page.query_selector("main").bounding_box()
            if body["x"] < 0 or body["x"] + body["width"] > options["viewport"]["width"]:
                wrong.append(f"{name}: {body['width']} px in a window of {options['viewport']['width']}")
            if name == "print":
                page.pdf(path=args.folder / "print.pdf", prefer_css_page_size=True)
            else:
                wrong += [f"{name}: {pair}" for pair in overlaps(page)]
        browser.close()
    wrong += [f"asked for {url}" for url in asked if not url.startswith("file:")]
    print("\n".join(wrong) or f"{len(VIEWS)} views in {args.folder}: nothing overlaps, nothing sticks out, nothing is asked for")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
