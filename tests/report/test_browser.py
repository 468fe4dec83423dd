"""The report in a real browser: on a phone, in dark mode, and sorted by a click.

Takes any Chromium: the path in SLOSCHED_BROWSER, or one on PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from slosched.lab.comparison import Comparison
from slosched.report.html import report_html
from slosched.report.plots import all_pngs

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
PHONE, DESK = (390, 844), (1280, 900)
MEASURE = """<script>
const box = document.querySelector(".headline").getBoundingClientRect();
const style = getComputedStyle(document.body);
const first = () => document.querySelector("table.sortable tbody tr td").textContent;
const before = first();
const name = () => {
  const wide = document.querySelector(".wide");
  wide.scrollLeft = 40;
  return wide.querySelector("td").getBoundingClientRect().left - wide.getBoundingClientRect().left;
};
document.querySelector("table.sortable th button").click();
parent.postMessage(JSON.stringify({
  page: document.documentElement.scrollWidth, view: innerWidth, headline: box.bottom,
  ink: style.color, paper: style.backgroundColor, size: parseFloat(style.fontSize),
  image: getComputedStyle(document.querySelector("figure img")).filter,
  loaded: [...document.images].every(image => image.naturalWidth > 0),
  caption: Math.max(...[...document.querySelectorAll(".wide + p")].map(p => p.getBoundingClientRect().right)),
  name: name(),
  picture: document.querySelector("figure img").getBoundingClientRect().width,
  before: before, after: first()}), "*");
</script></body>"""
FRAME = """<title>none</title><script>onmessage = event => document.title = event.data</script>
<iframe src="report.html" width="{}" height="{}" style="border: 0"></iframe>"""


def browser() -> str:
    """A Chromium, or a skip with the reason."""
    found = os.environ.get("SLOSCHED_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium on PATH, and SLOSCHED_BROWSER names none")
    return found


@pytest.fixture(scope="module")
def page(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy comparison's report, with a script that measures it."""
    text = report_html(comparison, all_pngs(comparison)).decode().replace("</body>", MEASURE)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text)
    return path


def measure(page: Path, size: tuple[int, int], *, dark: bool = False) -> dict[str, Any]:
    """What the script says of the page in a frame of this size: few browsers have windows that narrow."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(*size))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]
    options += ["--virtual-time-budget=5000", "--dump-dom"]
    options += ["--blink-settings=preferredColorScheme=0"] * dark
    ran = subprocess.run(
        [browser(), *options, frame.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    title = re.search("<title>(.*?)</title>", ran.stdout, re.S)
    assert title, ran.stdout[-500:]
    found: dict[str, Any] = json.loads(unescape(title.group(1)))
    return found


def brightness(colour: str) -> float:
    """Mean of the three channels, 0 to 255."""
    channels = [float(v) for v in re.findall(r"[\d.]+", colour)[:3]]
    return sum(channels) / 3


def test_a_phone_shows_it_without_scrolling_sideways(page: Path) -> None:
    """Only tables and pictures scroll in themselves; the headline is on the first screen."""
    found = measure(page, PHONE)
    assert found["page"] <= found["view"] == PHONE[0]
    assert found["headline"] < PHONE[1]
    assert found["size"] >= 16
    assert found["picture"] >= 600
    assert found["loaded"]
    assert found["caption"] <= PHONE[0]
    assert found["name"] == 0  # the first column stays while the table scrolls


def test_dark_and_light(page: Path) -> None:
    """In dark mode paper is dark, ink is light, and pictures are turned over."""
    light, dark = measure(page, DESK), measure(page, DESK, dark=True)
    assert brightness(light["paper"]) > 230
    assert brightness(light["ink"]) < 60
    assert light["image"] == "none"
    assert brightness(dark["paper"]) < 50
    assert brightness(dark["ink"]) > 200
    assert "invert" in dark["image"]


def test_a_click_sorts(page: Path) -> None:
    """The table begins with the best policy; a click on the first heading sorts by name."""
    found = measure(page, DESK)
    assert found["before"] == "slosched"
    assert found["after"] != "slosched"
