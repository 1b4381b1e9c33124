"""Side-by-side studies over HTTP: blind, dealt evenly, counted as by hand, and no file but the study's clips."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky.cli.main import main
from kandinsky.evaluate.votes import parse_votes, read_votes
from kandinsky.model.values import Video
from serve.conftest import Server

KEYS = '[alice]\nkey = "the key of alice 1234"\n[bob]\nkey = "the key of bob 123456"\n'
LINES = {"content-type": "application/x-ndjson"}


def write_sets(root: Path, models: tuple[str, ...] = ("ours", "theirs"), prompts: int = 3) -> Path:
    """Sets of clips: the shade says which model made a clip."""
    for i, model in enumerate(models):
        (root / model).mkdir(parents=True)
        for j in range(prompts):
            frames = np.full((4, 32, 32, 3), 40 + 100 * i + 10 * j, dtype=np.uint8)
            Video(frames, fps=8, recipe={"kandinsky": "1", "prompt": f"prompt {j}", "seed": 1}).save(
                root / model / f"{j:04d}.mp4"
            )
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("studies")
    root = write_sets(folder / "sets")
    (root / "empty").mkdir()
    (folder / "secret").mkdir()
    Video(np.zeros((2, 32, 32, 3), dtype=np.uint8), fps=8).save(folder / "secret" / "0000.mp4")
    with Server(folder, "--workers", "0", "--studies", str(root), models=("nano-t2v",)) as made:
        yield made


def create(server: Server, **values: Any) -> dict[str, Any]:
    body = {"name": "ours against theirs", "sets": ["ours", "theirs"], **values}
    answer = server.client.post("/v1/comparisons", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def post(server: Server, study: str, what: str, **values: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/comparisons/{study}/{what}", json=values)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def shade(server: Server, address: str) -> int:
    """How bright a clip is."""
    import io

    import av

    data = server.client.get(address).raise_for_status().content
    with av.open(io.BytesIO(data), mode="r") as file:
        return int(next(file.decode(video=0)).to_ndarray(format="rgb24").mean())


def is_ours(server: Server, address: str) -> bool:
    return shade(server, address) < 100


def test_sets_are_the_folders_that_hold_clips(server: Server) -> None:
    made = server.client.get("/v1/comparisons/sets").json()
    assert [one["name"] for one in made["data"]] == ["ours", "theirs"] and "kandinsky-5" in made["questionnaires"]


def test_a_whole_study_is_blind_in_two_phases_and_counted(server: Server) -> None:
    """Two annotators: one always prefers ours, the other theirs in motion alone."""
    study = create(server, overlap=2)
    assert study["prompts"] == 3 and study["models"] == ["ours", "theirs"] and study["left_out"] == 0
    for who in ("ann", "ben"):
        told, sides, phases = post(server, study["id"], "next", annotator=who), [], []
        while (pair := told["pair"]) is not None:
            text = json.dumps(pair)
            assert "ours" not in text and "theirs" not in text and ".mp4" not in text
            left = is_ours(server, pair["left"])
            assert left != is_ours(server, pair["right"])
            sides.append(left)
            phases.append((pair["phase"], pair["prompt"] is not None))
            good = "left" if left else "right"
            bad = "right" if left else "left"
            answers = {q["name"]: bad if who == "ben" and q["name"] == "motion" else good for q in pair["questions"]}
            told = post(
                server, study["id"], "answers", annotator=who, pair=pair["pair"], phase=pair["phase"],
                answers=answers, seconds=2.5,
            )  # fmt: skip
        assert phases == [("visual", False)] * 3 + [("prompt", True)] * 3
        assert told == {"done": 6, "of": 6, "pair": None} and len(set(sides)) == 2
    report = server.client.get(f"/v1/comparisons/{study['id']}/report").json()
    assert report["votes"] == 18 and report["annotators"] == {"ann": 9, "ben": 9}
    rows = {row["name"]: row for row in report["comparisons"][0]["criteria"]}
    assert (rows["visual quality"]["win"], rows["visual quality"]["net"]) == (1.0, 1.0)
    assert (rows["motion"]["win"], rows["motion"]["loss"], rows["motion"]["net"]) == (0.5, 0.5, 0.0)
    assert rows["visual quality"]["p_value"] == 0.25  # three prompts of three: 2 / 2^3
    assert report["agreement"]["motion"]["share"] == 0.0 and report["agreement"]["text alignment"]["alpha"] == 1.0
    assert [one["model"] for one in report["ranking"]] == ["ours", "theirs"]
    assert report["attention"] == {}  # no checks in this study
    assert report["ranking"][0]["games"] == 18 and report["texts"]["motion"]["ru"]


def test_answers_can_be_changed_and_nothing_is_asked_twice(server: Server) -> None:
    study = create(server)["id"]
    pair = post(server, study, "next", annotator="ann")["pair"]
    again = post(server, study, "next", annotator="ann")["pair"]
    assert again == pair
    sent = {"annotator": "ann", "pair": pair["pair"], "phase": pair["phase"]}
    one = post(server, study, "answers", **sent, answers={"visual quality": "left", "motion": "left"})
    other = post(server, study, "answers", **sent, answers={"visual quality": "right", "motion": "equal"})
    assert one["pair"]["pair"] == other["pair"]["pair"] != pair["pair"] and other["done"] == 1
    votes = parse_votes(server.client.get(f"/v1/comparisons/{study}/votes").text)
    assert [vote.choice for vote in votes] == ["right", "equal"]


def test_votes_travel(server: Server) -> None:
    study, other = create(server)["id"], create(server, name="the same elsewhere")["id"]
    pair = post(server, study, "next", annotator="ann")["pair"]
    post(
        server, study, "answers", annotator="ann", pair=pair["pair"], phase="visual",
        answers={"visual quality": "left", "motion": "equal"},
    )  # fmt: skip
    lines = server.client.get(f"/v1/comparisons/{study}/votes").text
    answer = server.client.post(f"/v1/comparisons/{other}/votes", content=lines, headers=LINES)
    assert answer.json() == {"votes": 2}
    assert server.client.get(f"/v1/comparisons/{other}/votes").text == lines
    bad = lines.splitlines()[0]
    for text, said in (
        (bad.replace('"ours"', '"others"').replace('"theirs"', '"others2"'), "none of the study's models"),
        (bad.replace('"0', '"9'), "none of the study's"),
        (bad.replace("visual quality", "beauty"), "criterion `beauty`"),
        (bad.replace('"ann"', '"\\ud800"'), "no name of an annotator"),
        (f"{lines}{{", "line 3 is not JSON"),
    ):
        refused = server.client.post(f"/v1/comparisons/{other}/votes", content=text, headers=LINES)
        assert refused.status_code == 400 and said in refused.json()["error"]["message"], text
    assert server.client.get(f"/v1/comparisons/{other}").json()["votes"] == 2
    # the same export, or an older one, neither counts twice nor undoes an answer
    for study_id, text in ((other, lines), (study, lines.replace('"left", "seconds"', '"right", "seconds"'))):
        again = server.client.post(f"/v1/comparisons/{study_id}/votes", content=text, headers=LINES)
        assert again.json() == {"votes": 0}
    assert server.client.get(f"/v1/comparisons/{study}/votes").text == lines
    assert server.client.post(f"/v1/comparisons/{other}/votes", json={}).status_code == 415


def test_clips_are_served_in_parts_and_tell_nothing(server: Server) -> None:
    study = create(server)["id"]
    pair = post(server, study, "next", annotator="ann")["pair"]
    part = server.client.get(pair["left"], headers={"range": "bytes=0-9"})
    assert part.status_code == 206 and len(part.content) == 10 and part.headers["content-type"] == "video/mp4"
    assert "clip.mp4" in part.headers["content-disposition"] and "1970" in part.headers["last-modified"]
    assert server.client.get(pair["left"], headers={"range": "bytes=99999999-"}).status_code == 416
    other = create(server)["id"]
    assert server.client.get(pair["left"].replace(study, other)).status_code == 404
    original = (server.folder / "sets" / "ours" / "0000.mp4").read_bytes()
    assert b"prompt 0" in original
    for address in (pair["left"], pair["right"]):
        data = server.client.get(address).content
        assert b"prompt" not in data and b"kandinsky" not in data
    copies = server.folder / "jobs" / "study-clips" / study
    assert len(list(copies.iterdir())) == 6
    server.client.delete(f"/v1/comparisons/{study}").raise_for_status()
    assert not copies.exists()


def test_no_path_comes_from_a_request(server: Server) -> None:
    study = create(server)["id"]
    secret = server.folder / "secret"
    for name in ("../secret", str(secret), "ours/../../secret", "secret", ".", "", "empty", "ours\0"):
        body = {"name": "x", "sets": ["ours", name]}
        answer = server.client.post("/v1/comparisons", json=body)
        assert answer.status_code == 404 and "no set of clips" in answer.json()["error"]["message"], name
    for token in ("..%2f..%2fsecret%2f0000.mp4", "%2e%2e", "0000.mp4", "a" * 22, f"{secret}/0000.mp4"):
        assert server.client.get(f"/v1/comparisons/{study}/clips/{token}").status_code == 404, token


REFUSED = (
    ({"sets": ["ours"]}, "sets"),
    ({"sets": ["ours", "ours"]}, "two sets of clips are called `ours`"),
    ({"sets": ["ours", "theirs"], "questions": "long"}, "questionnaire `long` does not exist"),
    ({"sets": ["ours", "theirs"], "overlap": 0}, "overlap"),
    ({"sets": ["ours", "theirs"], "overlap": 5, "annotators": 2}, "overlap 5 of 2 annotators"),
    ({"sets": ["ours", "theirs"], "paths": ["/"]}, "paths"),
    ({"name": "line\nbreak", "sets": ["ours", "theirs"]}, "use 1 to 100 letters"),
)  # fmt: skip


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=range(len(REFUSED)))
def test_studies_that_cannot_be(server: Server, values: dict[str, Any], said: str) -> None:
    answer = server.client.post("/v1/comparisons", json={"name": "x", **values})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_answers_that_are_none(server: Server) -> None:
    study = create(server, questions="kandinsky-5")["id"]
    sent: dict[str, Any] = {"annotator": "ann", "pair": 0, "phase": "visual", "answers": {}}
    url = f"/v1/comparisons/{study}/answers"
    assert server.client.post(url, json=sent).status_code == 404  # nobody of this name has begun
    pair = post(server, study, "next", annotator="ann")["pair"]
    whole = {q["name"]: q["choices"][0] for q in pair["questions"]}
    for change, said in (
        ({"answers": {}}, "`composition` is not answered"),
        ({"answers": {**whole, "beauty": "left"}}, "question `beauty`"),
        ({"answers": {**whole, "lighting": "both-wrong"}}, "choice `both-wrong` does not answer `lighting`"),
        ({"answers": {**whole, "lighting": None}}, "`lighting` is not answered"),
        ({"answers": whole, "pair": 99}, "there is no pair 99"),
        ({"answers": whole, "phase": "sound"}, "phase `sound` does not exist"),
        ({"answers": whole, "annotator": "a\nb"}, "annotator"),
        ({"answers": whole, "annotator": "a\u2028b"}, "`annotator` is no name"),
        ({"answers": whole, "annotator": "\u0085 "}, "`annotator` is no name"),
    ):
        answer = server.client.post(url, json=sent | change)
        assert answer.status_code in (400, 404) and said in answer.json()["error"]["message"], change
    # faces may not be in a clip
    assert post(server, study, "answers", **(sent | {"answers": {**whole, "faces": None}}))["done"] == 1
    report = server.client.get(f"/v1/comparisons/{study}/report").json()
    names = [row["name"] for row in report["comparisons"][0]["criteria"]]
    assert "faces" not in names and [row["name"] for row in report["comparisons"][0]["groups"]]
    assert server.client.request("DELETE", f"/v1/comparisons/{study}").json()["deleted"]
    assert server.client.get(f"/v1/comparisons/{study}").status_code == 404


def test_more_annotators_than_places_begin_another_deal(server: Server) -> None:
    study = create(server, overlap=1, annotators=2)["id"]
    first = [post(server, study, "next", annotator=f"a{i}")["of"] for i in range(4)]
    assert sorted(first[:2]) == [2, 4] and sum(first[2:]) == 6  # three pairs of two phases between two people


@pytest.mark.slow
def test_keys_separate_annotators_and_reports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_sets(tmp_path / "sets", prompts=2)
    (tmp_path / "keys.toml").write_text(KEYS)
    store = tmp_path / "jobs"
    words = ["evaluate", "compare", str(root / "ours"), f"rival={root / 'theirs'}", "--store", str(store)]
    assert main(words) == 0
    operators = capfd.readouterr().out.strip()
    assert main([*words, "--owner", "alice"]) == 0
    shared = capfd.readouterr().out.strip()
    with Server(
        tmp_path, "--workers", "0", "--studies", str(root), "--keys", str(tmp_path / "keys.toml"), models=("nano-t2v",)
    ) as server:
        assert server.client.get("/v1/comparisons").status_code == 401
        assert server.client.get("/compare").status_code == 200
        alice, bob = ({"authorization": f"Bearer the key of {name}"} for name in ("alice 1234", "bob 123456"))
        body = {"name": "hers", "sets": ["ours", "theirs"]}
        study = server.client.post("/v1/comparisons", json=body, headers=alice).json()["id"]
        clip = ""
        for headers in (alice, bob):
            answer = server.client.post(f"/v1/comparisons/{study}/next", json={"annotator": "ann"}, headers=headers)
            clip = answer.json()["pair"]["left"]
        assert server.client.get(clip).status_code == 401 and server.client.get(clip, headers=bob).status_code == 200
        seen = server.client.get(f"/v1/comparisons/{study}", headers=bob).json()
        assert seen["models"] is None and seen["mine"] is False and seen["annotators"] == 2
        for method, path in (("GET", "report"), ("GET", "votes"), ("DELETE", "")):
            address = f"/v1/comparisons/{study}/{path}".rstrip("/")
            assert server.client.request(method, address, headers=bob).status_code == 403, path
        # what the command line made is the key's that it names, else the operator's alone
        hers = server.client.get(f"/v1/comparisons/{shared}", headers=alice).json()
        assert hers["models"] == ["ours", "rival"] and hers["mine"] and hers["prompts"] == 2
        assert server.client.get(f"/v1/comparisons/{shared}/report", headers=alice).json()["votes"] == 0
        for key, study_id in ((bob, shared), (bob, operators), (alice, operators)):
            seen = server.client.get(f"/v1/comparisons/{study_id}", headers=key).json()
            assert seen["models"] is None and not seen["mine"] and "rival" not in seen["name"]
            for method, path in (("GET", "/report"), ("GET", "/votes"), ("POST", "/votes"), ("DELETE", "")):
                sent = {**key, **LINES} if method == "POST" else key
                address = f"/v1/comparisons/{study_id}{path}"
                assert server.client.request(method, address, headers=sent).status_code == 403, path
        url = f"/v1/comparisons/{operators}"
        pair = server.client.post(f"{url}/next", json={"annotator": "ann"}, headers=bob).json()["pair"]
        sent = {"annotator": "ann", "pair": pair["pair"], "phase": pair["phase"]}
        answers = {"visual quality": "left", "motion": "equal"}
        server.client.post(f"{url}/answers", json={**sent, "answers": answers}, headers=bob).raise_for_status()
    table = tmp_path / "votes.csv"
    assert main(["evaluate", "report", operators, "--store", str(store), "--votes", str(table), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["votes"] == 2 and told["models"] == ["ours", "rival"] and told["annotators"] == {"bob/ann": 2}
    assert [(one.annotator, one.choice) for one in read_votes(table)] == [("bob/ann", "left"), ("bob/ann", "equal")]
    assert main(["evaluate", "report", operators, "--store", str(store)]) == 0
    out = capfd.readouterr().out
    assert "2 votes of 1 annotators on 1 prompts" in out and "ours against rival" in out and "motion" in out
    assert main(["evaluate", "report", "study_none", "--store", str(store)]) == 2
