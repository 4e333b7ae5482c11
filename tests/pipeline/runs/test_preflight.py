"""All that is wrong with a recipe, a line each, before anything runs."""

import json
import socket

import pytest
import yaml

from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from pipeline.io.paths import stem
from pipeline.runs.excluded_shards import crawl_shards
from pipeline.runs.layout import RunLayout
from pipeline.runs.plan import settings_lines
from pipeline.runs.preflight import file_problems, recipe_problems, refuse, with_absolute_paths


@pytest.fixture
def crawl(tmp_path):
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "00000.tar").write_bytes(b"x" * 1000)
    return tmp_path / "crawl"


def model_folder(path, model_type="glip"):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name in ("model.safetensors", "processor_config.json", "tokenizer.json"):
        (path / name).write_bytes(b"w" * 100)
    return path


def own(*changes):
    return load_recipe("own", changes)


def test_a_teacher_and_a_crawl_are_enough(tmp_path, crawl):
    config = own(f"teacher.init={model_folder(tmp_path / 'glip')}", f"data.crawl={crawl}")
    assert recipe_problems(config, RunLayout(tmp_path / "run")) == []
    assert not config.trains_control and not config.data.evaluated()
    assert not (tmp_path / "run").exists()


def test_a_folder_of_images_is_a_crawl(tmp_path):
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "photos/a/b.jpg").write_bytes(b"x" * 1000)
    config = own(f"teacher.init={model_folder(tmp_path / 'glip')}", f"data.crawl={tmp_path}/photos")
    assert recipe_problems(config, RunLayout(tmp_path / "run")) == [] == list(file_problems(config))
    assert [stem(shard) for shard in crawl_shards(config, RunLayout(tmp_path / "run"))] == ["photos-00000"]
    (tmp_path / "photos/a/b.jpg").unlink()
    (line,) = file_problems(config)
    assert line.startswith(f"data.crawl: {tmp_path}/photos: no *.tar files in this folder, nor images")


def test_images_and_names_are_enough_too(tmp_path, crawl):
    given = (f"teacher.init={model_folder(tmp_path / 'glip')}", f"data.images={crawl}", "data.names='dog. fork lift'")
    config = own(*given, "parse_phrases.spacy_model=none_such")  # no caption is parsed
    assert recipe_problems(config, RunLayout(tmp_path / "run")) == []


def test_images_and_captions_are_enough_too(tmp_path, crawl):
    (tmp_path / "c.csv").write_text("key,long_caption\na,a dog\n")
    given = (f"teacher.init={model_folder(tmp_path / 'glip')}", f"data.captions={tmp_path}/c.csv")
    column = "data.caption_column=long_caption"
    config = own(*given, f"data.images={crawl}", column)
    assert recipe_problems(config, RunLayout(tmp_path / "run")) == []
    assert any(f"; captions {tmp_path}/c.csv" in line for line in settings_lines(config))
    (line,) = recipe_problems(own(*given, f"data.crawl={crawl}"), RunLayout(tmp_path / "run"))
    assert line.startswith(f"data.captions: {tmp_path}/c.csv: found columns key, long_caption; want a column caption")
    (line,) = recipe_problems(own(*given, f"data.crawl={crawl}", "data.names=dog", column), RunLayout(tmp_path / "run"))
    assert line == "data.captions: found it beside data.names; want one of them"
    (line,) = recipe_problems(own(given[0], f"data.crawl={crawl}", column), RunLayout(tmp_path / "run"))
    assert line == "data.caption_key, data.caption_column: they are of data.captions; found no such file"


def test_settings_without_captions_are_as_they_were():
    assert not any("caption" in name for name in own().data.model_dump(mode="json"))


