"""Registration of the operators as `torch.ops.trisparse.*`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

_LIBRARY = torch.library.Library("trisparse", "DEF")
DIRECT: dict[str, dict[str, Callable[..., Any]]] = {}  # operator, kind of device -> what the dispatcher would call


def define(
    schema: str, reference: Callable[..., Any], kernel: Callable[..., Any], fake: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """Define an operator; all functions take what the schema says.

    What it returns calls the operator, past the dispatcher where nobody looks: with lists of many tensors that takes a
    tenth of a millisecond, longer than what it calls.

    Args:
        schema: name, arguments and result, with what is written to declared.
        reference: runs wherever there is no kernel.
        kernel: runs on CUDA and ROCm; imports its kernel when called, so that the CPU path needs no Triton.
        fake: the result for tensors without data, for `torch.compile`.
        cpu: runs on the CPU, the reference unless given; imports its kernel when called, too.
    """
    name = schema[: schema.index("(")]
    arguments = torch._C.parse_schema(f"trisparse::{schema}").arguments
    written = [i for i, arg in enumerate(arguments) if arg.alias_info is not None and arg.alias_info.is_write]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:  # kernels write past what counts versions
        def run(*args: Any) -> Any:
            result = function(*args)
            tensors = [t for i in written for t in _each(args[i])]
            torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])
            return result

        return run if written else function

    def on_its_device(*args: Any) -> Any:  # Triton launches on the current device, wherever the tensors are
        with torch.cuda.device(_first(args).device):
            return kernel(*args)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, counted(on_its_device), "CUDA")
    if cpu is not None:
        _LIBRARY.impl(name, counted(cpu), "CPU")
    torch.library.register_fake(f"trisparse::{name}", fake, lib=_LIBRARY)
    direct = DIRECT[name] = {"cuda": counted(on_its_device), "cpu": counted(cpu) if cpu else reference}
    operator = getattr(torch.ops.trisparse, name)

    def call(*args: Any) -> Any:
        first = _first(args)
        if torch.is_grad_enabled() or is_watched(first) or first.device.type not in direct:
            return operator(*args)
        return direct[first.device.type](*args)

    return call


def _first(args: tuple[Any, ...]) -> Tensor:
    """The first tensor among arguments."""
    return next(t for arg in args for t in _each(arg) if isinstance(t, Tensor))


def _each(arg: Any) -> Any:
    return arg if isinstance(arg, (list, tuple)) else (arg,)


def differentiable(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Give an operator a gradient; both functions as `torch.library.register_autograd` wants them."""
    torch.library.register_autograd(f"trisparse::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def nothing(*args: Any) -> None:
    """The fake of an operator that only writes to its arguments."""


def is_seen(*tensors: Tensor) -> bool:
    """Whether somebody looks at operators that run on these: a compiler, a mode, a transform, a subclass; or a GPU.

    Where nobody does, a kernel for CPUs may be called past the dispatcher, which takes fifty times as long as the call.
    """
    return is_watched(*tensors) or any(not tensor.is_cpu for tensor in tensors)


def is_watched(*tensors: Tensor) -> bool:
    """Whether a compiler, a mode or a transform looks at operators, or one of these is of a class of its own."""
    return (
        any(type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter for tensor in tensors)
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or (torch._C._len_torch_function_stack() > 0 and _has_function_mode())
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def _has_function_mode() -> bool:
    """A default device is one too, but changes none of our operators, which say where their tensors lie."""
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return any(type(mode) is not DeviceContext for mode in modes)


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Products inside have the dtype of what is multiplied; meta has no autocast to turn off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def check_derivative(name: str) -> None:
    """RuntimeError under forward-mode differentiation, which would go past a packed weight without a word."""
    if torch.autograd.forward_ad._current_level >= 0:
        raise RuntimeError(
            f"{name}: has no forward-mode derivative (jvp, jacfwd); use reverse mode, or trisparse.decompress(model)"
        )
