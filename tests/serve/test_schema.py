"""schemathesis against the OpenAPI schema of a real server: no 5xx, no answer that is not documented."""

from pathlib import Path
from typing import Any

import pytest

from serve.conftest import Server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
EXAMPLES = 12


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
    streams = ("/v1/events", "/v1/videos/{job_id}/events", "/v1/jobs/{job_id}/events")
    skipped = ("/ready", "/v1/images/generations", "/v1/images/edits")  # 503 without workers; they would wait for one
    # without workers: what is accepted waits, and is cancelled by other examples
    with Server(tmp_path, "--workers", "0", "--queue", "100000", models=("nano-t2v", "nano-i2v", "nano-v2a")) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        count = 0
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.path in (*streams, *skipped):
                continue
            count += 1
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                except Exception:  # nothing can be wrong about a call without parameters
                    continue

                @given(case=strategy)
                @settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate],
                    derandomize=True,
                )
                def call(case: Any) -> None:
                    case.call_and_validate(checks=checks, timeout=60)

                try:
                    call()
                except BaseException as error:
                    if type(error).__name__ in ("Unsatisfiable", "InvalidArgument", "SkipTest"):
                        continue
                    raise
        assert count > 25


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
