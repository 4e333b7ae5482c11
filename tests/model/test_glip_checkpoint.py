"""convert-checkpoint: released files in all forms, both ways, with every entry accounted for."""

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from model import GlipConfig, GlipForObjectDetection, GlipProcessor
from model.checkpoint_names import released_entries
from model.configuration_glip import VARIANTS
from model.convert_checkpoint import (
    CheckpointError,
    VocabularyError,
    bundled_vocabulary,
    convert,
    derived_entry,
    find_variant,
    main,
    read_checkpoint,
    revert,
    to_released,
    to_state_dict,
)  # fmt: skip
from tests.model.glip_reference import TEXT_ENCODER, processor, released_keys, tiny_config
from tests.model.golden.seeded import seeded_array, seeded_image


@pytest.mark.parametrize("variant", ["glip-t", "glip-a", "glip-l"])
def test_names_and_shapes_are_the_released_ones(variant):
    entries, keys = released_entries(GlipConfig.variant(variant)), released_keys(variant)
    assert {n: e.shape for n, e in entries.items()} == {n: tuple(e["shape"]) for n, e in keys.items()}
    ours = [e.ours for e in entries.values() if e.ours is not None]
    assert len(set(ours)) == len(ours)


@pytest.fixture(scope="module")
def small():
    """A small network and its released entries: conversion does not depend on the size."""
    config = tiny_config(num_class_logits=3)
    torch.manual_seed(3)
    model = GlipForObjectDetection(config).eval()
    return config, model, to_released(model.state_dict(), config)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("wrapped", ["model", "state_dict", None])
def test_every_form_of_file(tmp_path, small, prefix, wrapped):
    config, model, entries = small
    content = {prefix + n: t for n, t in entries.items()}
    content[prefix + "language_backbone.body.model.embeddings.position_ids"] = torch.arange(512)[None]
    content[prefix + "language_backbone.body.model.pooler.dense.weight"] = torch.zeros(2, 2)
    torch.save({wrapped: content, "iteration": 7, "optimizer": {}} if wrapped else content, tmp_path / "x.pth")
    ignored = convert(tmp_path / "x.pth", config, tmp_path / "hf", TEXT_ENCODER)
    assert sorted(n.rsplit(".", 2)[-2] for n in ignored) == ["dense", "embeddings"]
    back = GlipForObjectDetection.from_pretrained(tmp_path / "hf")
    assert same(back.state_dict(), model.state_dict())
    assert GlipProcessor.from_pretrained(tmp_path / "hf").tokenize(["a dog"])["input_ids"].tolist() == [
        [101, 1037, 3899, 102]
    ]
    revert(tmp_path / "hf", tmp_path / "y.pth")
    assert same(read_checkpoint(tmp_path / "y.pth"), entries)


def test_bundled_vocabulary_makes_the_same_tokens(tmp_path, small):
    config, _, entries = small
    torch.save(entries, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", config, tmp_path / "hf", bundled_vocabulary())
    texts = [
        "Two men  playing the saxophone, outside",
        "café tables & chairs",
        "hair drier. teddy-bear 北京 naïve ½",
    ]
    made, known = GlipProcessor.from_pretrained(tmp_path / "hf").tokenize(texts), processor().tokenize(texts)
    assert all(torch.equal(made[k], known[k]) for k in ("input_ids", "attention_mask", "offset_mapping"))


def test_every_problem_is_named(small):
    config, _, entries = small
    broken = dict(entries)
    del broken["rpn.head.log_scale"]
    broken["rpn.head.surprise"] = torch.zeros(1)
    broken["rpn.head.bias_lang"] = torch.zeros(5)
    broken["rpn.anchor_generator.cell_anchors.0"] = torch.zeros(1, 4)
    with pytest.raises(CheckpointError) as error:
        to_state_dict(broken, config)
    for words in (
        "missing: rpn.head.log_scale",
        "extra: rpn.head.surprise",
        "bias_lang is (5,), not (32,)",
        "cell_anchors.0",
    ):
        assert words in str(error.value)


def test_files_that_are_not_checkpoints(tmp_path, small):
    config, _, _ = small
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"a": 1}, tmp_path / "number.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"model": {"a": print}}, tmp_path / "code.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "half.pth").write_bytes((tmp_path / "number.pth").read_bytes()[:300])
    for name in ("text", "number", "list", "code", "empty", "half"):
        with pytest.raises(CheckpointError) as error:
            convert(tmp_path / f"{name}.pth", config, tmp_path / "hf")
        assert "weights_only" not in str(error.value)  # torch advises to run the file's code
    with pytest.raises(CheckpointError, match="5 bytes that begin with b'hello'"):
        read_checkpoint(tmp_path / "text.pth")


