"""Configurations, read back by the server's own protobuf, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from dec_export.errors import ServingError
from dec_export.serving.triton.config import (
    Cuda,
    DataType,
    DynamicBatching,
    Ensemble,
    GraphShape,
    GraphSpec,
    Input,
    InstanceGroup,
    Kind,
    Latest,
    ModelConfig,
    Optimization,
    Output,
    Parameter,
    QueuePolicy,
    Step,
    VersionPolicy,
    Warmup,
    WarmupInput,
    parse_version,
)

IMAGE = Input(name="image", data_type=DataType.TYPE_FP32, dims=(3, 4, 4))
LOGITS = Output(name="logits", data_type=DataType.TYPE_FP32, dims=(10,))
GROUP = (InstanceGroup(kind=Kind.KIND_CPU, count=1),)
STEP = Step(model_name="m", input_map={"a": "b"}, output_map={"c": "d"})
WARM = WarmupInput(data_type=DataType.TYPE_STRING, dims=(1,), input_data_file="image")


def model(**changes: Any) -> ModelConfig:
    fields = {"name": "m", "backend": "python", "max_batch_size": 8, "input": (IMAGE,), "output": (LOGITS,)}
    return ModelConfig(**{**fields, "instance_group": GROUP, **changes})


def ensemble(**changes: Any) -> ModelConfig:
    scheduling = Ensemble(step=(STEP,), **changes)
    return model(backend=None, platform="ensemble", instance_group=(), ensemble_scheduling=scheduling)


def read(config: ModelConfig, server: tuple[int, int] = (2, 99)) -> dict[str, Any]:
    parsed = text_format.Parse(config.text(server), model_config_pb2.ModelConfig())
    return json_format.MessageToDict(parsed, preserving_proto_field_name=True)


def at(content: Any, path: str) -> Any:
    for key in path.split("."):
        content = content[int(key)] if isinstance(content, list) else content[key]
    return content


@pytest.mark.parametrize(
    ("config", "path", "expected"),
    [
        (model(name="deit_s"), "name", "deit_s"),
        (model(backend="tensorrt"), "backend", "tensorrt"),
        (ensemble(), "platform", "ensemble"),
        (model(max_batch_size=3), "max_batch_size", 3),
        (model(), "input.0.name", "image"),
        (model(), "input.0.data_type", "TYPE_FP32"),
        (model(), "input.0.dims", ["3", "4", "4"]),
        (model(), "output.0.name", "logits"),
        (model(), "output.0.data_type", "TYPE_FP32"),
        (model(), "output.0.dims", ["10"]),
        (model(output=(LOGITS.model_copy(update={"label_filename": "l.txt"}),)), "output.0.label_filename", "l.txt"),
        (model(version_policy=VersionPolicy(latest=Latest(num_versions=2))), "version_policy.latest.num_versions", 2),
        (model(instance_group=(InstanceGroup(kind=Kind.KIND_GPU, count=3),)), "instance_group.0.kind", "KIND_GPU"),
        (model(instance_group=(InstanceGroup(kind=Kind.KIND_GPU, count=3),)), "instance_group.0.count", 3),
        (
            model(instance_group=(InstanceGroup(kind=Kind.KIND_GPU, count=1, profile=("0",)),)),
            "instance_group.0.profile",
            ["0"],
        ),
        (
            model(dynamic_batching=DynamicBatching(preferred_batch_size=(4, 8))),
            "dynamic_batching.preferred_batch_size",
            [4, 8],
        ),
        (
            model(dynamic_batching=DynamicBatching(max_queue_delay_microseconds=50)),
            "dynamic_batching.max_queue_delay_microseconds",
            "50",
        ),
        (
            model(dynamic_batching=DynamicBatching(default_queue_policy=QueuePolicy(max_queue_size=7))),
            "dynamic_batching.default_queue_policy.max_queue_size",
            7,
        ),
        (model(optimization=Optimization(cuda=Cuda(graphs=True))), "optimization.cuda.graphs", True),
        (
            model(optimization=Optimization(cuda=Cuda(graphs=True, output_copy_stream=True))),
            "optimization.cuda.output_copy_stream",
            True,
        ),
        (
            model(optimization=Optimization(cuda=Cuda(graphs=True, graph_spec=(GraphSpec(batch_size=4),)))),
            "optimization.cuda.graph_spec.0.batch_size",
            4,
        ),
        (
            model(
                optimization=Optimization(
                    cuda=Cuda(
                        graphs=True,
                        graph_spec=(GraphSpec(batch_size=1, input={"image": GraphShape(dim=(3, 4, 4))}),),
                    )
                )
            ),
            "optimization.cuda.graph_spec.0.input.image.dim",
            ["3", "4", "4"],
        ),
        (ensemble(), "ensemble_scheduling.step.0.model_name", "m"),
        (ensemble(), "ensemble_scheduling.step.0.model_version", "-1"),
        (ensemble(), "ensemble_scheduling.step.0.input_map", {"a": "b"}),
        (ensemble(), "ensemble_scheduling.step.0.output_map", {"c": "d"}),
        (model(model_warmup=(Warmup(name="w", batch_size=2, inputs={"x": WARM}),)), "model_warmup.0.name", "w"),
        (model(model_warmup=(Warmup(name="w", batch_size=2, inputs={"x": WARM}),)), "model_warmup.0.batch_size", 2),
        (model(model_warmup=(Warmup(name="w", batch_size=2, count=5, inputs={"x": WARM}),)), "model_warmup.0.count", 5),
        (
            model(model_warmup=(Warmup(name="w", batch_size=2, inputs={"x": WARM}),)),
            "model_warmup.0.inputs.x",
            {"data_type": "TYPE_STRING", "dims": ["1"], "input_data_file": "image"},
        ),
        (model(parameters={"k": Parameter(string_value="v")}), "parameters.k.string_value", "v"),
    ],
)
def test_every_field_reaches_the_server(config: ModelConfig, path: str, expected: Any) -> None:
    assert at(read(config), path) == expected


def test_a_batch_size_of_zero_is_written_though_protobuf_would_drop_it() -> None:
    assert "max_batch_size: 0\n" in model(max_batch_size=0).text()


def test_a_server_is_told_only_what_it_knows() -> None:
    limited = ensemble(max_inflight_requests=9)
    assert at(read(limited, (2, 64)), "ensemble_scheduling.max_inflight_requests") == 9
    assert "max_inflight_requests" not in limited.text((2, 63))
    warm = model(model_warmup=(Warmup(name="w", batch_size=2, count=5, inputs={"x": WARM}),))
    assert "count: 5" in warm.text((2, 24))
    assert "count: 5" not in warm.text((2, 23))
    assert "count: 1" in warm.text((2, 23)), "of the instance group, which every server knows"


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_survives(text: str) -> None:
    assert (
        at(read(model(parameters={"k": Parameter(string_value=text)})), "parameters.k").get("string_value", "") == text
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backend": None}, "has a backend, or is an ensemble"),
        ({"platform": "ensemble"}, "has a backend, or is an ensemble"),
        ({"instance_group": ()}, "has an instance_group"),
        ({"output": (Output(name="image", data_type=DataType.TYPE_FP32, dims=(1,)),)}, "names of their own"),
        ({"model_warmup": (Warmup(name="w", batch_size=9, inputs={"x": WARM}),)}, "larger than max_batch_size"),
        ({"name": "../evil"}, "should match pattern"),
        ({"max_batch_size": -1}, "greater than or equal to 0"),
        ({"input": ()}, "at least 1 item"),
    ],
)
def test_what_a_server_would_refuse_is_refused_before(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        model(**changes)


def test_versions_are_read_and_nonsense_is_not() -> None:
    assert parse_version("2.51.0") == parse_version("2.51") == (2, 51)
    for text in ("", "2", "latest", "2.x", "25.10-py3"):
        with pytest.raises(ServingError, match="--min-server expects"):
            parse_version(text)
