"""Pages over all samples of stores, and over runs, as a site that ``self-train view`` serves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import quote, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.config.recipes import load_recipe
from pipeline.data.images import ImageError
from pipeline.errors import InputError, RunError
from pipeline.execution.progress import Progress, Silent
from pipeline.inspection.label_store import LabelStore
from pipeline.inspection.samples import SampleStore, TrainingStore
from pipeline.inspection.selection import Query, SampleIndex
from pipeline.inspection.summary import kind_of
from pipeline.io.shard_patterns import shards_in
from pipeline.report.figures import figure, jpeg
from pipeline.report.page import headline
from pipeline.report.provenance import provenance
from pipeline.report.server import application
from pipeline.report.templates import render
from pipeline.runs.excluded_shards import crawl_shards
from pipeline.runs.layout import RunLayout
from pipeline.runs.status import run_state
from pipeline.runs.summary import gold_of

PER_PAGE = 24
PAGES = (".html", ".png", ".svg")
"""Endings of the files of a run's report that are served."""
UNREADABLE = (InputError, OSError, ValueError, KeyError, TypeError, AttributeError)
"""Errors of a run whose files are damaged, or of another version."""
IMAGE = re.compile(r"(.*)image/(\d+)-(\d+)\.jpg")


@dataclass(frozen=True)
class Source:
    """A store to open: the files that it depends on, and how it is opened."""

    files: tuple[str, ...]
    make: Callable[[], SampleStore]

    def state(self) -> tuple[str, ...]:
        """The files with the times of their last changes: with files that a stage wrote anew it is another store."""
        return tuple(f"{path} {Path(path).stat().st_mtime_ns if Path(path).is_file() else ''}" for path in self.files)


Sources = Mapping[str, Source]
"""Address below the site's root, ending in "/" unless it is "", -> store."""


def shard_source(shards: Sequence[str], **options: Any) -> Source:
    """Training shards, labels or regions. options: of LabelStore, for the latter two.

    Raises:
        InputError: shards of another kind, or options for training shards.
    """
    kind = kind_of(shards)
    if kind == "crawl":
        raise InputError(f"{shards[0]}: found crawl shards; want training shards, labels or regions")
    if kind == "training":
        if given := sorted(name for name, value in options.items() if value):
            raise InputError(f"{shards[0]}: found training shards, which have their own {' and '.join(given)}")
        return Source(tuple(shards), partial(TrainingStore, shards))
    return Source(tuple(shards), partial(LabelStore, shards, **options))


def evaluation_sources(folder: Path, shards: Mapping[str, Sequence[str]] | None = None) -> dict[str, Source]:
    """A store for each set of an evaluation's folder. shards: set -> its shards, if they have moved."""
    file, given = folder / "metrics.json", shards or {}
    return {
        f"{name}/": Source((str(file),), partial(_evaluation_store, folder, name, given.get(name, ())))
        for name in json.loads(file.read_text())["sets"]
    }


def _evaluation_store(folder: Path, name: str, shards: Sequence[str]) -> SampleStore:
    from pipeline.inspection.evaluation_store import EvaluationStore  # loads torch

    return EvaluationStore(folder, name, shards)


def run_sources(run: Path) -> dict[str, Source]:
    """The stores of a run so far."""
    layout = RunLayout(run)
    config, sources = load_recipe(str(layout.config)), dict[str, Source]()
    sets: dict[str, list[str]] = {}
    for path in shards_in(layout.train):
        sets.setdefault(re.sub(r"-\d+\.tar$", "", Path(path).name), []).append(path)
    sources |= {f"train/{name}/": Source(tuple(paths), partial(TrainingStore, paths)) for name, paths in sets.items()}
    gold = gold_of(config, layout)
    labels_of = partial(LabelStore, phrases=str(layout.phrases), gold=str(gold) if gold and gold.is_dir() else None)
    number = 1
    while layout.regions(number).is_dir():
        for kind, folder in (("regions", layout.regions(number)), ("labels", layout.labels(number))):
            if files := shards_in(folder, ".parquet"):
                regions = str(layout.regions(number)) if kind == "labels" else None
                make = partial(labels_of, files, crawl=crawl_shards(config, layout), regions=regions)
                sources[f"{kind}/round-{number}/"] = Source(tuple(files), make)
        if shards := shards_in(layout.pseudo(number)):
            sources[f"pseudo/round-{number}/"] = Source(tuple(shards), partial(TrainingStore, shards))
        number += 1
    for metrics in sorted((run / "evaluation").glob("*/metrics.json")):
        of_model = evaluation_sources(metrics.parent).items()
        sources |= {f"evaluation/{metrics.parent.name}/{name}": source for name, source in of_model}
    return sources


