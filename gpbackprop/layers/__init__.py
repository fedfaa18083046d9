"""Floor 2: the layers, one file a family. A new file here is found by itself."""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
