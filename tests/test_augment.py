"""Augmentation of images: against a loop over pixels, only in training, and the same after a resume."""

import fake_cupy
import numpy as np
import pytest
from battery import allocated
from hypothesis import given
from hypothesis import strategies as st

import gpbackprop as gp
from gpbackprop.backend import Backend, random, select
from gpbackprop.config import parse
from gpbackprop.data import Dataset, Split, load
from gpbackprop.data.augment import Augment
from gpbackprop.data.batches import Feed
from gpbackprop.data.preparation import Preparation
from gpbackprop.errors import ConfigError
from gpbackprop.layers.activation import Linear
from gpbackprop.model import load as load_model
from gpbackprop.plan import Network, Plan


class Loaded:
    """Rows as a plan of `batch` rows gets them: `load(index, step)` gives (K, batch, *input_shape)."""

    def __init__(self, images, augment, batch, seeds=(0,), training=True, moments=(0.0, 1.0), backend=None, dtype="f4"):
        backend = backend or Backend()
        shift, scale = (np.broadcast_to(np.asarray(m, float), images.shape[1:]) for m in moments)
        prep = Preparation((), ("y",), None, False, (), images.shape[1:], shift, scale, crop=augment.crop or ())
        split = Split(images, np.zeros((len(images), 1)), None, np.arange(len(images)))
        feed = Feed(backend, split, prep, augment)
        self.net = Network(Linear(), prep.input_shape, backend, seeds, dtype)
        self.plan = Plan(
            self.net, batch, training=training, loss=lambda plan: setattr(self, "fill", feed.bind(plan)[1])
        )

    def load(self, index, step=0):
        self.net.clock.fill(step)
        self.fill(self.net.backend.array(np.asarray(index)))
        return np.array(self.net.backend.host(self.plan.x.value))


def expected(images, augment, index, seed, step):
    """The definition, pixel by pixel."""
    (H, W), B = images.shape[1:3], len(index)
    h, w = augment.crop or (H, W)
    draws, bits = np.empty((1, 5, B)), np.empty((2, 1, 5, B), np.uint32)
    key = random.key(seed, "augment/uniform")[None]
    places = np.arange(5 * B, dtype=np.uint32).reshape(5, B)
    random.uniform(np, draws, bits, places, key, np.array([step], np.uint32))
    out = np.zeros((B, h, w, *images.shape[3:]), images.dtype)
    for b, row in enumerate(index):
        u = draws[0, :, b]
        top, left = int(u[0] * (H - h + 1)), int(u[1] * (W - w + 1))
        down, right = (int(v * (2 * augment.shift + 1)) - augment.shift for v in u[2:4])
        for i in range(h):
            for j in range(w):
                column = w - 1 - j if augment.flip and u[4] >= 0.5 else j
                y, x = i + top + down, column + left + right
                if 0 <= y < H and 0 <= x < W:
                    out[b, i, j] = images[row, y, x]
    return out