class Site:
    """The site of one folder.

    Args:
        title: of its pages. sources: stores. runs: gives name -> folder of the runs there are now. A
            run's stores, and the pages of its report, are below its name.
    """

    def __init__(self, title: str, sources: Sources, runs: Callable[[], Mapping[str, Path]] = dict) -> None:
        self._title, self._sources, self._runs, self._lock = title, sources, runs, RLock()
        self._progress: Progress = Silent()
        self._made = provenance()
        self._opened = lru_cache(maxsize=4)(self._open)

    def app(self) -> Starlette:
        """The application to serve."""
        return application([Route("/{path:path}", self._answer)])

    def prepare(self, progress: Progress) -> None:
        """Open and index the store of the root, if there is one, before the first request."""
        if "" in self._sources:
            self._progress = progress
            self._opened("", self._sources[""].state())

    def _open(self, address: str, state: tuple[str, ...]) -> tuple[SampleStore, SampleIndex]:
        store = self._stores(address)[address].make()
        return store, SampleIndex(store, self._progress)

    def _stores(self, path: str) -> dict[str, Source]:
        """The stores that a path is in or leads to; of the runs only those that it names, as a run may have many."""
        sources = dict(self._sources)
        for title, run in self._runs().items():
            if not (f"{path}/".startswith(f"{title}/") or (path and f"{title}/".startswith(path))):
                continue
            try:
                sources |= {f"{title}/{name}": source for name, source in run_sources(run).items()}
            except UNREADABLE:
                continue  # its line in the list says why
        return sources

    def _answer(self, request: Request) -> Response:
        path = request.path_params["path"]
        try:
            return self._page(path, request) or self._error("No such page", f"/{path}: there is no such page", 404)
        except (InputError, RunError, ImageError, OSError) as error:
            return self._error("This cannot be shown", str(error), 400 if isinstance(error, InputError) else 500)

    def _error(self, title: str, text: str, status: int) -> Response:
        return HTMLResponse(render("message.html", title=title, text=text, made=self._made), status)

    def _page(self, path: str, request: Request) -> Response | None:
        if (file := self._file(path)) is not None:
            return FileResponse(file)
        sources = self._stores(path)
        if image := IMAGE.fullmatch(path):
            address, shard, row = image[1], int(image[2]), int(image[3])
            return self._image(address, sources[address], shard, row) if address in sources else None
        if path in sources:
            return HTMLResponse(
                self._gallery(path, sources[path], Query.parse(request.query_params), not request.query_params)
            )
        below = {name.removeprefix(path): name for name in sources if name.startswith(path)}
        if path == "" or (path.endswith("/") and (below or self._run(path) is not None)):
            return HTMLResponse(self._list(path, below))
        if f"{path}/" in sources or self._run(f"{path}/") or any(name.startswith(f"{path}/") for name in sources):
            return RedirectResponse(f"/{quote(path)}/")
        return None

    def _run(self, path: str) -> Path | None:
        """The run at ``NAME/``."""
        return self._runs().get(path.removesuffix("/")) if path.endswith("/") else None

    def _file(self, path: str) -> Path | None:
        """A file of a run's report, and nothing outside it."""
        name, _, rest = path.rpartition("/report/")
        if not rest or (run := self._run(f"{name}/")) is None:
            return None
        folder = (run / "report").resolve()
        file = (folder / rest).resolve()
        inside = file.is_relative_to(folder) and file.suffix in PAGES and file.is_file()
        return file if inside else None

    def _image(self, address: str, source: Source, shard: int, row: int) -> Response | None:
        with self._lock:  # a store reads files that stay open
            store, _ = self._opened(address, source.state())
            if shard >= len(store.shards) or row >= len(store.samples(shard)):
                return None
            data = store.image(shard, row)
        return Response(jpeg(data)[0], media_type="image/jpeg", headers={"cache-control": "private, max-age=60"})

    def _gallery(self, address: str, source: Source, query: Query, fresh: bool) -> str:
        with self._lock:
            store, index = self._opened(address, source.state())
            if fresh and store.least:
                query = Query(least=store.least)
            chosen = index.select(query)
            first = (query.page - 1) * PER_PAGE
            places = [index.place(int(number)) for number in chosen[first : first + PER_PAGE]]
            items = [
                figure(store.samples(shard)[row], f"/{quote(address)}image/{shard}-{row}.jpg") for shard, row in places
            ]
        pages = max(1, -(-len(chosen) // PER_PAGE))
        turns = {"first": 1, "previous": query.page - 1, "next": query.page + 1, "last": pages}
        links = {
            name: "?" + urlencode(query.model_dump(exclude={"page"}) | {"page": number})
            for name, number in turns.items()
            if 1 <= number <= pages and number != query.page
        }
        return render(
            "view.html", title=self._heading(address), items=items, query=query, live=True, links=links,
            pages=pages, found=len(chosen), total=len(index), made=self._made, up="/" if address else "",
        )  # fmt: skip

    def _heading(self, path: str) -> str:
        return f"{self._title}: {path}".removesuffix(": ")

    def _list(self, path: str, below: Mapping[str, str]) -> str:
        """The list of runs, or of the stores and pages below a path."""
        runs = list(self._rows()) if path == "" else []
        run, pages = self._run(path), dict[str, str]()
        if run is not None:
            files = sorted((run / "report").glob("*.html"))
            pages = {file.stem: f"/{quote(path)}report/{quote(file.name)}" for file in files}
        stores = {} if runs else {name.rstrip("/"): f"/{quote(address)}" for name, address in below.items()}
        return render(
            "list.html", title=self._heading(path), runs=runs, pages=pages, stores=stores, made=self._made,
            state=_state(run)[0] if run else None, up="/" if path else "",
        )  # fmt: skip

    def _rows(self) -> Iterator[dict[str, Any]]:
        for name, run in self._runs().items():
            state, numbers = _state(run)
            yield {"name": name, "address": f"/{quote(name)}/", "state": state, "numbers": numbers}


def _state(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """(state of a run, or why its files cannot be read; its headline figures)."""
    file = RunLayout(run).summary
    try:
        run_sources(run)
        return run_state(run), headline(json.loads(file.read_text())) if file.is_file() else []
    except UNREADABLE as error:
        return f"cannot be read: {type(error).__name__}: {error}", []
