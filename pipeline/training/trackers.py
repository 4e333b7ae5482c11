"""Logs a training's metrics to TensorBoard and, on request, to wandb or trackio."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from pipeline.errors import InputError


def check_tracker(name: str | None) -> None:
    """Check that a tracker is installed.

    Raises:
        InputError: it is not; the message says what to install.
    """
    if name is not None and find_spec(name) is None:
        raise InputError(f"--log-with {name}: not installed; `pip install {name}` adds it")


class TrackerHub:
    """Logs a run's metrics and images in the main process; does nothing in the others."""

    def __init__(
        self, accelerator: Accelerator, out: Path, *, first: int, settings: Mapping[str, Any], tracker: str | None
    ) -> None:
        self._accelerator, self._tracker, self._writer = accelerator, tracker, None
        if tracker is not None:
            os.environ.setdefault("WANDB_MODE", "offline")
            os.environ.setdefault("WANDB_DIR", str(out))
            accelerator.init_trackers("glip-self-train", config=dict(settings))
        if accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=first or None)

    def scalars(self, values: Mapping[str, float], step: int, group: str = "train") -> None:
        """Log metrics by name, under ``group/``."""
        named = {f"{group}/{name}": value for name, value in values.items()}
        if self._tracker is not None:
            self._accelerator.log(named, step=step)
        if self._writer is not None:
            for name, value in named.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Log one image to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Flush and close all trackers.

        Not by accelerate's ``end_training``, which also destroys the process group that may still
        be needed.
        """
        if self._writer is not None:
            self._writer.close()
        if self._tracker is not None and self._accelerator.is_main_process:
            for tracker in self._accelerator.trackers:
                tracker.finish()
