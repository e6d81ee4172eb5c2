"""Kernels run in the interpreter of the Triton language, in a process that cannot compile kernels."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import torch
from torch import Tensor

from dec_export.onnx_export.operators import Operator


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def _run(operator: Operator, inputs: Sequence[Tensor]) -> list[Tensor]:
    from dec_plugins import kernels
    from dec_plugins.chain import empty_outputs
    from dec_plugins.plans import plan_kernel

    plan, batch = plan_kernel(operator), inputs[0].shape[0]
    outputs = [tensor.fill_(torch.nan) for tensor in empty_outputs(operator, batch, torch.device("cpu"))]
    inputs = [tensor.contiguous() for tensor in inputs]
    getattr(kernels, plan.kernel)[plan.grid_for(batch)](*inputs, *outputs, **plan.constants)
    return outputs


@cache
def _pool() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare)
    atexit.register(pool.shutdown)
    return pool


def interpret(operator: Operator, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the kernel of an operator on CPU tensors; elements that it does not write are NaN."""
    return _pool().submit(_run, operator, list(inputs)).result(timeout=300)