def test_every_wrong_path_is_a_line(tmp_path, crawl):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "sets.yaml").write_text(
        yaml.safe_dump({"sets": {"boxes": {
            "kind": "detection", "format": "coco", "annotations": "boxes.json", "images_folder": ["a", "b"]
        }}})
    )  # fmt: skip
    config = own(
        "teacher.init=nowhere/glip", f"data.crawl=[nowhere/0.tar, {crawl}, 'nowhere/*.tar']", "data.gold=nowhere/gold",
        f"data.manifest={tmp_path}/sets.yaml", "data.sources=boxes", "student.mixture={boxes: 1, pseudo: 1}",
        "student_init=scratch", "model.text_encoder=nowhere/bert", "model.backbone=nowhere/swin.pth",
    )  # fmt: skip
    lines = recipe_problems(config, RunLayout(tmp_path / "taken" / "run"))
    for path in (
        "nowhere/glip", "nowhere/0.tar", "nowhere/*.tar", "nowhere/gold", f"{tmp_path}/boxes.json", f"{tmp_path}/a",
        f"{tmp_path}/b", "nowhere/bert", "nowhere/swin.pth", f"{tmp_path}/taken",
    ):  # fmt: skip
        assert sum(f"{path}: " in line or f"{path} is not" in line for line in lines) == 1, (path, lines)
    assert len(lines) == 10
    with pytest.raises(InputError) as refused:
        refuse(lines)
    assert str(refused.value).splitlines() == lines


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["teacher.init=null"], "teacher.steps: found 0 without teacher.init"),
        (["teacher.steps=10"], "data.sources: found none to train the teacher on"),
        (["student.mixture={}"], "student.mixture: found nothing without `pseudo`"),
        (["data.crawl=[]"], "data.crawl: found none"),
        (["student.validate_every=10"], "student.validate_every: found no set to validate on; want data.validation"),
        (["data.validation=val"], "data.validation: found val, but no steps between validations"),
        (["data.manifest=nowhere.yaml"], "data.manifest: nowhere.yaml: no such file"),
        (["data.evaluation=val"], "data.manifest: found none; want the manifest of the sets val"),
        (["data.sources=boxes"], "teacher.mixture: found none for the control"),
        (["student.warmup_steps=2001"], "student.warmup_steps: found 2,001 steps of warm-up in a training of 2,000"),
        (["teacher.init=s3://bucket/glip"], "found a URL; want a model on a file system"),
        (["data.images=photos", "data.names=dog"], "data.images: found it beside data.crawl; want one of them"),
        (["data.images=photos", "data.crawl=[]"], "data.names: found none; want the class names to label data.images"),
        (["data.images=photos", "data.crawl=[]", "data.names=dog"], "data.images: photos: no such"),
        (["data.names='dog. Dog'"], "data.names: names: found 'dog' and 'Dog'; want each text once"),
        (["teacher.init=x.pth"], "teacher.init: x.pth: no such file; want a released checkpoint"),
    ],
)
def test_what_a_run_without_human_labels_still_needs(changes, words, tmp_path, crawl):
    glip = model_folder(tmp_path / "glip")
    lines = recipe_problems(own(f"teacher.init={glip}", f"data.crawl={crawl}", *changes), RunLayout(tmp_path / "run"))
    assert any(words in line for line in lines), lines


def test_a_teacher_of_another_family_labels_only(tmp_path, crawl):
    owl = model_folder(tmp_path / "owl", "owlv2")
    given = (f"teacher.init={owl}", f"data.crawl={crawl}")
    (line,) = recipe_problems(own(*given), RunLayout(tmp_path / "run"))
    assert "found a owlv2, which can label but not be trained; want teacher.steps=0 and student_init=scratch" in line
    (line,) = recipe_problems(own(*given, "student_init=scratch"), RunLayout(tmp_path / "run"))
    assert line.startswith("model.text_encoder")
    other = model_folder(tmp_path / "other", "resnet")
    (line,) = recipe_problems(own(f"teacher.init={other}", f"data.crawl={crawl}"), RunLayout(tmp_path / "run"))
    assert "found model_type 'resnet'; want one of" in line


def test_a_store_that_does_not_answer_is_a_line_and_not_a_wait(tmp_path):
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/crawl/{{00000..00099}}.tar"
        config = own(f"teacher.init={model_folder(tmp_path / 'glip')}", f"data.crawl=['{url}']")
        (line,) = file_problems(config, patience=0.5)
    assert line == f"data.crawl: {url}: no answer within 0.5 s"


def test_a_warm_up_that_a_run_began_with_is_continued(tmp_path, crawl):
    glip = model_folder(tmp_path / "glip")
    config = own(f"teacher.init={glip}", f"data.crawl={crawl}", "student.steps=5")
    layout = RunLayout(tmp_path / "run")
    assert len(recipe_problems(config, layout)) == 1
    layout.root.mkdir()
    layout.config.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert recipe_problems(config, layout) == []
    assert len(recipe_problems(own(f"teacher.init={glip}", f"data.crawl={crawl}", "student.steps=4"), layout)) == 1


def test_paths_are_made_absolute_and_names_and_urls_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(
        own(
            "teacher.init=glip",
            "data.crawl=[crawl, 's3://b/{0..9}.tar', /abs/*.tar]",
            "data.manifest=coco",
            "model.text_encoder=minilm",
            "data.gold=gold",
            "data.captions=c.csv",
        )
    )
    assert config.teacher.init == f"{tmp_path}/glip" and config.data.gold == f"{tmp_path}/gold"
    assert config.data.captions == f"{tmp_path}/c.csv"
    assert config.data.crawl == (f"{tmp_path}/crawl", "s3://b/{0..9}.tar", "/abs/*.tar")
    assert (config.data.manifest, config.data.root, config.model.text_encoder) == ("coco", str(tmp_path), "minilm")
    assert with_absolute_paths(load_recipe("demo")) == load_recipe("demo")
    (tmp_path / "names.txt").write_text("dog")
    found = [
        with_absolute_paths(own("data.images=photos", f"data.names={names}")).data for names in ("names.txt", "coco")
    ]
    assert found[0].images == (f"{tmp_path}/photos",)
    assert [data.names for data in found] == [f"{tmp_path}/names.txt", "coco"]
