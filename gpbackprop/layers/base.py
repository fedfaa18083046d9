"""What every layer is: a frozen set of fields and one function that builds a closure pair."""

from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar

from gpbackprop.initializers import Initial, Initializer, Zeros
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Text, spec, suggest


class Layer:
    """A function with parameters, written once against the array namespace of a plan.

    `trace(plan, x)` asks the plan for parameters and buffers, defines `forward()` and `backward()`, registers the pair
    and returns the output slot. Forward fills `y.value`; backward fills every parameter's `grad` and, unless it is
    None, `x.grad`, overwriting what was there. Neither allocates nor reads a value back.
    """

    rowwise: ClassVar[bool] = True  # the same function of each row alone, in training and at inference

    def trace(self, plan: Plan, x: Slot) -> Slot:
        raise NotImplementedError

    @classmethod
    def example(cls) -> "tuple[Layer, tuple[int, ...]]":
        """A small layer of this class and the shape of a row that it takes: what the tests prove the class with."""
        return cls(), (5,)


@spec
class Parametric(Layer):
    """A layer with parameters: `init` gives what each starts from, `freeze` names those that training leaves alone."""

    __abstract__ = True
    parameters: ClassVar[tuple[str, ...]] = ()
    init: Mapping[Text, Initial] = field(default_factory=dict, kw_only=True)
    freeze: tuple[Text, ...] = field(default=(), kw_only=True)

    def __post_init__(self):
        for name in (*self.init, *self.freeze):
            if name not in self.parameters:
                hint = suggest(name, self.parameters)
                raise ValueError(f"no parameter {name!r}{hint}; it has {', '.join(self.parameters)}")

    def param(self, plan: Plan, name: str, shape: tuple[int, ...], default: Initializer | None = None) -> Slot:
        """The parameter `name`, from its `init` or `default`. Weight decay acts on matrices, not on biases."""
        init = self.init.get(name, default or Zeros())
        return plan.param(name, shape, init, decay=len(shape) > 1, frozen=name in self.freeze)
