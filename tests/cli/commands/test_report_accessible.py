"""The page of `msft report` is usable by keyboard and screen reader, on a phone, on paper, in light and dark."""

import itertools
from pathlib import Path

import pytest
from chromium import Browser
from report_page import OPEN_DATASETS, opened, quiet

from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.needs("chromium")

# Every text node's contrast with what is painted behind it, by WCAG's formula; the lowest ones.
CONTRASTS = """(() => {
  const parse = (c) => {
    const n = c.match(/[\\d.]+(e-?\\d+)?/g).map(Number);
    return c.startsWith('color(srgb') ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
  };
  const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = (e) => { for (; e; e = e.parentElement) { const b = parse(getComputedStyle(e).backgroundColor); if (b[3] > .5) return b; } return [255, 255, 255, 1]; };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.closest('svg, script, .hidden, option, noscript')) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), e.className + ': ' + walk.currentNode.data.slice(0, 30)]);
  }
  return found.filter(([ratio]) => ratio < 4.5).slice(0, 5);
})()"""


def test_the_keyboard_reaches_everything_in_order(browser: Browser, made: tuple[LabelStore, Path]) -> None:
    _, file = made
    opened(browser, file)
    browser.key("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    browser.key("Enter")
    assert browser.run("document.activeElement.id") == "main"
    opened(browser, file)
    reached = []
    for _ in range(200):
        browser.key("Tab")
        if browser.run("document.activeElement === document.body"):
            break
        reached.append(
            browser.run(
                "(e => [e.id || e.className.baseVal || e.className || e.textContent, e.getBoundingClientRect().top + scrollY])(document.activeElement)"
            )
        )
    names = [name for name, _ in reached]
    assert {"theme", "tab-0-0", "d-dataset", "d-system", "d-plot", "e-find", "e-list"} <= set(names)
    sections = [
        names.index(name) for name in ("theme", "tab-0-0", "d-dataset", "d-plot", "e-dataset", "e-list")
    ]
    assert sections == sorted(sections)
    # tabs: one stop, arrow keys between them
    browser.run("document.getElementById('tab-0-0').focus()")
    browser.key("ArrowRight")
    assert browser.run(
        "[document.activeElement.id, document.getElementById('panel-0-0').hidden, document.getElementById('panel-0-1').hidden]"
    ) == [
        "tab-0-1",
        True,
        False,
    ]
    # a plot's marks: one stop, arrow keys, and each says its data
    browser.run("document.querySelector('#cost svg.marks .mark').focus()")
    browser.key("ArrowRight")
    assert (
        browser.run(
            "document.querySelectorAll('#cost svg.marks')[0].querySelectorAll('[tabindex=\"0\"]').length"
        )
        == 1
    )
    told = browser.run("document.getElementById('tip').textContent")
    assert told == browser.run("document.activeElement.getAttribute('aria-label')")
    assert "nDCG@10" in told
    # sorting by the value of the measure
    browser.run("document.getElementById('tab-0-0').click()")
    browser.run("document.querySelector('.leaderboard th[data-sort=value] button').focus()")
    browser.key("Enter")
    values = browser.run(
        "[...document.querySelector('.leaderboard').querySelectorAll('tbody tr[data-value]')].map(r => Number(r.dataset.value))"
    )
    assert values == sorted(values, reverse=True)
    assert (
        browser.run("document.querySelector('.leaderboard th[data-sort=value]').getAttribute('aria-sort')")
        == "descending"
    )
    quiet(browser, file)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_have_contrast_in_both_schemes(
    browser: Browser, made: tuple[LabelStore, Path], dark: bool
) -> None:
    _, file = made
    opened(browser, file, dark=dark)
    browser.run(OPEN_DATASETS)
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    assert browser.run(scheme) == ("dark" if dark else "light")
    assert browser.run(CONTRASTS) == []
    browser.run("document.getElementById('theme').focus()")
    for _ in range(1 if dark else 2):
        browser.key("Enter")
    assert browser.run(scheme) == ("light" if dark else "dark")
    assert browser.run(CONTRASTS) == []
    browser.run("localStorage.clear()")


def test_every_control_and_picture_has_a_name(browser: Browser, made: tuple[LabelStore, Path]) -> None:
    _, file = made
    opened(browser, file)
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "combobox",
        "tab",
        "listbox",
        "searchbox",
        "link",
        "image",
        "img",
        "heading",
        "region",
        "table",
        "application",
    }
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in roles
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    levels = browser.run(
        "[...document.querySelectorAll('h1, h2, h3')].filter(h => h.checkVisibility()).map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert browser.run(
        "[...document.querySelectorAll('figure.chart')].every(f => f.querySelector('table tbody tr'))"
    )


def test_a_phone_and_paper_show_it(browser: Browser, made: tuple[LabelStore, Path], tmp_path: Path) -> None:
    _, file = made
    opened(browser, file, width=375, height=812, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") <= 375
    wide = browser.run(
        """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 376
            && !e.closest('.scroll, .contents, .columns')).map(e => e.tagName + '.' + e.getAttribute('class'))"""
    )
    assert wide == []
    # a table that is cut off says so; one that fits does not
    cut = browser.run(
        """[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility()).map(e =>
            [e.scrollWidth > e.clientWidth + 1, e.classList.contains('cut'), e.nextElementSibling.checkVisibility()])"""
    )
    assert [True] * 3 in cut
    assert {tuple(row) for row in cut} <= {(True,) * 3, (False,) * 3}
    assert browser.run(
        "[...document.querySelectorAll('.plot .tick')].every(t => getComputedStyle(t).fontSize === '11px')"
    )
    quiet(browser, file)

    opened(browser, file)
    browser.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    browser.send("Emulation.setEmulatedMedia", media="print")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    shown = "[...document.querySelectorAll({!r})].some(e => e.checkVisibility())"
    assert not browser.run(shown.format(".contents, .skip, .controls, .tabs, #e-list"))
    assert browser.run("[...document.querySelectorAll('.student-node details')].every(d => d.open)")
    for selector in (".leaderboard", "#cost .plot", "#d-plot", "#learning .plot", ".labelings", ".passage"):
        assert browser.run(shown.format(selector)), selector
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
