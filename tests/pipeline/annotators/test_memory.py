"""Memory of a network, estimated on fake tensors, against what torch allocates for a real one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from model import GlipForObjectDetection
from pipeline.annotators.memory import BASE, GIB, MemoryNeed, check_cpu_memory, dry_step, estimate
from pipeline.errors import InputError

MEASURE = """
import json, re, sys, torch
from model import GlipConfig, GlipForObjectDetection
from pipeline.annotators.memory import _loss, estimate, synthetic_inputs
config, size, images, training = GlipConfig.from_pretrained(sys.argv[1]), (512, 768), 4, sys.argv[2] == "True"
network = GlipForObjectDetection(config).train(training)
# not ru_maxrss, which begins with that of the process that started this one
peak = lambda: int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def run(images, size):
    with torch.set_grad_enabled(training):
        output = network(**synthetic_inputs(config, images, size, "cpu"))
        if training:
            _loss(output).backward()
run(1, (64, 64))
before = peak()
run(images, size)
need = estimate(config, size, training=training, precision="float32")
print(json.dumps([peak() - before, images * need.per_image]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_estimate_is_what_the_process_grows_by(teacher, training):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(teacher), str(training)], stdout=subprocess.PIPE, check=True
    )
    grown, estimated = json.loads(done.stdout.splitlines()[-1])
    assert estimated == pytest.approx(grown, rel=0.35)


def test_the_largest_batch_that_fits_is_the_largest():
    need = MemoryNeed(fixed=3 * GIB, per_image=GIB // 3)
    for available in range(2 * GIB, 20 * GIB, GIB // 7):
        most = need.most(available)
        assert (most == 0 or need.of(most) <= available) and available < need.of(most + 1)


def test_checkpointing_and_no_gradients_need_less_and_averages_more(teacher):
    config = GlipForObjectDetection.config_class.from_pretrained(teacher)
    size, settings = (128, 128), {"precision": "float32"}
    plain = estimate(config, size, training=True, **settings)
    averaged = estimate(config, size, training=True, averaged=True, **settings)
    labelling = estimate(config, size, training=False, **settings)
    assert labelling.per_image < plain.per_image
    weights = averaged.fixed - plain.fixed
    assert weights > 0 and plain.fixed == BASE + 4 * weights and labelling.fixed == BASE + weights
    larger = estimate(config, (256, 256), training=True, **settings)
    assert 3 < larger.per_image / plain.per_image < 5


def test_a_batch_beyond_the_memory_is_refused_and_one_near_it_is_warned_of(teacher, caplog):
    config = GlipForObjectDetection.config_class.from_pretrained(teacher)
    settings = {"training": True, "precision": "float32"}
    need = estimate(config, (256, 256), **settings)

    def check(images, available):
        advised = []
        check_cpu_memory(
            config,
            (256, 256),
            images,
            available=available,
            advice=lambda n: advised.append(n) or f"{n} images",
            **settings,
        )

    with pytest.raises(InputError, match=r"^64 images of 256x256 in a batch need about [\d.]+ GiB.*; want 8 images$"):
        check(64, need.of(8))
    assert not caplog.text
    check(8, need.of(8))
    assert "8 images of 256x256" in caplog.text
    caplog.clear()
    check(8, 2 * need.of(8))
    assert not caplog.text


def test_a_dry_step_leaves_no_trace_and_says_whether_it_fits(teacher):
    network = GlipForObjectDetection.from_pretrained(teacher).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert dry_step(network, (64, 96), 2, "bf16")
    assert all(p.grad is None for p in network.parameters()) and network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not dry_step(network, (64, 96), 1 << 40, "float32")  # more than any machine has
