"""trace: every number of a step as the worked example prints it, in JSON, as text and on a page."""

import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import call

from gpbackprop.config import parse, read
from gpbackprop.errors import UsageError
from gpbackprop.optim.sgd import SGD
from gpbackprop.tracing import page, record

CONFIGS = Path(__file__).parent.parent / "configs"
MAZUR = CONFIGS / "mazur.toml"


def mazur(*settings, **options):
    return record(read(MAZUR, settings), **options)


def printed(found, text: str) -> None:
    """Assert that the numbers `found` round to those in `text`, up to the rounding of float64 itself."""
    words, values = text.split(), np.ravel(found)
    assert len(values) == len(words)
    for value, word in zip(values.tolist(), words, strict=True):
        assert is_printed(value, word), f"{value!r} is not {word}"


def is_printed(value: float, word: str) -> bool:
    unit = 10.0 ** Decimal(word).as_tuple().exponent
    return abs(value - float(word)) <= 0.5 * unit + 1e-12 * abs(value)


def small(model: str, optimizer: str = 'type = "sgd"\nlr = 0.1', loss: str = "softmax_cross_entropy") -> str:
    rest = f'[optimizer]\n{optimizer}\n[loss]\ntype = "{loss}"\n[train]\ndtype = "float64"\n'
    return f'[data]\nsource = "iris"\n{model}\n{rest}'


def traced(text: str, **options):
    return record(parse(text, "small.toml"), **options)


# ---- the worked example


def test_mazur_every_number_of_a_step():
    trace = mazur()
    (step,) = trace["steps"]
    hidden, out = step["values"]["0-dense"], step["values"]["1-dense"]
    printed(step["x"], "0.05 0.10")
    printed(step["t"], "0.01 0.99")
    printed(hidden["z"]["value"], "0.3775 0.3925")
    printed(hidden["y"]["value"], "0.593269992107 0.596884378260")
    printed(out["z"]["value"], "1.10590596706 1.224921404096")
    printed(out["y"]["value"], "0.751365069552 0.772928465321")
    printed(step["terms"], "0.274811083176 0.023560025584")
    printed(step["L"], "0.2983711087600027")
    printed(out["z"]["grad"], "0.138498561629 -0.038098236517")
    printed(hidden["y"]["grad"], "0.036350306393 0.041370322649")
    printed(hidden["z"]["grad"], "0.008771354689 0.009954254705")
    w = step["parameters"]
    printed(np.transpose(w["1-dense/W"]["gradient"]), "0.082167040564 0.082667627848 -0.022602540477 -0.022740242216")
    printed(np.transpose(w["0-dense/W"]["gradient"]), "0.000438567734 0.000877135469 0.000497712735 0.000995425471")
    printed(w["1-dense/b"]["gradient"], "0.138498561629 -0.038098236517")
    printed(w["0-dense/b"]["gradient"], "0.008771354689 0.009954254705")
    printed(np.transpose(w["0-dense/W"]["old"]), ".15 .20 .25 .30")
    printed(np.transpose(w["1-dense/W"]["new"]), "0.358916479718 0.408666186076 0.511301270239 0.561370121108")
    printed(np.transpose(w["0-dense/W"]["new"]), "0.149780716133 0.199561432266 0.249751143632 0.299502287265")
    assert w["0-dense/b"]["new"] == w["0-dense/b"]["old"] == [0.35, 0.35]
    printed(trace["L"], "0.29102777369359933")


def test_mazur_with_biases_that_are_trained():
    (step,) = mazur("model.0.freeze=[]", "model.1.freeze=[]")["steps"]
    printed(step["parameters"]["0-dense/b"]["new"], "0.345614322655 0.345022872647")
    printed(step["parameters"]["1-dense/b"]["new"], "0.530750719186 0.619049118258")


def test_mazur_the_error_after_n_updates_though_the_config_has_fewer_epochs():
    trace = mazur("train.epochs=3", steps=100)
    losses = [*(step["L"] for step in trace["steps"]), trace["L"]]
    printed(
        [losses[n] for n in (1, 2, 5, 10, 100)],
        "0.29102777369359933 0.28354713312241997 0.2604343927553956 0.22091859205390402 0.0200468282494252",
    )
    assert [step["step"] for step in trace["steps"]] == list(range(1, 101))


