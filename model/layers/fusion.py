"""Deep fusion: image locations and text tokens attend to each other (GLIP spec section 6.1).

`eager` is the published arithmetic: each of the N locations is projected to `embed_dim` three
times. `folded` gives the same numbers with the projections applied on the short text side, v Wq^T k
= v (Wq^T k), and likewise for values and output: locations are only multiplied by 8 T columns of
width C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.modeling_layers import GradientCheckpointingLayer

from .initialisation import XAVIER, initialised

LIMIT = 50000.0
MASKED = -9e15


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer computes x W^T + b and nothing else, so that its weights may be used without it.

    Adapters and quantisation replace the layer or its weight's class; hooks and offload add to its call.
    """
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and not (layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks)
        and not is_traceable_wrapper_subclass(layer.weight)
    )


class GlipBiAttention(nn.Module):
    """Attention in both directions over one table of scores."""

    def __init__(self, v_dim: int, l_dim: int, embed_dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, embed_dim // heads, dropout
        self.scale = self.head_dim**-0.5
        self.v_proj = nn.Linear(v_dim, embed_dim)
        self.l_proj = nn.Linear(l_dim, embed_dim)
        self.values_v_proj = nn.Linear(v_dim, embed_dim)
        self.values_l_proj = nn.Linear(l_dim, embed_dim)
        self.out_v_proj = nn.Linear(embed_dim, v_dim)
        self.out_l_proj = nn.Linear(embed_dim, l_dim)
        initialised(self, XAVIER)

    def forward(self, v: Tensor, l: Tensor, attention_mask: Tensor, eager: bool) -> tuple[Tensor, Tensor]:
        """Compute updates of v (B, N, C) and l (B, T, D); attention_mask (B, T) 0/1."""
        # kept tokens get +1 as in the original: softmax ignores it, its rounding remains
        text_bias = torch.where(attention_mask == 0, MASKED, attention_mask.float()).to(torch.float32)
        folded = (self.v_proj, self.values_v_proj, self.out_v_proj)  # whose weights `_folded` uses without the call
        if eager or not self._folding_pays(v, l) or not all(map(is_plain, folded)):
            return self._literal(v, l, text_bias)
        return self._folded(v, l, text_bias)

    def _folding_pays(self, v: Tensor, l: Tensor) -> bool:
        """Tell whether `_folded` needs fewer multiplications than `_literal`."""
        n, t, c, e, h = v.shape[1], l.shape[1], v.shape[2], self.heads * self.head_dim, self.heads
        return 4 * n * t * h * c + 3 * t * c * e < 3 * n * c * e + 4 * n * t * e

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim).transpose(1, 2)

    def _literal(self, v: Tensor, l: Tensor, text_bias: Tensor) -> tuple[Tensor, Tensor]:
        b, n, _ = v.shape
        t = l.shape[1]
        q, k = self._split(self.v_proj(v) * self.scale), self._split(self.l_proj(l))
        values_v, values_l = self._split(self.values_v_proj(v)), self._split(self.values_l_proj(l))
        scores = (q @ k.transpose(-1, -2)).clamp(-LIMIT, LIMIT)  # (B, heads, N, T)
        by_token = scores.transpose(-1, -2)
        by_token = (by_token - by_token.max(-1, keepdim=True).values).clamp(-LIMIT, LIMIT)
        attend_image = by_token.float().softmax(-1).to(v.dtype)
        attend_text = (scores.float() + text_bias[:, None, None]).softmax(-1).to(v.dtype)
        attend_image = F.dropout(attend_image, self.dropout, self.training)
        attend_text = F.dropout(attend_text, self.dropout, self.training)
        dv = self.out_v_proj((attend_text @ values_l).transpose(1, 2).reshape(b, n, -1))
        dl = self.out_l_proj((attend_image @ values_v).transpose(1, 2).reshape(b, t, -1))
        return dv, dl

    def _folded(self, v: Tensor, l: Tensor, text_bias: Tensor) -> tuple[Tensor, Tensor]:
        b, n, c = v.shape
        t, h, d = l.shape[1], self.heads, self.head_dim
        k = self._split(self.l_proj(l)) * self.scale  # (B, heads, T, d)
        keys = (k @ self.v_proj.weight.view(h, d, c)).reshape(b, h * t, c)
        key_bias = (k @ self.v_proj.bias.view(h, d, 1)).view(b, 1, h * t)
        scores = torch.baddbmm(key_bias, v, keys.transpose(1, 2)).clamp(-LIMIT, LIMIT)  # (B, N, heads*T)

        attend_text = (scores.view(b, n, h, t).float() + text_bias[:, None, None]).softmax(-1).to(v.dtype)
        attend_text = F.dropout(attend_text, self.dropout, self.training).view(b, n, h * t)
        out_v = self.out_v_proj.weight.view(c, h, d).permute(1, 2, 0)  # (heads, d, C)
        values = (self._split(self.values_l_proj(l)) @ out_v).reshape(b, h * t, c)
        dv = torch.baddbmm(self.out_v_proj.bias, attend_text, values)

        attend_image = scores.float().softmax(1).to(v.dtype)
        attend_image = F.dropout(attend_image, self.dropout, self.training)
        summed = (attend_image.transpose(1, 2) @ v).view(b, h, t, c)
        values_v = summed @ self.values_v_proj.weight.view(h, d, c).transpose(1, 2)
        # a row's weights sum to one only without dropout
        dropped = self.training and self.dropout > 0
        mass = attend_image.sum(1).view(b, h, t, 1) if dropped else 1.0
        values_v = values_v + mass * self.values_v_proj.bias.view(h, 1, d)
        dl = self.out_l_proj(values_v.transpose(1, 2).reshape(b, t, h * d))
        return dv, dl


class GlipFusion(GradientCheckpointingLayer):
    """Norms, attention and scaled residuals of the *normalised* input (GLIP spec 0.2)."""

    def __init__(self, v_dim: int, l_dim: int, embed_dim: int, heads: int, dropout: float, init_scale: float):
        super().__init__()
        self.init_scale = init_scale
        self.layer_norm_v = nn.LayerNorm(v_dim)
        self.layer_norm_l = nn.LayerNorm(l_dim)
        self.attn = GlipBiAttention(v_dim, l_dim, embed_dim, heads, dropout)
        self.gamma_v = nn.Parameter(torch.full((v_dim,), init_scale))
        self.gamma_l = nn.Parameter(torch.full((l_dim,), init_scale))

    def forward(self, v: Tensor, l: Tensor, attention_mask: Tensor, eager: bool = False) -> tuple[Tensor, Tensor]:
        """Fuse v (B, N, C), all levels, and l (B, T, D), same shapes; attention_mask (B, T) 0/1."""
        v, l = self.layer_norm_v(v), self.layer_norm_l(l)
        dv, dl = self.attn(v, l, attention_mask, eager)
        return v + self.gamma_v * dv, l + self.gamma_l * dl
