"""What lies beside a repository: how to start the server, how to ask it, and what it needs."""

from __future__ import annotations

from collections.abc import Sequence

from dec_export.bundle import Bundle
from dec_export.serving.config import Kind, ModelConfig, Tensor
from dec_export.serving.models import ServedModel, Serving, shared_memory

# What the Python backend's own interpreter lacks in NVIDIA's image.
_ALWAYS = "'numpy<2' pillow"
_PACKAGES = {
    "cpu": "onnxruntime",
    "onnxruntime": "onnxruntime-gpu",
    "tensorrt": "tensorrt cuda-bindings",
    "tensorrt-rtx": "tensorrt-rtx cuda-bindings",
}


def run_script(models: Sequence[ServedModel], repository: str) -> str:
    """A shell script that serves the repository beside it; TRITON_IMAGE names the server's image."""
    return f"""#!/bin/sh
# Serves the models of {repository}/ with Triton Inference Server. TRITON_IMAGE names its image: see the README beside.
here=$(cd "$(dirname "$0")" && pwd)
exec {docker_run(models, f'"$here/{repository}"', '"${TRITON_IMAGE:?set it to the image of Triton Inference Server}"')}
"""


def docker_run(models: Sequence[ServedModel], repository: str, image: str) -> str:
    """The command that starts the server."""
    gpus = "--gpus all " if _needs_gpu(models) else ""
    ports = "-p 8000:8000 -p 8001:8001 -p 8002:8002"
    return (
        f"docker run --rm --init {gpus}--shm-size={shared_memory(models) >> 20}m {ports} "
        f"-v {repository}:/models:ro {image} tritonserver --model-repository=/models --disable-auto-complete-config"
    )


def readme(bundle: Bundle, serving: Serving, models: Sequence[ServedModel], repository: str, version: int) -> str:
    """The README of a repository, in Markdown."""
    ensemble = models[-1].config
    answers = ", ".join(_tensor(output) for output in ensemble.output)
    return f"""# {repository}: {serving.name}, version {version}

Written by dec-export from the bundle of recipe `{bundle.recipe.name}` (weights: {bundle.manifest.weights.detail}).

| model | takes | gives | runs |
|---|---|---|---|
{"".join(_row(model.config) for model in models)}
Ask the ensemble `{ensemble.name}`: `encoded` is the bytes of a JPEG or PNG file; it answers {answers}.

## Start it

    TRITON_IMAGE=<image> ./{repository}-run.sh

which is

    {docker_run(models, f'"$PWD/{repository}"', '"$TRITON_IMAGE"')}

`--shm-size` is what the Python models may hold: instances x batch x bytes in and out x 2. Shared memory grows to that
and does not shrink.

{_image(bundle, serving)}
## Check it

    dec-export triton check localhost:8000 --model {serving.name} --bundle BUNDLE

sends real images, compares every answer with the bundle's own engine, and prints latencies and the server's statistics.

`ready` says that the server is up, not that a model answers: probe with a real inference, as this command does.
"""


def _needs_gpu(models: Sequence[ServedModel]) -> bool:
    return any(group.kind.value == "KIND_GPU" for model in models for group in model.config.instance_group)


def _row(config: ModelConfig) -> str:
    takes, gives = (", ".join(map(_tensor, tensors)) for tensors in (config.input, config.output))
    return f"| `{config.name}` | {takes} | {gives} | {config.backend or 'its models'} |\n"


def _tensor(tensor: Tensor) -> str:
    return f"`{tensor.name}` {tensor.data_type.value.removeprefix('TYPE_')} ({', '.join(map(str, tensor.dims))})"


def _image(bundle: Bundle, serving: Serving) -> str:
    """Which image fits, and what must be added to it."""
    lines = ["NVIDIA publishes an image of the server every month, `tritonserver:<year>.<month>-py3`."]
    plan = bundle.manifest.plans.get(serving.engine)  # type: ignore[call-overload]
    if serving.backend == "tensorrt" and plan is not None:
        lines.append(
            f"Take one whose `$TRT_VERSION` is {plan.version}: a plan runs with the version alone that built it."
        )
    lines.append(
        "Pre- and postprocessing run in its Python backend, which needs more than the image has: add "
        f"`RUN pip install {_packages(serving)}` to it."
    )
    return "\n".join(lines) + "\n"


def _packages(serving: Serving) -> str:
    if serving.backend != "python":
        return _ALWAYS
    engine = serving.engine if serving.kind is Kind.KIND_GPU else "cpu"
    return f"{_ALWAYS} {_PACKAGES[engine]}"
