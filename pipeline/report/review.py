"""Application of ``review``: one page, images and verdicts of a store, for who has the address with its token."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import wraps
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline.data.images import ImageError
from pipeline.errors import InputError, RunError
from pipeline.inspection.review_store import GivenVerdict, ReviewStore
from pipeline.io.strict_model import problem_lines
from pipeline.report.figures import jpeg
from pipeline.report.server import application

POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
FILES = {"review.js": "text/javascript", "review.css": "text/css"}
"""Files of the page, which anyone may read."""
NO_TOKEN = "token: found none, or another; want the address that review printed when it was started\n"
MOST_BYTES = 1 << 22
"""Largest body of a POST."""
_GIVEN = TypeAdapter(list[GivenVerdict])


def review_application(store: ReviewStore, token: str) -> Starlette:
    """The application of a store: ``/?token=TOKEN`` is the page."""

    def guarded(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        @wraps(answer)
        def checked(request: Request) -> Response:
            if refusal := _refusal(request, token):
                return refusal
            try:
                return answer(request)
            except (ImageError, RunError, OSError) as error:
                return PlainTextResponse(f"{error}\n", 500)
            except InputError as error:
                return PlainTextResponse(f"{error}\n", 404)

        return checked

    @guarded
    def page(request: Request) -> Response:
        return Response(_file("review.html"), media_type="text/html", headers={"content-security-policy": POLICY})

    def file(request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response(_file(name), media_type=FILES[name], headers={"cache-control": "no-cache"})

    @guarded
    def start(request: Request) -> Response:
        return _json(store.start())

    @guarded
    def stop(request: Request) -> Response:
        found = store.stop(request.path_params["number"])
        return PlainTextResponse("there is no such stop\n", 404) if found is None else _json(found)

    @guarded
    def image(request: Request) -> Response:
        data = store.image(request.path_params["number"])
        if data is None:
            return PlainTextResponse("there is no such image\n", 404)
        return Response(jpeg(data)[0], media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    async def save(request: Request) -> Response:
        if refusal := _refusal(request, token) or _foreign(request):
            return refusal
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                return PlainTextResponse(f"body: found over {MOST_BYTES:,} bytes; want fewer verdicts at a time\n", 413)
        try:
            given = _GIVEN.validate_json(bytes(body))
        except ValidationError as error:
            return PlainTextResponse(f"{problem_lines(error, 'verdicts')[0]}\n", 422)
        try:
            refused = await run_in_threadpool(store.save, given)
        except InputError as error:
            return PlainTextResponse(f"{error}\n", 500)
        saved = [one.id for one in given if one.id not in refused]
        return _json({"saved": saved, "refused": refused, "progress": await run_in_threadpool(store.progress)})

    return application(
        [
            Route("/", page), *(Route(f"/{name}", file) for name in FILES), Route("/start", start),
            Route("/stop/{number:int}", stop), Route("/image/{number:int}", image),
            Route("/verdicts", save, methods=["POST"]),
        ]
    )  # fmt: skip


def _file(name: str) -> bytes:
    return resources.files("pipeline.report").joinpath(name).read_bytes()


def _json(content: Any) -> Response:
    return JSONResponse(content, headers={"cache-control": "no-store"})


def _refusal(request: Request, token: str) -> Response | None:
    given = request.query_params.get("token", "")
    return None if secrets.compare_digest(given.encode(), token.encode()) else PlainTextResponse(NO_TOKEN, 403)


def _foreign(request: Request) -> Response | None:
    """Refusal of a POST that a page of another origin made."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    own = origin is None or urlsplit(origin).netloc == request.headers.get("host", "")
    if not own or site != "same-origin":
        return PlainTextResponse(f"Origin: found {origin} ({site}); want the page of this address\n", 403)
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return PlainTextResponse("Content-Type: want application/json\n", 415)
    return None
