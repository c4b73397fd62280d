# SPDX-License-Identifier: Apache-2.0
"""Pages in a real browser: sorting, filtering, columns, search, permalinks, themes, width, keyboard, silence."""

from __future__ import annotations

import pytest

from suite.render import render
from tests import chromium
from tests.report_samples import build, full_run, hostile_records, many_records, records

PROGRAM = chromium.find()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine; SUITE_CHROMIUM names one that is elsewhere"),
]
TABLE = "benchmarks-and-cost-digits"
FIRST = f"[...document.querySelectorAll('#{TABLE} tbody:not(.control) th')].map((cell) => cell.firstChild.textContent)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    render(build([*records(), full_run(), *more_algorithms()]), out)
    return out


def more_algorithms():
    return [one for one in many_records(60) if one.recipe.startswith("algo")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.tab(PROGRAM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser):
    """Whatever a test does, the page may not complain and may not ask for anything but itself."""
    browser.problems.clear()
    browser.requests.clear()
    browser.look(1280)
    yield browser
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "about:"))] == []


def head(tab, text):
    """Press the head of the index table's column that starts with `text`; its aria-sort afterwards."""
    script = f"""(() => {{
      const heads = [...document.querySelectorAll('#{TABLE} thead th')];
      const found = heads.find((head) => head.innerText.trim().startsWith('{text}'));
      found.querySelector('button').click();
      return found.getAttribute('aria-sort');
    }})()"""
    return tab.run(script)


def column(tab, text):
    """Numbers of a column of the index table, rows that are no controls."""
    return tab.run(f"""(() => {{
      const heads = [...document.querySelectorAll('#{TABLE} thead th')];
      const at = heads.findIndex((head) => head.innerText.trim().startsWith('{text}'));
      const rows = document.querySelectorAll('#{TABLE} tbody:not(.control) tr');
      return [...rows].map((row) => parseFloat(row.cells[at].innerText));
    }})()""")


def type_in(tab, selector, text):
    tab.run(f"document.querySelector('{selector}').focus(); document.querySelector('{selector}').select()")
    tab.call("Input.insertText", text=text)


def test_sorting_goes_down_up_and_back_and_leaves_controls_below(tab, site):
    tab.open(site / "index.html")
    before = column(tab, "kNN")
    assert head(tab, "kNN") == "descending"
    assert column(tab, "kNN") == sorted(before, reverse=True) != sorted(before)
    assert head(tab, "kNN") == "ascending"
    assert column(tab, "kNN") == sorted(before)
    assert head(tab, "kNN") == "none"
    assert column(tab, "kNN") == before
    assert tab.run(f"document.querySelector('#{TABLE} table').tBodies[1].className") == "control"


def test_names_sort_upwards_first(tab, site):
    tab.open(site / "index.html")
    assert head(tab, "Algorithm") == "ascending"
    names = tab.run(FIRST)
    assert names == sorted(names, key=str.lower) and len(names) > 20


def test_filter_keeps_rows_with_every_word_and_the_controls(tab, site):
    tab.open(site / "index.html")
    type_in(tab, f"#{TABLE} .tools input", "simclr dig")
    assert tab.run(FIRST) == ["SimCLR"]
    assert tab.run(f"document.querySelectorAll('#{TABLE} tbody.control tr').length") == 2
    assert tab.run(f"document.querySelector('#{TABLE} [role=status]').textContent").startswith("3 of ")
    type_in(tab, f"#{TABLE} .tools input", "nobody")
    assert tab.run(FIRST) == []


def test_columns_can_be_put_away(tab, site):
    tab.open(site / "index.html")
    shown = f"[...document.querySelectorAll('#{TABLE} thead th')].filter((head) => head.offsetWidth).length"
    count = tab.run(shown)
    tab.run(f"document.querySelector('#{TABLE} .cols summary').click()")
    tab.run(f"document.querySelectorAll('#{TABLE} .cols input')[1].click()")
    assert tab.run(shown) == count - 1
    assert tab.run("location.hash") == f"#{TABLE}.hide=3"


def test_search_finds_pages_by_title_and_by_what_stands_on_them(tab, site):
    tab.open(site / "index.html")
    type_in(tab, "#search-words", "moco v2")
    first = tab.run("document.querySelector('#search-found a').getAttribute('href')")
    assert first == "mocov2.html" and (site / first).is_file()
    type_in(tab, "#search-words", "cityscapes simsiam")
    assert tab.run("[...document.querySelectorAll('#search-found a')].map((a) => a.textContent)") == ["SimSiam"]
    type_in(tab, "#search-words", "xylophone")
    assert tab.run("document.getElementById('search-status').textContent") == "No page has all of these words."