def test_mazur_the_text_prints_them():
    text = call("trace", MAZUR).stdout
    seen = [float(word) for word in re.findall(r"(?<!\S)-?\d+(?:\.\d+)?(?:e-\d+)?(?!\S)", text)]
    words = (  # all that the example prints of the step, with the digits that it prints
        "0.3775 0.3925 0.593269992107 0.596884378260 1.10590596706 1.224921404096 0.751365069552 0.772928465321 "
        "0.274811083176 0.023560025584 0.2983711087600027 0.138498561629 -0.038098236517 0.082167040564 0.082667627848 "
        "-0.022602540477 -0.022740242216 0.036350306393 0.041370322649 0.008771354689 0.009954254705 0.000438567734 "
        "0.000877135469 0.000497712735 0.000995425471 0.358916479718 0.408666186076 0.511301270239 0.561370121108 "
        "0.149780716133 0.199561432266 0.249751143632 0.299502287265 0.29102777369359933"
    )
    assert [word for word in words.split() if not any(is_printed(value, word) for value in seen)] == []
    assert "z[o] = sum_i x[i] W[i,o] + b[o]" in text
    assert "y = 1 / (1 + exp(-z))" in text
    assert "dL/dz = dL/dy y',  y' = y (1 - y)" in text
    assert len(re.findall(r"^  \d-dense/b\[\d\] .* frozen$", text, re.M)) == 4


def test_momentum_shows_its_velocity():
    trace = record(read(CONFIGS / "worked" / "mazur-momentum.toml"), steps=2)
    first, second = (step["parameters"]["1-dense/W"] for step in trace["steps"])
    assert first["velocity"] == first["gradient"]
    np.testing.assert_allclose(
        second["velocity"], 0.9 * np.array(first["velocity"]) + second["gradient"], rtol=1e-14, atol=0
    )
    np.testing.assert_allclose(second["new"], np.array(second["old"]) - 0.5 * np.array(second["velocity"]), rtol=1e-14)
    assert second["old"] == first["new"]
    printed(trace["L"], "0.2768297726959447")


# ---- other networks


def test_a_class_is_a_vector_and_probabilities_are_shown():
    dense = '[[model]]\ntype = "dense"\nunits = 3'
    zero, last = (traced(small(dense), row=row)["steps"][0] for row in (0, 149))
    assert zero["t"] == [1, 0, 0]
    assert last["t"] == [0, 0, 1]
    assert sum(zero["probabilities"]) == pytest.approx(1)
    y = zero["values"]["0-dense"]["y"]
    np.testing.assert_allclose(y["grad"], np.subtract(zero["probabilities"], zero["t"]), rtol=1e-13)
    assert "z" not in zero["values"]["0-dense"]  # without an activation there is only the output


def test_scores_are_traced_without_probabilities():
    step = record(read(CONFIGS / "ancestors" / "gates.toml"))["steps"][0]
    assert (step["values"]["0-parallel"]["y"]["value"], "probabilities" in step) == ([-12], False)


def test_gradients_are_those_of_backward_and_the_optimizer_shows_what_it_makes_of_them():
    dense = '[[model]]\ntype = "dense"\nunits = 3'
    found = traced(small(dense, 'type = "sgd"\nlr = 0.1\nclip_norm = 1e-3'))["steps"][0]["parameters"]["0-dense/b"]
    free = traced(small(dense))["steps"][0]["parameters"]["0-dense/b"]
    assert found["gradient"] == free["gradient"]
    assert np.abs(np.subtract(found["new"], found["old"])).max() < 1e-4


def test_the_schedule_and_all_members_but_the_first_are_those_of_the_config():
    optimizer = 'type = "sgd"\nlr = [0.2, 0.4]\nschedule = { type = "step", every = 1, gamma = 0.5 }'
    text = "population = 2\nseed = 3\n" + small('[[model]]\ntype = "dense"\nunits = 3', optimizer)
    trace = traced(text, steps=3)
    assert [step["lr"] for step in trace["steps"]] == pytest.approx([0.2, 0.1, 0.05])


def test_a_convolution_shows_its_sum_and_its_activation_apart():
    model = '[[model]]\ntype = "reshape"\nshape = [4, 1]\n[[model]]\ntype = "conv1d"\nunits = 2\nkernel = 3\n'
    model += 'activation = "tanh"\n[[model]]\ntype = "flatten"\n[[model]]\ntype = "dense"\nunits = 3'
    trace = traced(small(model))
    layer, (z, y) = trace["layers"][1], trace["steps"][0]["values"]["1-conv1d"].values()
    assert layer["equations"] == {
        "forward": ["z[b,t,o] = sum_{i,c} x[b, s t + d i - a, c] W[i,c,o] + bias[o]", "y = tanh(z)"],
        "backward": ["dL/dz = dL/dy y',  y' = 1 - y^2"],
    }
    np.testing.assert_allclose(np.tanh(z["value"]), y["value"], rtol=1e-6)
    np.testing.assert_allclose(z["grad"], np.multiply(y["grad"], 1 - np.square(y["value"])), rtol=1e-5)


