"""The image, built by its Dockerfile with this machine's toolchain and run as a sidecar both ways."""

import json
import os
import re
import shutil

import pytest

from support import net, slapd as openldap
from support.clients import Endpoint, tool
from support.container import REPOSITORY
from support.docker import Docker
from support.waiting import eventually

IMAGE, BUILD_IMAGE, NEIGHBOUR = "ldaps-proxy", "build", "neighbour"
MOST_BYTES = 15 * 1024 * 1024
pytestmark = pytest.mark.deadline(900)


@pytest.fixture(scope="module")
def docker():
    # Not under pytest's directories: a daemon's sockets have short names, and images outlast no test.
    directory = REPOSITORY / "target" / f"docker-{os.getpid()}"
    directory.mkdir(parents=True)
    daemon = Docker(directory)
    try:
        yield daemon
    finally:
        daemon.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def image(docker):
    docker.import_toolchain(BUILD_IMAGE)
    docker.run(
        "build", "--network=none", "--file", REPOSITORY / "docker" / "Dockerfile", "--tag", IMAGE,
        "--build-arg", f"BUILD_IMAGE={BUILD_IMAGE}", "--build-arg", "REVISION=test", REPOSITORY, seconds=800,
    )
    return IMAGE


def test_the_image_is_small_and_needs_nothing(docker, image):
    [facts] = json.loads(docker.run("image", "inspect", image).stdout)
    assert facts["Size"] <= MOST_BYTES
    assert facts["Config"]["User"] == "65532:65532"
    assert facts["Config"]["Labels"]["org.opencontainers.image.revision"] == "test"
    assert docker.run("run", "--rm", "--network=none", "--read-only", image, "--version").stdout.startswith("ldaps-proxy ")
    assert docker.run("run", "--rm", "--network=none", image, "check", check=False).returncode == 1


def test_the_bill_of_materials_is_in_it(docker, image, tmp_path):
    created = docker.run("create", image).stdout.strip()
    docker.run("cp", f"{created}:/usr/share/doc/ldaps-proxy/sbom.cdx.json", tmp_path / "sbom.json")
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    locked = set(re.findall(r'name = "(.+)"\nversion = "(.+)"', (REPOSITORY / "Cargo.lock").read_text()))
    named = {(part["name"], part["version"]) for part in bill["components"]}
    assert ("rustls" in {name for name, _ in named}) and named <= locked


def test_beside_an_application(docker, image, start_proxy, slapd, authority, tmp_path):
    """ldapsearch speaks plain LDAP on loopback; what leaves is LDAPS with a verified certificate."""
    directory = start_proxy([slapd.backend]).endpoint()
    address = net.free_address(1389)
    with sidecar(
        docker, "application", tmp_path, {"directory_ca.pem": authority.ca},
        {'"127.0.0.1:389"': f'"{address}:1389"', '"127.0.0.1/32"': '"127.0.0.0/8"',
         r'"ldap1.*"': f'"{directory.host}:{directory.port}"'},
    ):
        people = tool("ldapsearch", Endpoint(address, 1389), "-b", openldap.PEOPLE, "(uid=p00007)", "cn", account=openldap.ALICE)
        assert "cn: Person 7" in people.stdout


def test_beside_a_directory(docker, image, slapd, authority, tmp_path):
    """ldapsearch speaks LDAPS; the directory hears plain LDAP on loopback."""
    address = net.free_address(1636)
    certificate = authority.issue("sidecar", (f"IP:{address}",))
    with sidecar(
        docker, "directory", tmp_path,
        {"certificate.pem": certificate.certificate, "private_key.pem": certificate.private_key},
        {'"0.0.0.0:636"': f'"{address}:1636"', '"10.0.0.0/8"': '"127.0.0.0/8"', '"127.0.0.1:389"': f'"{slapd.backend}"'},
    ):
        endpoint = Endpoint(address, 1636, authority.ca)
        people = tool("ldapsearch", endpoint, "-b", openldap.PEOPLE, "(uid=p00007)", "cn", account=openldap.ALICE)
        assert "cn: Person 7" in people.stdout


class sidecar:
    """docker/compose.WHERE.yaml, brought up as it stands but for the neighbour, which only lends its network, and the
    addresses in the configuration; left when it was healthy and has been taken down."""

    def __init__(self, docker, where, directory, certificates, addresses):
        self._docker, self._where, self._directory = docker, where, directory
        directory.chmod(0o755)
        (directory / "certs").mkdir()
        for name, source in certificates.items():
            shutil.copy(source, directory / "certs" / name)
            os.chown(directory / "certs" / name, 65532, 65532)
        compose = (REPOSITORY / "docker" / f"compose.{where}.yaml").read_text()
        # No published ports on the machine's own network, and no more descriptors than any machine grants.
        compose = compose.replace("    ports: [\"636:636\"]\n", "").replace("nofile: 20480", "nofile: 4200").replace(
            f"image: your-{where}", f"image: {BUILD_IMAGE}\n    command: sleep infinity\n    network_mode: host")
        (directory / "compose.yaml").write_text(compose)
        text = (REPOSITORY / "docker" / f"sidecar-{where}.toml").read_text()
        self._admin = f"{net.free_address(9636)}:9636"
        for old, new in {**addresses, "127.0.0.1:9636": self._admin}.items():
            text, changes = re.subn(old, new, text)
            assert changes, old
        (directory / f"sidecar-{where}.toml").write_text(text)

    def __enter__(self):
        self._compose("up", "--detach")
        try:
            eventually(lambda: self._health() == "healthy", "HEALTHCHECK passes", 60)
        except BaseException:
            print(self._compose("logs").stdout)
            self.__exit__()
            raise

    def __exit__(self, *_):
        self._compose("down", "--timeout", "10")

    def _compose(self, *arguments):
        return self._docker.compose("--file", self._directory / "compose.yaml", "--project-name", self._where, *arguments)

    def _health(self):
        container = self._compose("ps", "--quiet", "ldaps-proxy").stdout.strip()
        return self._docker.run("inspect", "--format", "{{.State.Health.Status}}", container).stdout.strip()
