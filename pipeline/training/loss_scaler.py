"""The fp16 loss scaler: its state as plain numbers, and a lower limit of its scale."""

from __future__ import annotations

import torch

MIN_SCALE = 1.0
"""Gradients that are not finite at this scale are not so because of the scaling."""


class LossScaler:
    """Wraps torch's GradScaler; without one (float32, bf16) every method does nothing.

    torch's scaler starts at 65536, and halves the scale and skips the step when gradients overflow.
    With gradients that are never finite it would skip every step to the end of the training.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None) -> None:
        self._scaler = scaler

    def state(self) -> dict[str, int | float]:
        """The state that :meth:`load` restores; integers stay integers."""
        return dict(self._scaler.state_dict()) if self._scaler is not None else {}

    def load(self, state: dict[str, int | float]) -> None:
        """Restore a saved state."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)

    @property
    def may_shrink(self) -> bool:
        """Whether overflowing gradients may be finite at a smaller scale."""
        return self._scaler is not None and self._scaler.get_scale() > MIN_SCALE

    def discard_step(self) -> None:
        """Reset the step's state and keep the scale: the step is skipped for another reason."""
        if self._scaler is not None:
            self._scaler.update(self._scaler.get_scale())
