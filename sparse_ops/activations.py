"""What may follow a product inside its kernel, as plain torch."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import gelu, relu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda y: gelu(y, approximate="tanh"),
}
