"""Images moved, mirrored and cropped anew in every training step.

    out[i, j] = image[i + a, j + b], or image[i + a, w - 1 - j + b] where it is mirrored;  0 beyond the rim of the image

a, b and whether it is mirrored are a function of (seed, step, place in the batch), as that place's row is one of (seed,
epoch): the same on every device, and in a run that was resumed.
"""

from collections.abc import Callable

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.data.preparation import Preparation
from gpbackprop.errors import ConfigError
from gpbackprop.plan import Plan
from gpbackprop.spec import Count, Flag, Whole, spec

Pick = Callable[[Array], None]


@spec
class Augment:
    """What is done to the images (height, width[, channels]) of training batches; evaluation sees them as they are.

    shift   moves an image by up to so many pixels up or down, left or right; the pixels that come in are 0 before they
            are normalised
    flip    mirrors it, left to right, every other time
    crop    cuts out [height, width]: anywhere in training, the centre at evaluation and prediction
    """

    shift: Whole = 0
    flip: Flag = False
    crop: tuple[Count, Count] | None = None

    def __post_init__(self):
        if not (self.shift or self.flip or self.crop):
            raise ValueError("expected at least one of shift, flip and crop")

    def check(self, preparation: Preparation, where: str) -> None:
        """Raise ConfigError unless the rows are images that are large enough."""
        shape, texts = preparation.row_shape, [column.name for column in preparation.columns if column.categories]
        found = f"the rows of {where} have the shape {list(shape)}; say `shape` in [data], as in shape = [28, 28, 1]"
        if preparation.kind != "rows":
            found = f"{where} gives {preparation.kind}"
        elif texts:
            found = f"the column {texts[0]!r} of {where} is text"
        elif len(shape) in (2, 3):
            found = ""
        if found:
            raise ConfigError(f"data.augment: moves the pixels of images (height, width[, channels]), but {found}")
        size = f"{shape[0]}x{shape[1]}"
        if self.crop and (self.crop[0] > shape[0] or self.crop[1] > shape[1]):
            raise ConfigError(f"data.augment.crop = {list(self.crop)}: is larger than the images, which have {size}")
        if self.shift >= min(shape[:2]):
            raise ConfigError(f"data.augment.shift = {self.shift}: moves images of {size} out of sight")

    def bind(self, plan: Plan, table: Array, out: Array) -> Pick:
        """A call that writes table[index], augmented, into `out` (K, batch, h, w[, C]), of the dtype of `table`."""
        xp, gather, device = plan.xp, plan.backend.gather, plan.backend.array
        (H, W), (K, B, h, w) = table.shape[1:3], out.shape[:4]
        pixels, images = table.reshape(table.shape[0] * H * W, -1), out.reshape(K, B, h, w, -1)

        moves = 2 * self.shift + 1
        counts = device(np.array([[H - h + 1.0], [W - w + 1], [moves], [moves], [1 + self.flip]]))
        draws, drawn = plan.scratch((5, B), np.float64), plan.scratch((5, B), np.int64)
        with plan.scope("augment"):
            draw = plan.uniform(draws)
        top, left, down, right, mirrored = (drawn[:, n, :, None, None] for n in range(5))

        rows, columns = device(np.arange(h)[:, None] - self.shift), device(np.arange(w)[None] - self.shift)
        mirror = device(w - 1 - 2 * np.arange(w)[None])  # from j to w - 1 - j
        y, x = plan.scratch((B, h, 1), np.int64), plan.scratch((B, 1, w), np.int64)
        near_y, near_x = plan.scratch((B, h, 1), np.int64), plan.scratch((B, 1, w), np.int64)
        in_y, in_x = plan.scratch((B, h, 1, 1), table.dtype), plan.scratch((B, 1, w, 1), table.dtype)
        pixel = plan.scratch((B, h, w), np.int64)

        def pick(index: Array) -> None:
            draw()
            xp.multiply(draws, counts, out=draws)
            xp.copyto(drawn, draws, casting="unsafe")  # whole numbers below each count
            xp.add(top, rows, out=y)
            xp.add(y, down, out=y)
            xp.multiply(mirrored, mirror, out=x)
            xp.add(x, columns, out=x)
            xp.add(x, left, out=x)
            xp.add(x, right, out=x)
            xp.clip(y, 0, H - 1, out=near_y)
            xp.clip(x, 0, W - 1, out=near_x)
            xp.equal(y, near_y, out=in_y[..., 0])
            xp.equal(x, near_x, out=in_x[..., 0])
            xp.multiply(index[..., None, None], H, out=y)
            xp.add(y, near_y, out=y)
            xp.multiply(y, W, out=y)
            xp.add(y, near_x, out=pixel)
            gather(pixels, pixel, images)
            xp.multiply(images, in_y, out=images)
            xp.multiply(images, in_x, out=images)

        return pick


def centre(plan: Plan, table: Array, out: Array) -> Pick:
    """A call that writes the centre of table[index] into `out` (K, batch, h, w[, C]), of the dtype of `table`."""
    gather, xp, whole = plan.backend.gather, plan.xp, plan.scratch((plan.batch, *table.shape[1:]), table.dtype)
    top, left = ((n - m) // 2 for n, m in zip(table.shape[1:3], out.shape[2:4], strict=True))
    middle = whole[:, :, top : top + out.shape[2], left : left + out.shape[3]]

    def pick(index: Array) -> None:
        gather(table, index, whole)
        xp.copyto(out, middle)

    return pick
