"""make-demo-data: draw the demo's data sets."""

from __future__ import annotations

from pathlib import Path

from pipeline.demo.config import DemoDataSummary
from pipeline.demo.generate import generate_demo
from pipeline.stages.jobs import MakeDemoData


def run(job: MakeDemoData) -> DemoDataSummary:
    """Draw the demo's scenes and write its sets below ``out``, unless they are there.

    Raises:
        InputError, WorkLeft: as :func:`pipeline.demo.generate.generate_demo`.
    """
    return generate_demo(Path(job.out), job.settings, progress=job.progress, check_only=job.check_only)
