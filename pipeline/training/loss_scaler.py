"""fp16's loss scaler: its state as plain numbers, and when an overflow is no longer its business."""

from __future__ import annotations

import torch

SMALLEST = 1.0
"""A scale at which a gradient that is still not finite is not a matter of scaling."""


class LossScaler:
    """The scaler of a training's losses; without one (float32, bf16) nothing here does anything.

    torch's scaler starts at 65536, halves after a step whose gradients overflow and leaves that step out. With gradients that are never finite it
    would go on so until the end, and train nothing.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None) -> None:
        self._scaler = scaler

    def state(self) -> dict[str, int | float]:
        """What :meth:`load` takes, whole numbers whole."""
        return dict(self._scaler.state_dict()) if self._scaler is not None else {}

    def load(self, state: dict[str, int | float]) -> None:
        """Go on from a saved state."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)

    @property
    def may_shrink(self) -> bool:
        """Whether gradients that overflow may be finite at a smaller scale."""
        return self._scaler is not None and self._scaler.get_scale() > SMALLEST

    def forget(self) -> None:
        """Drop what this step's gradients told, and keep the scale: the step is left out for another reason."""
        if self._scaler is not None:
            self._scaler.update(self._scaler.get_scale())
