"""What the environment of `accelerate launch` makes of a training."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline.training import distributed
from pipeline.training.distributed import COMPILED, compile_units
from tests.fixtures.compiling import compile_graphs_alone
from tests.model.glip_reference import tiny_model

ASK = """
import os, sys
from accelerate.utils import DistributedType
from pipeline.training.distributed import Processes
processes = Processes(device="cpu", precision="float32", tracker=None, folder=sys.argv[1])
alone = processes.accelerator.distributed_type == DistributedType.NO
print(processes.description, alone, "ACCELERATE_USE_FSDP" in os.environ, sep="; ")
"""


def test_one_process_has_nothing_to_share_out(tmp_path):
    """`--use_fsdp --num_processes 1`: on a GPU accelerate would shard parts that are never called as modules."""
    env = os.environ | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "1"}
    command = [sys.executable, "-c", ASK, str(tmp_path)]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert said == "1 process, cpu, float32; True; False\n"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("unit", COMPILED)
def test_compiled_units_have_the_same_losses_gradients_and_names(unit, monkeypatch, caplog):
    """One with inductor, which takes minutes a unit on a CPU; of the others the graphs, forward and backward."""
    if unit == "BertLayer" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    if unit != "BertLayer":
        compile_graphs_alone(monkeypatch)
    monkeypatch.setattr(distributed, "COMPILED", (unit,))
    losses, gradients, names = [], [], []
    for mode in ("off", "auto"):
        network = tiny_model(fusion_dropout=0.0, drop_block_prob=0.0, num_blocks=1)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        network.gradient_checkpointing_enable({"use_reentrant": False})
        compile_units(network, mode)
        generator = torch.Generator().manual_seed(0)
        for height, width in ((64, 96), (96, 64)):
            torch.manual_seed(0)  # drop path, which stays outside
            output = network(
                pixel_values=torch.randn(2, 3, height, width, generator=generator),
                input_ids=torch.randint(1000, 2000, (2, 7), generator=generator),
                labels=[{"boxes": torch.tensor([[4.0, 4, 40, 50]]), "positive_map": torch.eye(7)[2:3]}] * 2,
            )
            output.loss.backward()
            losses.append(float(output.loss.detach()))
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        names.append(list(network.state_dict()))
    assert names[0] == names[1] and not [r for r in caplog.records if r.name == "glip_self_train"]
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
