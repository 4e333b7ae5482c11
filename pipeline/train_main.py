"""``accelerate launch -m pipeline.train_main``: one training process, as the flow and ``train-*`` start it.

The settings come as JSON files, so that a launcher passes paths and no more.
"""

from __future__ import annotations

import logging
import sys

import click

from pipeline.errors import InputError, RunError


@click.command(context_settings={"show_default": True})
@click.option("--config", required=True, help="JSON file of training settings (pipeline.config.TrainConfig).")
@click.option("--model", "model_file", help="JSON file of the network to build, when not starting from --init.")
@click.option("--source", "sources", multiple=True, required=True, metavar="NAME=SHARDS", help="A source of the mixture.")
@click.option("--init", help="Model folder to start from.")
@click.option("--out", required=True, help="Folder for checkpoints and the final model.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--threads", type=int, help="CPU threads of this process; default: all cores.")
def main(
    config: str,
    model_file: str | None,
    sources: tuple[str, ...],
    init: str | None,
    out: str,
    device: str,
    threads: int | None,
) -> None:
    """Train one model from settings in files."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        _train(config, model_file, sources, init, out, device, threads)
    except (InputError, RunError) as error:
        click.echo(f"train: {error}", err=True)
        sys.exit(error.exit_code)


def _train(
    config: str,
    model_file: str | None,
    sources: tuple[str, ...],
    init: str | None,
    out: str,
    device: str,
    threads: int | None,
) -> None:
    import json
    from pathlib import Path

    from pipeline.config import ModelConfig, TrainConfig
    from pipeline.io.paths import expand_shards
    from pipeline.progress import Terminal
    from pipeline.recipes import build

    def read(path: str) -> dict[str, object]:
        try:
            return json.loads(Path(path).read_text())
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: want a JSON file of settings ({error})") from None

    named: dict[str, list[str]] = {}
    for source in sources:
        name, equals, pattern = source.partition("=")
        if not equals:
            raise InputError(f"--source {source!r}: want NAME=SHARDS, such as grounding='train/grounding-*.tar'")
        named.setdefault(name, []).extend(expand_shards(pattern))
    settings = build(TrainConfig, read(config), where=config)
    network = build(ModelConfig, read(model_file), where=model_file) if model_file else None

    import torch

    from pipeline.stages import train

    if threads:
        torch.set_num_threads(threads)
    train.run(settings, named, out, model=network, init=init, device=device, progress=Terminal())


if __name__ == "__main__":
    main()
