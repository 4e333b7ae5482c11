"""The network as tools of transformers, accelerate and torch use it."""

import os
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Trainer, TrainingArguments, pipeline

from model import GlipConfig, GlipForObjectDetection, GlipImageProcessor, GlipProcessor
from model.layers import constants
from model.layers.fusion import GlipBiAttention
from tests.model.glip_reference import processor, tiny_model
from tests.model.golden.seeded import seeded_image

VARIANTS = {
    "default": {}, "no fusion": {"fusion": False}, "two stage": {"head": "two_stage"},
    "torchvision": {"deform_implementation": "torchvision"},
    "cross entropy": {"alignment_loss": "cross_entropy", "score_aggregation": "sum"},
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs():
    images = [seeded_image(96, 128, s) for s in (1, 2)]
    return processor()(images=images, text=["a dog. a red kite", "a cat"])


def folding(network):
    """At the tests' size folding would not pay: the path itself is what is tested."""
    for module in network.modules():
        if isinstance(module, GlipBiAttention):
            module._folding_pays = lambda v, l: True
    return network


def target(inputs, image=0):
    tokens = torch.eye(inputs["input_ids"].shape[1])[1:2]
    return {"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "positive_map": tokens}


@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
def test_every_output_has_the_batch_first(inputs, kwargs):
    network = tiny_model(**kwargs).eval()
    with torch.inference_mode():
        outputs = network(**inputs, output_hidden_states=True)
    for name, value in outputs.items():
        for tensor in value if isinstance(value, tuple) else [value]:
            assert isinstance(tensor, torch.Tensor) and len(tensor) == 2, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("glip")
    tiny_model(prior_probability=0.3).eval().save_pretrained(path)
    processor().save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_pipeline_takes_batches_and_half_precision(folder, dtype):
    detector = pipeline("zero-shot-object-detection", model=str(folder), dtype=dtype)
    assert detector.model.dtype == dtype
    data = [
        {"image": Image.fromarray(seeded_image(96, 128, s)), "candidate_labels": ["dog", "traffic light"]}
        for s in (1, 2)
    ]
    singly, together = detector(data, threshold=0.2), detector(data, threshold=0.2, batch_size=4)
    for a, b in zip(singly, together, strict=True):
        assert len(a) == len(b) > 0
        assert max(abs(x["score"] - y["score"]) for x, y in zip(a, b, strict=True)) < 1e-2
    assert singly[0] != singly[1]


def test_the_trainer_predicts_and_trains(tmp_path, inputs):
    images = [seeded_image(96, 128, s) for s in range(3)]

    def collate(places):
        batch = processor()(images=[images[i] for i in places], text=["a dog. a red kite"] * len(places))
        return {**batch, "labels": [target(batch)] * len(places)}

    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=2, per_device_train_batch_size=2, max_steps=1, report_to=[],
        use_cpu=True, remove_unused_columns=False, save_strategy="no",
    )  # fmt: skip
    network = tiny_model(prior_probability=0.3)
    trainer = Trainer(model=network, args=arguments, data_collator=collate, train_dataset=range(3))
    result = trainer.predict(range(3))
    with torch.inference_mode():
        alone = network.eval()(**{k: v for k, v in collate([2]).items() if k != "labels"})
    logits = next(p for p in result.predictions if getattr(p, "shape", ())[1:] == tuple(alone.logits.shape[1:]))
    assert torch.allclose(torch.from_numpy(logits[2]), alone.logits[0], atol=1e-4)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
def test_weights_in_half_precision_run(inputs, kwargs, dtype):
    network = tiny_model(prior_probability=0.3, **kwargs).eval()
    with torch.no_grad():
        want, found = network(**inputs), network.to(dtype)(**inputs)
    assert found.pred_boxes.dtype == torch.float32 and torch.isfinite(found.logits.float()).all()
    if "head" not in kwargs:  # near-equal proposals change places
        assert (found.logits.float().sigmoid() - want.logits.sigmoid()).abs().max() < 0.05
        assert (found.pred_boxes - want.pred_boxes).abs().mean() < 1
    trained = network.train()(**inputs, labels=[target(inputs)] * 2)
    trained.loss.backward()
    assert torch.isfinite(trained.loss)


def test_a_folder_in_half_precision_loads(tmp_path, folder, inputs):
    network = GlipForObjectDetection.from_pretrained(folder).eval()
    network.half().save_pretrained(tmp_path)
    again, wide = (GlipForObjectDetection.from_pretrained(tmp_path, **k).eval() for k in ({}, {"dtype": torch.float32}))
    assert again.dtype == torch.float16 and wide.dtype == torch.float32
    with torch.inference_mode():
        assert (again(**inputs).logits - wide(**inputs).logits).abs().max() < 0.05


def test_flags_of_the_call_and_of_the_configuration(inputs):
    network = tiny_model().eval()
    with torch.inference_mode():
        plain, asked = network(**inputs), network(**inputs, output_hidden_states=True)
        some = network(**inputs, output_hidden_states=[0, -1])
        as_tuple = network(**inputs, return_dict=False)
        network.config.output_hidden_states, network.config.return_dict = True, False
        configured = network(**inputs)
    assert plain.hidden_states is None and isinstance(as_tuple, tuple)
    assert isinstance(configured, tuple) and len(configured) == len(as_tuple) + 2
    assert len(asked.hidden_states) == len(asked.text_hidden_states) == network.config.num_blocks + 1
    assert asked.hidden_states[0].shape == (*plain.logits.shape[:2], network.config.hidden_size)
    assert asked.text_hidden_states[-1].shape[:2] == inputs["input_ids"].shape
    assert [x is None for x in some.hidden_states] == [False, True, False]


def test_attention_maps_and_misspelt_inputs_are_refused(inputs):
    network = tiny_model(attn_implementation="eager").eval()
    with pytest.raises(ValueError, match="output_attentions"):
        network(**inputs, output_attentions=True)
    with pytest.raises(TypeError, match="pixel_valeus"):
        network(**inputs, pixel_valeus=1)
    network.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions"):
        network(**inputs)


def test_a_pixel_mask_says_the_images_sizes(inputs):
    network = tiny_model().eval()
    mask = torch.zeros(2, 96, 128, dtype=torch.long)
    mask[0, :80, :100] = mask[1, :60, :] = 1
    given = {k: v for k, v in inputs.items() if k != "image_sizes"}
    with torch.inference_mode():
        assert network(**given, pixel_mask=mask).image_sizes.tolist() == [[80, 100], [60, 128]]
        assert network(**given).image_sizes.tolist() == [[96, 128]] * 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": 1}, ("labels", "1", "2 captions")),
        ({"image_sizes": torch.ones(1, 2)}, ("image_sizes", "1", "2 images")),
        ({"attention_mask": torch.ones(2, 5)}, ("attention_mask", "(2, 5)", "(2, 8)")),
        ({"pixel_values": torch.zeros(1, 3, 96, 128)}, ("2 captions", "1 images")),
        ({"image_index": torch.tensor([0])}, ("image_index", "(1,)", "(2,)")),
        ({"image_index": torch.tensor([0, 2])}, ("image_index", "[1]")),
        ({"pixel_values": torch.zeros(2, 1, 96, 128)}, ("pixel_values", "(2, 1, 96, 128)", "(B, 3, H, W)")),
        ({"pixel_values": torch.zeros(3, 96, 128)}, ("pixel_values", "(3, 96, 128)", "(B, 3, H, W)")),
        ({"pixel_values": torch.zeros(0, 3, 96, 128)}, ("pixel_values", "(0, 3, 96, 128)", "one image")),
        ({"input_ids": torch.ones(8).long()}, ("input_ids", "(8,)", "(B, T)")),
        ({"pixel_mask": torch.ones(2, 9, 9), "image_sizes": None}, ("pixel_mask", "(2, 9, 9)", "(2, 96, 128)")),
        ({"input_ids": None, "attention_mask": None}, ("input_ids", "text_features")),
        ({"image_sizes": torch.tensor([[96, 128], [128, 96]])}, ("image_sizes[1]", "[128, 96]", "(96, 128)")),
        ({"image_sizes": torch.full((2, 2), float("nan"))}, ("image_sizes[0]", "nan")),
        ({"image_sizes": torch.tensor([[96, 128], [0, 128]])}, ("image_sizes[1]", "[0, 128]")),
        ({"image_sizes": torch.ones(2, 3)}, ("image_sizes", "(2, 3)", "height, width")),
        ({"pixel_values": torch.ones(2, 3, 96, 128, dtype=torch.uint8)}, ("pixel_values", "uint8", "normalised")),
        ({"input_ids": torch.ones(2, 8)}, ("input_ids", "float32")),
        ({"offset_mapping": torch.zeros(2, 3, 2)}, ("offset_mapping", "(2, 3, 2)", "(2, 8, 2)")),
        ({"token_type_ids": torch.zeros(2, 3).long()}, ("token_type_ids", "(2, 3)", "(2, 8)")),
        ({"image_index": torch.tensor([0.0, 1.0])}, ("image_index", "float32", "whole")),
        ({"labels": {"boxes": 1}}, ("labels", "dict", "2 captions")),
        ({"labels": ["a", "b"]}, ("labels[0]", "str", "dict")),
        ({"text_features": torch.zeros(2, 5, 32)}, ("text_features", "(2, 5, 32)", "(2, 8, D)")),
        ({"input_ids": torch.ones(2, 300).long(), "attention_mask": torch.ones(2, 300).long()}, ("300", "256")),
    ],
)
def test_inputs_that_disagree_are_named(inputs, change, words):
    network = tiny_model().eval()
    if change.get("labels") == 1:
        change = {"labels": [target(inputs)]}
    with pytest.raises(ValueError) as error:
        network(**{**inputs, **change})
    assert all(word in str(error.value) for word in words)


