"""Terminal output of a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.inspection.summary import Summary

BAR = 40
LABELS_OF_NUMBERS = {
    "samples": "samples",
    "refused": "records that training would refuse",
    "with_boxes": "samples with boxes",
    "without_boxes": "samples without boxes",
    "captions": "captions",
    "boxes": "boxes",
    "ignore_regions": "ignore regions",
    "uncertain_phrases": "uncertain phrases",
    "uncertain_names": "uncertain names of images",
    "samples_with_verified_absent": "samples with verified absent names",
    "linked_images": "images linked to",
}
KINDS = {
    "training": "training shards",
    "crawl": "crawl shards",
    "labels": "files of labels",
    "regions": "files of regions",
}


def number_rows(summary: Summary) -> list[tuple[str, str]]:
    """(description, value) of the summary's numbers."""
    rows = [(text, f"{summary.numbers[name]:,}") for name, text in LABELS_OF_NUMBERS.items() if name in summary.numbers]
    if summary.distinct_phrases:
        rows.append(("distinct phrases", f"{summary.distinct_phrases:,}"))
    if summary.extent:
        (h, w), (height, width) = summary.extent[0], summary.extent[-1]
        rows.append(("smallest and largest image, width x height", f"{w:,} x {h:,}, {width:,} x {height:,}"))
    return rows


def lines(summary: Summary, top: int = 20) -> list[str]:
    """Lines with counts, histograms, the ``top`` most frequent phrases, and problems."""
    out = [f"{summary.shards:,} {KINDS[summary.kind]}"]
    rows = number_rows(summary)
    width = max(len(text) for text, _ in rows)
    out += [f"  {text:<{width}}  {n}" for text, n in rows]
    for name, table in summary.tables.items():
        if name != "kinds":
            unit = "boxes" if name in ("annotators", "names") else "samples"
            rest = len(table) - top if name == "names" else 0
            out += ["", f"{name} ({unit})", *_bars(dict(list(table.items())[: len(table) - max(rest, 0)]), bars=False)]
            out += [f"  and {rest:,} more, on the page"] * (rest > 0)
    for histogram in summary.histograms.values():
        out += ["", histogram.title, *_bars(histogram.counts)]
    if summary.phrases:
        out += ["", "most frequent phrases (boxes)", *_bars(dict(summary.phrases[:top]), bars=False)]
    out += ["", "problems" if summary.problems or summary.failed else "no problems"]
    out += _bars({reason.replace("_", " "): n for reason, n in summary.problems.items()}, bars=False)
    out += [f"  FAILED {f.shard}: {f.error}" for f in summary.failed]
    return out + [f"    {note}" for note in summary.notes]


def _bars(counts: Mapping[str, int], bars: bool = True) -> list[str]:
    if not counts:
        return []
    wide, most, total = max(map(len, counts)), max(counts.values()), sum(counts.values())
    digits = len(f"{most:,}")
    rows: Sequence[str] = [f"  {label:<{wide}}  {n:>{digits},}" for label, n in counts.items()]
    if not bars:
        return list(rows)
    shares = [(100 * n / total, round(BAR * n / most)) for n in counts.values()]
    return [
        f"{row}  {share:5.1f} %  {'#' * length}".rstrip() for row, (share, length) in zip(rows, shares, strict=True)
    ]
