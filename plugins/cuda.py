"""The launch of compiled kernels with CUDA's driver, with an engine's PTX, grid and arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any  # CUDA's Python bindings ship no types

import torch
from torch import Tensor

from dec_export.errors import EngineError
from dec_export.onnx_export.operators import Operator

from .compiler import CompiledKernel, compile_kernel
from .plans import plan_kernel


class CudaLauncher:
    """A launcher that computes `dec` operators on tensors of the current CUDA device, on PyTorch's current stream."""

    def __init__(self) -> None:
        # PyTorch's tensors belong to PyTorch's context.
        torch.zeros(1, device="cuda")
        # The key is the kernel's name. The driver's functions and modules have no types in Python.
        self._functions: dict[str, tuple[Any, Any]] = {}

    def __call__(self, operator: Operator, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Launch an operator's kernel. Raises EngineError, which names the node, when the driver refuses it."""
        kernel, plan = compile_kernel(operator), plan_kernel(operator)
        batch = inputs[0].shape[0]
        outputs = [
            torch.empty(spec.sizes(batch), dtype=spec.format.torch, device="cuda") for spec in operator.outputs()
        ]
        tensors = [*(tensor.contiguous() for tensor in inputs), *outputs]
        pointers = tuple(tensor.data_ptr() for tensor in tensors)
        self._launch(operator, kernel, plan.grid_for(batch), pointers)
        return outputs

    def _launch(
        self, operator: Operator, kernel: CompiledKernel, grid: tuple[int, int, int], pointers: tuple[int, ...]
    ) -> None:
        from cuda.bindings import driver

        if len(pointers) != kernel.arguments:
            raise EngineError(f"Node '{operator.name}': {kernel.name} takes {kernel.arguments} tensors.")
        function = self._function(operator, kernel)
        stream = torch.cuda.current_stream().cuda_stream
        arguments = (pointers, (ctypes.c_void_p,) * len(pointers))
        block = (kernel.threads, 1, 1)
        _check(driver.cuLaunchKernel(function, *grid, *block, kernel.shared_bytes, stream, arguments, 0), operator)

    def _function(self, operator: Operator, kernel: CompiledKernel) -> Any:
        from cuda.bindings import driver

        if kernel.name not in self._functions:
            (module,) = _check(driver.cuModuleLoadData(kernel.ptx.encode() + b"\0"), operator)
            (function,) = _check(driver.cuModuleGetFunction(module, kernel.name.encode()), operator)
            # A module is unloaded when its last reference is deleted.
            self._functions[kernel.name] = function, module
        return self._functions[kernel.name][0]


def _check(result: tuple[Any, ...], operator: Operator) -> tuple[Any, ...]:
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"Node '{operator.name}' ({operator.op_type}): CUDA's driver answers {status.name}.")
    return tuple(values)