def test_captions_without_an_image_are_named_in_training(inputs):
    with pytest.raises(ValueError, match=r"captions \[1\] have no image"):
        tiny_model().train()(**inputs, image_index=torch.tensor([0, -1]), labels=[target(inputs)] * 2)


@pytest.mark.parametrize("name", ["pixel_values", "input_ids", "attention_mask"])
def test_inputs_that_are_no_tensors_are_named(inputs, name):
    with pytest.raises(TypeError, match=f"{name}: found ndarray; want a tensor"):
        tiny_model()(**{**inputs, name: inputs[name].numpy()})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"boxes": torch.tensor([[float("nan"), 1, 2, 3]])}, ("labels[1]", "boxes[0]", "not finite")),
        ({"boxes": torch.tensor([[60.0, 10, 20, 60]])}, ("labels[1]", "[60.0, 10.0, 20.0, 60.0]", "reversed")),
        ({"boxes": torch.tensor([[0.2, 0.2, 0.6, 0.9]])}, ("labels[1]", "normalised", "128 x 96")),
        ({"boxes": torch.tensor([[200.0, 10, 220, 60]])}, ("labels[1]", "outside", "128 x 96")),
        ({"positive_map": None, "class_labels": torch.tensor([3])}, ("labels[1]", "class_labels", "positive_map")),
        ({"boxes": None}, ("labels[1]", "boxes")),
        ({"wieghts": torch.ones(1)}, ("labels[1]", "wieghts", "weights")),
        ({"positive_map": torch.zeros(2, 8)}, ("labels[1]", "positive_map", "1 boxes")),
        ({"boxes": torch.tensor([[10.0, 10], [60, 60]])}, ("labels[1]", "boxes", "(2, 2)", "(n, 4)")),
        ({"boxes": torch.tensor([10.0, 10, 60, 60])}, ("labels[1]", "boxes", "(4,)", "(n, 4)")),
        ({"boxes": "10 10 60 60"}, ("labels[1]", "boxes", "str")),
        ({"boxes": torch.tensor([[10.0, 10, 256, 192]])}, ("labels[1]", "mostly outside", "128 x 96")),
        ({"positive_map": torch.full((1, 8), float("nan"))}, ("labels[1]", "positive_map[0]", "nan")),
        ({"positive_map": -torch.eye(8)[1:2]}, ("labels[1]", "positive_map[0]", "-1.0")),
        ({"positive_map": torch.tensor([[1, 2]])}, ("labels[1]", "positive_map[0]", "2.0", "0 to 1")),
        ({"positive_map": torch.eye(8)[6:7]}, ("labels[1]", "positive_map[0]", "padding", "own caption")),
        ({"positive_map": torch.eye(20)[19:]}, ("labels[1]", "positive_map[0]", "padding")),
        ({"weights": torch.tensor([-1.0])}, ("labels[1]", "weights[0]", "-1.0", "negative")),
        ({"weights": torch.ones(2)}, ("labels[1]", "weights", "(2,)", "(1,)")),
        ({"token_ignore": torch.tensor([3, 4])}, ("labels[1]", "token_ignore", "int64", "bool")),
        ({"token_ignore": torch.zeros(1, 8).bool()}, ("labels[1]", "token_ignore", "(1, 8)", "(T,)")),
        ({"regress": torch.tensor([float("nan")])}, ("labels[1]", "regress", "float32", "bool")),
        ({"ignore_boxes": torch.tensor([[float("nan"), 1, 2, 3]])}, ("labels[1]", "ignore_boxes[0]", "not finite")),
        ({"ignore_boxes": torch.tensor([[60.0, 60, 10, 10]])}, ("labels[1]", "ignore_boxes[0]", "reversed")),
        ({"ignore_boxes": torch.tensor([[0.1, 0.1, 0.4, 0.4]])}, ("labels[1]", "ignore_boxes[0]", "normalised")),
    ],
)
def test_labels_that_cannot_be_meant_are_named(inputs, change, words):
    label = {k: v for k, v in {**target(inputs), **change}.items() if v is not None}
    with pytest.raises(ValueError) as error:
        tiny_model()(**inputs, labels=[target(inputs), label])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "box",
    [[127.4, 10, 127.7, 60], [0, 95.2, 100, 95.6], [126.9, 94.9, 127.3, 95.3], [120, 10, 134, 60], [0, 0, 0.6, 1.2]],
)
def test_boxes_at_the_edge_of_a_resized_image_are_learnt(inputs, box):
    label = {**target(inputs), "boxes": torch.tensor([[float(v) for v in box]])}
    assert tiny_model()(**inputs, labels=[target(inputs), label]).loss.isfinite()


