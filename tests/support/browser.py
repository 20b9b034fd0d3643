"""A real Chromium, driven through chromedriver's WebDriver protocol (W3C)."""

import base64
import http.client
import json
import re
import shutil
from pathlib import Path

from .process import Process
from .waiting import eventually

PACKAGES = "chromium chromium-driver"
PICTURES = Path(__file__).parents[2] / "target" / "pictures"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One headless window; entering starts it, leaving ends it."""

    def __init__(self, directory, *, javascript=True, dark=False, phone=False):
        assert shutil.which("chromedriver"), f"missing chromedriver: apt-get install --no-install-recommends {PACKAGES}"
        self._directory, self._javascript, self._dark, self._phone = directory, javascript, dark, phone

    def __enter__(self):
        self._driver = Process(["chromedriver", "--port=0"], directory=self._directory)
        started = r"started successfully on port (\d+)"
        self._port = int(eventually(lambda: re.search(started, self._driver.stdout()), "chromedriver listens")[1])
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1800"]
        if self._dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        capabilities = {"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = ""
        self._session = "/session/" + self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]
        if not self._javascript:
            disable = {"cmd": "Emulation.setScriptExecutionDisabled", "params": {"value": True}}
            self._ask("POST", "/goog/cdp/execute", disable)
        if self._phone:
            screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
            self._ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": screen})
        return self

    def __exit__(self, *_):
        try:
            self._ask("DELETE", "")
        finally:
            self._driver.close()

    def open(self, url):
        self._ask("POST", "/url", {"url": url})

    def text(self, selector="body"):
        """What a reader sees of the first element that matches."""
        return self._ask("GET", f"/element/{self._find(selector)}/text")

    def attribute(self, selector, name):
        return self._ask("GET", f"/element/{self._find(selector)}/attribute/{name}")

    def role(self, selector):
        """What assistive technology takes the element for."""
        return self._ask("GET", f"/element/{self._find(selector)}/computedrole")

    def named(self, *roles):
        """The names of all elements with one of these roles, as assistive technology reads them out."""
        tree = self._ask("POST", "/goog/cdp/execute", {"cmd": "Accessibility.getFullAXTree", "params": {}})
        nodes = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in roles]
        return [node["name"]["value"] for node in nodes]

    def enabled(self, selector):
        return self._ask("GET", f"/element/{self._find(selector)}/enabled")

    def click(self, selector):
        self._ask("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector, text):
        self._ask("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, keys):
        """Keys for whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def script(self, text):
        """The value a script returns."""
        return self._ask("POST", "/execute/sync", {"script": text, "args": []})

    def complaints(self):
        """What the browser's console holds against the page since the last call."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def picture(self, name):
        """What it looks like, in target/pictures/, for a person to look at."""
        path = PICTURES / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def _find(self, selector):
        return self._ask("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, self._session + path, None if body is None else json.dumps(body))
            value = json.load(connection.getresponse())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{method} {path}: {value['message']}")
        return value


TAB, ENTER = "\ue004", "\ue007"
"""Keys as WebDriver names them."""


def page(proxy):
    """The address of a proxy's status page."""
    host, port = proxy.admin
    return f"http://{host}:{port}/"
