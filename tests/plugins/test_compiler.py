"""Kernels compile to valid PTX that takes TensorRT's arguments and holds no paths of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dec_export.errors import EngineError
from dec_export.formats import Format
from dec_export.lowering.model import LoweredCanonicalizer
from dec_export.onnx_export.operators import ConvolveV1, KeepV1, Operator, WarpV1
from dec_export.onnx_export.solver import Solve
from dec_export.recipe.model import Recipe
from dec_export.reference.canonicalizer import Canonicalizer
from dec_plugins import compiler
from dec_plugins.compiler import CompiledKernel, compile_kernel, trim_entry
from dec_plugins.plans import plan_kernel

triton = pytest.importorskip("triton", reason="the Triton language has no wheel for this platform")
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
KEEP = KeepV1(name="keep", resolution=4)


def operators_of(recipe: str, precision: Format) -> list[Operator]:
    """Return the operators of both layers, with one for each kernel."""
    canonicalizer = Canonicalizer(Recipe.named(recipe).canonicalizer)
    lowered = LoweredCanonicalizer(canonicalizer, (224, 224)).float()
    lowered.cast_convolutions(precision.torch)
    found: dict[str, Operator] = {}
    for index, step in enumerate(lowered.steps):
        solve = Solve(index, step, lowered.options)  # type: ignore[arg-type]
        for operator in solve.operators():
            key = json.dumps(operator.model_dump(exclude={"name"}))
            found.setdefault(f"{operator.OP_TYPE}{key}", operator)
    return list(found.values())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def test_three_products_make_one_of_float32() -> None:
    """One TF32 product has ten bits, which the interpreter of the Triton language would not show."""
    (operator, *_) = (o for o in operators_of("deit_s", Format.FP32) if isinstance(o, ConvolveV1))
    assert plan_kernel(operator).constants["PRECISION"] == "tf32x3"


def test_a_kernel_that_needs_too_much_shared_memory_is_refused_by_name(cache: Path) -> None:
    node = WarpV1(name="s/warp", channels=3, height=64, width=64, padding=2, resolution=40, dtype=Format.FP32)
    with pytest.raises(EngineError, match=r"Node 's/warp' \(WarpV1\): its kernel needs \d+ bytes .* --solver unroll"):
        compile_kernel(node, cache)


@pytest.mark.parametrize("precision", [Format.FP32, Format.FP16])
def test_every_kernel_of_a_published_recipe_assembles(precision: Format, cache: Path, tmp_path: Path) -> None:
    operators = operators_of("deit_s", precision)
    assert {operator.OP_TYPE for operator in operators} == {
        "WarpV1",
        "ConvolveV1",
        "ActivateV1",
        "ScoreV1",
        "MixV1",
        "KeepV1",
    }
    for operator in operators:
        kernel = compile_kernel(operator, cache)
        assert kernel.shared_bytes <= compiler.MAX_SHARED_BYTES
        check_ptx(kernel, operator)
        path = tmp_path / f"{kernel.name}.ptx"
        path.write_text(kernel.ptx)
        for architecture in ARCHITECTURES:
            command = [str(PTXAS), f"-arch={architecture}", "-v", str(path), "-o", os.devnull]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{operator.name} {architecture}: {done.stderr}"
            # Registers that spill to memory would be slow, and are a sign of a tile too large.
            assert "0 bytes spill stores" in done.stderr, f"{operator.name} {architecture}: {done.stderr}"


def check_ptx(kernel: CompiledKernel, operator: Operator) -> None:
    (head,) = re.findall(r"\.visible \.entry (\w+)\(([^)]*)\)", kernel.ptx)
    assert head[0] == kernel.name
    assert head[1].count(".param .u64") == kernel.arguments == len(operator.inputs()) + len(operator.outputs())
    loaded = {int(n) for n in re.findall(rf"\[{kernel.name}_param_(\d+)\]", kernel.ptx)}
    assert loaded <= set(range(kernel.arguments)), "a hidden argument is read"
    assert ".target sm_80" in kernel.ptx
    assert ".version 8.0" in kernel.ptx
    assert not re.search(r"\.file|\.loc\b|site-packages", kernel.ptx)
    for folder in (Path.home(), Path(sys.prefix), Path(tempfile.gettempdir()), Path(compiler.__file__).parent):
        assert str(folder) not in kernel.ptx
    products = re.findall(r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(\w+\.\w+)\.f32", kernel.ptx)
    assert len(products) == kernel.ptx.count("mma.sync")
    if isinstance(operator, ConvolveV1):
        # A tile of pixels x channels x depth, in instructions of 16 x 8 x k: once in float16, three times in TF32.
        plan = plan_kernel(operator).constants
        tile = plan["WINDOWS"] * plan["SLOTS"] * plan["BLOCK_N"] * plan["BLOCK_K"]
        (depth, kind), *_ = set(products)
        narrow = operator.dtype is Format.FP16
        assert kind == ("f16.f16" if narrow else "tf32.tf32")
        warps = kernel.threads // 32
        assert len(products) * 16 * 8 * int(depth) * warps % ((1 if narrow else 3) * tile) == 0
        assert len(products) * 16 * 8 * int(depth) * warps >= (1 if narrow else 3) * tile
    else:
        # Coordinates and statistics keep float32: not one of their products is of ten bits.
        assert not products
    assert not re.search(r"\b(atom|red)\.global|barrier\.cluster|\bgriddepcontrol", kernel.ptx), "blocks must not meet"


def test_the_batch_is_one_axis_of_the_grid() -> None:
    for operator in operators_of("deit_s", Format.FP32):
        plan = plan_kernel(operator)
        one, many = plan.grid_for(1), plan.grid_for(32)
        assert plan.grid.count(None) == 1
        assert many == tuple(n * 32 if free is None else n for n, free in zip(one, plan.grid, strict=True))
        assert max(plan.grid_for(65535)[1:]) <= 65535


def test_a_kept_kernel_is_used_and_a_damaged_one_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    compile_ = compiler._compile

    def counted(*arguments: object) -> CompiledKernel:
        made.append(arguments)
        return compile_(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compiler, "_compile", counted)
    kernel = compile_kernel(KEEP, tmp_path)
    compiler._KEPT.clear()
    assert compile_kernel(KEEP, tmp_path) == kernel
    assert len(made) == 1
    (path,) = tmp_path.glob("*.json")
    whole = path.read_text()
    damages = [
        whole.replace("ld.param", "ld.barap", 1),
        whole.replace('"threads": 128', '"threads": 7'),
        "",
        "[]",
        '{"kernel": {"ptx": 3}}',
    ]
    for damage in damages:
        assert damage != whole
        path.write_text(damage)
        compiler._KEPT.clear()
        assert compile_kernel(KEEP, tmp_path) == kernel
    assert len(made) == 6
    other = compile_kernel(KeepV1(name="keep", resolution=6), tmp_path)
    assert other.name != kernel.name
    assert len(made) == 7


def test_what_a_kernel_is_made_of_decides_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = compile_kernel(KEEP, tmp_path)
    monkeypatch.setattr(compiler, "_source", lambda: b"another source")
    assert compile_kernel(KEEP, tmp_path).name != first.name
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "triton"))
    assert compile_kernel(KEEP, tmp_path / "file" / "folder").arguments == 6
    assert "cannot be kept" in caplog.text


PTX = """.version 8.0
.visible .entry keep(
\t.param .u64 .ptr .global .align 1 keep_param_0,
\t.param .u64 .ptr .global .align 1 keep_param_1,
\t.param .u64 .ptr .global .align 1 keep_param_2
)
{ ld.param.b64 %rd1, [keep_param_0]; bar.keep.sync; }
"""


def test_hidden_arguments_are_taken_away() -> None:
    trimmed = trim_entry(PTX, "keep", "mine", 1)
    assert "mine_param_0]" in trimmed
    assert "bar.keep.sync" in trimmed, "an instruction is no name"
    assert "_param_1" not in trimmed
    assert "_param_2" not in trimmed
    assert "align 1 mine_param_0\n)" in trimmed


@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        (PTX.replace("[keep_param_0]", "[keep_param_2]"), "uses the hidden argument keep_param_2"),
        (PTX.replace(",\n\t.param .u64 .ptr .global .align 1 keep_param_2", ""), "takes 2 arguments, expected 1"),
        (PTX.replace(".u64", ".u32", 1), "takes 3 arguments"),
        (PTX + PTX, "no single entry point"),
        (PTX.replace("keep(", "other("), "no single entry point"),
    ],
)
def test_other_entry_points_are_refused(ptx: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        trim_entry(ptx, "keep", "mine", 1)


def test_without_the_triton_language_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dec_plugins.has_package", lambda _: False)
    with pytest.raises(EngineError, match="pip install triton"):
        compile_kernel(KEEP, tmp_path)


def test_a_process_that_interprets_says_that_it_cannot_compile(tmp_path: Path) -> None:
    code = (
        "from dec_export.onnx_export.operators import KeepV1\n"
        "from dec_plugins.compiler import compile_kernel\n"
        "from pathlib import Path\n"
        f"compile_kernel(KeepV1(name='keep', resolution=4), Path({str(tmp_path)!r}))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "Node 'keep' (KeepV1): this process interprets kernels" in done.stderr
