"""`/v1/comparisons`: studies in which people compare clips of models without knowing whose they are.

No path comes from a request: sets of clips are named, and their folders are those that the operator's folder holds
(`--studies`) or that `kandinsky evaluate compare` stored. A clip's address is a random word, so that nothing about it
tells which model made it; what is served is a copy without recipe and tags. Everybody whose key is known may answer;
the report, the votes and the study itself are for the key that made it. On a server with keys, those of a study of the
command line are for the key it names (`--owner`), else for the operator alone.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from kandinsky.errors import RequestError
from kandinsky.evaluate.questions import QUESTIONNAIRES, Phase
from kandinsky.evaluate.studies import (
    MOST_PROMPTS,
    MOST_SETS,
    Study,
    checked_answers,
    fitting_votes,
    folders_in,
    plan_study,
    read_set,
    report,
)
from kandinsky.evaluate.study_store import StudyStore, new_id
from kandinsky.evaluate.votes import Vote, json_lines, parse_votes
from kandinsky.printing import escaped
from kandinsky.serve import fields
from kandinsky.serve.access import Access
from kandinsky.serve.envelope import ApiError, RangedFile
from kandinsky.serve.keys import Owner
from kandinsky.serve.routes import House, errors, house_of
from kandinsky.serve.videos import BYTES, KINDS

router = APIRouter(tags=["comparisons"])
LINES = "application/x-ndjson"
NAME = r"^[^\x00-\x1f\x7f]{1,60}$"
MOST_VOTES = 100_000  # of one import
StudyId = Annotated[str, Path(description="The name of a study.", max_length=60)]
_TOKEN = re.compile(r"[\w-]{10,40}")


class Wanted(fields.Asked):
    """A new study."""

    name: Annotated[str, Field(min_length=1, max_length=100, description="What people call it.")]
    sets: Annotated[
        list[Annotated[str, Field(max_length=255)]],
        Field(min_length=2, max_length=MOST_SETS, description="Names from `/v1/comparisons/sets`."),
    ]
    questions: Annotated[str, Field(default="simple", max_length=40, description="Questionnaire: simple, kandinsky-5.")]
    overlap: Annotated[int, Field(default=5, ge=1, le=100, description="Annotators per pair.")]
    annotators: Annotated[
        int | None, Field(default=None, ge=1, le=1000, description="Among whom pairs are dealt; default: the overlap.")
    ]
    seed: Annotated[int | None, Field(default=None, ge=0, lt=2**31, description="Of sides and orders; default: drawn.")]
    limit: Annotated[int | None, Field(default=None, ge=1, le=MOST_PROMPTS, description="Only so many prompts.")]


class Joining(fields.Asked):
    """Somebody who compares."""

    annotator: Annotated[str, Field(pattern=NAME, description="A name of one's own.")]


class Answered(fields.Asked):
    """Answers to one pair in one phase."""

    annotator: Annotated[str, Field(pattern=NAME)]
    pair: Annotated[int, Field(ge=0, lt=2**31, description="`pair` as the question gave it.")]
    phase: Annotated[str, Field(max_length=60)]
    answers: Annotated[
        dict[Annotated[str, Field(max_length=60)], Annotated[str, Field(max_length=40)] | None],
        Field(max_length=40, description="Choice by question; null skips one that may not apply."),
    ]
    seconds: Annotated[float | None, Field(default=None, ge=0, le=1e6, description="Time to the answers.")]


class SetObject(BaseModel):
    """A set of clips."""

    name: str


class SetList(BaseModel):
    """All sets of the server's folder."""

    object: str = "list"
    data: list[SetObject]
    questionnaires: list[str]


class StudyObject(BaseModel):
    """A study; the models are told to those who may read its report."""

    id: str
    object: str = "comparison"
    name: str
    questions: str
    prompts: int
    pairs: int = Field(description="Pairs that the first annotator sees, in each phase")
    overlap: int
    created_at: int
    annotators: int
    votes: int
    mine: bool = Field(description="Whether this key may read its report")
    models: list[str] | None
    left_out: int = Field(default=0, description="Prompts that a set lacks; told when it is made")


class StudyList(BaseModel):
    """All studies, the newest first."""

    object: str = "list"
    data: list[StudyObject]


class StudyDeleted(BaseModel):
    """A study that was removed."""

    id: str
    object: str = "comparison.deleted"
    deleted: bool = True


