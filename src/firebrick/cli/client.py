"""The REST client of the CLI: E2B's endpoints, E2B's variables, this instance when none are set."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from firebrick.config import Config, load_config
from firebrick.model.errors import NotFound, Unauthenticated, Unavailable
from firebrick.supervisor.lifecycle import Credentials, credentials

TIMEOUT_S = 60.0
"""For one answer; as long as the official SDK waits."""
STREAM_TIMES = 10
"""How many times longer one piece of a stream may take, and the answer to the last: a disk is checked before that."""


def reach(config: Config) -> Credentials:
    """Where to go and as whom: E2B_* of the environment win over the instance in `config.data_dir`.

    Raises: Unauthenticated — neither is there.
    """
    stored = credentials(config)
    key = os.environ.get("E2B_API_KEY") or (stored.api_key if stored else None)
    api_url = os.environ.get("E2B_API_URL") or (stored.api_url if stored else None)
    sandbox_url = os.environ.get("E2B_SANDBOX_URL") or (stored.sandbox_url if stored else None)
    if not (key and api_url and sandbox_url):
        raise Unauthenticated(
            f"No instance in {config.data_dir} and no E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY in the "
            "environment. Start one with `firebrick up`, or set the three."
        )
    return Credentials(api_url=api_url, sandbox_url=sandbox_url, api_key=key)


def open_client() -> "Client":
    """A client of what `reach` finds; on a slow machine it waits longer for answers. Raises: Unauthenticated."""
    config = load_config()
    return Client(reach(config), timeout_s=config.patient_s(TIMEOUT_S))


class ApiFailed(Unavailable):
    """The API answered with an error; the message is its own."""


def open_admin_client() -> "Client":
    """A client with the operator's token: FIREBRICK_ADMIN_TOKEN, or the file of the instance on this machine.

    Raises: Unauthenticated — neither is there, or the file is not ours to read.
    """
    config = load_config()
    stored = credentials(config)
    api_url = os.environ.get("E2B_API_URL") or (stored.api_url if stored else None)
    token = os.environ.get("FIREBRICK_ADMIN_TOKEN") or _stored_admin_token(config)
    if not (api_url and token):
        raise Unauthenticated(
            f"This needs the operator's token: {config.admin_token_file} (as the user that runs the instance), or "
            "FIREBRICK_ADMIN_TOKEN and E2B_API_URL in the environment."
        )
    target = Credentials(api_url=api_url, sandbox_url="", api_key="")
    return Client(target, headers={"X-Admin-Token": token}, timeout_s=config.patient_s(TIMEOUT_S))


def _stored_admin_token(config: Config) -> str | None:
    try:
        return config.admin_token_file.read_text().strip() or None
    except OSError:
        return None


class Client:
    def __init__(self, target: Credentials, *, headers: dict[str, str] | None = None, timeout_s: float) -> None:
        """`headers` say who asks; None: the target's API key. `timeout_s` is for each answer."""
        self._target = target
        self.timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=target.api_url, headers=headers or {"X-API-Key": target.api_key}, timeout=timeout_s,
            trust_env=False,
        )  # fmt: skip

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request.

        Raises:
            Unavailable: nothing answers at that address.
            NotFound, ApiFailed: the API's own error, with its message.
        """
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as exc:
            raise Unavailable(
                f"Nothing answers at {self._target.api_url} ({exc}). Is it up? See `firebrick status`."
            ) from exc
        return _checked(answer)

    def download(self, path: str, write: Callable[[bytes], object]) -> None:
        """Give every piece of an answer's body to `write`. Raises as `request`, and when it breaks off."""
        try:
            with self._http.stream("GET", path, timeout=STREAM_TIMES * self.timeout_s) as answer:
                if not answer.is_success:
                    answer.read()
                _checked(answer)
                for piece in answer.iter_raw():
                    write(piece)
        except httpx.HTTPError as exc:
            raise Unavailable(
                f"{self._target.api_url} broke off ({exc}). The control plane's log tells why, unless it is down."
            ) from exc

    def upload(self, path: str, pieces: Iterator[bytes], **options: Any) -> httpx.Response:
        """POST what comes, as it comes. Raises as `request`."""
        return self.request("POST", path, content=pieces, timeout=STREAM_TIMES * self.timeout_s, **options)

    def pages(self, path: str, params: dict[str, Any], *, limit: int) -> list[dict[str, Any]]:
        """Follow X-Next-Token until `limit` items or the end."""
        found: list[dict[str, Any]] = []
        token: str | None = None
        while len(found) < limit:
            page = params | {"limit": min(100, limit - len(found))} | ({"nextToken": token} if token else {})
            answer = self.request("GET", path, params=page)
            found += answer.json()
            token = answer.headers.get("X-Next-Token")
            if not token:
                break
        return found

    def close(self) -> None:
        self._http.close()


def _checked(answer: httpx.Response) -> httpx.Response:
    """Raises NotFound, ApiFailed."""
    if answer.is_success:
        return answer
    try:
        message = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.text[:300]
    if answer.status_code == 404:
        raise NotFound(message)
    raise ApiFailed(f"{answer.status_code}: {message}")
