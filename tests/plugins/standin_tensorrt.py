"""Drives NVIDIA's own Python plugin layer on a machine without TensorRT, and prints what it made of ours as JSON.

It is run in a process of its own. The wheel `tensorrt-cu13-bindings` holds the layer but not the libraries that it
names; TensorRT for RTX stands in for two of them, and a stub for the third.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from dec_export.formats import Format
from dec_export.onnx_export.operators import (
    ActivateV1,
    ConvolveV1,
    KeepV1,
    MixV1,
    Operator,
    ScoreV1,
    WarpV1,
)

OPERATORS: list[Operator] = [
    WarpV1(name="s/warp", channels=3, height=224, width=224, padding=2, resolution=10, dtype=Format.FP32),
    ConvolveV1(
        name="s/convolve",
        channels_in=64,
        channels_out=128,
        height=56,
        width=56,
        kernel=3,
        pool=2,
        dtype=Format.FP16,
    ),
    ActivateV1(
        name="s/activate",
        channels=64,
        height=56,
        width=56,
        bands=56,
        offset=1.0,
        eps=1e-5,
        dtype=Format.FP32,
        padding=1,
    ),
    ScoreV1(
        name="s/score",
        channels=128,
        height=28,
        width=28,
        bands=28,
        offset=1.0,
        eps=1e-5,
        dtype=Format.FP16,
        resolution=10,
    ),
    MixV1(name="s/mix", resolution=10, memory=4, count=3, regularisation=1e-4, damping=1.0),
    KeepV1(name="s/keep", resolution=10),
]
BATCHES = (1, 3, 32)


def environment(folder: Path) -> dict[str, str]:
    """Libraries and a package by TensorRT's names, made in `folder`; the environment that finds them."""
    import tensorrt_rtx_libs

    libraries = Path(tensorrt_rtx_libs.__file__).parent
    (folder / "libnvinfer.so.11").symlink_to(libraries / "libtensorrt_rtx.so.1")
    (folder / "libnvonnxparser.so.11").symlink_to(libraries / "libtensorrt_onnxparser_rtx.so.1")
    source = folder / "stub.c"
    source.write_text("int initLibNvInferPlugins(void *logger, const char *name) { return 1; }\n")
    target = str(folder / "libnvinfer_plugin.so.11")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", target, str(source)], check=True)  # noqa: S607
    package = folder / "python" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import os\nimport tensorrt_bindings\nfrom tensorrt_bindings import *\n"
        "from tensorrt_bindings import __version__\n"
        "__path__.append(os.path.dirname(tensorrt_bindings.__file__))\n"
    )
    information = folder / "python" / "tensorrt-11.0.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 11.0.0\n")
    (information / "top_level.txt").write_text("tensorrt\n")
    found = os.pathsep.join([str(folder), str(libraries)])
    path = os.pathsep.join([str(folder / "python"), str(Path(__file__).parents[2])])
    return {**os.environ, "LD_LIBRARY_PATH": found, "PYTHONPATH": path}


class Dimension:
    """A dimension whose value is known here, and to the plugin only when it is constant."""

    def __init__(self, value: int, constant: bool = True) -> None:
        self.value, self.constant = value, constant

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant
        return self.value


class Expressions:
    """TensorRT's arithmetic on dimensions."""

    _OPERATIONS: ClassVar[dict[str, Any]] = {
        "SUM": lambda a, b: a + b,
        "SUB": lambda a, b: a - b,
        "PROD": lambda a, b: a * b,
        "FLOOR_DIV": lambda a, b: a // b,
        "CEIL_DIV": lambda a, b: math.ceil(a / b),
        "MAX": max,
        "MIN": min,
    }

    def constant(self, value: int) -> Dimension:
        return Dimension(value)

    def operation(self, kind: Any, a: Dimension, b: Dimension) -> Dimension:
        return Dimension(self._OPERATIONS[kind.name](a.value, b.value), a.constant and b.constant)


def main() -> None:
    import tensorrt as trt
    import tensorrt.plugin as trtp

    layer = importlib.import_module("tensorrt.plugin._lib")
    tensors = importlib.import_module("tensorrt.plugin._tensor")
    from dec_plugins.registration import register

    names = [operator.op_type for operator in OPERATORS]
    registered = [register(names), register(names)]
    tensors.trt.IDimensionExpr = Dimension
    tensors.SymIntExpr._exprBuilder = Expressions()
    dtypes = {Format.FP32: trt.float32, Format.FP16: trt.float16}

    def describe(operator: Operator, batch: int) -> list[Any]:
        found = []
        for spec in operator.inputs():
            shape = [Dimension(batch, constant=False) if n is None else Dimension(n) for n in spec.shape]
            expressions = trtp.ShapeExprs.from_tuple(tuple(tensors.ShapeExpr(n) for n in shape))
            found.append(trtp.TensorDesc(expressions, dtypes[spec.format]))
        return found

    results = []
    for operator in OPERATORS:
        definition = layer.QDP_REGISTRY[f"dec::{operator.op_type}"]
        data = operator.config().encode()
        field = trt.PluginField("config", data, trt.PluginFieldType.CHAR)
        plugin = layer.QDP_CREATORS[f"dec::{operator.op_type}"].create_plugin(
            operator.op_type,
            "dec",
            trt.PluginFieldCollection([field]),
            trt.TensorRTPhase.BUILD,
            trt.QuickPluginCreationRequest.STRICT_AOT,
        )
        ranks = [len(spec.shape) for spec in operator.inputs()]
        outputs = plugin.get_output_data_types([dtypes[spec.format] for spec in operator.inputs()], ranks)
        launches = []
        for batch in BATCHES:
            inputs = describe(operator, batch)
            # As it arrives: with the terminator of a C string.
            described = definition.register_func(*inputs, config=operator.config() + "\0")
            described = described if isinstance(described, tuple) else (described,)
            name, ptx, launch, extra = definition.aot_impl_func(*inputs, operator.config(), described, 0)
            launches.append(
                {
                    "shapes": [[n._expr.value for n in one.shape_expr] for one in described],
                    "grid": [getattr(launch, f"grid_{axis}")._expr.value for axis in "xyz"],
                    "block": [getattr(launch, f"block_{axis}")._expr.value for axis in "xyz"],
                    "shared": launch.shared_mem._expr.value,
                    "extra": len(extra),
                    "entry": f".visible .entry {name}(" in ptx,
                }
            )
        results.append({"dtypes": [dtype.name for dtype in outputs], "launches": launches})
    wrong = describe(OPERATORS[1], 2)
    wrong[0].dtype = trt.float32
    try:
        layer.QDP_REGISTRY[f"dec::{OPERATORS[1].op_type}"].register_func(*wrong, config=OPERATORS[1].config())
        refusal = ""
    except Exception as error:
        refusal = str(error)
    print(json.dumps({"registered": registered, "results": results, "refusal": refusal, "version": trt.__version__}))


if __name__ == "__main__":
    sys.exit(main())
