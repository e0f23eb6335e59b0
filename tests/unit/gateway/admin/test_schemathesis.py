"""The admin API under an independent fuzzer: schemathesis reads the document and checks what comes back."""

from __future__ import annotations

import importlib
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from headrace.gateway.admin.openapi import document
from headrace.gateway.identity import Role
from tests.unit.gateway.admin.test_admin import Admin

schemathesis: Any = pytest.importorskip("schemathesis", reason="the fuzzer is not installed: make setup")
checks: Any = importlib.import_module("schemathesis.checks")
openapi_checks: Any = importlib.import_module("schemathesis.specs.openapi.checks")


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Admin(f"sqlite:///{tmp_path_factory.mktemp('fuzz') / 'a.db'}")
    yield made
    made.close()


SCHEMA = schemathesis.openapi.from_dict(document("1"))
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_operation_answers_as_its_document_says(admin: Admin, operation: Any) -> None:
    @settings(
        max_examples=4, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def answers(case: Any) -> None:
        case.headers["Authorization"] = f"Bearer {admin.keys[Role.ADMIN]}"
        response = admin.run(send(admin, case))
        case.validate_response(
            response,
            checks=[
                checks.not_a_server_error,
                openapi_checks.status_code_conformance,
                openapi_checks.content_type_conformance,
                openapi_checks.response_schema_conformance,
            ],
        )

    answers()


async def send(admin: Admin, case: Any) -> httpx.Response:
    wanted = case.as_transport_kwargs(base_url="http://test")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(admin.app, raise_app_exceptions=False)) as client:
        known = {name: wanted[name] for name in ("headers", "json", "params") if wanted.get(name) is not None}
        return await client.request(wanted["method"], wanted["url"], **known)
