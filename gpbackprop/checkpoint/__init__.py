"""A dict of arrays <-> one verified HDF5 file, and the series of such files that a run leaves behind.

The file holds data only: arrays, counters, text as bytes. No pickles, no class names to import.

    /format                     {"format": "gpbackprop-checkpoint", "version": 1}, as bytes; the version again as an
                                integer attribute of the root
    /config                     the TOML text, as bytes
    /params/<path>              (K, *shape) each, finite
    /state/<path>               what training changes without a gradient
    /optimizer/<name>/<path>    moments, velocities
    /progress/<name>            epoch, batch, step, best metric
    /history                    JSON lines, as bytes
    /preparation/<name>         means, deviations, class names, column names

followed by a trailer: 16 bytes of magic and the SHA-256 of all before them. Any HDF5 tool opens it.

`write` makes one file, `read` checks one; `save`, `mark_best`, `latest` and `best` keep the series in a directory, and
a `Saver` saves into it while training goes on.
The digest proves that a file is whole, not who wrote it; so the reader trusts nothing inside either.
"""

import os

# Whatever is on the machine's HDF5 plugin path stays unloaded. libhdf5 reads this once, when it starts.
os.environ["HDF5_PLUGIN_PRELOAD"] = "::"

from gpbackprop.checkpoint.background import Saver
from gpbackprop.checkpoint.format import VERSION
from gpbackprop.checkpoint.reader import Checkpoint, Remains, read, salvage
from gpbackprop.checkpoint.series import best, files, go_back, latest, mark_best, save
from gpbackprop.checkpoint.structure import DamagedError, Entry
from gpbackprop.checkpoint.writer import image, write

__all__ = [
    "VERSION",
    "Checkpoint",
    "DamagedError",
    "Entry",
    "Remains",
    "Saver",
    "best",
    "files",
    "go_back",
    "image",
    "latest",
    "mark_best",
    "read",
    "salvage",
    "save",
    "write",
]