class QuestionObject(BaseModel):
    """One question."""

    name: str
    text: dict[str, str]
    choices: list[str]
    skippable: bool


class PairObject(BaseModel):
    """Two clips, and what is asked about them."""

    pair: int
    phase: str
    number: int = Field(description="From 1, over all phases")
    of: int
    left: str
    right: str
    prompt: str | None = Field(description="None where it is not to be read")
    questions: list[QuestionObject]
    answers: dict[str, str | None] = Field(default_factory=dict)


class NextObject(BaseModel):
    """What is to be compared next; `pair` is null when everything is."""

    done: int
    of: int
    pair: PairObject | None


class ReportObject(BaseModel):
    """What the votes say."""

    study: StudyObject
    votes: int
    annotators: dict[str, int]
    prompts: int
    comparisons: list[dict[str, Any]]
    agreement: dict[str, dict[str, float | None]]
    ranking: list[dict[str, Any]]
    attention: dict[str, dict[str, int]] = Field(description="Attention checks by annotator: `right` answers of `all`")
    problem: str
    texts: dict[str, dict[str, str]] = Field(description="Questions by language")


class Imported(BaseModel):
    """Votes that were taken."""

    votes: int = Field(description="How many; answers that were there already stay")


async def _body(request: Request, kind: type[fields.Asked]) -> dict[str, Any]:
    body, values, _ = await house_of(request).read(request, kind, {})
    await body.close()
    for name, one in kind.model_fields.items():
        if one.is_required() and name not in values:
            raise ApiError(400, f"`{name}` is missing", code="missing", param=name)
    return values


def _taking(kind: type[fields.Asked], *needs: str) -> dict[str, Any]:
    return fields.request_body(kind, {}, needs=needs)


def _find(studies: StudyStore, study_id: str) -> Study:
    found = studies.get(study_id)
    if found is None:
        raise ApiError(404, f"there is no study `{escaped(study_id)}`", code="not_found")
    return found


def _mine(study: Study, owner: Owner) -> bool:
    return study.owner == owner.name


def _own(studies: StudyStore, study_id: str, owner: Owner) -> Study:
    found = _find(studies, study_id)
    if not _mine(found, owner):
        raise ApiError(403, "the key that made this study reads its report, its votes, and removes it",
                       code="not_yours")  # fmt: skip
    return found


def _shown(studies: StudyStore, study: Study, owner: Owner, left_out: int = 0) -> StudyObject:
    people, votes = studies.counts(study.id)
    is_mine = _mine(study, owner)
    return StudyObject(
        id=study.id, name=study.name, questions=study.questions, prompts=len(study.prompts),
        pairs=study.count, overlap=study.overlap, created_at=int(study.created), annotators=people,
        votes=votes, mine=is_mine, models=list(study.models) if is_mine else None, left_out=left_out,
    )  # fmt: skip


def _annotator(owner: Owner, name: str) -> str:
    """A name that no other key can answer under.

    Raises:
        ApiError: It is empty, or would not come back from a table of votes.
    """
    name = name.strip()
    if not name or escaped(name) != name:
        raise ApiError(400, "`annotator` is no name: use 1 to 60 letters of plain text", code="bad_value",
                       param="annotator")  # fmt: skip
    return f"{owner.name}/{name}" if owner.name else name


@router.get("/v1/comparisons/sets", response_model=SetList, responses=errors())
async def list_sets(request: Request, owner: Access) -> SetList:
    """Sets of clips that a study may compare: the folders in that of `--studies`."""
    folder = house_of(request).settings.studies_folder
    names = [] if folder is None else sorted(await asyncio.to_thread(folders_in, folder))
    return SetList(data=[SetObject(name=name) for name in names], questionnaires=list(QUESTIONNAIRES))


@router.get("/v1/comparisons", response_model=StudyList, responses=errors())
async def list_comparisons(request: Request, owner: Access) -> StudyList:
    """All studies of this server, the newest first."""
    studies = house_of(request).studies

    def found() -> list[StudyObject]:
        return [_shown(studies, one, owner) for one in studies.all()]

    return StudyList(data=await asyncio.to_thread(found))


