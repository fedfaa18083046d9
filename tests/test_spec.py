"""A class's fields as its config: names, tables there and back, and what an error says."""

import json
import re

import pytest
from battery import every, example
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from gpbackprop.errors import ConfigError
from gpbackprop.initializers import Initializer, LeCun
from gpbackprop.layers.activation import LeakyRelu, Relu
from gpbackprop.layers.base import Layer
from gpbackprop.layers.combine import Chain, Parallel, Residual
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.dropout import Dropout
from gpbackprop.losses import Loss, SoftmaxCrossEntropy
from gpbackprop.metrics import Metric
from gpbackprop.optim.base import Optimizer
from gpbackprop.optim.schedules import Schedule, Step
from gpbackprop.optim.sgd import SGD
from gpbackprop.spec import build, spec, suggest, to_table, type_name

FAMILIES = {base.__name__: base for base in (Layer, Loss, Optimizer, Schedule, Initializer, Metric)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SoftmaxCrossEntropy", "softmax_cross_entropy"),
        ("SGD", "sgd"),
        ("R2", "r2"),
        ("LeakyRelu", "leaky_relu"),
        ("Dense", "dense"),
        ("TopK", "top_k"),
        ("RMSProp", "rms_prop"),
    ],
)
def test_the_type_of_a_class_is_its_name_in_snake_case(name, expected):
    assert type_name(type(name, (), {})) == expected


def test_a_class_may_say_its_type_itself():
    assert build(Initializer, "lecun") == LeCun()
    assert to_table(LeCun())["type"] == "lecun"


@pytest.mark.parametrize("base", FAMILIES.values(), ids=FAMILIES)
def test_every_class_of_a_family_can_be_built_documents_itself_and_comes_back_from_its_table(base):
    for name, cls in ((case.id, case.values[0]) for case in every(base)):
        made = example(cls)
        item = made[0] if base is Layer else made
        assert type(item) is cls
        table = to_table(item)
        assert table["type"] == name
        assert build(base, table) == item
        assert build(base, json.loads(json.dumps(table))) == item
        assert cls.__doc__, f"{name} has no docstring"
        assert not cls.__doc__.startswith(f"{cls.__name__}("), f"{name} has no docstring of its own"


activations = st.sampled_from([None, "relu", Relu(), LeakyRelu(slope=0.2), {"type": "elu", "alpha": 0.5}])
numbers = st.floats(-10, 10)
inits = st.dictionaries(
    st.sampled_from("Wb"),
    st.sampled_from(["zeros", "he"])
    | numbers
    | st.lists(numbers, min_size=1, max_size=3)
    | st.builds(lambda v: {"type": "uniform", "low": -v, "high": v}, st.floats(0, 1)),
)
freezes = st.lists(st.sampled_from("Wb"), unique=True).map(tuple)
dense = st.builds(
    lambda units, activation, init, freeze: Dense(units, activation, init=init, freeze=freeze),
    st.integers(1, 9), activations, inits, freezes,
)  # fmt: skip
leaves = dense | st.floats(0, 1, exclude_max=True).map(lambda rate: Dropout(rate)) | st.just(Relu())


def grown(inner):
    """Combinators of the layers `inner`."""
    some = st.lists(inner, max_size=3)
    return (
        some.map(lambda layers: Chain(layers=layers))
        | some.map(lambda layers: Residual(layers=layers))
        | some.map(lambda layers: Parallel(branches=layers, combine="sum"))
        | some.map(lambda layers: Parallel(layers, "relu"))
    )


models = st.recursive(leaves, grown, max_leaves=8)


@given(models)
def test_a_model_comes_back_from_its_table(model):
    table = to_table(model)
    assert build(Layer, table) == model
    assert build(Layer, json.loads(json.dumps(table))) == model
    assert to_table(build(Layer, table)) == table


def test_an_object_is_built_from_itself_its_name_its_table_or_its_fields_in_order():
    layer = Dense(3, "relu")
    assert build(Layer, layer) is layer
    assert build(Layer, "relu") == Relu()
    assert build(Layer, {"type": "dense", "units": 3, "activation": {"type": "relu"}}) == layer
    assert Dense(units=3, activation=Relu()) == layer
    assert SGD(0.1, "constant", 0.9) == SGD(lr=0.1, momentum=0.9)
    assert Chain(layer, "tanh") == Chain(layers=[layer, {"type": "tanh"}])
    assert Parallel(["relu", layer], "relu", combine="concat").branches == (Chain(Relu(), layer), Relu())


def test_objects_are_frozen_and_equal_by_value():
    layer = Dense(3)
    with pytest.raises(AttributeError):
        layer.units = 4
    assert layer == Dense(3) != Dense(4)


def test_a_new_class_is_found_because_it_is_a_subclass():
    @spec
    class Squared(Step):
        """gamma^(2 floor(t / every))"""

    try:
        assert build(Schedule, {"type": "squared", "every": 2}) == Squared(every=2)
    finally:
        Squared.__abstract__ = True  # so that no other test meets it


