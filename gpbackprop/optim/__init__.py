"""Floor 2: update rules over flat arrays, and schedules of the learning rate. A new file here is found by itself."""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
