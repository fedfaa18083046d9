"""Train the default network: 1797 handwritten digits of 8x8 pixels, on the CPU, in under a minute.

    python scripts/train.py [options of `gpbackprop train`]

Needs Python 3.11 or newer and nothing else: the first call makes an environment. Runs
`gpbackprop train configs/digits.toml --device cpu`, which shows the learning curve, the final accuracy and where the
model lies.
"""

import sys

from environment import ROOT, prepare, run

prepare()
run("gpbackprop", "train", ROOT / "configs" / "digits.toml", "--device", "cpu", *sys.argv[1:])
