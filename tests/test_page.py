"""The status page in a real browser."""

import json

import pytest

from support import ber
from support.backend import answer_nothing
from support.browser import ENTER, TAB, Browser, page
from support.clients import RawClient
from support.process import run
from support.proxy import BINARY
from support.waiting import eventually

pytestmark = pytest.mark.deadline(120)
TOKEN = "a-token-of-this-test"


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path) as browser:
        yield browser


@pytest.fixture
def pair(start_backend):
    return [start_backend(), start_backend()]


@pytest.fixture
def proxy(start_proxy, pair, tmp_path):
    """Two backends, and a token for the page."""
    return with_token(start_proxy, pair, tmp_path)


def with_token(start_proxy, backends, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    return start_proxy(backends, pool='health.probe = "tcp"', extra=f'token_file = "{token}"\nsocket = "{tmp_path}/admin.sock"')


@pytest.fixture
def troubled(start_proxy, start_backend, pair, tmp_path):
    """Of its backends one is up, one down and one draining; a reload was rejected, a bind refused."""
    down, draining = pair
    proxy = with_token(start_proxy, [start_backend(), down, draining], tmp_path)
    down.answer = draining.answer = answer_nothing
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.bind, "cn=ann", "")
    down.stop_listening()
    run([BINARY, "drain", str(draining), "--admin", f"unix:{tmp_path}/admin.sock"])
    proxy.config_file.write_text("nonsense = true")
    proxy.reload()
    proxy.wait_for("ldaps_proxy_reloads_total", 1, result="rejected")
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=str(down))
    return proxy


def button(action, backend):
    return f'button[data-action="{action}"][data-backend="{backend}"]'


def state(browser, backend):
    """The row of a backend as a reader sees it."""
    return next(row for row in browser.text("#backends-table").splitlines() if row.startswith(str(backend)))


def test_a_backend_is_drained_by_its_button_and_its_session_moves(browser, proxy, pair):
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        used, other = sorted(pair, key=lambda backend: -len(backend.sessions()))
        browser.open(page(proxy))
        assert not browser.enabled(button("drain", used)), "without a token the buttons can do nothing"
        browser.type("#token", TOKEN)
        browser.click(button("drain", used))
        eventually(lambda: f"{used} is draining" in browser.text("#outcome"), "the page says what was done")
        eventually(lambda: "draining" in state(browser, used), "the table shows it")
        eventually(lambda: not used.open(), "the drained backend has no session left")
        client.ask(ber.search)
        assert other.sessions(), "the session went on elsewhere"
        browser.click(button("enable", used))
        eventually(lambda: "draining" not in state(browser, used), "it is back in service")
    assert browser.complaints() == []


def test_a_wrong_token_does_nothing_and_says_so(browser, proxy, pair):
    browser.open(page(proxy))
    browser.type("#token", "wrong")
    browser.click(button("drain", pair[0]))
    eventually(lambda: "token" in browser.text("#outcome"), "the page says why not")
    assert "draining" not in browser.text("#backends-table")


def test_the_page_renews_itself_and_tells_when_it_is_old(browser, proxy, pair):
    browser.open(page(proxy))
    assert browser.text("#verdict") == "Ready. 2 of 2 backends usable."
    pair[0].stop_listening()
    eventually(lambda: browser.text("#verdict") == "Ready. 1 of 2 backends usable.", "a lost backend shows")
    assert "down" in state(browser, pair[0])
    pair[0].listen_again()
    eventually(lambda: browser.text("#verdict") == "Ready. 2 of 2 backends usable.", "its return shows")
    proxy.terminate()
    eventually(lambda: "old" in browser.text("#stale"), "figures of a proxy that is gone are marked")


def test_the_keyboard_reaches_the_buttons(browser, proxy, pair):
    browser.open(page(proxy))
    browser.type("#token", TOKEN)
    browser.press([TAB])  # the table's scroll area
    for _ in range(2 * len(pair) + 2):
        browser.press([TAB])
        if browser.script("return document.activeElement.dataset.action") == "drain":
            break
    drained = browser.script("return document.activeElement.dataset.backend")
    assert drained in map(str, pair), "a button has the focus"
    browser.press([ENTER])
    eventually(lambda: "draining" in state(browser, drained), "it is drained")
    assert browser.script("return document.activeElement.dataset.backend") == drained, "the focus stays where it was"


def test_the_page_reads_without_javascript(tmp_path, proxy, pair):
    with Browser(tmp_path, javascript=False) as browser:
        browser.open(page(proxy))
        text = browser.text()
        assert "Ready. 2 of 2 backends usable." in text and str(pair[0]) in text
        assert "reload it" in text
        assert "Admin token" not in text, "what needs JavaScript isn't shown"


SHADES = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


@SHADES
def test_every_text_stands_out_from_its_ground(tmp_path, proxy, pair, dark):
    assert_contrast(tmp_path, proxy, dark, picture="calm")


@SHADES
def test_so_does_what_is_said_of_trouble(tmp_path, troubled, dark):
    text = assert_contrast(tmp_path, troubled, dark, picture="troubled")
    for words in ("1 of 3 backends usable", "down", "draining", "unauthenticated", "Last reload: rejected", "unknown key `nonsense`"):
        assert words in text


def assert_contrast(tmp_path, proxy, dark, picture):
    """WCAG 2.1 asks for a contrast of 4.5. Returns the page's text."""
    with Browser(tmp_path, dark=dark) as browser:
        browser.open(page(proxy))
        assert browser.script("return matchMedia('(prefers-color-scheme: dark)').matches") == dark
        browser.type("#token", TOKEN)  # what is disabled may be faint
        browser.picture(f"{picture}-{'dark' if dark else 'light'}")
        assert browser.script(CONTRAST) == []
        return browser.text()


