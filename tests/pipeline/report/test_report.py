"""Pages hold what the run says, escaped, in one file; pictures show boxes where the records have them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from pipeline.config.recipes import load_recipe
from pipeline.data.records import GroundingRecord, Region
from pipeline.drawing.boxes import contrast_with_white, draw_regions, phrase_colours, write_montage
from pipeline.inspection.samples import TrainingStore, phrases_of, record_sample
from pipeline.io.atomic import write_json
from pipeline.io.tars import write_tar
from pipeline.report.dashboard import dashboard_markdown
from pipeline.report.figures import caption_pieces, write_gallery
from pipeline.report.page import comparison_markdown, quality_markdown, quality_rows
from pipeline.report.plots import loss_curves
from pipeline.report.provenance import provenance
from pipeline.report.round import metric_tables
from pipeline.report.run import write_run_report
from pipeline.report.urls import BOARD, FILES
from pipeline.runs.layout import RunLayout
from pipeline.runs.rounds import RoundResult
from pipeline.runs.summary import columns, summarise, table_lines
from tests.fixtures.crawl import jpeg

CAPTION = "a <b>red</b> car & a tree"


def record(key: str = "k") -> GroundingRecord:
    return GroundingRecord(
        key=key,
        dataset="pseudo",
        kind="grounding",
        image_size=(64, 80),
        caption=CAPTION,
        regions=(
            Region(
                box=(10, 20, 50, 60), phrase="<b>red</b> car", tokens_positive=((2, 16),), score=0.91, annotator="t@1"
            ),
            Region(
                box=(0, 0, 9, 9), phrase="tree", tokens_positive=((21, 25),), score=0.2, annotator="t@1", ignore=True
            ),
        ),
        uncertain=((21, 25),),
    )


def test_boxes_are_drawn_where_they_are():
    drawn = np.asarray(draw_regions(Image.new("RGB", (80, 64), "white"), record(), width=320)).astype(int)
    colour = phrase_colours(["<b>red</b> car"])["<b>red</b> car"]
    painted = np.abs(drawn - np.array(colour)).sum(2) < 30
    assert painted[20 * 4 + 30 : 60 * 4, 10 * 4].all()  # the left side, below the name
    assert not painted[100:200, 50:190].any()  # nothing inside


def test_a_caption_is_cut_at_its_phrases_and_loses_no_character():
    sample = record_sample("s", "k", record())
    pieces = caption_pieces(sample, phrase_colours(phrases_of(sample.boxes)))
    assert "".join(text for text, *_ in pieces) == CAPTION
    marked = [(text, phrase, colour is not None, unsure) for text, phrase, colour, unsure in pieces if colour or unsure]
    assert marked == [("<b>red</b> car", "<b>red</b> car", True, False), ("tree", "", False, True)]


def test_white_text_can_be_read_on_every_phrases_colour():
    colours = phrase_colours(map(str, range(200)))
    assert min(map(contrast_with_white, colours.values())) >= 4.5 and len(set(colours.values())) > 150


def shards(tmp_path):
    write_tar(
        tmp_path / "pseudo-0.tar",
        iter([(f"k{i}", {"jpg": jpeg(i), "json": record(f"k{i}").to_json()}) for i in range(5)]),
    )
    return [str(tmp_path / "pseudo-0.tar")]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in {"src", "href"} and v != "data:,"]  # but for the empty icon

    def handle_data(self, data):
        self.text += data + " "


def parse(path) -> Tags:
    tags = Tags()
    tags.feed(path.read_text())
    return tags


def test_a_gallery_is_one_file_with_everything_in_it(tmp_path):
    store, made = TrainingStore(shards(tmp_path)), {"version": "<i>1</i>"}
    write_gallery(store, tmp_path / "g.html", limit=3, title="Labels & boxes", note="<i>note</i>", made=made)
    page = parse(tmp_path / "g.html")
    assert len(page.sources) == 3 and all(s.startswith("data:image/jpeg;base64,") for s in page.sources)
    assert (
        "Labels & boxes" in page.text
        and "<i>note</i>" in page.text
        and "<i>1</i>" in page.text
        and "red</b> car" in page.text
    )


def test_a_montage_shows_as_many_as_asked(tmp_path):
    write_montage(shards(tmp_path), tmp_path / "m.png", limit=4, columns=2, width=100)
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.width == 2 * 110 + 10 and sheet.height > 2 * 80


SUMMARY = {
    "seed": 0,
    "rounds": 1,
    "student_init": "teacher",
    "steps": {"teacher": 900, "control": 800, "student": 800},
    "teacher": {"base_recall_at_1": 81.25, "base_ap50": 40.0, "novel_recall_at_1": 30.0, "novel_ap50": 12.0},
    "student": {"base_recall_at_1": 85.0, "base_ap50": 45.5, "novel_recall_at_1": 61.5, "novel_ap50": 28.0},
    "control": {"base_recall_at_1": 86.0, "base_ap50": 46.0, "novel_recall_at_1": 29.0, "novel_ap50": 12.5},
    "by_round": [],
    "best": "student-1",
    "stopped": None,
    "chance": 25.0,
    "pseudo_labels": {
        **{n: {"labels": 1234, "correct": 900, "gold": 2000, "found": 880, "precision": 72.9, "recall": 44.0}
           for n in ("all", "base", "novel")},
        "phrases_not_gold": 3,
        "by_score": [{"from": 0.5, "to": 0.6, "labels": 10, "correct": 7}],
    },
    "stages": {
        "filter-boxes": {
            "seconds": 1.5, "peak_mib": 300.0,
            "report": {"tallies": {"regions": {"seen": 10, "kept": 4, "dropped": {"below_threshold": 6}}}},
        }
    },
}  # fmt: skip


def test_the_report_says_what_the_summary_says(tmp_path):
    curves = {"teacher": [{"step": 50, "loss": 2.0}, {"step": 100, "loss": 1.0}]}
    (tmp_path / "checkpoints/teacher").mkdir(parents=True)
    (tmp_path / "checkpoints/teacher/report.json").write_text(json.dumps({"curve": curves["teacher"]}))
    page = parse(write_run_report(load_recipe("demo"), RunLayout(tmp_path), SUMMARY))
    words = re.sub(r"\s+", " ", page.text)
    assert "student 85.0 45.5 61.5 28.0 800 steps from the teacher, human and pseudo-labels" in words
    assert "chance 25.0 – 25.0 –" in words and "novel 1,234 900 2,000 72.9 44.0" in words
    assert "filter-boxes regions 10 4 below threshold 6" in words and "filter-boxes 1.5 300.0" in words
    assert all(not s.startswith("http") for s in page.sources)


def test_markdown_has_the_same_numbers():
    text = comparison_markdown(SUMMARY)
    assert "| **control** | 86.0 | 46.0 | 29.0 | 12.5 |" in text
    assert "- control: 800 steps from the teacher, human labels" in text
    assert "| novel | 1,234 | 72.9 | 44.0 |" in quality_markdown(SUMMARY["pseudo_labels"], True)


def test_the_dashboards_report_holds_its_pictures_and_says_where_more_is(tmp_path, monkeypatch):
    layout = RunLayout(tmp_path / "runs" / "mine")
    layout.report.mkdir(parents=True)
    Image.new("RGB", (2400, 300), "white").save(layout.report / "labels-round-1.png")
    for name in (FILES, BOARD):
        monkeypatch.delenv(name, raising=False)
    text = dashboard_markdown(SUMMARY, layout)
    assert text.count("data:image/") == 2 and f"full report: `{layout.report / 'index.html'}`" in text
    monkeypatch.setenv(FILES, f"http://127.0.0.1:4201 {(tmp_path / 'runs').resolve()}")
    monkeypatch.setenv(BOARD, "http://127.0.0.1:4202")
    text = dashboard_markdown(SUMMARY, layout)
    assert "[full report](http://127.0.0.1:4201/mine/report/index.html)" in text
    assert "[TensorBoard](http://127.0.0.1:4202)" in text and len(text) < 200_000
    other = dashboard_markdown(SUMMARY, RunLayout(tmp_path / "elsewhere"))
    assert "4201" not in other


def test_thin_boxes_at_the_edges_are_drawn_inside():
    """Where an image shrinks, such a box ends and begins beyond the last pixel."""
    boxes = [
        (1078.2, 5, 1080, 500),
        (5, 718.5, 600, 720),
        (1079.9, 719.9, 1080, 720),
        (0, 0, 0.1, 0.1),
        (0, 0, 1080, 720),
    ]
    for ignore in (False, True):
        regions = [Region(box=box, phrase="car", tokens_positive=((2, 5),), ignore=ignore) for box in boxes]
        thin = GroundingRecord(
            key="k", dataset="d", kind="grounding", image_size=(720, 1080), caption="a car", regions=regions
        )
        for size, width in (((1080, 720), 320), ((1080, 720), 64), ((1080, 3), 64)):
            assert draw_regions(Image.new("RGB", size, "white"), thin, width=width).width == width


def test_curves_leave_out_what_has_no_loss_and_are_the_same_each_time():
    rows = [{"step": 10, "loss": 2.0}, {"step": 20}, {"step": 30, "loss": 1.0}]
    drawn = loss_curves({"teacher": rows, "student": [{"step": 10}]})
    assert drawn and drawn == loss_curves({"teacher": rows, "student": [{"step": 10}]})
    assert loss_curves({"teacher": [{"step": 10}]}) == b""


def test_steps_of_a_student_that_begins_anew_are_those_of_its_last_round(tmp_path):
    def steps(init: str) -> dict:
        config = load_recipe("demo", ["rounds=2", f"student_init={init}", "demo=null", "student.steps=500"])
        results = [
            RoundResult(round=n, teacher="teacher", student=f"student-{n}", promoted=True, go_on=True, why="w")
            for n in (1, 2)
        ]
        return summarise(config, RunLayout(tmp_path / init), {}, results)

    anew, on = steps("scratch"), steps("teacher")
    assert anew["steps"] == {"teacher": 1000, "student": 500, "control": 1000} and on["steps"]["student"] == 1000
    models = {role: {"base_ap50": 1.0} for role in ("teacher", "control", "student")}
    lines = "\n".join(table_lines(anew | models))
    assert "student (500 steps)" in lines and "control (+1000 steps)" in lines
    assert "student (+1000 steps)" in "\n".join(table_lines(on | models))


def test_a_run_on_real_data_has_columns_of_its_own_sets_only():
    result = {"round": 1, "student": "student-1", "why": "promoted: val.ap +2.0"}
    summary = {
        "teacher": {"val.ap": 10.0}, "student": {"val.ap": 12.0, "base_ap50": 20.0, "rare.precision_at_1": 5.0},
        "steps": {"teacher": 0, "student": 2000, "control": 2000}, "student_init": "teacher", "teacher_init": "glip-t",
        "human_labels": False, "best": "student-1", "by_round": [{"result": result}],
    }  # fmt: skip
    assert comparison_markdown(summary).splitlines()[:4] == [
        "| | val AP | rare P@1 |", "|---|---|---|", "| **teacher** | 10.0 | – |", "| **student** | 12.0 | 5.0 |",
    ]  # fmt: skip
    assert "- teacher: glip-t as it is\n- student: 2,000 steps from the teacher, pseudo-labels" in comparison_markdown(
        summary
    )
    head, _, teacher, student, *_ = table_lines(summary)
    assert head.split() == ["val", "AP", "rare", "P@1"]
    assert teacher.split() == ["teacher", "(as", "given)", "10.0", "-"] and "student (+2000 steps)" in student
    unjudged = {key: value for key, value in summary.items() if key not in ("teacher", "student")}
    assert not comparison_markdown(unjudged).startswith("|") and len(table_lines(unjudged)) == 2
    quality = {"labels": 4, "precision": 50.0, "recall": 25.0, "gold": 8}
    judged = {"all": quality, "base": quality, "novel": {**quality, "gold": 0, "labels": 0}}
    assert quality_markdown(judged, demo=False).splitlines()[2:] == ["| all | 4 | 50.0 | 25.0 |"]


def write_metrics(layout: RunLayout, model: str, **sets: dict[str, float]) -> None:
    write_json(layout.evaluation(model) / "metrics.json", {"sets": sets})


def test_a_real_run_speaks_of_its_own_sets(tmp_path):
    config = load_recipe("demo", ["demo=null", "data.base=null", "data.novel=null", "data.evaluation=[lvis, refs]"])
    layout = RunLayout(tmp_path)
    for model, ap in (("teacher", 20.0), ("student-1", 24.5), ("control-1", 21.0)):
        write_metrics(layout, model, lvis={"ap": ap, "ap_rare": ap - 9, "images": 5}, refs={"precision_at_1": 2 * ap})
    result = RoundResult(round=1, teacher="teacher", student="student-1", promoted=True, go_on=True, why="w")
    summary = json.loads(json.dumps(summarise(config, layout, {}, [result])))
    assert list(columns(summary).values()) == ["lvis AP", "lvis APr", "refs P@1"]
    text = comparison_markdown(summary) + "\n".join(table_lines(summary))
    assert "| **student** | 24.5 | 15.5 | 49.0 |" in text and "NOVEL" not in text and "BASE" not in text
    page = re.sub(r"[\s,]+", " ", parse(write_run_report(config, layout, summary)).text)
    assert "NOVEL" not in page and "BASE" not in page and "own data settings in the run's config.yaml" in page
    assert "lvis AP student 24.5 +3.5 over the control +4.5 over the teacher" in page
    assert "refs P@1 student 49.0 +7.0 over the control" in page


def test_groups_of_labels_that_there_are_not_are_left_out():
    some = {"labels": 5, "correct": 4, "gold": 6, "found": 4, "precision": 80.0, "recall": 66.7}
    none = {"labels": 0, "correct": 0, "gold": 0, "found": 0, "precision": None, "recall": None}
    assert [name for name, _ in quality_rows({"all": some, "base": some, "novel": none}, False)] == ["all"]
    both = {"all": some, "base": some, "novel": some}
    assert [name for name, _ in quality_rows(both, False)] == ["all", "names with human labels", "other names"]
    assert [name for name, _ in quality_rows(both, True)] == ["all", "base", "novel"]


def test_a_rounds_tables_have_the_student_minus_the_control(tmp_path):
    layout = RunLayout(tmp_path)
    write_metrics(layout, "control-1", gold={"ap": 30.0})
    cell = {"value": 33.0, "difference": 5.0, "difference_interval": [1.0, 9.0]}
    over = cell | {"difference": 3.0, "difference_interval": [-1.0, 7.0]}
    verdict = {"sets": {"gold": {"ap": [{"value": 28.0}, cell]}}, "control_sets": {"gold": {"ap": [{}, over]}}}
    result = RoundResult(round=1, teacher="teacher", student="student-1", promoted=True, go_on=True, why="w")
    assert metric_tables(layout, result, verdict) == {
        "gold": [{
            "metric": "AP", "teacher": 28.0, "control": 30.0, "student": 33.0, "difference": 5.0,
            "interval": [1.0, 9.0], "over_control": 3.0, "over_control_interval": [-1.0, 7.0],
        }]
    }  # fmt: skip
    (row,) = metric_tables(layout, result, verdict | {"control_sets": {}})["gold"]
    assert (row["over_control"], row["over_control_interval"]) == (None, None)


def test_a_page_names_the_command_without_secrets(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/inspect", "https://u:S3CRET@host/0.tar", "a b"])
    made = provenance("r.yaml")
    assert made["command"] == "inspect '(address not shown)' 'a b'" and made["recipe"] == "r.yaml"
    assert {"version", "date", "machine"} <= made.keys()
