"""A SoftHSM token, and a PKCS#11 module in front of it that does as it is told."""

import os
from pathlib import Path

from .process import run

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
LABEL, PIN = "corp", "471147114711"


class Token:
    """A token of its own in `directory`. A proxy that gets `env` and `module` finds it."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.store = self.directory / "tokens"
        self.store.mkdir(parents=True)
        settings = self.directory / "softhsm2.conf"
        settings.write_text(f"directories.tokendir = {self.store}\nobjectstore.backend = file\nlog.level = ERROR\n")
        self.pin_file = self.directory / "pin"
        self.pin_file.write_text(PIN + "\n")
        self.pin_file.chmod(0o600)
        self.module = self.directory / "token_in_trouble.so"
        self._trouble, self._calls = self.directory / "trouble", self.directory / "calls"
        self._waits = self.directory / "trouble.waits"
        self._calls.touch()
        source = Path(__file__).with_name("token_in_trouble.c")
        run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", self.module, source, "-ldl"])
        self.env = {
            "SOFTHSM2_CONF": str(settings), "TOKEN_MODULE": str(SOFTHSM),
            "TOKEN_TROUBLE": str(self._trouble), "TOKEN_CALLS": str(self._calls),
        }
        self._util("--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", "0000000000")

    def add(self, label, number, private_key):
        """Imports a PEM key as the object `label` with the id `number`."""
        pkcs8 = self.directory / f"{label}.p8"
        run(["openssl", "pkcs8", "-topk8", "-nocrypt", "-in", private_key, "-out", pkcs8])
        self._util("--import", pkcs8, "--token", LABEL, "--label", label, "--id", f"{number:02x}", "--pin", PIN)
        pkcs8.unlink()

    def has_trouble(self, text):
        """From now on; token_in_trouble.c has the language."""
        fresh = self._trouble.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self._trouble)

    def is_well(self):
        self._trouble.unlink(missing_ok=True)
        self._waits.unlink(missing_ok=True)

    @property
    def waits_once(self):
        """Whether a call has met `wait once` and waits until the token is well."""
        return self._waits.exists()

    @property
    def trouble_is_over(self):
        return not self._trouble.exists()

    def calls(self, name):
        """How many calls of this name came in so far."""
        return self._calls.read_text().split().count(name)

    def leave(self):
        """The token is gone, as if it had been pulled out."""
        self.store.rename(self.store.with_suffix(".away"))
        self.store.mkdir()

    def come_back(self):
        self.store.rmdir()
        self.store.with_suffix(".away").rename(self.store)

    def _util(self, *arguments):
        run(["softhsm2-util", "--module", SOFTHSM, *arguments], env={**os.environ, **self.env})