def test_labels_of_other_detectors_may_say_more(inputs):
    more = {"image_id": torch.tensor([1]), "area": torch.ones(1), "iscrowd": torch.zeros(1), "orig_size": torch.ones(2)}
    network = tiny_model().eval()
    a, b = (network(**inputs, labels=[{**target(inputs), **m}] * 2).loss for m in ({}, more))
    assert torch.equal(a, b)


def test_an_image_without_boxes_may_say_so_in_every_form(inputs):
    """And a map beyond the text's cut names nothing: a caption that fills the text may have been cut."""
    network, losses = tiny_model().eval(), set()
    for boxes, tokens in (([], []), (torch.zeros(0, 4), torch.zeros(0, 8)), (torch.zeros(0, 4), torch.zeros(0))):
        label = {"boxes": boxes, "positive_map": tokens, "ignore_boxes": []}
        losses.add(network(**inputs, labels=[target(inputs), label]).loss.item())
    assert len(losses) == 1
    cut = {**target(inputs), "positive_map": torch.eye(20)[19:]}
    assert torch.isfinite(network(**inputs, labels=[cut, target(inputs, 1)]).loss)


@pytest.mark.slow
@pytest.mark.parametrize("grad", [True, False])
def test_export_leaves_the_cache_alone(inputs, monkeypatch, grad):
    monkeypatch.setattr(constants, "_CACHE", {})
    network = tiny_model().eval()
    with torch.set_grad_enabled(grad):
        program = torch.export.export(network, (), dict(inputs))
    assert not constants._CACHE
    with torch.no_grad():
        want = network(**inputs)
        assert (program.module()(**inputs).logits - want.logits).abs().max() < 1e-4


