"""The README and the script beside a repository, which start the server and explain its use."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dec_export.bundle.store import Bundle
from dec_export.serving.triton.backends import plan_of
from dec_export.serving.triton.config import ModelConfig, Tensor
from dec_export.serving.triton.models import MAX_ENCODED_BYTES, ServedModel, Serving
from dec_export.serving.triton.record import Needs


def run_script(needs: Needs, repository: str) -> str:
    """Return a shell script that serves the repository beside it; TRITON_IMAGE names the server's image."""
    image = '"${TRITON_IMAGE:?set it to the image of Triton Inference Server}"'
    return f"""#!/bin/sh
# This script serves the repository beside it with Triton Inference Server. The README beside it says which image fits.
here=$(cd "$(dirname "$0")" && pwd)
exec {docker_run(needs, '"$here"/' + shlex.quote(repository), image)}
"""


def docker_run(needs: Needs, repository: str, image: str) -> str:
    """Return the command that starts the server."""
    gpus = "--gpus all " if needs.gpu else ""
    ports = "-p 8000:8000 -p 8001:8001 -p 8002:8002"
    return (
        f"docker run --rm --init {gpus}--shm-size={needs.shared_memory_mib}m {ports} "
        f"-v {repository}:/models:ro {image} tritonserver --model-repository=/models --disable-auto-complete-config"
    )


def readme(
    bundle: Bundle, serving: Serving, models: Sequence[ServedModel], repository: str, version: int, needs: Needs
) -> str:
    """Return the README of a repository in Markdown."""
    ensemble = models[-1].config
    answers = ", ".join(_tensor(output) for output in ensemble.output)
    return f"""# {repository}: {serving.name}, version {version}

dec-export wrote these models from the bundle of recipe `{bundle.recipe.name}`, whose gate is "{bundle.manifest.gate}".
{bundle.manifest.weights.detail}

| model | takes | gives | runs |
|---|---|---|---|
{"".join(_row(model.config) for model in models)}
Ask the ensemble `{ensemble.name}`: `encoded` is the bytes of a JPEG or PNG file; it answers {answers}.

## Start the server

    TRITON_IMAGE=<image> ./{repository}-run.sh

This script runs

    {docker_run(needs, '"$PWD"/' + shlex.quote(repository), '"$TRITON_IMAGE"')}

`--shm-size` is the most shared memory that the Python models of the whole repository use: instances x batch x (bytes of
inputs and outputs) x 2, with encoded images of at most {MAX_ENCODED_BYTES >> 20} MiB. Instances on GPUs count for each
GPU. Shared memory grows to this size and does not shrink. The script has the value for the models that are in the
repository now.

{_image(bundle, serving)}
## Check the server

    dec-export triton check localhost:8000 --model {serving.name} --bundle BUNDLE

This command sends real images, compares every answer with that of the bundle's engine, and prints latencies and the
server's statistics.

`ready` says that the server runs, but not that a model answers: test with a real inference, as this command does.
"""


def _row(config: ModelConfig) -> str:
    takes, gives = (", ".join(map(_tensor, tensors)) for tensors in (config.input, config.output))
    return f"| `{config.name}` | {takes} | {gives} | {config.backend or 'its models'} |\n"


def _tensor(tensor: Tensor) -> str:
    return f"`{tensor.name}` {tensor.data_type.value.removeprefix('TYPE_')} ({', '.join(map(str, tensor.dims))})"


def _image(bundle: Bundle, serving: Serving) -> str:
    """Return the paragraph about the image of the server, and the packages that must be added to it."""
    lines = ["NVIDIA publishes an image of the server every month, `tritonserver:<year>.<month>-py3`."]
    plan = plan_of(bundle, serving.engine)
    note = serving.backend.image_note(plan)
    if note is not None:
        lines.append(note)
    packages = serving.backend.packages(serving.engine, plan, serving.kind)
    lines.append(
        "Pre- and postprocessing run in its Python backend, which needs packages that the image lacks: add "
        f"`RUN pip install {packages}` to the image's Dockerfile."
    )
    return "\n".join(lines) + "\n"
