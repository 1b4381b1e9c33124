"""schemathesis against the OpenAPI schema of a real server: no 5xx but what is documented, no other answer."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.conftest import Server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
EXAMPLES, FEWER = 8, 3
STREAMS = ("/v1/events", "/v1/videos/{job_id}/events", "/v1/jobs/{job_id}/events")
IMAGES = ("/v1/images/generations", "/v1/images/edits")
NO_WORKER = ("/ready",)  # says 503, which is documented


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_answer_is_documented(tmp_path: Path) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    # without workers: what is accepted waits, and is cancelled by other examples
    with Server(tmp_path, "--workers", "0", "--queue", "100000", models=("nano-t2v", "nano-i2v", "nano-v2a")) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        count = 0
        for result in schema.get_all_operations():
            operation = result.ok()
            count += 1
            of_this = checks[1:] if operation.path in NO_WORKER else checks
            endless, known = operation.path in STREAMS, set(operation.definition.raw["responses"])
            examples = FEWER if endless or operation.path in IMAGES else EXAMPLES
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                except Exception:  # nothing can be wrong about a call without parameters
                    continue

                @given(case=strategy)
                @settings(
                    max_examples=examples,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate],
                )
                def call(
                    case: Any,
                    of_this: Any = of_this,
                    path: str = operation.path,
                    endless: bool = endless,
                    known: Any = known,
                ) -> None:
                    if path in IMAGES:  # nobody makes them here: the answer is the jobs
                        case.headers["Prefer"] = "respond-async"
                    if endless:
                        begins_well(server, case, known)
                    else:
                        case.call_and_validate(checks=of_this, timeout=60)

                try:
                    call()
                except BaseException as error:
                    if type(error).__name__ in ("Unsatisfiable", "InvalidArgument", "SkipTest"):
                        continue
                    raise
        assert count > 30


def begins_well(server: Server, case: Any, known: set[str]) -> None:
    """A stream without an end is looked at until its head has come; what is refused is in the envelope."""
    told = case.as_transport_kwargs(base_url=server.url)
    told = {name: told[name] for name in ("method", "url", "params", "headers", "cookies") if name in told}
    with httpx.Client(timeout=60, cookies=told.pop("cookies", None)).stream(**told) as answer:
        assert str(answer.status_code) in known, answer.status_code
        if answer.status_code == 200:
            assert answer.headers["content-type"].startswith("text/event-stream")
        else:
            answer.read()
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_schema_is_openapi(server: Server) -> None:
    schema = server.client.get("/openapi.json").json()
    ids = [method["operationId"] for path in schema["paths"].values() for method in path.values()]
    assert len(ids) == len(set(ids)) > 30
    for path, methods in schema["paths"].items():
        for name, method in methods.items():
            assert method["summary"] and method["description"], (path, name)
            for status, answer in method["responses"].items():
                if int(status) >= 400 and path != "/ready":
                    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/Envelope"), (path, status)