@router.post(
    "/v1/comparisons",
    response_model=StudyObject,
    responses=errors(404, 415),
    openapi_extra=_taking(Wanted, "name", "sets"),
)
async def create_comparison(request: Request, owner: Access) -> StudyObject:
    """Begin a study of two or more sets of clips."""
    values = await _body(request, Wanted)
    return await asyncio.to_thread(_create, house_of(request), owner, values)


def _create(house: House, owner: Owner, values: dict[str, Any]) -> StudyObject:
    folder = house.settings.studies_folder
    known = {} if folder is None else folders_in(folder)
    sets = []
    for name in values["sets"]:
        if name not in known:  # a name is looked up, and never made into a path
            raise ApiError(404, f"there is no set of clips `{escaped(name[:60])}`: see `/v1/comparisons/sets`",
                           code="not_found", param="sets")  # fmt: skip
        sets.append(read_set(known[name], name))
    study, clips, left_out = plan_study(
        new_id(), values["name"], sets, questions=values.get("questions", "simple"),
        overlap=values.get("overlap", 5), seats=values.get("annotators"), seed=values.get("seed"),
        limit=values.get("limit"), owner=owner.name, created=time.time(),
    )  # fmt: skip
    house.studies.add(study, clips)
    return _shown(house.studies, study, owner, left_out)


@router.get("/v1/comparisons/{study_id}", response_model=StudyObject, responses=errors(404))
async def retrieve_comparison(request: Request, owner: Access, study_id: StudyId) -> StudyObject:
    """One study."""
    studies = house_of(request).studies
    return await asyncio.to_thread(lambda: _shown(studies, _find(studies, study_id), owner))


@router.delete("/v1/comparisons/{study_id}", response_model=StudyDeleted, responses=errors(404))
async def delete_comparison(request: Request, owner: Access, study_id: StudyId) -> StudyDeleted:
    """Remove a study with its votes; the sets of clips stay where they are."""
    studies = house_of(request).studies
    await asyncio.to_thread(lambda: studies.delete(_own(studies, study_id, owner).id))
    return StudyDeleted(id=study_id)


@router.post(
    "/v1/comparisons/{study_id}/next",
    response_model=NextObject,
    responses=errors(404, 415),
    openapi_extra=_taking(Joining, "annotator"),
)
async def next_pair(request: Request, owner: Access, study_id: StudyId) -> NextObject:
    """The next pair for an annotator; whoever comes for the first time gets a place in the study."""
    values = await _body(request, Joining)
    who = _annotator(owner, values["annotator"])
    return await asyncio.to_thread(_next, house_of(request).studies, study_id, who)


def _next(studies: StudyStore, study_id: str, who: str) -> NextObject:
    study = _find(studies, study_id)
    pairs = study.pairs(studies.join(study.id, who))
    phases = study.questionnaire.phases
    done, total = studies.answered(study.id, who), len(pairs) * len(phases)
    for i, phase in enumerate(phases):
        for place in range(len(pairs)):
            if (place, phase.name) not in done:
                return NextObject(
                    done=len(done), of=total, pair=_pair(studies, study, pairs, place, phase, i * len(pairs), total)
                )
    return NextObject(done=len(done), of=total, pair=None)


def _pair(
    studies: StudyStore, study: Study, pairs: Sequence[Any], place: int, phase: Phase, before: int, total: int
) -> PairObject:
    one = pairs[place]
    left, right = (
        f"/v1/comparisons/{study.id}/clips/{studies.token(study.id, one.prompt, model)}"
        for model in (one.left, one.right)
    )
    return PairObject(
        pair=place, phase=phase.name, number=before + place + 1, of=total, left=left, right=right,
        prompt=study.texts.get(one.prompt, "") if phase.shows_prompt else None,
        questions=[
            QuestionObject(name=q.name, text=dict(q.text), choices=list(q.answers), skippable=q.skippable)
            for q in phase.criteria
        ],
    )  # fmt: skip