@pytest.mark.slow
def test_an_exported_network_takes_other_batch_sizes(inputs):
    network, batch = tiny_model().eval(), torch.export.Dim("batch", min=2, max=8)
    more = {k: torch.cat([v, v[:1]]) for k, v in inputs.items()}
    with torch.no_grad():
        program = torch.export.export(network, (), dict(inputs), dynamic_shapes={k: {0: batch} for k in inputs})
        assert (program.module()(**more).logits - network(**more).logits).abs().max() < 1e-4


def test_fake_tensors_leave_the_cache_alone(inputs, monkeypatch):
    monkeypatch.setattr(constants, "_CACHE", {})
    network = tiny_model().eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network(**inputs)
    assert not constants._CACHE
    with torch.inference_mode():
        assert torch.isfinite(network(**inputs).logits).all()


class Adapter(nn.Module):
    """A low-rank addition to a linear layer, as adapters make it."""

    def __init__(self, base, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features) * 0.3)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) * 0.3)

    def forward(self, x):
        return self.base(x) + x @ self.down.t() @ self.up.t()

    def merged(self):
        layer = deepcopy(self.base)
        layer.weight.data += self.up.data @ self.down.data
        return layer


PROJECTIONS = ("v_proj", "values_v_proj", "out_v_proj", "l_proj", "values_l_proj", "out_l_proj")


