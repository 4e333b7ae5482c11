"""convert-checkpoint: a released GLIP checkpoint as a model folder, once for each file."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from pipeline.execution.options import WorkLeft
from pipeline.io.hashing import digest_file
from pipeline.io.paths import local_folder
from pipeline.stages.jobs import ConvertCheckpoint
from pipeline.training.checkpoints import read_state, write_checkpoint


def run(job: ConvertCheckpoint) -> dict[str, str]:
    """Write ``out/final``, unless it holds this file's model already; return its folder and the file's digest.

    Raises:
        InputError: the file is no released checkpoint, or no vocabulary for its tokenizer is
            installed.
    """
    folder = local_folder(job.out, "a model") / "final"
    fingerprint = digest_file(job.checkpoint)
    report = {"model": str(folder), "sha256": fingerprint}
    state = read_state(folder)
    if state is not None and state.fingerprint == fingerprint:
        return report
    if job.check_only:
        raise WorkLeft

    from model.convert_checkpoint import VOCABULARY_PACKAGE, CheckpointError, bundled_vocabulary, convert

    vocabulary = bundled_vocabulary()
    if vocabulary is None:
        raise InputError(
            f"{job.checkpoint}: its tokenizer needs bert-base-uncased's vocabulary, and the package "
            f"{VOCABULARY_PACKAGE.replace('_', '-')} that holds it is not installed; want that package, or the folder "
            "that `convert-checkpoint --vocab` writes"
        )

    def fill(temporary: Path) -> None:
        try:
            convert(job.checkpoint, None, temporary, vocabulary)
        except CheckpointError as error:
            raise InputError(str(error)) from None

    write_checkpoint(folder, 0, fingerprint, fill)
    return report
