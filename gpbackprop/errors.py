"""What can go wrong, as a user sees it: each error is a sentence and an exit code.

A message names the key, path or file, says what was found and what was expected, and what to do.
"""


class GPError(Exception):
    """An error whose message is meant for the user. `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(GPError):
    """The command line or the Python call does not make sense."""

    exit_code = 2


class ConfigError(GPError):
    """A config, or an object built from one, cannot be used."""

    exit_code = 2


class ShapeError(ConfigError):
    """A layer cannot take the shape it was given."""


class DataError(GPError):
    """A data file is missing, damaged, or does not fit the task."""

    exit_code = 3


class CheckpointError(GPError):
    """A checkpoint is damaged, hostile, newer than this program, or of another network."""

    exit_code = 4


class DeviceError(GPError):
    """The device that was asked for cannot be used."""

    exit_code = 5


class OutOfMemoryError(GPError, MemoryError):
    """The memory of the machine or the device does not suffice."""

    exit_code = 7


class NumericalError(GPError):
    """Training met NaN or infinity."""

    exit_code = 6
