"""Fixtures of the black-box tests, a deadline for every test, and the proxy's log with every failure."""

import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import ledger, reconcile, samba
from support.backend import FakeBackend
from support.certs import Authority
from support.faults import Figures
from support.proxy import BINARY, Proxy, config
from support.slapd import ALICE, MANAGER, Slapd

PROGRAMS = ("samba", "samba-tool", "slapd", "slapadd", "ldapsearch", "openssl", "setpriv", "unshare", "kinit", "debootstrap",
            "systemd-nspawn", "dockerd", "docker-compose", "dpkg-shlibdeps", "ldbsearch", "promtool", "chromedriver",
            "java", "node", "testssl", "softhsm2-util", "gnutls-cli", "lintian", "shellcheck", "valgrind")


def pytest_addoption(parser):
    parser.addoption("--update-instructions", action="store_true", help="write tests/instructions.json anew")


def pytest_sessionstart(session):
    for account in (samba.ADMINISTRATOR, *samba.USERS, MANAGER, ALICE):
        reconcile.note_password(account.password)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        packages = " ".join((Path(__file__).parent / "debian-packages").read_text().split())
        pytest.exit(f"missing {', '.join(missing)}: apt-get install --no-install-recommends {packages}", returncode=1)
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is missing: cargo build --release", returncode=1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """No test runs for ever: SIGALRM breaks whatever Python waits for."""
    marker = item.get_closest_marker("deadline")
    seconds = marker.args[0] if marker else 120

    def too_late(*_):
        raise AssertionError(f"the test's deadline of {seconds} s has passed")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for proxy in Proxy.running:
            report.sections.append((f"log of ldaps-proxy {proxy.process.pid}", proxy.log()[-20_000:]))


def pytest_terminal_summary(terminalreporter):
    if Figures.shown:
        terminalreporter.section("what the faults cost")
        for figures in Figures.shown:
            terminalreporter.write_line(str(figures))


@pytest.fixture
def figures(request):
    """Where a test notes what its fault cost."""
    return Figures(request.node.name)


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """The CA that clients trust."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def certificate(authority):
    """The proxy's certificate: for 127.0.0.1, localhost and PROXY_NAME."""
    return authority.issue("proxy")


@pytest.fixture(scope="session")
def domain(tmp_path_factory):
    """The directory of a provisioned domain, for DCs to be made of."""
    return samba.provision(tmp_path_factory.mktemp("domain") / "template")


@pytest.fixture(scope="session")
def controllers(domain, tmp_path_factory):
    """Two DCs of one domain, started once. Tests that harm them ask for `dcs`."""
    directory = tmp_path_factory.mktemp("samba")
    with ExitStack() as stack:
        pair = [samba.DomainController(domain, directory / name, name) for name in ("dc1", "dc2")]
        for controller in pair:
            stack.callback(controller.close)
            controller.start()
        yield pair


@pytest.fixture
def dcs(controllers):
    """Both DCs, running again after whatever the test does to them."""
    yield controllers
    for controller in controllers:
        controller.restore()


@pytest.fixture(scope="session")
def strict_dc(domain, authority, tmp_path_factory):
    """A DC that takes passwords under TLS only, as they do unless told otherwise."""
    controller = samba.DomainController(domain, tmp_path_factory.mktemp("strict") / "dc", "strict-dc", authority)
    try:
        yield controller.start()
    finally:
        controller.close()


@pytest.fixture(scope="session")
def dc(controllers):
    """The first DC, for tests that leave it running."""
    return controllers[0]


@pytest.fixture(scope="session")
def slapd(tmp_path_factory):
    """OpenLDAP with 10,000 people."""
    server = Slapd(tmp_path_factory.mktemp("slapd"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(autouse=True)
def own_answers():
    """What scripted backends answered is compared within one test: the next server with such a port may be none of them."""
    yield
    ledger.answers.clear()


@pytest.fixture
def start_backend():
    """Makes fake backends that end with the test: `start_backend(answer)`."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(FakeBackend(*arguments, **options))


@pytest.fixture
def start_proxy(certificate, authority, tmp_path_factory):
    """Starts proxies that end with the test: `start_proxy(backends, trusted=…, listener=…, pool=…, extra=…)`, or a
    whole configuration with `start_proxy(text=…)`. `ready`, `env` and `under` are `Proxy`'s."""
    with ExitStack() as stack:

        def start(backends=(), *, text=None, ready=True, env=None, under=(), **tables):
            text = text or config(certificate, backends, **tables)
            proxy = Proxy(text, tmp_path_factory.mktemp("proxy"), ca=authority.ca, ready=ready, env=env, under=under)
            return stack.enter_context(proxy)

        yield start


@pytest.fixture(scope="module")
def proxy_for(certificate, authority, tmp_path_factory):
    """One proxy in front of one server for all tests of a module: `proxy_for(server)`."""
    with ExitStack() as stack:
        started = {}

        def proxy(server):
            if server.backend not in started:
                text = config(certificate, [server.backend])
                started[server.backend] = stack.enter_context(
                    Proxy(text, tmp_path_factory.mktemp("proxy"), ca=authority.ca)
                )
            return started[server.backend]

        yield proxy