@pytest.mark.parametrize("name", PROJECTIONS)
def test_adapters_on_the_fusion_have_effect_and_learn(inputs, name):
    plain = folding(tiny_model().eval())
    adapted, merged = deepcopy(plain), deepcopy(plain)
    for i, (a, m) in enumerate(zip(adapted.head.blocks, merged.head.blocks, strict=True)):
        adapter = Adapter(getattr(a.fusion.attn, name), i)
        setattr(a.fusion.attn, name, adapter)
        setattr(m.fusion.attn, name, adapter.merged())
    with torch.inference_mode():
        base, found, want = (network(**inputs).logits for network in (plain, adapted, merged))
    assert (found - base).abs().max() > 1e-4 and (found - want).abs().max() < 1e-4
    adapted.train()(**inputs, labels=[target(inputs)] * 2).loss.backward()
    for block in adapted.head.blocks[:1]:
        adapter = getattr(block.fusion.attn, name)
        assert adapter.up.grad.abs().sum() > 0 and adapter.down.grad.abs().sum() > 0


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_on_the_fusion_are_called(inputs, name, register):
    network, calls = folding(tiny_model()), []
    layers = [getattr(block.fusion.attn, name) for block in network.head.blocks]
    for layer in layers:
        getattr(layer, register)(lambda module, *_: calls.append(module))
    network(**inputs, labels=[target(inputs)] * 2).loss.backward()
    assert set(calls) == set(layers)


def test_replaced_weights_of_the_fusion_have_effect(inputs):
    """As parametrisations (weight norm, quantisation) replace them."""
    plain = folding(tiny_model().eval())
    scaled = deepcopy(plain)

    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    for block in scaled.head.blocks:
        nn.utils.parametrize.register_parametrization(block.fusion.attn.values_v_proj, "weight", Half())
    with torch.inference_mode():
        base, found = plain(**inputs).logits, scaled(**inputs).logits
    assert (found - base).abs().max() > 1e-6


@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
def test_offloaded_weights_are_loaded_where_they_are_used(inputs, tmp_path, kwargs):
    from accelerate import disk_offload

    network = folding(tiny_model(prior_probability=0.3, **kwargs).eval())
    with torch.no_grad():
        want = network(**inputs)
        disk_offload(network, tmp_path, execution_device=torch.device("cpu"))
        found = network(**inputs)
    assert (found.logits - want.logits).abs().max() < 1e-4


@pytest.mark.slow
def test_a_registered_class_saves_the_code_it_needs(tmp_path, inputs, monkeypatch):
    kinds = (GlipConfig, GlipForObjectDetection, GlipImageProcessor, GlipProcessor)
    for kind in kinds:
        monkeypatch.setattr(kind, "_auto_class", None)
    monkeypatch.setattr(GlipForObjectDetection, "_saved_for", None)
    GlipConfig.register_for_auto_class()
    GlipForObjectDetection.register_for_auto_class("AutoModelForZeroShotObjectDetection")
    GlipImageProcessor.register_for_auto_class()
    GlipProcessor.register_for_auto_class()
    tiny_model().eval().save_pretrained(tmp_path / "out")
    processor().save_pretrained(tmp_path / "out")
    code = (
        "from transformers import AutoModelForZeroShotObjectDetection as M, AutoProcessor as P; import numpy as n\n"
        f"m, p = (c.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True) for c in (M, P))\n"
        "o = m.eval()(**p(images=n.zeros((96, 96, 3), n.uint8), text='a dog'))\n"
        f"m.save_pretrained({str(tmp_path / 'again')!r})\n"
        "print(type(m).__module__.split('.')[0], type(p).__module__.split('.')[0], tuple(o.logits.shape[:1]))"
    )
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_MODULES_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert result.stdout.strip() == "transformers_modules transformers_modules (1,)", result.stderr[-2000:]
    assert {p.name for p in (tmp_path / "again").glob("*.py")} >= {"modeling_glip.py", "layers_swin.py", "losses.py"}
