"""Parameter groups, AdamW and learning rate schedule of the released recipe (GLIP spec 11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.config import TrainConfig


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters by rate and decay; text encoder and "bias" have their own.

    The original matches "bias" as a substring, so that ``relative_position_bias_table``,
    ``bias_lang`` and ``bias0`` count as biases. The schedules multiply each group's ``base_lr`` and
    ``base_decay``.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = config.text_learning_rate if name.startswith("text_encoder.") else config.learning_rate
        decay = config.weight_decay
        if "bias" in name:
            rate, decay = rate * config.bias_rate_factor, 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay, "base_decay": decay}
        for (rate, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with torch's betas and epsilon over :func:`parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, config), lr=config.learning_rate, fused=True)


def rate_factor(step: int, config: TrainConfig) -> float:
    """Factor of the rates at ``step`` (from 0): linear warm-up from 0.001, then the schedule."""
    if step < config.warmup_steps:
        return 0.001 + (1 - 0.001) * step / config.warmup_steps
    if config.schedule == "step":
        return _tenths(step, config.steps, config.milestones)
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return 1.0


def _tenths(step: int, steps: int, milestones: Sequence[float]) -> float:
    return 0.1 ** sum(step >= round(share * steps) for share in milestones)


def set_rates(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> None:
    """Set every group's rate and decay for ``step``, without state of a scheduler."""
    factor = rate_factor(step, config)
    decay = _tenths(step, config.steps, config.weight_decay_milestones)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        group["weight_decay"] = group["base_decay"] * decay
