"""What every test shares: the CUDA mark, the data directory, and Hypothesis without a stop-watch."""

import logging
import os

# One thread for each product, here and in the programs that the tests start: several that wait for each other on a busy
# machine are slower by an order of magnitude. Set before NumPy is imported, which reads it once.
for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gpbackprop import backend
from gpbackprop.errors import DeviceError

# An example may take long on a busy machine, and a draw may be thrown away; neither is what these tests ask.
_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]
settings.register_profile("gpbackprop", parent=settings.default, deadline=None, suppress_health_check=_CHECKS)
settings.load_profile("gpbackprop")


@pytest.fixture(scope="session")
def cuda():
    """The backend of the first CUDA device; skips the test, with the reason, where there is none."""
    try:
        return backend.select("cuda")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _needs_cuda(request):
    if request.node.get_closest_marker("cuda"):
        request.getfixturevalue("cuda")


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """A command that runs in the process of a test sets the log up for a screen; the next test shall not see that."""
    log = logging.getLogger("gpbackprop")
    before = (log.level, log.propagate, list(log.handlers))
    yield
    log.level, log.propagate, log.handlers = before


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """The folder with `mnist/` and `seeds.csv`; skips the test where GPBACKPROP_DATA does not name one."""
    folder = os.environ.get("GPBACKPROP_DATA")
    if not folder:
        pytest.skip("GPBACKPROP_DATA is not set: no folder with mnist/ and seeds.csv")
    return Path(folder)
