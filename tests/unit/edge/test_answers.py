"""The edge's own answers and the sandbox of a signed URL."""

import json
from urllib.parse import urlencode

import pytest
from e2b.sandbox.signature import get_signature

from firebrick.catalog.base import Route
from firebrick.edge import answers
from firebrick.edge.signed_urls import is_signed_file_url, route_of_signed_url
from firebrick.model.ids import MachineId, SandboxId


def body_of(answer: answers.Answer, *, for_browser: bool = False) -> str:
    raw = answer.render(for_browser=for_browser, with_body=True, keeps_alive=True).decode()
    return raw.partition("\r\n\r\n")[2]


def test_words_that_clients_look_for() -> None:
    """E2B's clients find the words by which they tell a dead sandbox from a closed port."""
    assert json.loads(body_of(answers.not_found("i1"))) == {
        "code": 502,
        "message": "The sandbox was not found",
        "sandboxId": "i1",
    }
    assert json.loads(body_of(answers.not_found("i1", "timeout")))["message"] == (
        "The sandbox was not found: it reached its timeout"
    )
    assert json.loads(body_of(answers.port_closed("i1", 3000))) == {
        "code": 502,
        "message": "The sandbox is running but port is not open",
        "sandboxId": "i1",
        "port": 3000,
    }


@pytest.mark.parametrize("reason", ["killed", "timeout", "guest_exit", "oom", "node_lost", "error", "paused"])
def test_every_reason_has_words(reason: str) -> None:
    """Each end reason, and a pause, is told in words."""
    assert answers.not_found("i1", reason).message.startswith("The sandbox was not found: it")


def test_pages_for_browsers() -> None:
    """A browser gets a page with E2B's titles, in which nothing reflected is markup."""
    assert "<title>Sandbox Not Found</title>" in body_of(answers.not_found("i1"), for_browser=True)
    page = body_of(answers.port_closed("<script>", 3000), for_browser=True)
    assert "no service running on port 3000" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("user", [None, "root"])
@pytest.mark.parametrize("expires_in_s", [None, -5, 60])
def test_signed_url_finds_its_sandbox(user: str | None, expires_in_s: int | None) -> None:
    """The official client's signature leads to the one sandbox whose token made it, expired or not."""
    routes = [
        Route(
            sandbox_id=SandboxId(f"i{n}"), machine_id=MachineId("m"), address="a", access_token=f"token{n}" if n else ""
        )
        for n in range(5)
    ]
    path = "/home/user/a b+ü.txt"
    for operation, method in (("read", b"GET"), ("write", b"POST")):
        made = get_signature(path, operation, user, "token3", expires_in_s)  # type: ignore[arg-type]
        query = {"path": path, "signature": made["signature"]}
        if user:
            query["username"] = user
        if made["expiration"]:
            query["signature_expiration"] = str(made["expiration"])
        target = "/files?" + urlencode(query)
        assert is_signed_file_url(method, target)
        assert route_of_signed_url(method, target, routes) == routes[3]
        other = b"POST" if method == b"GET" else b"GET"
        assert route_of_signed_url(other, target, routes) is None
        assert route_of_signed_url(method, target + "&path=/etc/shadow", routes) is None
        assert route_of_signed_url(method, target.replace("path=", "path=x"), routes) is None
