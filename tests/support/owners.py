"""The API with several teams, users and the operator: who may see what."""

from dataclasses import dataclass
from typing import Any

import httpx

from firebrick.api.app import create_app
from tests.support.control import Running


@dataclass(slots=True, kw_only=True)
class Api:
    """Requests as whoever the headers say."""

    http: httpx.AsyncClient
    admin: dict[str, str]

    async def ok(self, method: str, path: str, headers: dict[str, str], **options: Any) -> Any:
        """The body of an answer that must succeed; None without one."""
        answer = await self.http.request(method, path, headers=headers, **options)
        assert answer.is_success, (method, path, answer.text)
        return answer.json() if answer.content else None

    async def status(self, method: str, path: str, headers: dict[str, str], **options: Any) -> int:
        answer = await self.http.request(method, path, headers=headers, **options)
        assert answer.is_success or answer.json()["code"] == answer.status_code
        return answer.status_code

    async def new_team(self, name: str, **quota: Any) -> tuple[str, dict[str, str]]:
        """A team and the headers of a key of it."""
        team = await self.ok("POST", "/admin/teams", self.admin, json={"name": name} | quota)
        made = await self.ok("POST", f"/admin/teams/{team['teamID']}/api-keys", self.admin, json={"name": "k"})
        return team["teamID"], {"X-API-Key": made["key"]}

    async def new_user(self, email: str, *team_ids: str) -> tuple[str, dict[str, str]]:
        """A user and the header of a JWT of it."""
        user = await self.ok("POST", "/admin/users", self.admin, json={"email": email, "teamIDs": list(team_ids)})
        token = await self.ok("POST", f"/admin/users/{user['id']}/jwts", self.admin)
        return user["id"], {"Authorization": f"Bearer {token['token']}"}


def open_api(running: Running) -> Api:
    """Close `http` when done."""
    transport = httpx.ASGITransport(create_app(running.control), raise_app_exceptions=False)
    token = running.world.config.admin_token_file.read_text().strip()
    return Api(
        http=httpx.AsyncClient(transport=transport, base_url="http://api"), admin={"X-Admin-Token": token}
    )  # fmt: skip
