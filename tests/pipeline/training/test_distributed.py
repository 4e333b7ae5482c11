"""What the environment of `accelerate launch` makes of a training."""

import os
import subprocess
import sys

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
