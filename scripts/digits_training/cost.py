"""What a step of Soft Equivariance Regularization costs, beside a step of the plain run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from .self_supervised import SerTrainer
from .self_supervised_plan import SerRun, SerSettings


@dataclass(frozen=True)
class Cost:
    """The cost of a step of the plain run and of SER, in this order, and the ratio of the second to the first.

    batch: images of a step. geometric_images: how many of them have geometric views. steps: how many were measured.
    gflops: 10^9 floating-point operations of matrix products. cpu_seconds: CPU time.
    """

    batch: int
    geometric_images: int
    steps: int
    gflops: list[float]
    gflops_ratio: float
    cpu_seconds: list[float]
    cpu_seconds_ratio: float


def measure_cost(settings: SerSettings, share: float, weight: float, steps: int = 12) -> Cost:
    """Measure steps of the plain run and of SER in turns: FLOPs in the first half of `steps`, time in the second.

    The cost in FLOPs is a mean, because the sizes of the views vary. The time is a median, because other programs
    disturb some steps.
    """
    run = SerRun("ser", share, weight)
    trainers = [SerTrainer(each, replace(settings, steps=steps)) for each in (SerRun("plain"), run)]
    flops: list[list[float]] = [[], []]
    seconds: list[list[float]] = [[], []]
    for _ in range(steps // 2):
        for trainer, counted in zip(trainers, flops, strict=True):
            with FlopCounterMode(display=False) as counter:
                trainer.advance()
            counted.append(counter.get_total_flops())
    for _ in range(steps - steps // 2):
        for trainer, spent in zip(trainers, seconds, strict=True):
            before = trainer.seconds
            trainer.advance()
            spent.append(trainer.seconds - before)
    mean, median = [float(np.mean(each)) for each in flops], [float(np.median(each)) for each in seconds]
    return Cost(
        batch=settings.batch,
        geometric_images=trainers[1].geometric,
        steps=steps,
        gflops=[round(each / 1e9, 2) for each in mean],
        gflops_ratio=round(mean[1] / mean[0], 4),
        cpu_seconds=[round(each, 4) for each in median],
        cpu_seconds_ratio=round(median[1] / median[0], 3),
    )
