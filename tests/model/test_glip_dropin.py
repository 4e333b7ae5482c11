"""The processor where GroundingDINO's or OWLv2's stands: its arguments, and what must agree."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model import GlipImageProcessor
from pipeline.data.images import open_image
from tests.model.glip_reference import processor, tiny_model
from tests.model.golden.seeded import seeded_image

CAPTION = "a dog. a red kite"


@pytest.fixture(scope="module")
def made():
    return processor()


@pytest.fixture(scope="module")
def network():
    return tiny_model(prior_probability=0.3).eval()


@pytest.fixture(scope="module")
def inputs(made):
    return made(images=[seeded_image(96, 128, s) for s in (1, 2)], text=[CAPTION, "a cat"])


@pytest.fixture(scope="module")
def outputs(network, inputs):
    with torch.inference_mode():
        return network(**inputs)


def assert_same(found, want):
    for a, b in zip(found, want, strict=True):
        assert a.keys() == b.keys() and len(a["scores"]) > 0
        assert a["text_labels"] == b["text_labels"] and a["missing_phrases"] == b["missing_phrases"]
        assert all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))


def test_phrases_are_derived_from_the_prompt(made, inputs, outputs):
    found = made.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.2, text_threshold=0.0, target_sizes=[(48, 64), (96, 128)]
    )
    assert set(found[0]["text_labels"]) == {"a dog", "a red kite"} and set(found[1]["text_labels"]) == {"a cat"}
    assert [["a dog", "a red kite"][k] for k in found[0]["labels"]] == found[0]["text_labels"]
    spans = [[[(0, 5)], [(7, 17)]], [[(0, 5)]]]
    want = made.post_process_grounded_object_detection(
        outputs, phrases=spans, threshold=0.2, target_sizes=[(48, 64), (96, 128)]
    )
    assert_same(found, want)
    assert found[0]["boxes"].max() <= 64


def test_text_labels_are_the_class_names(made, outputs):
    names = [["a dog", "a red kite"], ["a cat"]]
    found = made.post_process_grounded_object_detection(outputs=outputs, threshold=0.2, text_labels=names)
    assert_same(found, made.post_process_grounded_object_detection(outputs, phrases=names, threshold=0.2))
    assert_same(found, made.post_process_grounded_object_detection(outputs, threshold=0.2))


def test_the_text_threshold_is_the_least_of_a_phrases_likeliest_word(made, outputs):
    all_boxes = made.post_process_grounded_object_detection(outputs, threshold=0.2)[0]
    middle = all_boxes["token_max"].median().item()
    found = made.post_process_grounded_object_detection(outputs, threshold=0.2, text_threshold=middle)[0]
    assert 0 < len(found["scores"]) < len(all_boxes["scores"]) and (found["token_max"] > middle).all()
    assert len(found["text_labels"]) == len(found["scores"])


def test_names_for_one_image_are_one_prompt(made, network):
    image = seeded_image(96, 128, 1)
    inputs = made(images=image, text=["a cat", "a remote"])
    assert made.batch_decode(inputs["input_ids"]) == ["[CLS] a cat. a remote [SEP]"]
    assert torch.equal(inputs["input_ids"], made(images=[image], text=[["a cat", "a remote"]])["input_ids"])
    with torch.inference_mode():
        outputs = network(**inputs)
    found = made.post_process_grounded_object_detection(outputs, threshold=0.2, text_labels=["a cat", "a remote"])
    assert set(found[0]["text_labels"]) == {"a cat", "a remote"}
    # as GroundingDINO writes it, with a last full stop and in capitals
    with torch.inference_mode():
        closed = network(**made(images=image, text="A cat. A remote."))
    for names in (["a cat", "a remote"], None):
        again = made.post_process_grounded_object_detection(closed, threshold=0.2, text_labels=names and [names])
        assert set(again[0]["text_labels"]) == {"a cat", "a remote"}


@pytest.mark.parametrize(
    "given, words",
    [
        ({"phrases": [["dog"], ["a cat"]]}, ("image 0", "dog", "a dog. a red kite")),
        ({"text_labels": [["a dog", "a kite"], ["a cat"]]}, ("a dog. a kite", "a dog. a red kite")),
        ({"text_labels": [["a dog", "a red kite", "a bird"], ["a cat"]]}, ("a bird", "a dog. a red kite")),
        ({"text_labels": [["a dog"], ["a cat"]]}, ("'a dog'", "a dog. a red kite")),
        ({"text_labels": [["a dog", "a red kite"]]}, ("text_labels", "1", "2 images")),
        ({"phrases": [[[(0, 5)]]]}, ("phrases", "1", "2 images")),
        ({"target_sizes": [(10, 10)]}, ("target_sizes", "1", "2 images")),
        ({"target_sizes": torch.ones(3, 2)}, ("target_sizes", "3", "2 images")),
        ({"text": ["a dog. a blue kite", "a cat"]}, ("text of image 0", "a dog. a blue kite", "a dog. a red kite")),
        ({"phrases": [[[(0, 30)]], []], "text": [CAPTION, "a cat"]}, ("image 0", "(0, 30)", CAPTION)),
        ({"offset_mapping": torch.zeros(2, 5, 2)}, ("offset_mapping", "(2, 5, 2)", "8 tokens")),
        ({"input_ids": torch.ones(2, 5)}, ("input_ids", "(2, 5)", "(2, 8)")),
        ({"phrases": [[], []], "text_labels": [[], []]}, ("phrases", "text_labels")),
        ({"input_ids": 0.3}, ("input_ids", "0.3", "(2, 8)")),
        ({"input_ids": {"input_ids": 1}}, ("input_ids", "dict", "(2, 8)")),
        ({"threshold": [0.2, 0.3]}, ("threshold", "[0.2, 0.3]", "one number")),
        ({"threshold": None}, ("threshold", "None")),
        ({"threshold": float("nan")}, ("threshold", "nan")),
        ({"text_threshold": 30}, ("text_threshold", "30", "0 to 1")),
        ({"target_sizes": [480, 640]}, ("target_sizes", "[480, 640]", "(height, width)")),
        ({"target_sizes": torch.tensor([480, 640])}, ("target_sizes", "(height, width)")),
        ({"target_sizes": [(480, 640, 3)] * 2}, ("target_sizes", "(480.0, 640.0, 3.0)")),
        ({"target_sizes": [(480, 640), (0, 5)]}, ("target_sizes", "(0.0, 5.0)")),
        ({"text_labels": ["a dog. a red kite", "a cat"]}, ("text_labels", "a dog. a red kite", "list of class names")),
        ({"text_labels": [["a dog", None], ["a cat"]]}, ("text_labels", "None", "list of class names")),
    ],
)
def test_what_disagrees_is_named(made, outputs, given, words):
    with pytest.raises(ValueError) as error:
        made.post_process_grounded_object_detection(outputs, **given)
    assert all(word in str(error.value) for word in words)


def test_two_target_sizes_for_one_image(made, network):
    with torch.inference_mode():
        outputs = network(**made(images=seeded_image(96, 128, 1), text=CAPTION))
    with pytest.raises(ValueError, match="found 2; want one for each of the outputs' 1 images"):
        made.post_process_grounded_object_detection(outputs, target_sizes=[(1, 2), (3, 4)])


def test_token_ids_of_another_batch_are_refused(made, inputs, outputs):
    with pytest.raises(ValueError, match="other tokens"):
        made.post_process_grounded_object_detection(outputs, inputs["input_ids"].flip(0))


def test_names_that_the_text_limit_cut_are_missing(network):
    made = processor()
    made.max_text_length = 6
    names = ["a very long name of something", "a dog", "a cat"]
    inputs = made(images=seeded_image(96, 128, 1), text=[names])
    with torch.inference_mode():
        outputs = network(**inputs)
    found = made.post_process_grounded_object_detection(outputs, threshold=0.2, text_labels=[names])[0]
    assert found["missing_phrases"] == [0] and set(found["text_labels"]) == {"a dog", "a cat"}


@pytest.mark.parametrize(
    "given, words",
    [
        ({"phrases": [[[(5, 2)]], []]}, ("image 0", "(5, 2)")),
        ({"phrases": [[[(-3, 2)]], []]}, ("image 0", "(-3, 2)")),
        ({"phrases": [[[(float("nan"), 2)]], []]}, ("image 0", "nan")),
        ({"phrases": [[[(0, 2.5)]], []]}, ("image 0", "(0, 2.5)")),
        ({"phrases": [[(0, 3)], []]}, ("image 0", "0", "list per phrase")),
        ({"phrases": [[[(0, 1, 2)]], []]}, ("image 0", "(0, 1, 2)")),
        ({"phrases": [5, []]}, ("phrases", "5", "list of class names")),
        ({"score_agg": "median"}, ("median", "geometric")),
        ({"nms_threshold": float("nan")}, ("nms_threshold", "nan")),
        ({"nms_threshold": 60}, ("nms_threshold", "60", "0 to 1")),
        ({"max_detections": 2.5}, ("max_detections", "2.5", "whole number")),
        ({"pre_nms_top_n": 0}, ("pre_nms_top_n", "0", "1 or more")),
        ({"threshold": "0.3"}, ("threshold", "'0.3'")),
    ],
)
def test_settings_and_spans_out_of_range_are_named(made, outputs, given, words):
    with pytest.raises(ValueError) as error:
        made.post_process_grounded_object_detection(outputs, **given)
    assert all(word in str(error.value) for word in words)


def test_scores_of_nan_are_no_empty_answer(made, outputs):
    """Weights in float16 can overflow: no boxes at all was the answer."""
    broken = type(outputs)(**{**outputs, "logits": outputs.logits.clone()})
    broken.logits[1] = float("nan")
    with pytest.raises(FloatingPointError, match="caption 1"):
        made.post_process_grounded_object_detection(broken)


def test_calls_as_owlv2_takes_them(made, network):
    """Its processor pads lists of queries with blanks; its names may hold full stops."""
    images = [Image.fromarray(seeded_image(96, 128, s)) for s in (1, 2)]
    names = [["a photo of a cat", "St. Bernard"], ["a remote", " "]]
    inputs = made(text=names, images=images, return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)
    sizes = torch.tensor([(image.height, image.width) for image in images])
    found = made.post_process_grounded_object_detection(
        outputs=outputs, target_sizes=sizes, threshold=0.2, text_labels=names
    )
    for own, result in zip(names, found, strict=True):
        assert [own[k] for k in result["labels"]] == result["text_labels"]
    assert set(found[0]["text_labels"]) == set(names[0]) and set(found[1]["text_labels"]) == {"a remote"}
    assert found[1]["missing_phrases"] == [1]
    with pytest.raises(ValueError, match=r"'cat\. dog'.*'a photo of a cat\. st\. bernard'"):
        made.post_process_grounded_object_detection(outputs, text_labels=[["cat", "dog"], ["a remote"]])


def test_names_without_images_are_one_prompt_as_in_groundingdino(made):
    for text in (
        ["a cat", "a remote"],
        ("a cat", "a remote"),
        [["a cat", "a remote"]],
        np.array(["a cat", "a remote"]),
    ):
        assert made.batch_decode(made(text=text)["input_ids"]) == ["[CLS] a cat. a remote [SEP]"]
    assert len(made(text=["a cat. a dog", "a remote"])["input_ids"]) == 2
    assert len(made(text=[["a cat", "a dog"], ["a remote"]])["input_ids"]) == 2


@pytest.mark.parametrize("text", [{"a cat", "a dog"}, {"a cat": 1}, 5, [None], [["a cat", None]], b"a cat"])
def test_text_without_an_order_or_of_another_type_is_named(made, text):
    with pytest.raises(TypeError, match="want a caption, captions or lists of class names"):
        made(images=seeded_image(96, 128, 1), text=text)


def test_no_text_at_all_is_named(made):
    with pytest.raises(ValueError, match="text: found none"):
        made(text=[])


def test_what_the_tokenizer_adds_is_accepted(made, network, inputs, outputs):
    more = made(
        images=[seeded_image(96, 128, s) for s in (1, 2)], text=[CAPTION, "a cat"], return_special_tokens_mask=True,
        return_length=True,
    )  # fmt: skip
    assert set(more) - set(inputs) == {"special_tokens_mask", "length"}
    with torch.inference_mode():
        assert torch.equal(network(**more).logits, outputs.logits)


def test_an_image_without_captions_has_no_boxes(made, network, inputs):
    with torch.inference_mode():
        outputs = network(**{**inputs, "image_index": torch.tensor([1, 1])})
    found = made.post_process_grounded_object_detection(outputs, threshold=0.2)
    assert found[0]["boxes"].shape == (0, 4) and found[0]["text_labels"] == [] and len(found[1]["scores"]) > 0


def shapes(features):
    return {k: tuple(v.shape) for k, v in features.items()}


def test_settings_of_a_call_are_honoured(made):
    image, text = seeded_image(96, 128, 1), [CAPTION]
    assert made(images=image, text=text, max_length=4)["input_ids"].shape == (1, 4)
    assert made(images=image, text=text, text_kwargs={"max_length": 4})["input_ids"].shape == (1, 4)
    assert made(images=image, text=text, padding="max_length", max_length=20)["input_ids"].shape == (1, 20)
    assert made(images=image, text=text, padding="max_length")["input_ids"].shape == (1, 256)
    long = " ".join(["dog"] * 300)
    assert made(images=image, text=long)["input_ids"].shape == (1, 256)
    assert made(images=image, text=long, truncation=False)["input_ids"].shape == (1, 302)
    for size in ({"size": {"shortest_edge": 64}}, {"size": 64}):
        assert made(images=image, images_kwargs=size)["pixel_values"].shape == (1, 3, 64, 96)
        assert made(images=image, text=text, **size)["pixel_values"].shape == (1, 3, 64, 96)
    assert made(images=image, do_resize=None, size=None)["pixel_values"].shape == (1, 3, 96, 128)
    assert made(images=image, do_resize=False)["image_sizes"].tolist() == [[96, 128]]
    assert "token_type_ids" in made(text=text, return_token_type_ids=True)
    arrays = made(images=image, text=[[CAPTION, "a cat"]], return_tensors="np")
    assert all(isinstance(v, np.ndarray) for v in arrays.values())
    # a class list is cut to prompts of the length that was asked for
    rows = made(images=image, text=[["a dog", "a red kite", "a cat"]], max_length=7)
    assert rows["image_index"].tolist() == [0] * len(rows["input_ids"]) and len(rows["input_ids"]) > 1


@pytest.mark.parametrize(
    "given, name",
    [
        ({"trunctaion": True}, "trunctaion"),
        ({"images_kwargs": {"siez": 3}}, "siez"),
        ({"text_kwargs": {"max_lenght": 3}}, "max_lenght"),
        ({"fps": 2}, "fps"),
    ],
)
def test_a_misspelt_setting_is_told(made, given, name):
    with pytest.raises(TypeError, match=name):
        made(images=seeded_image(96, 128, 1), text=CAPTION, **given)


def test_a_misspelt_setting_of_the_image_processor_is_told():
    with pytest.raises(TypeError, match="siez"):
        GlipImageProcessor(siez=3)
    with pytest.raises(TypeError, match="siez"):
        GlipImageProcessor()(seeded_image(96, 128, 1), siez=3)


def test_calls_without_anything_and_counts_that_differ(made):
    images = [seeded_image(96, 128, s) for s in (1, 2)]
    with pytest.raises(ValueError, match="at least one input"):
        made()
    with pytest.raises(ValueError, match="at least one"):
        made(images=[], text=[])
    with pytest.raises(ValueError, match="2 images but 1 texts"):
        made(images=images, text="a dog")
    with pytest.raises(ValueError, match="2 images but 3 texts"):
        made(images=images, text=["a dog", "a cat", "a kite"])
    with pytest.raises(ValueError, match="1 images but 2 texts"):
        made(images=images[0], text=["a dog. a cat", "a kite"])
    with pytest.raises(TypeError, match="want a caption"):
        made(images=images[0], text=[[3]])
    for name in ("return_overflowing_tokens", "is_split_into_words", "text_pair"):
        with pytest.raises(ValueError, match=name):
            made(images=images[0], text="a dog and a cat", max_length=4, **{name: True})
    for length in (0, 1, -1):
        with pytest.raises(ValueError, match=f"max_length: found {length}"):
            made(images=images[0], text="a dog", max_length=length)


@pytest.mark.parametrize("text", [["a cat.", "a remote."], [["a cat.", "a remote"]], [["a cat", "a remote"]]])
def test_a_full_stop_after_a_name_is_the_separator(made, network, text):
    inputs = made(images=seeded_image(96, 128, 1), text=text)
    assert made.batch_decode(inputs["input_ids"]) == ["[CLS] a cat. a remote [SEP]"]
    with torch.inference_mode():
        outputs = network(**inputs)
    for names in (["a cat.", "a remote."], ["a cat", "a remote"]):
        found = made.post_process_grounded_object_detection(outputs, threshold=0.2, text_labels=[names])
        assert set(found[0]["text_labels"]) == set(names)


def test_a_text_whose_list_of_images_is_empty_has_none(made, network):
    inputs = made(images=[[], [seeded_image(96, 128, 1)]], text=["a dog", "a cat"])
    assert inputs["image_index"].tolist() == [-1, 0] and inputs["input_ids"].shape[0] == 2
    with pytest.raises(ValueError, match=r"captions \[0\] have no image"):
        network(**inputs)


def test_what_is_returned_is_listed(made, inputs):
    assert set(inputs) == set(made.model_input_names)
    assert set(made.image_processor(seeded_image(96, 128, 1))) == set(made.image_processor.model_input_names)


def test_images_in_every_layout():
    made = GlipImageProcessor(size={"shortest_edge": 64, "longest_edge": 160})
    array = seeded_image(96, 128, 1)
    want = made(Image.fromarray(array))["pixel_values"]
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    for images in (array, first, torch.from_numpy(array), torch.from_numpy(first), [[array]], (first,), first[None]):
        assert torch.equal(made(images)["pixel_values"], want)
    assert torch.equal(made(np.stack([first, first]))["pixel_values"], torch.cat([want, want]))
    assert torch.equal(made(torch.from_numpy(np.stack([array, array])))["pixel_values"], torch.cat([want, want]))
    grey = array[..., 0]
    assert torch.equal(made(grey)["pixel_values"], made(Image.fromarray(grey))["pixel_values"])
    thin = np.zeros((3, 3, 3), np.uint8)
    thin[0] = 200  # the first of three rows, or the first of three channels
    rows, channels = (
        made(thin, input_data_format=f, do_resize=False, do_normalize=False)
        for f in ("channels_last", "channels_first")
    )
    assert rows["pixel_values"][0, 2, 1].sum() == 0 and channels["pixel_values"][0, 2, 1].sum() > 0


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.int32, np.uint16, torch.float32, torch.bfloat16])
def test_arrays_of_every_type_are_the_same_image(kind):
    made = GlipImageProcessor(do_resize=False)
    array = seeded_image(64, 64, 1)
    want = made(array)["pixel_values"]
    other = torch.from_numpy(array).to(kind) if isinstance(kind, torch.dtype) else array.astype(kind)
    assert torch.equal(made(other)["pixel_values"], want)
    if "float" in str(kind) and "bfloat" not in str(kind):
        assert torch.equal(made(other / 255)["pixel_values"], want)


def test_the_mode_of_32_bits_may_hold_8():
    grey = Image.fromarray(seeded_image(64, 64, 1)[..., 0])
    made = GlipImageProcessor(do_resize=False)
    assert torch.equal(made(grey.convert("I"))["pixel_values"], made(grey)["pixel_values"])


@pytest.mark.parametrize(
    "image, settings, words",
    [
        (np.zeros((8, 8, 2), np.uint8), {}, ("(8, 8, 2)", "channels")),
        (np.zeros((0, 8, 3), np.uint8), {}, ("(0, 8, 3)",)),
        (np.full((8, 8, 3), -1), {}, ("-1 to -1",)),
        (np.ones((8, 8, 3)), {}, ("float64, 1 to 1",)),
        (np.ones((8, 8, 3), bool), {}, ("bool",)),
        (np.zeros((8, 9, 3), np.uint8), {"input_data_format": "channels_first"}, ("(8, 9, 3)", "channels_first")),
        (np.zeros((8, 9, 3), np.uint8), {"input_data_format": "chanels_last"}, ("chanels_last",)),
        (None, {"data_format": "first"}, ("first",)),
        (None, {"size": -3}, ("size", "-3")),
        (None, {"size": {"longest_edge": 70}}, ("size", "70", "shortest_edge")),
        (None, {"pad_to_multiple": 0}, ("pad_to_multiple", "0")),
        (None, {"image_mean": [0.5, 0.5]}, ("image_mean", "(0.5, 0.5)", "3")),
        (None, {"image_std": 0.0}, ("image_std", "0.0")),
    ],
)
def test_images_and_settings_that_cannot_be_meant_are_named(image, settings, words):
    with pytest.raises(ValueError) as error:
        GlipImageProcessor()(seeded_image(32, 40, 1) if image is None else image, **settings)
    assert all(word in str(error.value) for word in words)


def test_a_bound_of_both_sides_is_a_size():
    sizes = GlipImageProcessor()(seeded_image(96, 128, 1), size={"max_height": 50, "max_width": 60})["image_sizes"]
    assert sizes.tolist() == [[45, 60]]


@pytest.mark.parametrize("array", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 70000, np.int32)])
def test_pixels_of_more_than_16_bits_are_refused(array):
    with pytest.raises(ValueError, match="want 8 or 16 bits a channel"):
        GlipImageProcessor()(Image.fromarray(array))


def test_an_int_size_is_the_shortest_edge():
    assert GlipImageProcessor(size=64).size == {"shortest_edge": 64, "longest_edge": 1333}
    sizes = GlipImageProcessor()(seeded_image(96, 120, 1), size=64)["image_sizes"]
    assert sizes.tolist() == [[64, 80]]
    assert GlipImageProcessor()(seeded_image(96, 120, 1), size=(50, 70))["image_sizes"].tolist() == [[50, 70]]


@pytest.mark.parametrize("mode", ["I;16", "I", "L", "LA", "RGBA", "P", "CMYK", "RGB"])
def test_the_processor_and_the_pipeline_read_the_same_pixels(mode, tmp_path):
    """A 16-bit image was nearly white to the processor."""
    array = seeded_image(32, 40, 1)
    image = Image.fromarray(array)
    if mode.startswith("I"):
        image = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    form = {"CMYK": "tiff", "I": "tiff"}.get(mode, "png")
    image = image if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / f"x.{form}")
    made = GlipImageProcessor(do_resize=False)
    read = open_image((tmp_path / f"x.{form}").read_bytes())
    assert torch.equal(made(Image.open(tmp_path / f"x.{form}"))["pixel_values"], made(read)["pixel_values"])
    if mode.startswith("I"):
        grey = made(Image.fromarray(array[..., 0]))["pixel_values"]
        assert torch.equal(made(read)["pixel_values"], grey)
        assert torch.equal(made(array[..., 0].astype(np.uint16) * 257)["pixel_values"], grey)
        assert torch.equal(made(array.astype(np.uint16) * 257)["pixel_values"], made(array)["pixel_values"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(8, 80), st.integers(8, 80)), min_size=1, max_size=3),
    st.sampled_from([
        {}, {"do_rescale": True, "rescale_factor": 1 / 255}, {"do_normalize": False}, {"pad_to_multiple": 7},
        {"image_mean": (1.0, 2.0, 3.0)}, {"pad_size": {"height": 160, "width": 160}},
    ]),
)  # fmt: skip
def test_bytes_are_normalised_to_the_same_bits(sizes, changes):
    made = GlipImageProcessor(size={"shortest_edge": 40, "longest_edge": 120}, **changes)
    images = [seeded_image(height, width, i) for i, (height, width) in enumerate(sizes)]
    whole, part = made(images), made(images, as_bytes=True)
    assert part["pixel_values"].dtype == torch.uint8
    found = made.normalize_bytes(part["pixel_values"], part["image_sizes"])
    assert torch.equal(found, whole["pixel_values"]) and "as_bytes" not in made.to_dict()
