"""The export command. It is installed as export-labels, as `export` is a shell builtin."""

from __future__ import annotations

from typing import Any

from pipeline.cli.common import echo_lines, job_command, make_job
from pipeline.execution.reports import StageReport
from pipeline.stages.jobs import ExportLabels


@job_command(ExportLabels)
def export_labels(values: dict[str, Any]) -> StageReport:
    """Write labels in the formats of other trainers and viewers.

    DIR is a folder or pattern of training shards (of ingest or build-shards), or a folder of labels
    (of filter-boxes). The report counts facts that the format cannot hold: lost_X is not in the
    output, extra_X is in a field that only ingest reads.

    \b
    Example: export-labels train --to coco --out coco
    Example: export-labels 'pseudo/pseudo-*.tar' --to odvg --out odvg --images none
    Example: export-labels store/labels --phrases store/phrases --shards 'crawl/{00000..00099}.tar' \\
        --to fiftyone --out fo
    """
    exported = make_job(ExportLabels, values).run()
    echo_lines(exported.report.lines())
    echo_lines([f"  {hint}" for hint in exported.hints])
    return exported.report