@router.post(
    "/v1/comparisons/{study_id}/answers",
    response_model=NextObject,
    responses=errors(404, 415),
    openapi_extra=_taking(Answered, "annotator", "pair", "phase", "answers"),
)
async def answer_pair(request: Request, owner: Access, study_id: StudyId) -> NextObject:
    """Answer all questions of a pair in one phase, or answer them anew; the answer is the next pair."""
    values = await _body(request, Answered)
    who = _annotator(owner, values["annotator"])

    def store() -> NextObject:
        studies = house_of(request).studies
        study = _find(studies, study_id)
        seat = studies.seat(study.id, who)
        if seat is None:
            raise ApiError(404, "this annotator has not begun: ask for the next pair first", code="not_found",
                           param="annotator")  # fmt: skip
        pairs = study.pairs(seat)
        if values["pair"] >= len(pairs):
            raise ApiError(404, f"there is no pair {values['pair']}: there are {len(pairs)}", code="not_found",
                           param="pair")  # fmt: skip
        one, phase = pairs[values["pair"]], study.phase(values["phase"])
        made = checked_answers(phase, values["answers"])
        votes = [
            Vote(one.prompt, one.left, one.right, who, name, choice, values.get("seconds"))
            for name, choice in made.items()
        ]
        studies.answer(study.id, who, values["pair"], phase.name, votes)
        return _next(studies, study.id, who)

    return await asyncio.to_thread(store)


@router.get("/v1/comparisons/{study_id}/report", response_model=ReportObject, responses=errors(404))
async def comparison_report(request: Request, owner: Access, study_id: StudyId) -> ReportObject:
    """Wins, ties and losses with their intervals, agreement, and the order of the models."""
    studies = house_of(request).studies

    def told() -> ReportObject:
        study = _own(studies, study_id, owner)
        texts = {name: dict(one.text) for name, one in study.questionnaire.criteria.items()}
        made = report(study, studies.votes(study.id))
        return ReportObject(study=_shown(studies, study, owner), texts=texts, **made)

    return await asyncio.to_thread(told)


@router.get(
    "/v1/comparisons/{study_id}/votes",
    response_class=Response,
    responses={
        200: {"content": {LINES: {"schema": {"type": "string"}}}, "description": "A vote a line."},
        **errors(404),
    },
)
async def export_votes(request: Request, owner: Access, study_id: StudyId) -> Response:
    """All votes as JSON lines, which `kandinsky.evaluate.votes` reads."""
    studies = house_of(request).studies
    text = await asyncio.to_thread(lambda: json_lines(studies.votes(_own(studies, study_id, owner).id)))
    headers = {"content-disposition": f'attachment; filename="{study_id}.jsonl"'}
    return Response(text.encode(), media_type=LINES, headers=headers)


@router.post(
    "/v1/comparisons/{study_id}/votes",
    response_model=Imported,
    responses=errors(404, 415),
    openapi_extra={"requestBody": {"required": True, "content": {LINES: {"schema": {"type": "string"}}}}},
)
async def import_votes(request: Request, owner: Access, study_id: StudyId) -> Imported:
    """Add votes that were cast elsewhere, as JSON lines: none if one is not about this study; known answers stay."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != LINES:
        raise ApiError(415, f"votes are sent as `{LINES}`, a JSON object a line", code="bad_content_type")
    data = await request.body()
    studies = house_of(request).studies

    def store() -> int:
        study = _own(studies, study_id, owner)
        if data.count(b"\n") > MOST_VOTES:
            raise RequestError(f"more than {MOST_VOTES} votes at once: send them in parts")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise RequestError("votes are not UTF-8 text") from None
        return studies.add_votes(study.id, fitting_votes(study, parse_votes(text)))

    return Imported(votes=await asyncio.to_thread(store))


@router.get("/v1/comparisons/{study_id}/clips/{token}", response_class=Response, responses={**BYTES, **errors(404)})
async def comparison_clip(
    request: Request, owner: Access, study_id: StudyId, token: Annotated[str, Path(max_length=60)]
) -> Response:
    """A clip of a study; ranges are served."""
    studies = house_of(request).studies
    path = await asyncio.to_thread(studies.clip, study_id, token) if _TOKEN.fullmatch(token) else None
    if path is None or not await asyncio.to_thread(path.is_file):
        raise ApiError(404, "there is no such clip, or its file is gone", code="not_found")
    kind = KINDS.get(path.suffix[1:].lower(), "application/octet-stream")
    # neither the name of the file nor its time: both may tell the model
    headers = {"cache-control": "private, max-age=3600", "last-modified": "Thu, 01 Jan 1970 00:00:00 GMT"}
    return RangedFile(path, media_type=kind, filename=f"clip{path.suffix}", content_disposition_type="inline",
                      headers=headers)  # fmt: skip
