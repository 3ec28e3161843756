"""How Ray Train enters a training in every worker."""

from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch

from passersby.errors import InputError
from training.log import REFUSAL


def enter(config: Any, train: Callable, values: dict) -> None:
    """Call `train` in a Ray Train worker; values: `data` is a reference to the images, `command` the driver's command.

    Ray Train starts workers again whatever they died of. Bad input does not get better by that: it is written down,
    and workers that find it there end at once.
    """
    refusal = config.out / REFUSAL
    if refusal.exists():
        return
    try:
        train(
            config,
            ray.train.torch.get_device(),
            rank=ray.train.get_context().get_world_rank(),
            data=ray.get(values["data"]),
            command=values["command"],
            report=ray.train.report,
        )
    except InputError as error:
        refusal.write_text(str(error))
        raise
