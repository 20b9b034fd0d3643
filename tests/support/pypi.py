"""Tools that Debian has not, from PyPI: of these versions and no other, kept in target/."""

import shutil

from .container import REPOSITORY
from .process import run


def installed(name, packages):
    """The folder of the commands of `packages`, such as `("cfn-lint==1.51.0",)`; installed into target/ the first time."""
    folder = REPOSITORY / "target" / name
    made_of = folder / "made-of"
    if not made_of.exists() or made_of.read_text() != repr(packages):
        shutil.rmtree(folder, ignore_errors=True)
        run(["/usr/bin/python3", "-m", "venv", folder], seconds=120)
        run([folder / "bin" / "pip", "install", "--quiet", *packages], seconds=300)
        made_of.write_text(repr(packages))
    return folder / "bin"
