"""Run the tests.

    python scripts/test.py [options of pytest]

Needs Python 3.11 or newer and nothing else: the first call makes an environment. Paths are relative to the project's
root, wherever this is called from.
"""

import os
import sys

from environment import ROOT, prepare, run

prepare("test")
os.chdir(ROOT)
run("pytest", *sys.argv[1:])
