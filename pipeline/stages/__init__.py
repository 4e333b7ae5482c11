"""Python API (docs/python.md): a job for each stage. Importing the jobs loads no heavy library."""

from pipeline.stages.jobs import (
    JOBS,
    ApplyVerifier,
    BuildShards,
    Calibrate,
    CountPhrases,
    Dedup,
    Evaluate,
    ExportLabels,
    FilterBoxes,
    FitVerifier,
    ImportVerdicts,
    Ingest,
    Job,
    MakeDemoData,
    MergeRegions,
    ParsePhrases,
    PerShardJob,
    PseudoLabel,
    Rescore,
    SweepThresholds,
    TrainModel,
    read_job,
    write_job,
)

__all__ = [
    "JOBS", "ApplyVerifier", "BuildShards", "Calibrate", "CountPhrases", "Dedup", "Evaluate", "ExportLabels",
    "FilterBoxes", "FitVerifier", "ImportVerdicts", "Ingest", "Job", "MakeDemoData", "MergeRegions", "ParsePhrases",
    "PerShardJob", "PseudoLabel", "Rescore", "SweepThresholds", "TrainModel", "read_job", "write_job",
]  # fmt: skip
