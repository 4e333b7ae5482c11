"""The BERT layer inside every fused block: post-norm, with the clamps of the original (GLIP spec section 6.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig

LIMIT = 50000.0


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        b, t, c = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(b, t, self.heads, c // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = (q @ k.transpose(-1, -2)) * (c // self.heads) ** -0.5
        attention = (scores.clamp(-LIMIT, LIMIT) + bias).softmax(-1)
        attention = F.dropout(attention, self.dropout, self.training)
        return (attention @ v).transpose(1, 2).reshape(b, t, c)


class _DenseNorm(nn.Module):
    def __init__(self, width_in: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(width_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, x: Tensor, residual: Tensor, clamp: bool) -> Tensor:
        x = self.dense(x)
        if clamp:
            x = x.clamp(-LIMIT, LIMIT)
        x = self.LayerNorm(F.dropout(x, self.dropout, self.training) + residual)
        return x.clamp(-LIMIT, LIMIT) if clamp else x


class _Attention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _DenseNorm(config.hidden_size, config)


class _Intermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)


class GlipTextLayer(nn.Module):
    """One BERT layer; parameter names as in BERT, so that checkpoints map one to one."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _DenseNorm(config.intermediate_size, config)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: (B, T, D); bias: (B, 1, 1, T), 0 for kept tokens and a large negative number for padding."""
        hidden = self.attention.output(self.attention.self(hidden, bias), hidden, clamp=False)
        x = self.intermediate.dense(hidden).clamp(-LIMIT, LIMIT)
        x = F.gelu(x).clamp(-LIMIT, LIMIT)
        return self.output(x, hidden, clamp=True)


def attention_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T) 0/1 mask -> additive (B, 1, 1, T) bias."""
    bias = torch.zeros_like(attention_mask, dtype=dtype).masked_fill(attention_mask == 0, torch.finfo(dtype).min)
    return bias[:, None, None]
