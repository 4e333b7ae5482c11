"""Commands about data sets: ``ingest``, ``make-demo-data`` and ``datasets``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import echo_lines, job_command, make_job, one_line_errors
from pipeline.config.recipes import build
from pipeline.demo.config import DemoDataConfig
from pipeline.execution.reports import StageReport
from pipeline.stages.jobs import Ingest, MakeDemoData

if TYPE_CHECKING:
    from pipeline.data.manifests import Manifest, SetManifest


@job_command(Ingest)
def ingest(values: dict[str, Any]) -> StageReport:
    """Convert human-labelled sets, in their published formats, to training shards.

    MANIFEST is a YAML file or a name that `datasets list` shows.

    \b
    Example: ingest data_manifests/demo.yaml --root runs/demo/data --out runs/demo/train
    Example: ingest coco --root /data --only coco2017_train --out train --workers 8
    """
    return make_job(Ingest, values).run()


@job_command(MakeDemoData, report=False)
@click.option("--seed", type=int, help="The same seed gives the same bytes.  [default: 0]")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting, such as crawled_scenes=500; may be repeated.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def make_demo_data(values: dict[str, Any], seed: int | None, changes: tuple[str, ...], quiet: bool) -> None:
    """Draw the demo's scenes and write labelled, crawled and held-out sets into a folder.

    Needs no network: glyph fonts and photographs come from installed packages. A folder that
    already holds the sets of these settings stays as it is. data_manifests/demo.yaml describes the
    contents.
    """
    values["settings"] = build(DemoDataConfig, {} if seed is None else {"seed": seed}, changes)
    if quiet:
        del values["progress"]
    echo_lines(make_job(MakeDemoData, values).run().lines())


@click.group()
def datasets() -> None:
    """List the known data sets with their sources and licences, and check their files."""


@datasets.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def list_sets(as_json: bool) -> None:
    """List all manifests: name, kinds of sets, title. The JSON also has formats and set names."""
    from pipeline.data.manifests import load_manifest, manifest_names

    rows: list[dict[str, Any]] = []
    with one_line_errors("datasets"):
        for name in manifest_names():
            manifest = load_manifest(name)
            rows.append(
                {
                    "name": name,
                    "kinds": sorted({str(s.kind) for s in manifest.sets.values()}) or ["mixture"],
                    "formats": sorted({s.format for s in manifest.sets.values()}),
                    "sets": [*manifest.sets, *(s.set for s in manifest.mixture)],
                    "title": manifest.title or "",
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    lines = [(row["name"], "/".join(row["kinds"]), row["title"]) for row in rows]
    wide = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    for name, kinds, title in lines:
        click.echo(f"{name:<{wide[0]}}  {kinds:<{wide[1]}}  {title}")


@datasets.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def show_set(name: str, as_json: bool) -> None:
    """Show one manifest: pages, licence, files to fetch, counts, and which facts were checked.

    For a mixture, show the shares.
    """
    from pipeline.data.manifests import load_manifest

    with one_line_errors("datasets"):
        manifest = load_manifest(name)
    if as_json:
        click.echo(manifest.model_dump_json(indent=1, exclude_none=True, exclude_defaults=True))
        return
    _show(manifest)


@datasets.command("check")
@click.argument("name")
@click.option("--root", default=".", show_default=True, help="Folder or URL that the manifest's paths are relative to.")
@click.option("--only", help="Check this set of the manifest only.")
@click.option("--sizes-only", is_flag=True, help="Compare sizes only, without reading the files.")
def check_set(name: str, root: str, only: str | None, sizes_only: bool) -> None:
    """Compare the files under --root with the sizes and checksums that a manifest states.

    A file is searched at the manifest's `path`, else by name in the root and beside the set's own
    files. The exit code is 2 if a file differs, or if there is none to compare; archives that were
    unpacked and removed are listed as absent.

    \b
    Example: datasets check coco --root /data --only coco2017_val
    """
    from collections import Counter

    from pipeline.data.checksums import check_files
    from pipeline.data.manifests import read_manifest
    from pipeline.errors import InputError

    with one_line_errors("datasets"):
        sets = read_manifest(name, only)
        states: Counter[str] = Counter()
        for checked in check_files(sets, root, sizes_only=sizes_only):
            states[checked.state] += 1
            click.echo(f"{checked.state:<8}  {checked.path or checked.name}: {checked.detail}")
        if not states:
            raise InputError(f"{name}: names no files to check")
        click.echo(", ".join(f"{n} {state}" for state, n in sorted(states.items())))
        if states["differs"]:
            raise InputError(
                f"{states['differs']} of {states.total()} files differ from what {name} states; fetch them again"
            )
        if not states["ok"]:
            raise InputError(f"nothing compared: no file of {name} with a size or checksum is below {root}")


def _echo_fields(fields: dict[str, str | None]) -> None:
    for label, text in fields.items():
        if text:
            click.echo(f"  {label}: {' '.join(text.split())}")


def _echo_checks(of: Manifest | SetManifest) -> None:
    _echo_fields({f"checked, {topic}": text for topic, text in of.checked.items()})
    _echo_fields({f"not checked, {topic}": text for topic, text in of.unchecked.items()})


def _show(manifest: Manifest) -> None:
    click.echo(f"{manifest.name}: {manifest.title or ''}")
    _echo_fields({"page": manifest.source, "licence": manifest.licence, "note": manifest.note})
    _echo_checks(manifest)
    for name, entry in manifest.sets.items():
        click.echo(f"\n{name}: {entry.kind}, format {entry.format}" + (f", split {entry.split}" if entry.split else ""))
        for role, path in (
            ("annotations", entry.annotations),
            *entry.companions.items(),
            ("images", entry.images_folder),
            ("shards", entry.shards_pattern),
        ):
            if path:
                click.echo(f"  {role}: {path if isinstance(path, str) else json.dumps(path)}")
        for file in entry.files:
            sums = [f"{file.bytes:,} bytes"] if file.bytes is not None else []
            sums += [f"md5 {file.md5}"] if file.md5 else []
            sums += [f"sha256 {file.sha256}"] if file.sha256 else []
            sums += [f"as stated by {file.checksum_source}"] if sums and file.checksum_source else []
            click.echo(f"  fetch: {file.url or file.name}" + (f" ({', '.join(sums)})" if sums else ""))
        if entry.counts:
            counts = ", ".join(f"{n:,} {unit}" for unit, n in entry.counts.items())
            click.echo(f"  counts: {counts}" + (f" ({entry.counts_source})" if entry.counts_source else ""))
        _echo_fields({"page": entry.source, "licence": entry.licence, "note": entry.note})
        _echo_checks(entry)
    total = sum((share.images or 0) * share.copies for share in manifest.mixture)
    for share in manifest.mixture:
        of_all = f", {share.images:,} images each" if share.images else ""
        part = f", {100 * share.images * share.copies / total:.0f}% of an epoch" if share.images and total else ""
        click.echo(f"  {share.copies} x {share.set} (manifest {share.manifest}){of_all}{part}")
        if share.note:
            click.echo(f"      {' '.join(share.note.split())}")
