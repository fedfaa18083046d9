"""The environment of the scripts beside this file: `.venv-X.Y` in the project's root, one for each Python that calls.

Made on the first call and again when pyproject.toml has changed. The package is installed editable, so that the
environment always runs the code of the tree. An old Python can read this file, and is told that it is too old.
"""

from __future__ import print_function

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "gpbackprop needs Python 3.11 or newer, and %s is Python %d.%d. Call this script with a newer one,"
        " for example: python3.12 %s" % ((sys.executable,) + sys.version_info[:2] + (sys.argv[0],))
    )

import hashlib
import importlib.util
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-{}.{}".format(*sys.version_info[:2])
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")


def prepare(extra=""):
    """Install the package, with the extra `extra` if one is named, unless that was done for this pyproject.toml.

    What is said goes to stderr: stdout belongs to the program that is run next.
    """
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if PYTHON.exists() and any(done.read_text() == digest for done in VENV.glob("installed*" + extra)):
        return
    if not has_pip():
        make()
    print("Installing gpbackprop and what it needs into {} (once; up to a minute) ...".format(VENV), file=sys.stderr)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--retries", "2"]
    target = ".[" + extra + "]" if extra else "."
    status = subprocess.call(pip + ["--editable", target], cwd=ROOT, stdout=sys.stderr)
    if status:
        sys.exit(
            "pip could not install gpbackprop (exit {}); what it says stands above. The first call needs a network that"
            " reaches a Python package index. Behind a proxy, set HTTPS_PROXY; for a mirror, set PIP_INDEX_URL. Then"
            " call this again.".format(status)
        )
    (VENV / ("installed-" + extra if extra else "installed")).write_text(digest)


def has_pip():
    """Whether the environment is there, its Python starts and has pip (a call cut short leaves one without)."""
    return PYTHON.exists() and not subprocess.call(
        [str(PYTHON), "-c", "import pip"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def make():
    """Make an empty virtual environment."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            "{} cannot make a virtual environment: it lacks the module {}. On Debian and Ubuntu:"
            " apt install python{}.{}-venv. Elsewhere: use a Python with its whole standard library.".format(
                sys.executable, " and ".join(missing), *sys.version_info[:2]
            )
        )
    status = subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)], cwd=ROOT, stdout=sys.stderr)
    if status:
        sys.exit("{} -m venv {} failed (exit {}); what it says stands above.".format(sys.executable, VENV, status))


def run(name, *arguments):
    """Become the program `name` of the environment, so that signals (Ctrl-C) and the exit code are its own."""
    command = [str(BIN / name)] + [str(argument) for argument in arguments]
    if os.name == "nt":
        sys.exit(subprocess.call(command))
    sys.stdout.flush()
    os.execv(command[0], command)