def errors(make):
    """(path, message) of each line of the error, which begins with the name of the class that was called."""
    with pytest.raises(ConfigError) as caught:
        make()
    lines = [line.partition(": ")[2].partition(": ")[::2] for line in str(caught.value).splitlines()]
    return [(tuple(int(part) if part.isdigit() else part for part in path.split(".")), said) for path, said in lines]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"type": "dence"}, "unknown type 'dence' (did you mean 'dense'?); allowed: "),
        ({"units": 3}, "the key `type` is missing; it is one of: "),
        ({"type": 3}, "unknown type 3"),
        (7, "expected the name of a layer or a table with a `type`"),
        ({"type": ["dense"]}, "unknown type ['dense']"),
    ],
)
def test_what_names_no_class_is_told_with_what_is_allowed(table, message):
    with pytest.raises(PydanticCustomError, match=re.escape(message)):
        build(Layer, table)
    found = errors(lambda: Chain({"type": "residual", "layers": ["relu", table]}))
    assert [path for path, _ in found] == [("layers", 0, "layers", 1)]
    assert message in found[0][1]


def test_every_error_of_a_nested_table_comes_with_its_path():
    table = [
        {"type": "dense", "units": -1},
        {"type": "residual", "layers": [{"type": "dense", "unit": 3}]},
        {"type": "parallel", "branches": [[{"type": "dropout", "rate": 2}], "relu"], "combine": "mean"},
        {"type": "dense", "units": 3, "activation": {"type": "leaky_relu", "slope": "steep"}},
        {"type": "dense", "units": 3, "init": {"W": {"type": "normal", "std": -1}}},
        {"type": "dense", "units": True},
        {"type": "dense", "units": 3.5},
    ]
    found = dict(errors(lambda: Chain(layers=table)))
    assert "greater than 0" in found["layers", 0, "units"]
    assert "is missing" in found["layers", 1, "layers", 0, "units"]
    assert "did you mean 'units'" in found["layers", 1, "layers", 0, "unit"]
    assert any(path[:3] == ("layers", 2, "branches") and path[-1] == "rate" for path in found)
    assert ("layers", 2, "combine") in found
    assert "a number" in found["layers", 3, "activation", "slope"]
    assert ("layers", 4, "init", "W", "std") in found
    assert "an integer" in found["layers", 5, "units"]
    assert "an integer" in found["layers", 6, "units"]


@pytest.mark.parametrize("cls", every(Layer))
def test_an_unknown_key_is_refused_by_every_layer(cls):
    table = to_table(example(cls)[0]) | {"colour": "red"}
    (said,) = [said for path, said in errors(lambda: Chain(table)) if path == ("layers", 0, "colour")]
    assert "unknown key" in said
    assert "allowed: type, " in said or said.endswith("allowed: type")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0), "Dense: units: found 0, expected greater than 0"),
        (lambda: Dense(), "Dense: units: is missing"),
        (
            lambda: Dense(3, unit=3),
            "Dense: unit: unknown key (did you mean 'units'?); allowed: init, freeze, units, activation",
        ),
        (lambda: Dense(3, units=3), "Dense: units: is given twice, by position and by name"),
        (lambda: Relu(3), "Relu: found 3, one value too many; in order it takes none"),
        (lambda: Dense(3, {"type": "elu", "alfa": 1}), "Dense: activation.alfa: unknown key (did you mean 'alpha'?)"),
        (lambda: Dense(3, freeze=("w",)), "Dense: no parameter 'w'"),
        (lambda: SGD((0.1, -1.0)), "SGD: lr.1: found -1.0, expected greater than or equal to 0"),
        (lambda: SGD("a", momentum=2.0), "SGD: lr: found 'a', expected a number or a list of them\nSGD: momentum: "),
        (lambda: Chain("relu", "rellu"), "Chain: layers.1: unknown type 'rellu' (did you mean 'relu'?)"),
        (lambda: Parallel("relu", [Relu(), "rellu"]), "Parallel: branches.1.1: unknown type 'rellu'"),
        (lambda: Parallel("relu", combine="x"), "Parallel: combine: found 'x', expected 'concat', 'sum' or 'product'"),
    ],
)
def test_a_direct_call_says_what_a_config_would(make, message):
    for _ in range(2):  # the first call makes the validator, the second one uses it
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value).startswith(message)
        assert "pydantic" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_numbers_are_not_read_from_text_and_infinity_is_none():
    assert [path for path, _ in errors(lambda: Dense(units="3"))] == [("units",)]
    assert errors(lambda: SoftmaxCrossEntropy(class_weights=(1.0, float("inf"))))[0][0] == ("class_weights", 1)


def test_a_table_writes_every_field_and_leaves_none_out():
    assert to_table(Dense(3)) == {"type": "dense", "units": 3, "init": {}, "freeze": []}
    assert to_table(SGD(0.1)) == {
        "type": "sgd",
        "lr": 0.1,
        "schedule": {"type": "constant"},
        "freeze": [],
        "accumulate": 1,
        "l1": 0.0,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "nesterov": False,
    }


def test_suggest_offers_the_nearest_word_or_nothing():
    assert suggest("relo", ["relu", "tanh"]) == " (did you mean 'relu'?)"
    assert suggest("qqq", ["relu", "tanh"]) == ""
