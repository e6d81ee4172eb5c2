"""The compiler of kernels to PTX, which works ahead of time on any machine, with or without a GPU, and has a cache.

The target is compute capability 8.0 in PTX 8.0, which the driver of every newer GPU accepts; a newer target would
exclude older GPUs. The entry points of the Triton language end with two pointers to scratch memory, which TensorRT does
not pass. They are removed from kernels that need no scratch memory, and other kernels are refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any  # the compiler of the Triton language has no types

from dec_export.cache import user_cache
from dec_export.errors import EngineError
from dec_export.files import write_atomically
from dec_export.libraries import version_of
from dec_export.onnx_export.operators import Operator

from . import why_not_compilable
from .plans import KernelPlan, plan_kernel

_LOGGER = logging.getLogger(__name__)
CAPABILITY = 80
PTX_VERSION = 80
# A block can use this much shared memory without a request to the driver, which TensorRT does not make.
MAX_SHARED_BYTES = 48 << 10
_THREADS_PER_WARP = 32
# The kernels of this process by file. TensorRT asks more than once for the kernel of each of dozens of nodes.
_KEPT: dict[Path, CompiledKernel] = {}
_HIDDEN = 2
# This number names the format of the files in the cache.
_CACHE_FORMAT = 2


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel as PTX.

    name: the entry point. threads, shared_bytes: those of each block. arguments: the number of pointers that it takes.
    """

    name: str
    ptx: str
    threads: int
    shared_bytes: int
    arguments: int


def compile_kernel(operator: Operator, cache: Path | None = None) -> CompiledKernel:
    """Return the kernel of a node, from the cache if it holds the kernel.

    cache: the folder of the cache, by default in the user's cache folder. Raises EngineError, which names the node,
    when the kernel cannot be compiled.
    """
    reason = why_not_compilable()
    if reason:
        raise EngineError(f"The plugin cannot be used: {reason}.")
    plan = plan_kernel(operator)
    key = _key(plan, _signature(operator, plan))
    path = (cache or default_folder()) / f"{key}.json"
    if path not in _KEPT:
        _KEPT[path] = _read(path) or _make(operator, plan, key, path)
    return _KEPT[path]


def _make(operator: Operator, plan: KernelPlan, key: str, path: Path) -> CompiledKernel:
    try:
        kernel = _compile(operator, plan, key)
    except Exception as error:  # Triton's compiler raises many kinds of errors, and only this function knows the node.
        raise EngineError(
            f"Node '{operator.name}' ({operator.op_type}): {error} Build with --solver unroll, which needs no kernel."
        ) from error
    _write(path, kernel)
    return kernel


def default_folder() -> Path:
    """Return the default folder of compiled kernels, which is in the user's cache folder."""
    return user_cache("kernels")


def _signature(operator: Operator, plan: KernelPlan) -> dict[str, str]:
    pointers = {spec.name: spec.format.triton_pointer for spec in (*operator.inputs(), *operator.outputs())}
    return pointers | dict.fromkeys(plan.constants, "constexpr")


@lru_cache
def _source() -> bytes:
    return Path(__file__).with_name("kernels.py").read_bytes()


def _key(plan: KernelPlan, signature: dict[str, str]) -> str:
    """Return a hash of everything that determines the compiled kernel."""
    made_of = {
        "source": hashlib.sha256(_source()).hexdigest(),
        "kernel": plan.kernel,
        "constants": plan.constants,
        "signature": signature,
        "options": [plan.warps, plan.stages, CAPABILITY, PTX_VERSION],
        "compiler": version_of("triton"),
        "format": _CACHE_FORMAT,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _compile(operator: Operator, plan: KernelPlan, key: str) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from . import kernels

    function = getattr(kernels, plan.kernel)
    if not isinstance(function, triton.JITFunction):
        raise EngineError("this process interprets kernels (TRITON_INTERPRET) and cannot also compile them.")
    source = ASTSource(function, _signature(operator, plan), plan.constants)
    options = {
        "num_warps": plan.warps,
        "num_stages": plan.stages,
        "ptx_version": PTX_VERSION,
        "enable_fp_fusion": True,
    }
    with (
        triton.knobs.compilation.scope(),
        triton.knobs.cache.scope(),
        # Triton's own cache is off, because it needs another writable folder.
        tempfile.TemporaryDirectory() as scratch,
    ):
        triton.knobs.cache.dir = scratch
        # Line numbers are off, because they contain paths of this machine.
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, _THREADS_PER_WARP), options=options)
    arguments = len(operator.inputs()) + len(operator.outputs())
    _check_metadata(compiled.metadata)
    name = f"dec_{plan.kernel}_{key[:16]}"
    return CompiledKernel(
        name,
        trim_entry(compiled.asm["ptx"], plan.kernel, name, arguments),
        plan.warps * _THREADS_PER_WARP,
        compiled.metadata.shared,
        arguments,
    )


def _check_metadata(metadata: Any) -> None:
    scratch = metadata.global_scratch_size + metadata.profile_scratch_size
    if scratch or metadata.num_ctas != 1 or getattr(metadata, "launch_pdl", False):
        raise EngineError("its kernel asks for scratch memory or a launch that TensorRT does not offer.")
    if metadata.shared > MAX_SHARED_BYTES:
        raise EngineError(f"its kernel needs {metadata.shared} bytes of shared memory, more than {MAX_SHARED_BYTES}.")


def trim_entry(ptx: str, entry: str, name: str, arguments: int) -> str:
    """Return the PTX with a new entry point and without its two hidden arguments. EngineError when it uses these."""
    head = re.search(rf"\.visible \.entry {entry}\((?P<parameters>[^)]*)\)", ptx)
    if head is None or ptx.count(".visible .entry") != 1:
        raise EngineError(f"its PTX has no single entry point '{entry}'.")
    parameters = [line.strip().rstrip(",") for line in head["parameters"].strip().splitlines()]
    if len(parameters) != arguments + _HIDDEN or not all(".param .u64" in line for line in parameters):
        raise EngineError(f"its PTX takes {len(parameters)} arguments, expected {arguments} and {_HIDDEN} hidden ones.")
    body = ptx[head.end() :]
    for hidden in parameters[arguments:]:
        if re.search(rf"\b{re.escape(hidden.split()[-1])}\b", body):
            raise EngineError(f"its PTX uses the hidden argument {hidden.split()[-1]}, which TensorRT does not pass.")
    kept = ",\n\t".join(parameters[:arguments])
    trimmed = f"{ptx[: head.start()]}.visible .entry {name}(\n\t{kept}\n){body}"
    return re.sub(rf"\b{entry}_param_", f"{name}_param_", trimmed)


def _read(path: Path) -> CompiledKernel | None:
    """Return a kernel from the cache, or None when it is not there or its file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kernel = CompiledKernel(**content["kernel"])
        whole = content["sha256"] == _digest(kernel)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return kernel if whole else None


def _digest(kernel: CompiledKernel) -> str:
    return hashlib.sha256(json.dumps(asdict(kernel), sort_keys=True).encode()).hexdigest()


def _write(path: Path, kernel: CompiledKernel) -> None:
    """Store a kernel in the cache. A folder that cannot be written only costs time."""
    content = {"kernel": asdict(kernel), "sha256": _digest(kernel)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content))
    except OSError as error:
        _LOGGER.warning("Compiled kernels cannot be kept in '%s': %s", path.parent, error)
