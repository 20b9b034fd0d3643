"""The status page in a real browser."""

import pytest

from support import ber
from support.browser import ENTER, TAB, Browser, page
from support.clients import RawClient
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
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    return start_proxy(pair, pool='health.probe = "tcp"', extra=f'token_file = "{token}"')


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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(tmp_path, proxy, pair, dark):
    """WCAG 2.1 asks for a contrast of 4.5."""
    with Browser(tmp_path, dark=dark) as browser:
        browser.open(page(proxy))
        assert browser.script("return matchMedia('(prefers-color-scheme: dark)').matches") == dark
        faint = browser.script(CONTRAST)
        assert faint == []


def test_on_a_phone_backends_and_failures_are_read_without_scrolling_sideways(tmp_path, proxy):
    with pytest.raises(OSError):
        RawClient(proxy.endpoint(), source="127.0.0.9")
    with Browser(tmp_path, phone=True) as browser:
        browser.open(page(proxy))
        assert "in no trusted network" in browser.text("#failures")
        wide = "return ['#backends-table', '#failures table', 'html'].map((one) => document.querySelector(one).scrollWidth)"
        assert max(browser.script(wide)) <= 390
        assert browser.script("return document.querySelector('#failures .scroll').scrollWidth") <= 390


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
