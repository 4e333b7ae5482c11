"""Commands of other tools' formats: export-labels, as `export` is a shell builtin, and import-verdicts."""

from __future__ import annotations

from typing import Any

from pipeline.cli.common import echo_lines, job_command, make_job
from pipeline.execution.reports import StageReport
from pipeline.stages.jobs import ExportLabels, ImportVerdicts


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


@job_command(ImportVerdicts)
def import_verdicts(values: dict[str, Any]) -> StageReport:
    """Turn the labels that people went through in a labelling tool into verdicts on the stored regions.

    A box as it was exported is an accept, a moved one fixed, a deleted one a reject, and a new one missing. Images that
    nobody has gone through, and regions that were not exported, give no verdict.

    \b
    Example: import-verdicts project-1.json --from label-studio --regions store/regions --out verdicts
             import-verdicts annotations.xml --from cvat --regions store/regions --phrases store/phrases --out verdicts
             import-verdicts set.json --from coco --regions store/regions --labels store/labels --out verdicts
    """
    return make_job(ImportVerdicts, values).run()
