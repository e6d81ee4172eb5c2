"""The choice of engines is tested for several machines that differ from this one."""

from __future__ import annotations

import pytest

from dec_export.engines import choice as choices
from dec_export.engines.choice import choose_engines, divide_plans
from dec_export.engines.spec import Availability
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.errors import EngineError
from dec_export.gpu import Gpu

H100 = Gpu("NVIDIA H100", (9, 0), 80 << 30, "13.0")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[bool, bool]]:
    """Let a machine seem to have every engine but TensorRT, and no GPU, as pairs (can build, can run)."""
    state = {
        "onnxruntime": (True, True),
        "torch": (True, True),
        "onnxruntime-cuda": (False, False),
        "tensorrt": (False, False),
        "tensorrt-rtx": (True, False),
    }
    monkeypatch.setattr(choices, "availability", lambda name, _: Availability(*state[name], "a reason"))
    return state


def test_auto_takes_what_there_is_and_says_what_it_leaves(machine: dict[str, tuple[bool, bool]]) -> None:
    choice = choose_engines(["auto"], None, None)
    assert choice.plans == ("tensorrt-rtx",)
    assert choice.runnable == ("onnxruntime",)
    assert {name: entry.gate for name, entry in choice.left_out.items()} == {
        "onnxruntime-cuda": "not built",
        "tensorrt": "not built",
    }
    assert divide_plans(choice.plans, None)[0] == ()
    assert divide_plans(choice.plans, None)[1]["tensorrt-rtx"].gate == "not run"


def test_with_a_gpu_everything_runs_but_the_second_tensorrt(machine: dict[str, tuple[bool, bool]]) -> None:
    machine.update(dict.fromkeys(machine, (True, True)))
    choice = choose_engines(["auto"], None, H100)
    assert choice.plans == ("tensorrt", "tensorrt-rtx")
    assert choice.runnable == ("onnxruntime", "onnxruntime-cuda")
    provable, not_run = divide_plans(choice.plans, H100)
    assert provable == ("tensorrt",)
    assert "one process runs one TensorRT" in not_run["tensorrt-rtx"].reason
    assert divide_plans(["tensorrt-rtx"], H100) == (("tensorrt-rtx",), {}), "when the first was not built"


def test_what_is_named_must_be_possible(machine: dict[str, tuple[bool, bool]]) -> None:
    with pytest.raises(EngineError, match="'tensorrt' cannot be built: a reason"):
        choose_engines(["tensorrt"], None, None)
    machine["tensorrt"] = (True, True)
    with pytest.raises(EngineError, match="--compute-capability is an option of TensorRT for RTX"):
        choose_engines(["tensorrt"], BuildOptions(compute_capabilities=("8.9",)), H100)


def test_an_option_of_one_flavour_leaves_the_other_out(machine: dict[str, tuple[bool, bool]]) -> None:
    machine["tensorrt"] = (True, True)
    choice = choose_engines(["auto"], BuildOptions(compute_capabilities=("8.9",)), H100)
    assert choice.plans == ("tensorrt-rtx",)
    assert "--compute-capability" in choice.left_out["tensorrt"].reason
    choice = choose_engines(["auto"], BuildOptions(version_compatible=True), H100)
    assert choice.plans == ("tensorrt",)


def test_nothing_is_chosen_when_nothing_is_asked() -> None:
    choice = choose_engines(["none"], None, None)
    assert (choice.plans, choice.runnable, choice.left_out) == ((), (), {})


def test_a_fallback_is_taken_only_when_allowed() -> None:
    with pytest.raises(EngineError, match="onnxruntime-cuda"):
        choose_engines(["onnxruntime-cuda"], None, None)
    assert choose_engines(["onnxruntime-cuda"], None, None, cpu_fallback=True).runnable == ("onnxruntime-cuda",)


def test_torch_is_for_those_who_name_it() -> None:
    assert choose_engines(["torch", "torch"], None, None).runnable == ("torch",)
    assert "torch" not in choose_engines(["auto"], None, None).runnable


def test_a_fallback_without_anything_to_fall_back_from_is_refused() -> None:
    with pytest.raises(EngineError, match="--cpu-fallback is for onnxruntime-cuda"):
        choose_engines(["onnxruntime"], None, None, cpu_fallback=True)
