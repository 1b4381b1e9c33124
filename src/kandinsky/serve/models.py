"""`/v1/models`: what the server offers, and what each model accepts."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from kandinsky.jobs.records import NewJob
from kandinsky.serve.access import Access
from kandinsky.serve.routes import ACCEPTING, House, errors, house_of
from kandinsky.serve.shapes import JobObject, ModelList, ModelObject

router = APIRouter()
ModelId = Annotated[str, Path(max_length=200)]
LOAD_PRIORITY = 20  # above all that a request can have


def _loaded(house: House) -> list[str]:
    return [name for worker in house.store.workers() for name in worker.facts.get("models", ())]


@router.get("/v1/models", response_model=ModelList, responses=errors(), tags=["models"])
async def list_models(request: Request, owner: Access) -> ModelList:
    """All models, the default one first."""
    house = house_of(request)
    loaded = await asyncio.to_thread(_loaded, house)
    return ModelList(data=[house.offers.object(offer, loaded) for offer in house.offers.all.values()])


@router.get("/v1/models/{model:path}", response_model=ModelObject, responses=errors(404), tags=["models"])
async def retrieve_model(request: Request, owner: Access, model: ModelId) -> ModelObject:
    """One model."""
    house = house_of(request)
    return house.offers.object(house.offers.find(model), await asyncio.to_thread(_loaded, house))


@router.post("/v1/models/{model:path}/load", response_model=JobObject, responses=errors(*ACCEPTING), tags=["models"])
async def load_model(request: Request, response: Response, owner: Access, model: ModelId) -> JobObject:
    """Load a model before it is needed; a job, whose end says that it is loaded."""
    house = house_of(request)
    offer = house.offers.find(model)
    new = NewJob(
        kind="load", model=offer.name, order={"request": {}, "form": ""}, owner=owner.name, priority=LOAD_PRIORITY
    )
    await asyncio.to_thread(house.intake.check_room, owner)
    job, _ = await asyncio.to_thread(house.intake.put, owner, new)
    return await house.shown(job, response)
