"""A Docker daemon of our own, without bridge and firewall rules: containers use the machine's network, or none."""

import os
import subprocess
import tarfile
from pathlib import Path

from .container import REPOSITORY, bookworm
from .process import Process, run
from .waiting import eventually


class Docker:
    """Starts dockerd; what it keeps is in `directory`. Closing removes its containers, then ends it."""

    def __init__(self, directory):
        self._directory = directory = Path(directory)
        self._host = f"unix://{directory}/docker.sock"
        self._daemon = Process(
            ["dockerd", "--host", self._host, "--data-root", directory / "data", "--exec-root", directory / "exec",
             "--pidfile", directory / "docker.pid", "--bridge=none", "--iptables=false", "--ip-forward=false"],
            directory=directory,
        )
        eventually(self._answers, "dockerd answers", 60)

    def close(self):
        if containers := self.run("ps", "--all", "--quiet").stdout.split():
            self.run("rm", "--force", *containers)
        self._daemon.close()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mounted = line.split()[4]
            if mounted.startswith(f"{self._directory}/"):
                run(["umount", "--lazy", mounted])

    def run(self, *arguments, check=True, seconds=120):
        return self._client("/usr/bin/docker", *arguments, check=check, seconds=seconds)

    def compose(self, *arguments, seconds=120):
        return self._client("docker-compose", *arguments, check=True, seconds=seconds)

    def import_toolchain(self, tag):
        """An image to build in: Debian 12 with a C compiler, this machine's Rust and the crates cargo has fetched."""
        sysroot = Path(run(["rustc", "--print", "sysroot"]).stdout.strip())
        cargo_home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
        run(["cargo", "fetch", "--locked"], cwd=REPOSITORY, seconds=300)
        paths = [sysroot / "bin", sysroot / "lib", *(cargo_home / "registry" / part for part in ("cache", "index"))]
        variables = {
            "PATH": f"{sysroot}/bin:/usr/sbin:/usr/bin", "CARGO_HOME": cargo_home, "CARGO_NET_OFFLINE": "true",
        }
        changes = [word for name, value in variables.items() for word in ("--change", f"ENV {name}={value}")]
        client = subprocess.Popen(
            ["/usr/bin/docker", "--host", self._host, "import", *changes, "-", tag],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        with client, tarfile.open(fileobj=client.stdin, mode="w|") as tar:
            tar.add(bookworm(), arcname=".")
            for path in paths:
                tar.add(path, arcname=str(path).lstrip("/"))
            tar.close()
            client.stdin.close()
            said = client.stdout.read()
        assert client.returncode == 0, said

    def _client(self, *argv, check, seconds):
        environment = {**os.environ, "DOCKER_HOST": self._host, "DOCKER_BUILDKIT": "0"}
        return run(argv, check=check, seconds=seconds, env=environment)

    def _answers(self):
        assert self._daemon.returncode() is None, f"dockerd ended:\n{self._daemon.stderr()[-5000:]}"
        return self.run("version", check=False).returncode == 0