def test_nested_and_recurrent_layers_are_traced_too():
    residual = '[[model]]\ntype = "residual"\nlayers = [{ type = "dense", units = 4, activation = "gelu" }, "tanh"]'
    trace = traced(small(residual + '\n[[model]]\ntype = "dense"\nunits = 3'))
    assert [layer["path"] for layer in trace["layers"]] == [
        "0-residual/0-dense", "0-residual/1-tanh", "0-residual", "1-dense"
    ]  # fmt: skip
    assert trace["layers"][1]["equations"]["forward"] == ["y = tanh(x);  y' = 1 - y^2"]
    over_time = '[[model]]\ntype = "reshape"\nshape = [2, 2]\n[[model]]\ntype = "gru"\nunits = 2\n'
    trace = traced(small(over_time + '[[model]]\ntype = "dense"\nunits = 3'))
    assert np.shape(trace["steps"][0]["values"]["0-reshape"]["y"]["value"]) == (2, 2)
    assert "1-gru/W" in trace["steps"][0]["parameters"]
    page(trace)


def test_branches_are_traced_each_with_its_output_and_its_own_parameters():
    branches = 'branches = [{ type = "dense", units = 3 }, { type = "dense", units = 3, activation = "sigmoid" }]'
    trace = traced(small(f'[[model]]\ntype = "parallel"\ncombine = "product"\n{branches}\n'))
    names = {layer["path"]: [p["name"] for p in layer["parameters"]] for layer in trace["layers"]}
    assert names == {"0-parallel/0-dense": ["W", "b"], "0-parallel/1-dense": ["W", "b"], "0-parallel": []}
    one, other, both = (trace["steps"][0]["values"][path]["y"]["value"] for path in names)
    np.testing.assert_allclose(np.multiply(one, other), both, rtol=1e-12)
    page(trace)


def test_what_the_optimizer_freezes_is_frozen_too():
    optimizer = 'type = "sgd"\nlr = 0.1\nfreeze = ["*/b"]'
    (layer,) = traced(small('[[model]]\ntype = "dense"\nunits = 3', optimizer))["layers"]
    assert {p["name"]: p["frozen"] for p in layer["parameters"]} == {"W": False, "b": True}


def test_what_cannot_be_traced_is_refused_with_a_reason(monkeypatch):
    with pytest.raises(UsageError, match=r"digits: has 9610 parameters, more than 400; .* --set model.0.units=4"):
        call("trace", CONFIGS / "digits.toml")
    with pytest.raises(UsageError, match="the input has 64 values a row, more than 40"):
        call("trace", CONFIGS / "digits.toml", "--set", "model.0.units=4")
    with pytest.raises(UsageError, match="--row 1: the training split has the rows 0 to 0"):
        call("trace", MAZUR, "--row", 1)
    monkeypatch.setattr(SGD, "gradient", False)
    with pytest.raises(UsageError, match="sgd learns without gradients"):
        call("trace", MAZUR)


# ---- JSON and the page


def test_json_holds_all_of_it():
    facts = json.loads(call("trace", MAZUR, "--json", "--steps", 2).stdout)
    assert facts == json.loads(json.dumps(mazur(steps=2)))
    assert (facts["inputs"], facts["targets"]) == (["x1", "x2"], ["t1", "t2"])
    assert facts["optimizer"]["settings"] == {"lr": 0.5}
    assert [layer["link"] for layer in facts["layers"]] == ["dense", "dense"]


class Links(HTMLParser):
    """Collects what a page would load."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in ("link", "img", "iframe", "object", "embed", "base"):
            self.found.append(tag)
        self.found += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]


def test_the_page_holds_the_numbers_and_loads_nothing(tmp_path):
    done = call("trace", MAZUR, "--html", tmp_path / "mazur.html", "--steps", 3)
    assert done.stdout == ""
    assert "mazur.html: open it in a browser" in done.stderr
    text = (tmp_path / "mazur.html").read_text(encoding="utf-8")
    assert Links(text).found == []
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]  # the name of SVG, not an address
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    assert "prefers-color-scheme: dark" in text
    assert json.loads(re.search(r"^const trace = (.*);$", text, re.M)[1]) == json.loads(json.dumps(mazur(steps=3)))


def test_no_name_in_the_data_ends_the_script_of_the_page(tmp_path):
    name = "</script><script>alert(1)</script>"
    (tmp_path / "rows.csv").write_text(f"{name},t\n1,2\n3,4\n", encoding="utf-8")
    model = '[[model]]\ntype = "dense"\nunits = 1'
    text = small(model, loss="half_squared_error").replace('"iris"', '"rows.csv"\ntarget = "t"')
    trace = record(parse(text, "rows.toml", base=tmp_path))
    assert trace["inputs"] == [name]
    assert page(trace).count("<script") == page(mazur()).count("<script")
