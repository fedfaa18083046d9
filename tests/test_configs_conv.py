"""The shipped configs with convolutions are well on their way to what their comments say after a few epochs."""

import numpy as np
import pytest
from test_configs import trained

# name: (epochs, least test accuracy)
DIGITS = {"digits-cnn": (8, 0.975), "digits-resnet": (5, 0.98)}


@pytest.mark.parametrize("name", DIGITS)
def test_digits_are_known_after_a_few_epochs(name):
    epochs, least = DIGITS[name]
    trainer = trained(name, f"train.epochs={epochs}")
    assert trainer.training.batch(trainer.batch_size).plan.x.shape[1:] == (8, 8, 1)
    assert least <= trainer.evaluate("test")["accuracy"] <= 0.995


def test_the_residual_net_keeps_running_moments_of_each_norm():
    trainer = trained("digits-resnet", "train.epochs=1")
    state = {name: value for name, value in trainer.content().items() if name.startswith("state/")}
    assert len(state) == 2 * 6
    assert all(np.isfinite(value).all() and np.ptp(value) > 0 for value in state.values())


@pytest.mark.slow
def test_mnist_is_well_on_its_way_after_one_epoch(data_directory):
    assert 0.97 <= trained("mnist-cnn", "train.epochs=1").evaluate("test")["accuracy"] <= 0.992