def test_a_rejected_reload_is_shown_as_check_prints_it(browser, troubled):
    """The caret below the line it belongs to, not squeezed to its beginning."""
    browser.open(page(troubled))
    place, line, caret, *_ = browser.text("#reload ul").splitlines()
    assert place.endswith("unknown key `nonsense` in the file's top level")
    assert caret.index("^") == line.index("nonsense")


def test_on_a_phone_backends_and_failures_are_read_without_scrolling_sideways(tmp_path, troubled):
    with pytest.raises(OSError):
        RawClient(troubled.endpoint(), source="127.0.0.9")
    with Browser(tmp_path, phone=True) as browser:
        browser.open(page(troubled))
        browser.picture("phone")
        assert "in no trusted network" in browser.text("#failures")
        wide = "return ['#backends-table', '#failures table', 'html'].map((one) => document.querySelector(one).scrollWidth)"
        assert max(browser.script(wide)) <= 390
        assert browser.script("return document.querySelector('#failures .scroll').scrollWidth") <= 390


def test_who_cannot_see_it_hears_what_it_is(browser, proxy, pair):
    """Every button says which backend it is for; a change of the verdict and of an outcome is announced."""
    browser.open(page(proxy))
    assert sorted(browser.named("button")) == sorted(f"Drain {backend}" for backend in pair)
    assert browser.named("textbox") == ["Admin token, to drain and enable"]
    assert browser.script("return document.querySelectorAll('button, input, select, textarea').length") == len(pair) + 1
    assert {selector: browser.role(selector) for selector in ("#verdict", "#outcome", "#backends-table")} == {
        "#verdict": "status", "#outcome": "status", "#backends-table": "table",
    }
    identifiers = browser.script("return [...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(identifiers) == len(set(identifiers))
    assert not any(" " in identifier for identifier in identifiers)


def test_what_passes_shows(browser, proxy):
    """One session with a bind and five searches: its figures in every table that has any of it."""
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.bind, "cn=app", "secret")
        for _ in range(5):
            client.ask(ber.search)
        browser.open(page(proxy))
        eventually(lambda: figure(browser, "Median latency") != "–", "the last minute has a latency")
        assert figure(browser, "Sessions") == "1"
        assert float(figure(browser, "Operations per second")) > 0
        assert figure(browser, "99th percentile").endswith("ms")
        assert row(browser, "#busiest", "127.0.0.1") == ["1", "6"]
        assert row(browser, "#busiest", "cn=app") == ["1", "6"]
        assert row(browser, "#counts", "1.3") == ["1"]
        assert browser.text("#certificates tbody th").endswith("/proxy.pem")
        assert row(browser, "#listeners", "ldaps")[-1] == "1"
        status = json.loads(proxy.http("/api/v1/status")[1])
    assert status["tls_versions"] == {"1.3": 1}
    assert status["top_clients"] == [{"who": "127.0.0.1", "sessions": 1, "operations": 6}]
    assert status["top_bind_names"] == [{"who": "cn=app", "sessions": 1, "operations": 6}]


def test_the_last_reload_shows(browser, proxy):
    browser.open(page(proxy))
    assert "Last reload" not in browser.text()
    text = proxy.config_file.read_text()
    proxy.config_file.write_text(text.replace('health.probe = "tcp"', 'health.probe = "tcp"\nhealth.rise = 3'))
    proxy.reload()
    eventually(lambda: "Last reload: applied" in browser.text(), "it shows")
    reload = json.loads(proxy.http("/api/v1/status")[1])["last_reload"]
    assert reload["applied"] and any("health.rise" in line for line in reload["lines"])
    assert all(line in browser.text("#reload") for line in reload["lines"])


def figure(browser, what):
    """A figure of the traffic by its name."""
    return dict(texts(browser, "#traffic dl div", "children"))[what]


def texts(browser, selector, parts):
    """What stands in the parts of each element that matches."""
    return browser.script(f"""
        const texts = (parts) => [...parts].map((part) => part.innerText);
        return [...document.querySelectorAll("{selector}")].map((one) => texts(one.{parts}));
    """)


def row(browser, section, head):
    """The cells of the row with this head, without it."""
    rows = texts(browser, f"{section} tbody tr", "cells")
    found = [cells[1:] for cells in rows if cells[0] == head]
    assert len(found) == 1, f"{head!r} in {rows}"
    return found[0]


def test_what_a_client_calls_itself_is_only_text(browser, proxy):
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.bind, "<img src=x onerror=document.title='owned'>", "secret")
        browser.open(page(proxy))
        eventually(lambda: "<img src=x" in browser.text("#busiest"), "the name is shown")
        assert "owned" not in browser.script("return document.title")
        assert browser.script("return document.querySelectorAll('img').length") == 0


def test_the_page_asks_nobody_else(browser, proxy):
    browser.open(page(proxy))
    hosts = browser.script("return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host)")
    host, port = proxy.admin
    assert hosts and set(hosts) == {f"{host}:{port}"}
    assert browser.complaints() == []


CONTRAST = """
const parse = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = ([red, green, blue]) => {
  const [r, g, b] = [red, green, blue].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const color = parse(getComputedStyle(element).backgroundColor);
    if (color.length === 3 || color[3] > 0) return color;
  }
  throw new Error("no ground");
};
return [...document.querySelectorAll("body *")]
  .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .filter((element) => !element.closest("[disabled], [hidden]"))
  .map((element) => {
    const [a, b] = [parse(getComputedStyle(element).color), ground(element)].map(luminance).sort((x, y) => y - x);
    return [element.textContent.trim(), (a + 0.05) / (b + 0.05)];
  })
  .filter(([, contrast]) => contrast < 4.5);
"""
