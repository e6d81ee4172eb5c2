"""What lies beside a repository: how to start the server, how to ask it, and what it needs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dec_export.bundle.store import Bundle
from dec_export.serving.triton.backends import plan_of
from dec_export.serving.triton.config import ModelConfig, Tensor
from dec_export.serving.triton.models import MAX_ENCODED_BYTES, ServedModel, Serving
from dec_export.serving.triton.record import Needs


def run_script(needs: Needs, repository: str) -> str:
    """A shell script that serves the repository beside it; TRITON_IMAGE names the server's image."""
    image = '"${TRITON_IMAGE:?set it to the image of Triton Inference Server}"'
    return f"""#!/bin/sh
# Serves the models of the repository beside it with Triton Inference Server; the README beside says which image fits.
here=$(cd "$(dirname "$0")" && pwd)
exec {docker_run(needs, '"$here"/' + shlex.quote(repository), image)}
"""


def docker_run(needs: Needs, repository: str, image: str) -> str:
    """The command that starts the server."""
    gpus = "--gpus all " if needs.gpu else ""
    ports = "-p 8000:8000 -p 8001:8001 -p 8002:8002"
    return (
        f"docker run --rm --init {gpus}--shm-size={needs.shared_memory_mib}m {ports} "
        f"-v {repository}:/models:ro {image} tritonserver --model-repository=/models --disable-auto-complete-config"
    )


def readme(
    bundle: Bundle, serving: Serving, models: Sequence[ServedModel], repository: str, version: int, needs: Needs
) -> str:
    """The README of a repository, in Markdown."""
    ensemble = models[-1].config
    answers = ", ".join(_tensor(output) for output in ensemble.output)
    return f"""# {repository}: {serving.name}, version {version}

Written by dec-export from the bundle of recipe `{bundle.recipe.name}`, whose gate is "{bundle.manifest.gate}".
{bundle.manifest.weights.detail}

| model | takes | gives | runs |
|---|---|---|---|
{"".join(_row(model.config) for model in models)}
Ask the ensemble `{ensemble.name}`: `encoded` is the bytes of a JPEG or PNG file; it answers {answers}.

## Start it

    TRITON_IMAGE=<image> ./{repository}-run.sh

which is

    {docker_run(needs, '"$PWD"/' + shlex.quote(repository), '"$TRITON_IMAGE"')}

`--shm-size` is what the Python models of the whole repository may hold: instances x batch x bytes in and out x 2, with
encoded images of {MAX_ENCODED_BYTES >> 20} MiB, the most that is taken. Instances on GPUs count for each GPU. Shared
memory grows to that and does not shrink. The script holds the line for what the repository has now.

{_image(bundle, serving)}
## Check it

    dec-export triton check localhost:8000 --model {serving.name} --bundle BUNDLE

sends real images, compares every answer with the bundle's own engine, and prints latencies and the server's statistics.

`ready` says that the server is up, not that a model answers: probe with a real inference, as this command does.
"""


def _row(config: ModelConfig) -> str:
    takes, gives = (", ".join(map(_tensor, tensors)) for tensors in (config.input, config.output))
    return f"| `{config.name}` | {takes} | {gives} | {config.backend or 'its models'} |\n"


def _tensor(tensor: Tensor) -> str:
    return f"`{tensor.name}` {tensor.data_type.value.removeprefix('TYPE_')} ({', '.join(map(str, tensor.dims))})"


def _image(bundle: Bundle, serving: Serving) -> str:
    """Which image fits, and what must be added to it."""
    lines = ["NVIDIA publishes an image of the server every month, `tritonserver:<year>.<month>-py3`."]
    plan = plan_of(bundle, serving.engine)
    note = serving.backend.image_note(plan)
    if note is not None:
        lines.append(note)
    packages = serving.backend.packages(serving.engine, plan, serving.kind)
    lines.append(
        "Pre- and postprocessing run in its Python backend, which needs more than the image has: add "
        f"`RUN pip install {packages}` to it."
    )
    return "\n".join(lines) + "\n"
