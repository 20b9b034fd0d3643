"""Prometheus itself: it scrapes the proxy, its tool lints the metrics, proves the alerts and knows every name they use."""

import json
import re
import shutil
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from support import ber
from support.clients import RawClient
from support.net import free_address
from support.process import Process, run
from support.waiting import eventually

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "config" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "config" / "grafana" / "dashboard.json"


@pytest.fixture(autouse=True, scope="module")
def promtool():
    assert shutil.which("promtool"), "missing promtool: apt-get install --no-install-recommends prometheus"


@pytest.fixture
def proxy(start_proxy, start_backend):
    return start_proxy([start_backend()], pool='health.probe = "tcp"')


def known_names():
    """Every series of docs/metrics.md, which a Rust test holds to the code."""
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|", (ROOT / "docs" / "metrics.md").read_text(), re.M)
    assert len(rows) > 30
    return {name + suffix for name, kind in rows for suffix in (_HISTOGRAM if kind == "histogram" else [""])}


_HISTOGRAM = ["_bucket", "_sum", "_count"]


def used_names(text):
    return set(re.findall(r"\b(?:ldaps_proxy|process)_\w+", text))


def test_promtool_finds_nothing_to_mend_in_the_metrics(proxy):
    """Those that appear with what they count included: a handshake that came about, and one that failed."""
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
    with RawClient(proxy.endpoint(tls=False), malformed=True) as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        proxy.wait_for("ldaps_proxy_handshake_failures_total", 1, reason="not_tls")
    proxy.wait_for("ldaps_proxy_handshakes_total", 1)
    _, text = proxy.http("/metrics")
    lint = run(["promtool", "check", "metrics"], input=text)
    assert lint.stdout + lint.stderr == ""


def test_every_alert_fires_when_it_should_and_only_then():
    run(["promtool", "check", "rules", ALERTS])
    run(["promtool", "test", "rules", ALERTS.with_suffix(".test.yml")], cwd=ALERTS.parent)


def test_every_alert_has_its_page_in_the_runbook():
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    pages = re.findall(r"^### (LdapsProxy\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.M)
    assert alerts and alerts == pages
    anchors = re.findall(r"runbook: docs/runbook\.md#(\w+)$", ALERTS.read_text(), re.M)
    assert anchors == [alert.lower() for alert in alerts]
    assert set(alerts) <= set(re.findall(r'alertname="(\w+)"', ALERTS.with_suffix(".test.yml").read_text()))


def test_every_refusal_has_its_row_in_the_runbook(proxy):
    reasons = {dict(labels)["reason"] for labels in proxy.metrics().get("ldaps_proxy_refusals_total")}
    section = (ROOT / "docs" / "runbook.md").read_text().partition("\n## Refusals\n")[2].partition("\n## ")[0]
    assert reasons == set(re.findall(r"^\| `(\w+)` \|", section, re.M))


@pytest.mark.parametrize("path", [ALERTS, ALERTS.with_suffix(".test.yml"), DASHBOARD], ids=lambda path: path.name)
def test_only_metrics_that_exist_are_used(path):
    used = used_names(path.read_text())
    assert used and used <= known_names()


def test_the_dashboard_is_one_grafana_takes():
    dashboard = json.loads(DASHBOARD.read_text())
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(identifiers) == len(set(identifiers)) > 5
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in dashboard["panels"] if panel["type"] != "row")


def test_prometheus_scrapes_it_and_evaluates_alerts_and_dashboard(proxy, tmp_path):
    config = tmp_path / "prometheus.yml"
    host, port = proxy.admin
    config.write_text(f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{ALERTS}"]
scrape_configs: [{{job_name: ldaps-proxy, static_configs: [{{targets: ["{host}:{port}"]}}]}}]
""")
    address = f"{free_address(9090)}:9090"
    argv = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
    prometheus = Process(argv, directory=tmp_path)
    try:

        def ask(path, **query):
            with urllib.request.urlopen(f"http://{address}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
                return json.load(answer)["data"]

        def value(query):
            return [sample["value"][1] for sample in ask("/api/v1/query", query=query)["result"]]

        eventually(lambda: value('up{job="ldaps-proxy"}') == ["1"], "it is scraped")
        assert value("ldaps_proxy_backend_up") == ["1"]
        rules = eventually(
            lambda: [rule for group in ask("/api/v1/rules")["groups"] for rule in group["rules"] if rule["health"] != "unknown"],
            "the alerts are evaluated",
        )
        assert {rule["health"] for rule in rules} == {"ok"}
        for panel in json.loads(DASHBOARD.read_text())["panels"]:
            for target in panel.get("targets", []):
                value(target["expr"].replace("$__rate_interval", "5s").replace("$instance", ".*"))
    finally:
        prometheus.close()
