"""``accelerate launch -m pipeline.cli.train``: one training process, as the flow starts it.

The settings come as JSON files, so that a launcher passes paths and no more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.common import DEVICE, SOURCES, THREADS, one_line_errors, setup_logging
from pipeline.config import ModelConfig, TrainConfig
from pipeline.config.recipes import build
from pipeline.errors import InputError
from pipeline.io.shard_patterns import expand_shards
from pipeline.system.parent_watch import exit_with_parent

DATA_WORKERS = click.option(
    "--data-workers", type=click.IntRange(0), default=0,
    help="Processes that read ahead, for each training process; the batches are the same for any number.",
)  # fmt: skip
LOG_WITH = click.option("--log-with", type=click.Choice(["wandb", "trackio"]), help="A tracker beside TensorBoard.")

if TYPE_CHECKING:
    from pipeline.stages.train import TrainReport


def named_sources(sources: Sequence[str], option: str = "--source") -> dict[str, list[str]]:
    """``NAME=SHARDS`` options as name -> shards; a name may come several times.

    Raises:
        InputError: no ``=``, or shards that are not there.
    """
    named: dict[str, list[str]] = {}
    for source in sources:
        name, equals, pattern = source.partition("=")
        if not equals:
            raise InputError(f"{option} {source!r}: want NAME=SHARDS, such as grounding='train/grounding-*.tar'")
        named.setdefault(name, []).extend(expand_shards(pattern))
    return named


def start(
    config: TrainConfig,
    sources: dict[str, list[str]],
    out: str,
    *,
    model: ModelConfig | None,
    init: str | None,
    device: str,
    threads: int | None,
    data_workers: int = 0,
    log_with: str | None = None,
) -> TrainReport:
    """Run the training stage in this process with ``threads`` CPU threads and, in the first process, a terminal's progress."""
    import torch

    from pipeline.execution.progress import Silent, Terminal
    from pipeline.stages import train

    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # a pool of threads for a handful of captions costs more than it saves
    if threads:
        torch.set_num_threads(threads)
    return train.run(
        config, sources, out, model=model, init=init, device=device, data_workers=data_workers, tracker=log_with,
        progress=Terminal() if os.environ.get("RANK", "0") == "0" else Silent(),
    )  # fmt: skip


def _read(path: str) -> dict[str, object]:
    try:
        return json.loads(Path(path).read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: want a JSON file of settings ({error})") from None


@click.command(context_settings={"show_default": True})
@click.option("--config", required=True, help="JSON file of training settings (pipeline.config.TrainConfig).")
@click.option("--model", "model_file", help="JSON file of the network to build, when not starting from --init.")
@SOURCES
@click.option("--init", help="Model folder to start from.")
@click.option("--out", required=True, help="Folder for checkpoints and the final model.")
@DEVICE
@THREADS
@DATA_WORKERS
@LOG_WITH
def main(
    config: str,
    model_file: str | None,
    sources: tuple[str, ...],
    init: str | None,
    out: str,
    device: str,
    threads: int | None,
    data_workers: int,
    log_with: str | None,
) -> None:
    """Train one model from settings in files."""
    setup_logging(verbose=False)
    exit_with_parent()
    with one_line_errors("train"):
        settings = build(TrainConfig, _read(config), where=config)
        network = build(ModelConfig, _read(model_file), where=model_file) if model_file else None
        start(
            settings, named_sources(sources), out, model=network, init=init, device=device, threads=threads,
            data_workers=data_workers, log_with=log_with,
        )  # fmt: skip


if __name__ == "__main__":
    main()
