"""`/health`, `/ready`, `/metrics`, the login of the web page, and the recipe in a file."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Request, Response

import kandinsky
from kandinsky.jobs.records import State
from kandinsky.serve import fields, uploads
from kandinsky.serve.access import Access, owner_of
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.keys import COOKIE, COOKIE_S, Keys
from kandinsky.serve.routes import errors, house_of
from kandinsky.serve.shapes import Health, Ready, RecipeResponse

router = APIRouter()
WORKERS_S = 30.0


@router.get("/health", response_model=Health, responses=errors(), tags=["status"])
async def health() -> Health:
    """The process lives; asks nothing else."""
    return Health(version=kandinsky.__version__)


@router.get("/ready", response_model=Ready, responses={503: {"model": Ready}, **errors()}, tags=["status"])
async def ready(request: Request, response: Response) -> Ready:
    """Whether a worker is there that takes jobs; 503 while it starts, and while the server ends."""
    house = house_of(request)
    is_enough = request.app.state.supervisor.is_enough

    def ask() -> Ready:
        able = [one for one in house.store.workers(within_s=WORKERS_S) if one.state != "starting"]
        counts, waiting = house.store.counts(), house.store.waiting()
        status: Literal["ready", "starting", "draining"]
        status = "draining" if house.intake.closing else "ready" if able or is_enough else "starting"
        return Ready(status=status, workers=len(able), queued=waiting, running=counts[State.RUNNING])

    found = await asyncio.to_thread(ask)
    response.status_code = 200 if found.status == "ready" else 503
    return found


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()},
    tags=["status"],
)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus; behind the key unless only this machine can ask."""
    house = house_of(request)
    if not house.settings.is_local:
        await owner_of(request)
    data, kind = await asyncio.to_thread(request.app.state.metrics.answer)
    return Response(data, media_type=kind)


@router.post("/v1/session", status_code=204, responses=errors(), response_class=Response, tags=["session"])
async def log_in(request: Request, key: Annotated[str, Body(embed=True, max_length=500)]) -> Response:
    """Exchange a key for a cookie that scripts cannot read, since `<video>` and `EventSource` send no headers."""
    keys: Keys = request.app.state.keys
    owner = keys.owner_of(key)
    if owner is None:
        raise ApiError(401, "this key is not known here", code="invalid_api_key")
    response = Response(status_code=204)
    response.set_cookie(
        COOKIE, keys.cookie(owner), max_age=COOKIE_S, httponly=True, samesite="strict",
        secure=request.url.scheme == "https", path="/",
    )  # fmt: skip
    return response


@router.delete("/v1/session", status_code=204, responses=errors(), response_class=Response, tags=["session"])
async def log_out() -> Response:
    """Forget the cookie."""
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


@router.post(
    "/v1/recipe",
    response_model=RecipeResponse,
    responses=errors(415),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": {"type": "string", "format": "binary"}},
                        "required": ["file"],
                        "additionalProperties": False,
                    }
                }
            },
        }
    },
    tags=["jobs"],
)
async def read_recipe(request: Request, owner: Access) -> RecipeResponse:
    """The recipe in a file that this program wrote, to ask for the same again; nothing of the file is kept."""
    house = house_of(request)
    body = await fields.read_body(request, largest=house.settings.upload_bytes)
    try:
        files = body.files.pop("file", [])
        if len(files) != 1 or body.files or body.values:
            raise ApiError(400, "`file`: one file is taken, and nothing else", code="invalid_value", param="file")
        target = Path(house.store.folder) / "incoming" / secrets.token_hex(8)
        given = files[0].file
        found = await uploads.apart(lambda: uploads.read("recipe", given, target, param="file"))
    finally:
        await body.close()
    return RecipeResponse(recipe=found["recipe"])
