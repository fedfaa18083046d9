"""Floor 5: the numbers of a training, step by step: forward, backward and update of one row."""

from gpbackprop.tracing.page import page as page
from gpbackprop.tracing.record import record as record