@st.composite
def cases(draw):
    size = st.integers(2, 6)
    H, W = draw(size), draw(size)
    shape = (draw(st.integers(1, 4)), H, W, *draw(st.sampled_from([(), (1,), (3,)])))
    crop = draw(st.none() | st.tuples(st.integers(1, H), st.integers(1, W)))
    shift, flip = draw(st.integers(0, min(H, W) - 1)), draw(st.booleans())
    augment = Augment(shift, flip or (not shift and crop is None), crop)
    dtype = draw(st.sampled_from([np.uint8, np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    images = rng.integers(1, 256, shape).astype(dtype)
    index = rng.integers(0, shape[0], draw(st.integers(1, 5)))
    return images, augment, index, draw(st.integers(0, 2**63 - 1)), draw(st.integers(0, 2**32 - 1))


@given(cases())
def test_a_batch_is_what_a_loop_over_its_pixels_gives(case):
    images, augment, index, seed, step = case
    found = Loaded(images, augment, len(index), (seed,)).load(index[None], step)
    assert np.array_equal(found[0], expected(images, augment, index, seed, step))


@given(cases())
def test_evaluation_sees_the_rows_as_they_are_or_their_centre(case):
    images, augment, index, seed, step = case
    H, W = images.shape[1:3]
    h, w = augment.crop or (H, W)
    found = Loaded(images, augment, len(index), (seed,), training=False).load(index[None], step)
    top, left = (H - h) // 2, (W - w) // 2
    assert np.array_equal(found[0], images[index, top : top + h, left : left + w])


IMAGES = np.random.default_rng(0).integers(1, 256, (40, 5, 4, 2)).astype(np.uint8)
ALL = Augment(shift=1, flip=True, crop=(4, 3))


def test_every_shift_mirror_and_place_of_a_crop_comes_equally_often():
    index, image = np.zeros((1, 500), int), np.arange(1, 21, dtype=np.uint8).reshape(1, 5, 4)
    for augment, ways in ((Augment(shift=1), 9), (Augment(flip=True), 2), (Augment(crop=(3, 3)), 6)):
        loaded = Loaded(image, augment, 500)
        rows = np.concatenate([loaded.load(index, step)[0].reshape(500, -1) for step in range(8)])
        _, counts = np.unique(rows, axis=0, return_counts=True)
        assert len(counts) == ways
        assert np.abs(counts / 4000 - 1 / ways).max() < 0.03


def test_a_step_of_its_own_moves_each_row_and_a_step_again_moves_it_alike():
    loaded = Loaded(IMAGES, ALL, 8)
    index = np.arange(8)[None]
    first = loaded.load(index, 1)
    assert not np.array_equal(loaded.load(index, 2), first)
    assert np.array_equal(loaded.load(index, 1), first)


def test_a_member_of_a_population_sees_what_it_sees_alone():
    index = np.arange(16).reshape(2, 8)
    together = Loaded(IMAGES, ALL, 8, (5, 6)).load(index, 3)
    for k, seed in enumerate((5, 6)):
        assert np.array_equal(Loaded(IMAGES, ALL, 8, (seed,)).load(index[k : k + 1], 3)[0], together[k])


def test_cuda_sees_the_bits_of_the_cpu_and_waits_for_nothing(monkeypatch):
    fake_cupy.install(monkeypatch)
    index = np.arange(16).reshape(2, 8)
    for images in (IMAGES, IMAGES[..., 0].astype(np.float32)):
        cpu, cuda = (Loaded(images, ALL, 8, (5, 6), backend=select(name)) for name in ("cpu", "cuda"))
        on_device = cuda.net.backend.array(index)
        with fake_cupy.forbid_sync():
            cuda.fill(on_device)
        assert np.array_equal(cuda.net.backend.host(cuda.plan.x.value), cpu.load(index))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_allocated_that_grows_with_the_batch(training):
    def step(batch):
        loaded = Loaded(IMAGES, ALL, batch, training=training)
        index = np.zeros((1, batch), np.int64)
        return lambda: loaded.fill(index)

    small, large = allocated(step(2000)), allocated(step(4000))
    assert large - small < 2000


def test_what_comes_in_is_zero_before_the_normalisation_of_its_place():
    images = np.full((1, 3, 3), 10, np.uint8)
    shift, scale = np.arange(9.0).reshape(3, 3), np.full((3, 3), 2.0)
    raw = Loaded(images, Augment(shift=2), 9).load(np.zeros((1, 9), int))
    assert 0 in raw
    found = Loaded(images, Augment(shift=2), 9, moments=(shift, scale)).load(np.zeros((1, 9), int))
    assert np.array_equal(found, (raw - shift) * 2)


def test_a_crop_is_normalised_by_the_moments_of_the_centre():
    images = np.random.default_rng(0).normal(size=(2, 5, 5))
    shift = np.arange(25.0).reshape(5, 5)
    found = Loaded(images, Augment(crop=(3, 3)), 2, training=False, moments=(shift, 1.0), dtype="f8").load([[0, 1]])
    assert np.array_equal(found[0], images[:, 1:4, 1:4] - shift[1:4, 1:4])


# Whole runs.

CONFIG = """
[data]
source = "digits"
shape = [8, 8, 1]
test = 0.7
[data.augment]
shift = 1
flip = true
crop = [7, 6]
[[model]]
type = "flatten"
[[model]]
type = "dense"
units = 10
[loss]
type = "softmax_cross_entropy"
[optimizer]
type = "sgd"
lr = 0.1
[train]
epochs = 2
"""


class StopAt(gp.Hook):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        trainer.stop_requested = trainer.step == self.step


def weights(trainer):
    return trainer.network.w.tobytes()


def test_a_run_goes_on_with_the_same_bits_and_a_member_equals_the_run_alone(tmp_path):
    config = parse(CONFIG, "test.toml")
    whole = config.trainer("cpu")
    whole.fit()
    part = config.trainer("cpu")
    part.fit(hooks=[StopAt(7)])
    rest = config.trainer("cpu")
    rest.restore(part.content())
    rest.fit()
    assert weights(rest) == weights(whole)
    pair = parse(CONFIG, "test.toml", ["population=2"]).trainer("cpu")
    pair.fit()
    assert pair.network.w[0].tobytes() == weights(whole)


def test_training_is_changed_and_evaluation_is_not():
    plain = parse(CONFIG, "test.toml", ["data.augment.shift=0", "data.augment.flip=false"]).trainer("cpu")
    moved = parse(CONFIG, "test.toml").trainer("cpu")
    assert moved.evaluate("test") == plain.evaluate("test")
    assert moved.evaluate("train") == plain.evaluate("train")
    for trainer in (plain, moved):
        trainer.fit(1)
    assert weights(plain) != weights(moved)


def test_a_saved_model_predicts_on_whole_images_by_their_centre(tmp_path):
    trainer = parse(CONFIG, "test.toml").trainer("cpu")
    trainer.fit()
    trainer.save(tmp_path / "model.h5")
    model, split = load_model(tmp_path / "model.h5"), trainer.data.splits["test"]
    assert (model.preparation.crop, model.network.row_shape) == ((7, 6), (7, 6, 1))
    predicted = model.predict(split.inputs[split.index])[0]
    accuracy = float((predicted == split.targets[split.index]).mean())
    assert accuracy == pytest.approx(trainer.evaluate("test")["accuracy"])
    assert parse(trainer.text(), "again.toml").data.augment == Augment(1, True, (7, 6))


def test_an_autoencoder_reconstructs_the_image_as_it_was_moved():
    text = CONFIG.replace("test = 0.7", 'test = 0.7\ntask = "reconstruction"').replace(
        "units = 10", f"units = 42\ninit = {{ W = {np.eye(42).tolist()} }}"
    )
    trainer = parse(text.replace("softmax_cross_entropy", "mean_squared_error"), "test.toml").trainer("cpu")
    trainer.fit()
    assert [row["train_loss"] for row in trainer.history] == [0, 0]


def test_a_data_set_of_python_is_not_augmented_unless_it_says_so():
    assert Dataset("x", {}, None, "").augment is None
    assert load("digits", shape=(8, 8), augment={"shift": 2}).augment == Augment(shift=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {},
            r"data.augment: moves the pixels of images .*, but the rows of .* have the shape \[64\]; say `shape`",
        ),
        ({"source": "sunspots", "window": 5}, r"data.augment: moves the pixels .*, but .* gives series"),
        ({"shape": (8, 8), "augment": {"crop": (9, 8)}}, r"data.augment.crop = \[9, 8\]: is larger than .* 8x8"),
        ({"shape": (8, 8), "augment": {"shift": 8}}, r"data.augment.shift = 8: moves images of 8x8 out of sight"),
        ({"augment": {}}, r"augment: expected at least one of shift, flip and crop"),
        ({"augment": {"shift": -1}}, r"augment.shift: found -1, expected greater than or equal to 0"),
        ({"augment": {"turn": 1}}, r"augment.turn: unknown key; allowed: shift, flip, crop"),
    ],
)
def test_what_cannot_be_augmented_is_refused_with_its_key_and_the_reason(fields, message):
    with pytest.raises(ConfigError, match=message):
        load(**{"source": "digits", "augment": {"shift": 1}} | fields)


def test_columns_of_text_are_no_images(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c,d,y\n" + "".join(f"{i},u,{i},v,{i / 3}\n" for i in range(9)))
    with pytest.raises(ConfigError, match=r"data.augment: .* but the column 'b' of .*t.csv is text"):
        load("t.csv", tmp_path, shape=(2, 2), augment={"shift": 1})


def test_windows_of_truncated_backpropagation_are_no_images():
    with pytest.raises(ConfigError, match=r"train.bptt: windows of steps are no images"):
        parse(CONFIG, "test.toml", ["train.bptt=2"]).trainer("cpu")


def test_an_error_names_the_line_of_the_table():
    with pytest.raises(ConfigError, match=r"test.toml:8: data.augment.shift: found -1"):
        parse(
            CONFIG.replace("shift = 1", "shift = -1").replace("\n[data.augment]\n", "\n\n[data.augment]\n"), "test.toml"
        )
