"""The released recipes: they load, hold the released settings, and ask for the paths that they leave open."""

import pytest

from model import GlipBackboneConfig, GlipConfig
from pipeline.config import TrainConfig
from pipeline.config.recipes import load_recipe, recipe_names
from pipeline.errors import InputError
from pipeline.training.model_factory import build_model
from pipeline.training.optim import make_optimizer, set_rates
from tests.pipeline.training.test_optim import Net


@pytest.mark.parametrize(("recipe", "variant"), [("glip_t", "glip-t"), ("glip_l", "glip-l")])
def test_a_recipe_is_its_released_network_and_asks_for_its_paths(recipe, variant):
    assert recipe in recipe_names()
    settings = dict(load_recipe(recipe).model.settings)
    backbone = GlipBackboneConfig(**settings.pop("backbone_config", {}))
    made = GlipConfig(backbone_config=backbone, **settings).to_dict()
    released = GlipConfig.variant(variant).to_dict()
    assert made == released
    with pytest.raises(InputError, match=r"BERT_BASE_UNCASED_FOLDER is not a model folder.*--set"):
        build_model(load_recipe(recipe).model, None)
    with pytest.raises(InputError, match=r"model.backbone: SWIN_.*_FILE is not a file.*--set"):
        build_model(load_recipe(recipe, ["model.text_encoder=minilm"]).model, None)


@pytest.mark.parametrize("recipe", ["glip_t", "glip_l"])
def test_a_recipes_training_is_the_released_one(recipe):
    loaded, defaults = load_recipe(recipe), TrainConfig()
    for config in (loaded.teacher, loaded.student):
        same = ("batch_size", "learning_rate", "text_learning_rate", "bias_rate_factor", "schedule")
        same += ("milestones", "clip_grad_norm", "image_sizes", "max_image_size", "flip", "prompt")
        assert all(getattr(config, n) == getattr(defaults, n) for n in same)
        assert config.warmup_steps == 2000 and config.gradient_checkpointing and config.mixture_unit == "copies"
    assert set(loaded.teacher.mixture) == set(loaded.data.sources)
    assert set(loaded.student.mixture) == {*loaded.data.sources, "pseudo"}
    t = recipe == "glip_t"
    assert loaded.teacher.freeze_backbone_stages == (0 if t else 2)
    assert (loaded.teacher.ema, loaded.teacher.precision) == ((0.999, "fp16") if t else (None, "float32"))
    assert loaded.teacher.weight_decay == (1e-4 if t else 1e-2)


def test_the_large_ones_decay_falls_before_its_rate():
    config = load_recipe("glip_l").teacher
    optimizer = make_optimizer(Net(), config)
    for step, factor in ((0, 1.0), (446_999, 1.0), (447_000, 0.1), (593_999, 0.1), (594_000, 0.01)):
        set_rates(optimizer, step, config)
        decays = sorted({g["weight_decay"] for g in optimizer.param_groups})
        assert decays == [0.0, pytest.approx(0.01 * factor)]


@pytest.mark.slow
def test_one_gpus_micro_batch_fits_into_24_gb():
    """By the estimate for CPUs, whose deformable convolutions need more than those of GPUs."""
    from pipeline.annotators.memory import GIB, estimate

    recipe = load_recipe("one_gpu")
    assert GlipConfig(**recipe.model.settings).to_dict() == GlipConfig.variant("glip-t").to_dict()
    for config in (recipe.teacher, recipe.student):
        assert config.batch_size % config.accumulate == 0 and config.warmup_steps < config.steps
        need = estimate(
            GlipConfig.variant("glip-t"), (max(config.image_sizes), config.max_image_size + 11), training=True,
            precision=config.precision, checkpointing=config.gradient_checkpointing,
        )  # fmt: skip
        assert need.of(config.batch_size // config.accumulate) < 22 * GIB