def test_weights_that_are_not_finite_or_quantised_are_named(small):
    config, _, entries = small
    shape = entries["rpn.head.log_scale"].shape
    for wrong in (torch.full(shape, torch.nan), torch.ones(shape, dtype=torch.int8)):
        with pytest.raises(CheckpointError, match=r"not finite floats: rpn.head.log_scale"):
            to_state_dict({**entries, "rpn.head.log_scale": wrong}, config)


def test_a_vocabulary_that_is_not_the_checkpoints_is_named(tmp_path, small):
    """transformers makes a tokenizer of unknown words from an empty folder."""
    config, _, entries = small
    torch.save(entries, tmp_path / "x.pth")
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\ndog\n")
    (tmp_path / "folder").mkdir()
    for name in ("vocab.txt", "folder"):
        with pytest.raises(VocabularyError, match=rf"{name}: found [56] words; want the 30522"):
            convert(tmp_path / "x.pth", config, tmp_path / "hf", tmp_path / name)
    assert not (tmp_path / "hf").exists()


def test_folders_with_gaps_are_not_reverted(tmp_path, small):
    """transformers would fill them with random numbers."""
    _, model, _ = small
    model.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    whole = file.read_bytes()
    state = load_file(file)
    del state["head.log_scale"]
    save_file(state, file, metadata={"format": "pt"})
    result = CliRunner().invoke(main, [str(tmp_path / "hf"), "--reverse", "--out", str(tmp_path / "y.pth")])
    assert result.exit_code == 2 and "found no head.log_scale" in result.output
    file.write_bytes(whole[: len(whole) // 2])
    result = CliRunner().invoke(main, [str(tmp_path / "hf"), "--reverse", "--out", str(tmp_path / "y.pth")])
    assert result.exit_code == 2 and "SOURCE" in result.output
    assert not (tmp_path / "y.pth").exists()


def test_a_network_of_no_released_variant_is_converted_like_a_folder(tmp_path, teacher):
    file, out = str(tmp_path / "x.pth"), tmp_path / "hf"
    assert CliRunner().invoke(main, [str(teacher), "--reverse", "--out", file]).exit_code == 0
    result = CliRunner().invoke(main, [file, "--like", str(teacher), "--out", str(out)])
    assert result.exit_code == 0, result.output
    before, after = load_file(teacher / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (
        GlipProcessor.from_pretrained(out).image_processor.size
        == GlipProcessor.from_pretrained(teacher).image_processor.size
    )
    both = [file, "--like", str(teacher), "--variant", "glip-t", "--out", str(out)]
    result = CliRunner().invoke(main, both)
    assert result.exit_code == 2 and "want one of them" in result.output


def test_command_line_errors(tmp_path, small):
    _, _, entries = small
    torch.save(entries, tmp_path / "x.pth")
    result = CliRunner().invoke(main, [str(tmp_path / "x.pth"), "--out", str(tmp_path / "hf")])
    assert result.exit_code == 2 and "no released variant; of glip-" in result.output and "missing" in result.output
    result = CliRunner().invoke(main, [str(tmp_path / "x.pth"), "--variant", "glip-t", "--out", str(tmp_path / "hf")])
    assert result.exit_code == 2 and "missing" in result.output
    assert not (tmp_path / "hf").exists()
    result = CliRunner().invoke(main, [str(tmp_path / "x.pth"), "--reverse", "--out", str(tmp_path / "y.pth")])
    assert result.exit_code == 2 and "folder" in result.output
    result = CliRunner().invoke(main, [str(tmp_path), "--variant", "glip-t", "--out", str(tmp_path / "hf")])
    assert result.exit_code == 2 and "--reverse" in result.output
    result = CliRunner().invoke(main, [str(tmp_path), "--reverse", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "--out" in result.output
    result = CliRunner().invoke(main, [str(tmp_path), "--reverse", "--out", str(tmp_path / "y.pth")])
    assert result.exit_code == 1 and str(tmp_path) in result.output and "y.pth" not in result.output


def empty_release(variant, **changes):
    """Entries of a released variant without values, which cost nothing."""
    return {
        n: torch.zeros(1, dtype=torch.uint8).expand(e.shape)
        for n, e in released_entries(GlipConfig.variant(variant, **changes)).items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_files_variant_is_found_by_its_entries(variant):
    entries = empty_release(variant)
    assert find_variant(entries) == variant
    del entries["rpn.head.log_scale"]
    assert find_variant(entries | {"rpn.head.surprise": torch.zeros(1)}) == variant


@pytest.mark.parametrize("given, real", [("glip-t", "glip-a"), ("glip-a", "glip-t"), ("glip-t", "glip-l")])
def test_a_wrong_variant_is_told_the_right_one(given, real):
    entries = empty_release(real)
    del entries["rpn.head.log_scale"]  # a damaged file says which one it is, too
    with pytest.raises(CheckpointError, match=f"found a file of {real}; want --variant {real}"):
        to_state_dict(entries, GlipConfig.variant(given))


def test_a_file_of_mmdetection_is_named(tmp_path, small):
    content = {"bbox_head.head.bias": torch.zeros(1), "backbone.patch_embed.projection.weight": torch.zeros(1)}
    wrapped = {f"module.{n}": t for n, t in content.items()}
    files = {
        "a": content,
        "b": {"meta": {}, "state_dict": content},
        "c": {"state_dict": wrapped},
        "d": {"model": content},
    }
    for name, file in files.items():
        torch.save(file, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match="mmdetection"):
            convert(tmp_path / f"{name}.pth", small[0], tmp_path / "hf")


def test_a_tuned_prompt_is_kept_and_used(tmp_path, small):
    config, model, entries = small
    prompt = torch.randn(12, config.text_config.hidden_size)
    torch.save({**entries, "rpn.tunable_linear.weight": prompt}, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tiny_config(num_class_logits=3), tmp_path / "hf", TEXT_ENCODER)
    tuned = GlipForObjectDetection.from_pretrained(tmp_path / "hf").eval()
    assert torch.equal(tuned.tuned_prompt, prompt) and tuned.config.tuned_tokens == 12
    for caption in ("a dog", "a dog and a cat on a very long bench in front of a house"):  # shorter and longer
        inputs = processor()(images=seeded_image(96, 120, 1), text=caption)
        with torch.inference_mode():
            words = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
            count = min(12, words.shape[1])
            words[:, :count] += prompt[:count]
            want = model(**{**inputs, "text_features": words})
            assert torch.equal(tuned(**inputs).logits, want.logits)
    revert(tmp_path / "hf", tmp_path / "y.pth")
    assert torch.equal(read_checkpoint(tmp_path / "y.pth")["rpn.tunable_linear.weight"], prompt)


def test_a_folder_in_half_precision_is_reverted_in_float32(tmp_path, small):
    config, _, entries = small
    torch.save(entries, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", config, tmp_path / "hf")
    GlipForObjectDetection.from_pretrained(tmp_path / "hf").bfloat16().save_pretrained(tmp_path / "half")
    revert(tmp_path / "half", tmp_path / "y.pth")
    back = read_checkpoint(tmp_path / "y.pth")
    assert all(t.dtype in (torch.float32, torch.int64) for t in back.values())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["glip-t", "glip-a", "glip-l"])
def test_full_size_round_trip(tmp_path, variant):
    config = GlipConfig.variant(variant)
    entries = {}
    for name, entry in released_keys(variant).items():
        array = seeded_array(name, entry["shape"], 0)
        left = not hasattr(array, "dtype")
        entries[f"module.{name}"] = derived_entry(name, config) if left else torch.from_numpy(array)
    torch.save({"model": entries}, tmp_path / "x.pth")
    result = CliRunner().invoke(main, [str(tmp_path / "x.pth"), "--variant", variant, "--out", str(tmp_path / "hf")])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, [str(tmp_path / "hf"), "--reverse", "--out", str(tmp_path / "y.pth")])
    assert result.exit_code == 0, result.output
    back = torch.load(tmp_path / "y.pth", weights_only=True)["model"]
    assert back.keys() == entries.keys()
    assert all(torch.equal(back[n], entries[n]) and back[n].dtype == entries[n].dtype for n in entries)
