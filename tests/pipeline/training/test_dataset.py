"""The mixture's beginning: a curriculum of its own, and the same places as ever after it."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.annotators.glip import exclusive_ends
from pipeline.config import ModelConfig, TrainConfig
from pipeline.data.records import GroundingRecord, Region
from pipeline.errors import InputError
from pipeline.io.tars import write_tar
from pipeline.training.dataset import TrainingData
from pipeline.training.image_batch import Normaliser, stack
from pipeline.training.model_factory import build_model
from tests.conftest import tiny_model
from tests.fixtures.crawl import jpeg


def data(sources, **settings):
    plain = {"steps": 8, "batch_size": 3, "image_sizes": (64,), "max_image_size": 128, "mixture": {"a": 1, "b": 1}}
    config = TrainConfig(**{**plain, **settings})
    return TrainingData(config, sources, build_model(tiny_model(ModelConfig), None)[1])


def test_the_first_steps_have_their_own_mixture_and_the_rest_is_as_without(sources):
    plain, staged = data(sources), data(sources, first_steps=2, first_mixture={"b": 1})
    assert [staged.locate(place)[0] for place in range(6)] == ["b"] * 6
    assert [staged.locate(place) for place in range(6, 24)] == [plain.locate(place) for place in range(18)]
    batch = next(staged.loader(first=1))
    assert all(name.startswith("b/") for name in batch["names"])


def test_the_last_steps_have_their_own_mixture(sources):
    plain, staged = data(sources), data(sources, last_steps=3, last_mixture={"a": 1})
    assert [staged.locate(place) for place in range(15)] == [plain.locate(place) for place in range(15)]
    assert [staged.locate(place) for place in range(15, 24)] == [("a", n) for n in range(9)]
    assert all(name.startswith("a/") for name in next(staged.loader(first=6))["names"])
    with pytest.raises(InputError, match="first_steps 6 and last_steps 3: want at most the 8 steps"):
        data(sources, first_steps=6, first_mixture={"a": 1}, last_steps=3, last_mixture={"a": 1})
    with pytest.raises(InputError, match="last_mixture"):
        data(sources, last_steps=3, last_mixture={"c": 1})


@pytest.mark.parametrize("mixture", [{}, {"c": 1}])
def test_a_curriculum_of_unknown_sources_is_refused(sources, mixture):
    with pytest.raises(InputError, match="first_mixture"):
        data(sources, first_steps=2, first_mixture=mixture)


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(sources, processes):
    made = data(sources, batch_size=4, steps=5)
    for rank in range(processes):
        plain = list(made.loader(first=1, rank=rank, processes=processes))
        for workers in (1, 3):
            ahead = list(made.loader(first=1, rank=rank, processes=processes, workers=workers))
            assert len(ahead) == len(plain) == made.config.steps - 1
            for mine, other in zip(plain, ahead, strict=True):
                assert mine["names"] == other["names"] and mine["lost"] == other["lost"]
                assert mine["captions"] == other["captions"] and mine["spans"] == other["spans"]
                assert all(mine[n].equal(other[n]) for n in ("pixels", "input_ids", "image_sizes"))
                for label, twin in zip(mine["labels"], other["labels"], strict=True):
                    assert label.keys() == twin.keys() and all(label[n].equal(twin[n]) for n in label)


STARTED_ANEW = """
    import json, multiprocessing, sys
    multiprocessing.set_start_method(sys.argv[1])

    from tests.pipeline.training.test_dataset import data

    made = data(json.loads(sys.argv[2]), steps=3)
    made.sample(0)  # what it remembers does not travel
    plain, ahead = (list(made.loader(first=0, workers=workers)) for workers in (0, 2))
    assert [b["names"] for b in plain] == [b["names"] for b in ahead] and len(ahead) == 3
    assert all(a["pixels"].equal(b["pixels"]) for a, b in zip(plain, ahead))
    print("the same")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_share_nothing_with_their_parent_read_the_same(sources, method):
    """Python 3.14 and other systems do not fork."""
    command = [sys.executable, "-c", textwrap.dedent(STARTED_ANEW), method, json.dumps(sources)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("image_size", [64, 96])
def test_what_is_taught_is_what_labelling_gives_back(sources, flip, image_size):
    """GLIP's boxes name their last pixel: its targets do, and its answers are moved behind it again."""
    made = data(sources, flip=flip, image_sizes=(image_size,))
    sample = made.sample(0)
    width, height = sample["image"].size
    scale = np.array([width / 80, height / 64] * 2)
    taught = sample["prompted"].boxes[0] / scale
    assert taught == pytest.approx((50, 1, 78, 29) if flip else (1, 1, 29, 29), abs=1e-4)
    back = exclusive_ends(torch.tensor([[*taught.tolist()], [0, 0, 79.5, 63.5]]), (64, 80)).tolist()
    assert back == [pytest.approx((50, 1, 79, 30) if flip else (1, 1, 30, 30), abs=1e-4), [0, 0, 80, 64]]


def names(made, processes, first=0):
    """Record names of every step, in the order of ranks and micro-batches."""
    pieces = made.config.accumulate
    ranks = [[b["names"] for b in made.loader(first=first, rank=r, processes=processes)] for r in range(processes)]
    steps = made.config.steps - first
    assert {len(r) for r in ranks} == {steps * pieces}
    assert {len(batch) for r in ranks for batch in r} == {made.config.batch_size // (processes * pieces)}
    return [
        [name for piece in range(pieces) for r in ranks for name in r[step * pieces + piece]] for step in range(steps)
    ]


def test_every_process_has_as_much_data_and_the_order_is_that_of_one(sources):
    alone = names(data(sources, batch_size=12), 1)
    for processes, pieces in ((2, 1), (3, 1), (1, 3), (2, 3), (4, 1)):
        made = data(sources, batch_size=12, accumulate=pieces)
        assert names(made, processes) == alone
        assert names(made, processes, first=5) == alone[5:]


def test_copies_make_shares_of_the_sources_sizes(sources):
    sources = {"a": sources["a"], "b": [*sources["b"], *sources["a"]]}  # 6 and 12 records
    made = data(sources, mixture={"a": 6, "b": 1}, mixture_unit="copies")
    drawn = [made.locate(place)[0] for place in range(240)]
    assert drawn.count("a") == 180 and drawn.count("b") == 60
    even = data(sources, mixture={}, mixture_unit="copies")
    assert [even.locate(place)[0] for place in range(240)].count("a") == 80
    with pytest.raises(InputError, match=r"mixture names \['a', 'c'\]"):
        data(sources, mixture={"a": 1, "c": 1}, mixture_unit="copies")


@pytest.mark.parametrize(
    "noisy", [{"caption_negatives": 1.0, "max_caption_negatives": 3}, {"names_share": 1.0}], ids=["packed", "names"]
)
def test_what_is_drawn_of_other_records_depends_on_the_step_alone(noisy, tmp_path):
    made = data({"pseudo": pseudo_shards(tmp_path)}, mixture={}, batch_size=4, steps=5, noisy=noisy)
    plain = [[b["captions"] for b in made.loader(first=0, rank=r, processes=2)] for r in range(2)]
    others = [c for r in plain for captions in r for c in captions if sum(t in c for t in THINGS) > 1]
    assert len(set(others)) > 5
    for rank, first, workers in ((0, 3, 0), (1, 2, 2), (0, 0, 3)):  # resumed, or read by others: the same
        again = made.loader(first=first, rank=rank, processes=2, workers=workers)
        assert [b["captions"] for b in again] == plain[rank][first:]


COLOURS, THINGS = ("red", "blue", "green", "brown"), ("car", "boat", "tree", "dog")


def pseudo_shards(folder):
    """Four pseudo-labelled images in two shards."""

    def samples(numbers):
        for i in numbers:
            region = Region(
                box=(1, 1, 30, 30), phrase=f"{COLOURS[i]} {THINGS[i]}", root=THINGS[i], annotator="glip@0", score=0.9,
                tokens_positive=((2, 3 + len(COLOURS[i] + THINGS[i])),),
            )  # fmt: skip
            record = GroundingRecord(
                key=f"p{i}", dataset="pseudo", kind="grounding", image_size=(64, 80), regions=(region,),
                caption=f"a {COLOURS[i]} {THINGS[i]} stands there",
            )  # fmt: skip
            yield f"p{i}", {"jpg": jpeg(i), "json": record.to_json()}

    for name, numbers in (("p0", (0,)), ("p1", (1, 2, 3))):
        write_tar(folder / f"{name}.tar", samples(numbers))
    return [str(folder / "p0.tar"), str(folder / "p1.tar")]


def test_boxes_whose_words_were_cut_away_leave_the_others_with_their_own(tmp_path):
    words = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    caption = ", ".join(words)
    starts = {word: caption.index(word) for word in words}
    regions = tuple(
        Region(box=(1, 1, 9 + 2 * n, 60), phrase=word, tokens_positive=((starts[word], starts[word] + len(word)),))
        for n, word in reversed(list(enumerate(words)))  # the first ones are cut away
    )
    record = GroundingRecord(
        key="long", dataset="a", kind="grounding", image_size=(64, 80), caption=caption, regions=regions
    )
    write_tar(tmp_path / "a.tar", iter([("long", {"jpg": jpeg(1), "json": record.to_json()})]))
    made = data({"a": [str(tmp_path / "a.tar")]}, mixture={}, batch_size=1, steps=1, flip=0.0)
    made.processor.max_text_length = 24
    batch = next(made.loader(first=0))
    boxes, text, label = batch["labels"][0]["boxes"], batch["captions"][0], batch["labels"][0]
    named = [" ".join(text[s:e] for s, e in spans) for spans in batch["spans"][0]]
    assert 0 < len(named) == len(boxes) == len(label["positive_map"]) < len(words)
    assert named == [r.phrase for r in regions[-len(named) :]]
    assert boxes[:, 2].diff().lt(0).all()  # narrower from one to the next, as theirs are
    assert batch["lost"]["span_beyond_text_limit"] == len(words) - len(named)


@pytest.mark.parametrize(
    ("captions", "flip", "warned"),
    [
        (["man on the left", "red car", "a dog"], 0.5, True),
        (["Rightmost cup", "red car"], 0.5, True),
        (["man on the left", "red car", "a dog"], 0.0, False),
        (["leftover pizza", "bright light", "a dog"], 0.5, False),
        (["man on the left", *["a dog"] * 19], 0.5, False),
    ],
)
def test_captions_that_name_sides_are_told_of_when_images_are_flipped(tmp_path, captions, flip, warned):
    def samples():
        for i, caption in enumerate(captions):
            region = Region(box=(1, 1, 9, 9), phrase=caption, tokens_positive=((0, len(caption)),))
            record = GroundingRecord(
                key=f"{i:03d}", dataset="a", kind="grounding", image_size=(64, 80), caption=caption, regions=(region,)
            )
            yield f"{i:03d}", {"jpg": jpeg(i), "json": record.to_json()}

    write_tar(tmp_path / "a.tar", samples())
    made = data({"a": [str(tmp_path / "a.tar")]}, mixture={}, flip=flip)
    words = f"source a: 1 of its first {len(captions)} captions say left or right"
    assert [w.startswith(words) and "want flip=0" in w for w in made.flip_warnings()] == [True] * warned


def test_a_workers_error_is_one_line(sources):
    made = data({"a": sources["a"], "b": sources["b"]})
    tar = sources["b"][0]
    with open(tar, "r+b") as file:  # every record's json is spoilt after the index was made
        content = file.read().replace(b'"boxes"', b'"bexes"').replace(b'"regions"', b'"regoins"')
        file.seek(0)
        file.write(content)
    with pytest.raises(InputError) as caught:
        list(made.loader(first=0, workers=1))
    assert str(caught.value).startswith("source b: 20 unusable records in a row; last: b/b") and "\n" not in str(
        caught.value
    )
    assert str(caught.value).count("b/b") == 1 and str(caught.value).endswith("regoins: Extra inputs are not permitted")


def test_bytes_become_the_processors_own_values():
    processor = build_model(tiny_model(ModelConfig), None)[1].image_processor
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((33, 50), (64, 20))]
    wanted = processor(images, do_resize=False)
    pixels, sizes = stack(images, processor.pad_to_multiple)
    assert sizes.equal(wanted["image_sizes"]) and Normaliser(processor)(pixels, sizes).equal(wanted["pixel_values"])
