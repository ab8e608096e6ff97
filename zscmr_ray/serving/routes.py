"""The HTTP routes of one service, as a FastAPI application inside the guard.

What it is: parsing by strict content type, the paths of DESIGN 6, their OpenAPI document and the search page. What it is
not: the work itself (service.py). No documentation UI: those load scripts from elsewhere; /openapi.json is there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp

from zscmr_ray import __version__
from zscmr_ray.config import ServeSection
from zscmr_ray.config.serving import DEFAULT_INDEX
from zscmr_ray.serving.guard import PAGE_FILES, Guard
from zscmr_ray.serving.metrics import MEDIA_TYPE as METRICS_MEDIA_TYPE
from zscmr_ray.serving.metrics import Snapshot, exposition
from zscmr_ray.serving.observed import Observed
from zscmr_ray.serving.problems import MEDIA_TYPE, ProblemError, install_problem_handlers
from zscmr_ray.serving.questions import holds_picture
from zscmr_ray.serving.service import SearchService
from zscmr_ray.serving.wire import (
    EmbeddingsRequest,
    EmbeddingsResponse,
    Health,
    Indexes,
    Item,
    Problem,
    SearchRequest,
    SearchResponse,
)

_REFS = "#/components/schemas/{model}"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": text,
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REFS.format(model="Problem")}}},
    }
    for code, text in (
        ("4XX", "What was asked cannot be answered: got, expected, remedy."),
        ("5XX", "The service cannot answer now; a 503 carries Retry-After."),
    )
}
_SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _REFS.format(model="SearchRequest")}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "the query picture"},
                        "request": {
                            "type": "string",
                            "description": "SearchRequest as JSON, without `query`",
                        },
                    },
                }
            },
        },
    }
}


_EMBEDDINGS_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _REFS.format(model="EmbeddingsRequest")}}},
    }
}


def http_app(
    service: SearchService,
    settings: ServeSection,
    *,
    api_keys: tuple[str, ...],
    is_local: bool = False,
    gather: Callable[[], Awaitable[dict[str, Snapshot]]] | None = None,
) -> ASGIApp:
    """Build the ASGI application of a service; `api_keys` empty = open; `is_local` = to this machine's own requests.

    `gather` gives the counts of all its replicas.
    """
    app = FastAPI(
        title="zscmr_ray", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    install_problem_handlers(app)
    _add_api(app, service)
    _add_operations(app, service, gather)
    _add_page(app)
    _complete_openapi(app)
    guarded = Guard(app, api_keys=api_keys, max_body_bytes=settings.max_body_bytes, is_local=is_local)
    return Observed(guarded, service.metrics)


def _add_api(app: FastAPI, service: SearchService) -> None:
    @app.post(
        "/v1/search",
        response_model=SearchResponse,
        responses=_PROBLEMS,
        openapi_extra=_SEARCH_BODY,
        tags=["search"],
    )
    async def search(request: Request) -> Response:
        """Search images or captions by text, picture, id or vector."""
        service.admit(
            may_hold_picture=holds_picture(_content_type(request), request.headers.get("content-length"))
        )
        wanted, image = await _read_search(request)
        return _json(await service.search(wanted, image=image))

    @app.post(
        "/v1/embeddings",
        response_model=EmbeddingsResponse,
        responses=_PROBLEMS,
        openapi_extra=_EMBEDDINGS_BODY,
        tags=["embeddings"],
    )
    async def embeddings(request: Request) -> Response:
        """Texts and pictures to the vectors that are stored for them, in the shape of OpenAI's endpoint."""
        if _content_type(request) != "application/json":
            raise ProblemError(
                415, "unknown content type", got=_content_type(request) or "none", expected="application/json"
            )
        service.admit(
            may_hold_picture=holds_picture("application/json", request.headers.get("content-length"))
        )
        return _json(await service.embed(EmbeddingsRequest.model_validate_json(await request.body())))

    @app.get("/v1/items/{item_id:path}", response_model=Item, responses=_PROBLEMS, tags=["items"])
    async def item(item_id: str, index: str = DEFAULT_INDEX) -> Response:
        """Look up an item or caption by its percent-encoded id."""
        return _json(service.item(item_id, index=index))

    @app.get(
        "/v1/thumbnails/{item_id:path}",
        response_class=Response,
        responses=_PROBLEMS | {200: {"content": {"image/jpeg": {}}}},
        tags=["items"],
    )
    async def thumbnail(item_id: str, index: str = DEFAULT_INDEX) -> Response:
        """The JPEG thumbnail of an item, or of a caption's item."""
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(service.thumbnail(item_id, index=index), media_type="image/jpeg", headers=headers)

    @app.get("/v1/indexes", response_model=Indexes, responses=_PROBLEMS, tags=["indexes"])
    async def indexes() -> Response:
        """What can be searched: versions, fingerprints, counts, measured recall."""
        return _json(Indexes(indexes=service.indexes()))


def _add_operations(
    app: FastAPI, service: SearchService, gather: Callable[[], Awaitable[dict[str, Snapshot]]] | None
) -> None:
    @app.get("/healthz", response_model=Health, tags=["health"])
    async def healthz() -> Response:
        """Whether this process answers."""
        return _json(Health(status="ok"))

    @app.get("/readyz", response_model=Health, responses=_PROBLEMS, tags=["health"])
    async def readyz() -> Response:
        """Whether model and index are loaded and requests are taken."""
        service.admit(may_hold_picture=False)
        return _json(Health(status="ok"))

    @app.get(
        "/metrics",
        response_class=Response,
        responses=_PROBLEMS | {200: {"content": {"text/plain": {}}}},
        tags=["health"],
    )
    async def metrics() -> Response:
        """Counts of every replica, in Prometheus' text format."""
        snapshots = {"local": service.metrics.snapshot()} if gather is None else await gather()
        return Response(exposition(snapshots), media_type=METRICS_MEDIA_TYPE)


def _add_page(app: FastAPI) -> None:
    folder = resources.files("zscmr_ray.serving") / "page"
    for path, (name, media_type) in PAGE_FILES.items():
        app.add_route(path, _file((folder / name).read_bytes(), media_type), include_in_schema=False)


def _file(body: bytes, media_type: str) -> Callable[[Request], Response]:
    return lambda _: Response(body, media_type=media_type)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_search(request: Request) -> tuple[SearchRequest, bytes | None]:
    content_type = _content_type(request)
    if content_type == "application/json":
        return SearchRequest.model_validate_json(await request.body()), None
    if content_type != "multipart/form-data":
        raise ProblemError(
            415,
            "unknown content type",
            got=content_type or "none",
            expected="application/json, or multipart/form-data with the parts image and request",
        )
    async with request.form(max_files=1, max_fields=1) as form:
        unknown = sorted(set(form) - {"image", "request"})
        image, wanted = form.get("image"), form.get("request", "{}")
        if unknown or not isinstance(image, UploadFile) or not isinstance(wanted, str):
            raise ProblemError(
                422,
                "wrong parts in the upload",
                got=", ".join(sorted(form)) or "no parts",
                expected="image (a file) and, optionally, request (JSON text)",
            )
        return SearchRequest.model_validate_json(wanted), await image.read()


def _json(model: BaseModel) -> Response:
    # Models are dumped here and not by the framework, which would validate every result a second time.
    return Response(model.model_dump_json(by_alias=True), media_type="application/json")


def _complete_openapi(app: FastAPI) -> None:
    """Add the request's and the problems' models, which no route takes as a parameter, to the document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (SearchRequest, EmbeddingsRequest, Problem):
            schema = model.model_json_schema(ref_template=_REFS)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]
