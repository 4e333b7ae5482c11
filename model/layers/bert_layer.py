"""BERT layer of the fused blocks: post-norm, with the original's clamps (GLIP spec section 6.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertAttention, BertIntermediate, BertOutput

LIMIT = 50000.0


def _clamp(x: Tensor) -> Tensor:
    return x.clamp(-LIMIT, LIMIT)


class GlipTextLayer(nn.Module):
    """One BERT layer of transformers' parts, so that parameters have BERT's names."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Transform hidden (B, T, D), same shape; bias (B, 1, 1, T): see `attention_bias`."""
        own = self.attention.self
        q, k, v = (
            layer(hidden).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
            for layer in (own.query, own.key, own.value)
        )
        scores = _clamp((q @ k.transpose(-1, -2)) * own.attention_head_size**-0.5)
        context = own.dropout((scores + bias).softmax(-1)) @ v
        hidden = self.attention.output(context.transpose(1, 2).flatten(2), hidden)
        x = _clamp(F.gelu(_clamp(self.intermediate.dense(hidden))))
        x = self.output.dropout(_clamp(self.output.dense(x)))
        return _clamp(self.output.LayerNorm(x + hidden))


def attention_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a 0/1 mask (B, T) to an additive bias (B, 1, 1, T): 0 or the dtype's minimum."""
    bias = torch.zeros_like(attention_mask, dtype=dtype).masked_fill(attention_mask == 0, torch.finfo(dtype).min)
    return bias[:, None, None]