def test_permalink_restores_sort_filter_and_columns(tab, site):
    tab.open(site / "index.html")
    head(tab, "Linear probe")
    type_in(tab, f"#{TABLE} .tools input", "algo1")
    tab.run(f"document.querySelectorAll('#{TABLE} .cols input')[0].click()")
    address, names = tab.run("location.hash"), tab.run(FIRST)
    assert len(names) == 10
    tab.open(site / "mocov2.html")
    tab.open(site / "index.html", address)
    assert tab.run(FIRST) == names
    values = column(tab, "Linear probe")
    assert values == sorted(values, reverse=True)
    assert tab.run(f"document.querySelector('#{TABLE} .tools input').value") == "algo1"
    assert tab.run(f"document.querySelector('#{TABLE} thead').rows[0].cells[1].offsetWidth") == 0
    assert tab.run("Math.abs(document.getElementById('" + TABLE + "').getBoundingClientRect().top)") < 200, "scrolled to"


def test_any_two_runs_compare_and_the_address_says_which(tab, site):
    tab.open(site / "compare.html", "#compare-two-runs.a=mocov2-digits-1&compare-two-runs.b=simclr-digits-1")
    rows = """Object.fromEntries([...document.querySelectorAll('.versus tbody tr')]
      .map((row) => [...row.cells].map((cell) => cell.innerText)).map((texts) => [texts[0], texts.slice(1)]))"""
    assert tab.run(rows)["top1.pooled"] == ["68.8", "66.8", "−2"]
    tab.run(
        "(() => { const form = document.querySelector('.versus form'); form.b.value = form.a.value; form.only.click(); })()"
    )
    assert tab.run("document.querySelectorAll('.versus tbody').length") == 0, "a run does not differ from itself"
    assert "only=1" in tab.run("location.hash")


def test_keyboard_reaches_sorting_and_provenance(tab, site):
    tab.open(site / "index.html")
    tab.run(f"document.querySelector('#{TABLE} thead button').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    assert tab.run(f"document.querySelector('#{TABLE} thead th').getAttribute('aria-sort')") == "ascending"
    tab.run(f"document.querySelector('#{TABLE} td .tip').focus()")
    assert tab.run("document.getElementById('tip').hidden") is False
    assert tab.run("document.activeElement.getAttribute('aria-describedby')") == "tip"
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Escape", code="Escape", windowsVirtualKeyCode=27)
    assert tab.run("document.getElementById('tip').hidden") is True


CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (node) => { for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour[3] !== 0) return colour; } return [255, 255, 255]; };
  const poor = [];
  for (const node of document.querySelectorAll('main *, header *, footer')) {
    if (!node.offsetParent || ![...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    if (node.matches('.info')) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
  }
  return poor;
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["index", "mocov2", "bench-svm", "compare", "run-simclr-digits-0"])
def test_contrast_and_width(tab, site, name, dark):
    for width in (1280, 390):
        tab.look(width, dark=dark)
        tab.open(site / f"{name}.html")
        assert tab.run("document.documentElement.scrollWidth") <= width, "only tables scroll sideways"
        assert tab.run(CONTRAST) == []


def test_reader_can_choose_the_theme(tab, site):
    tab.open(site / "index.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = tab.run(ground)
    tab.run("document.getElementById('theme').click()")
    assert tab.run(ground) != before
    tab.run("document.getElementById('theme').click()")
    assert tab.run(ground) == before


def test_print_hides_tools_and_does_not_clip(tab, site):
    tab.look(1000, dark=True, media="print")
    tab.open(site / "index.html")
    assert tab.run("document.querySelector('.tools').offsetHeight + document.querySelector('.bar').offsetHeight") == 0
    assert tab.run("getComputedStyle(document.querySelector('.table .scroll')).overflowX") == "visible"
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_hostile_names_do_nothing_in_a_browser(tab, tmp_path):
    render(build([*records(), *hostile_records()]), tmp_path, ["html"])
    for path in sorted(tmp_path.glob("*.html")):
        if path.stem in ("index", "compare", "bench-knn") or "script" in path.stem:
            tab.open(path)
            assert tab.run("document.querySelectorAll('script:not([type])').length") == 1
    assert "Page.javascriptDialogOpening" not in tab.events


def test_ten_thousand_runs_are_usable(tab, tmp_path):
    render(build(many_records(10_000)), tmp_path, ["html"])
    tab.open(tmp_path / "index.html")
    paint = tab.run("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    times = [tab.run(f"""(() => {{
      const button = document.querySelectorAll('#{TABLE} thead button')[{at}], start = performance.now();
      button.click();
      document.body.offsetHeight;
      return performance.now() - start;
    }})()""") for at in (3, 0, 4)]  # fmt: skip
    print(f"first paint {paint:.0f} ms, sorting {', '.join(f'{ms:.0f}' for ms in times)} ms")
    assert tab.run(f"document.querySelectorAll('#{TABLE} tbody tr').length") == 50
    tab.run(f"document.querySelector('#{TABLE} .more').click()")
    assert tab.run(f"document.querySelectorAll('#{TABLE} tbody tr').length") == 300
