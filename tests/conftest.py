"""What tests of several rooms need: small real shards, and a real network of a small size."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.crawl import write_crawl

# two files at a time, each on one thread: what tests wait for (servers, child processes) then costs no time. And
# another number of threads rounds otherwise, where tests compare bytes
os.environ.setdefault("OMP_NUM_THREADS", "1")
# inductor compiles in the test's own process: those of its pool would import torch once more
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# a shell that starts tests in the background has them ignore Ctrl-C, and nohup a closed terminal: so would every
# command that a test interrupts
for sign, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(sign) == signal.SIG_IGN:
        signal.signal(sign, usual)


ONE_SERVER = ("tests/flows/test_browser.py", "tests/flows/test_rounds.py", "tests/flows/test_whole_loop.py")
"""Files that share a server and a whole run on it, in this order: they go to one process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that of two processes that take file after file none ends long after the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.nodeid.startswith(ONE_SERVER), item.path not in slow))


BEGUN = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is left when SLOW_SECONDS are over: a machine of half the usual speed ends in time, and says so."""
    if (limit := os.environ.get("SLOW_SECONDS")) and time.monotonic() > BEGUN + float(limit):
        pytest.skip(f"the {limit} seconds of SLOW_SECONDS are over")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, with the files of ONE_SERVER taken as one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return ONE_SERVER[0] if file in ONE_SERVER else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: the demo's network with random weights, smaller still, and its processor."""
    import torch

    from pipeline.config import ModelConfig
    from pipeline.training.model_factory import build_model

    torch.manual_seed(0)
    network, processor = build_model(tiny_model(ModelConfig), None)
    folder = tmp_path_factory.mktemp("teacher")
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


TINY_TEXT_ENCODER = "TINY_TEXT_ENCODER"
"""Environment variable by which child processes know the folder: it is among the settings that trainings compare."""


def tiny_text_encoder() -> str:
    """A folder with a random BERT that has MiniLM's vocabulary and is 16 wide, so that checkpoints are small."""
    if TINY_TEXT_ENCODER not in os.environ:
        import torch
        from transformers import AutoTokenizer, BertConfig, BertModel

        from pipeline.io.model_folder import text_encoder_folder

        folder = os.environ[TINY_TEXT_ENCODER] = tempfile.mkdtemp(prefix="tiny-bert-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        tokenizer = AutoTokenizer.from_pretrained(text_encoder_folder("minilm"))
        tokenizer.save_pretrained(folder)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return os.environ[TINY_TEXT_ENCODER]


def tiny_model(kind):
    """Settings of a network that takes milliseconds an image."""
    return kind(
        text_encoder=tiny_text_encoder(),
        text_layers=1,
        settings={
            "backbone_config": {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4},
            "fpn_in_stages": [3, 4],
            "num_feature_levels": 3,
            "hidden_size": 16,
            "num_blocks": 1,
            "group_norm_groups": 4,
            "num_class_logits": 0,
            "fusion_embed_dim": 32,
            "fusion_num_heads": 2,
            "max_text_length": 64,
            "prior_probability": 0.3,
        },
        image_processor={"size": {"shortest_edge": 64, "longest_edge": 128}},
    )


@pytest.fixture
def crawl(tmp_path: Path) -> list[str]:
    """Two crawled shards with every kind of trouble; see :func:`tests.fixtures.crawl.write_crawl`."""
    return write_crawl(tmp_path / "crawl")
