"""`firebrick team|key|user|token …`: the operator's commands about owners, through the admin endpoints."""

import json
from typing import Annotated, Any

import typer

from firebrick.cli.client import Client, open_admin_client
from firebrick.cli.console import fail, reports_errors, table

teams = typer.Typer(help="Teams and their quotas.", no_args_is_help=True)
keys = typer.Typer(help="API keys of a team.", no_args_is_help=True)
users = typer.Typer(help="Users, who act for teams.", no_args_is_help=True)
tokens = typer.Typer(help="Access tokens of users.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="The API's whole answer.")]
TeamOption = Annotated[str, typer.Option("--team", "-t", help="Name or id of the team.")]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="Mail address or id.")]

SandboxLimit = Annotated[int | None, typer.Option(help="Concurrent sandboxes.")]
CpuLimit = Annotated[int | None, typer.Option(help="millicpu of all sandboxes; 0: no limit.")]
MemoryLimit = Annotated[int | None, typer.Option(help="MiB of all sandboxes; 0: no limit.")]
DiskLimit = Annotated[int | None, typer.Option(help="MiB of all disks; 0: no limit.")]
RateLimit = Annotated[float | None, typer.Option(help="Creates per second; 0: no limit.")]
TimeoutLimit = Annotated[int | None, typer.Option(help="Longest timeout, in seconds.")]

DAY_S = 86_400


@teams.command("create")
@reports_errors
def create_team(
    name: str,
    max_sandboxes: SandboxLimit = None,
    max_millicpu: CpuLimit = None,
    max_memory_mib: MemoryLimit = None,
    max_disk_mib: DiskLimit = None,
    max_creates_per_s: RateLimit = None,
    max_timeout_s: TimeoutLimit = None,
    as_json: Json = False,
) -> None:
    """Create a team and print its id. What is not given comes from the settings."""
    quota = _quota(max_sandboxes, max_millicpu, max_memory_mib, max_disk_mib, max_creates_per_s, max_timeout_s)
    made = open_admin_client().request("POST", "/admin/teams", json={"name": name} | quota).json()
    print(json.dumps(made) if as_json else made["teamID"])


@teams.command("set-quota")
@reports_errors
def set_quota(
    team: str,
    max_sandboxes: SandboxLimit = None,
    max_millicpu: CpuLimit = None,
    max_memory_mib: MemoryLimit = None,
    max_disk_mib: DiskLimit = None,
    max_creates_per_s: RateLimit = None,
    max_timeout_s: TimeoutLimit = None,
) -> None:
    """Change a team's quota; it holds for the next create."""
    client = open_admin_client()
    quota = _quota(max_sandboxes, max_millicpu, max_memory_mib, max_disk_mib, max_creates_per_s, max_timeout_s)
    _show_teams([client.request("PATCH", f"/admin/teams/{team_id(client, team)}", json=quota).json()])


@teams.command("list")
@reports_errors
def list_teams(as_json: Json = False) -> None:
    """List teams with their quotas."""
    found = open_admin_client().request("GET", "/admin/teams").json()
    if as_json:
        print(json.dumps(found))
    else:
        _show_teams(found)


@keys.command("create")
@reports_errors
def create_key(
    team: TeamOption = "default",
    name: Annotated[str, typer.Option(help="What it is for.")] = "made by firebrick key create",
    as_json: Json = False,
) -> None:
    """Make an API key and print it: this once."""
    client = open_admin_client()
    path = f"/admin/teams/{team_id(client, team)}/api-keys"
    made = client.request("POST", path, json={"name": name}).json()
    print(json.dumps(made) if as_json else made["key"])


@keys.command("list")
@reports_errors
def list_keys(team: TeamOption = "default", as_json: Json = False) -> None:
    """List a team's keys, masked."""
    client = open_admin_client()
    found = client.request("GET", "/api-keys", headers={"X-Team-ID": team_id(client, team)}).json()
    if as_json:
        print(json.dumps(found))
        return
    fields = ("id", "name", "createdAt", "lastUsed")
    rows = [(*(item[field] or "-" for field in fields), mask(item["mask"])) for item in found]
    table(("key", "name", "created", "last used", "mask"), rows)


@keys.command("revoke")
@reports_errors
def revoke_key(key: Annotated[str, typer.Argument(help="Id of the key.")], team: TeamOption = "default") -> None:
    """Revoke a key; it opens nothing from now on."""
    client = open_admin_client()
    client.request("DELETE", f"/admin/teams/{team_id(client, team)}/api-keys/{key}")
    print(key)


@users.command("create")
@reports_errors
def create_user(
    email: str,
    team: Annotated[list[str] | None, typer.Option("--team", "-t", help="Team; may be repeated.")] = None,
    subject: Annotated[str | None, typer.Option(help="'<issuer> <sub>' at an identity provider.")] = None,
    as_json: Json = False,
) -> None:
    """Create a user, member of the teams named (the first is its default), and print its id."""
    client = open_admin_client()
    body: dict[str, Any] = {"email": email, "teamIDs": [team_id(client, item) for item in team or ["default"]]}
    if subject:
        body["subject"] = subject
    made = client.request("POST", "/admin/users", json=body).json()
    print(json.dumps(made) if as_json else made["id"])


@users.command("list")
@reports_errors
def list_users(as_json: Json = False) -> None:
    """List users."""
    found = open_admin_client().request("GET", "/admin/users").json()
    if as_json:
        print(json.dumps(found))
    else:
        table(("user", "email", "created"), [(item["id"], item["email"], item["createdAt"]) for item in found])


@users.command("delete")
@reports_errors
def delete_user(user: UserArgument) -> None:
    """Remove a user; its tokens open nothing from now on."""
    client = open_admin_client()
    found = user_id(client, user)
    client.request("DELETE", f"/admin/users/{found}")
    print(found)


@tokens.command("create")
@reports_errors
def create_token(
    user: UserArgument,
    days: Annotated[float, typer.Option(help="How long it is good for.")] = 1,
    legacy: Annotated[bool, typer.Option("--legacy", help="A lasting sk_e2b_… token instead of a JWT.")] = False,
    as_json: Json = False,
) -> None:
    """Make an access token for a user and print it: this once. Send it as `Authorization: Bearer …`."""
    client = open_admin_client()
    path = f"/admin/users/{user_id(client, user)}/{'access-tokens' if legacy else 'jwts'}"
    body: dict[str, Any] = {"name": "made by firebrick token create"} if legacy else {"lifetimeS": int(days * DAY_S)}
    made = client.request("POST", path, json=body).json()
    print(json.dumps(made) if as_json else made["token"])


def team_id(client: Client, wanted: str) -> str:
    """From a name or an id to the id."""
    for team in client.request("GET", "/admin/teams").json():
        if wanted in (team["teamID"], team["name"]):
            return str(team["teamID"])
    fail(f"There is no team '{wanted}'. See `firebrick team list`.")


def user_id(client: Client, wanted: str) -> str:
    """From a mail address or an id to the id."""
    for user in client.request("GET", "/admin/users").json():
        if wanted.lower() in (user["id"], user["email"]):
            return str(user["id"])
    fail(f"There is no user '{wanted}'. See `firebrick user list`.")


def mask(details: dict[str, Any]) -> str:
    return f"{details['prefix']}{details['maskedValuePrefix']}…{details['maskedValueSuffix']}"


def _quota(
    sandboxes: int | None, millicpu: int | None, memory: int | None, disk: int | None, rate: float | None,
    timeout: int | None,
) -> dict[str, Any]:  # fmt: skip
    given = {
        "maxSandboxes": sandboxes, "maxMillicpu": millicpu, "maxMemoryMiB": memory, "maxDiskMiB": disk,
        "maxCreatesPerS": rate, "maxTimeoutS": timeout,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def _show_teams(found: list[dict[str, Any]]) -> None:
    columns = ("maxSandboxes", "maxMillicpu", "maxMemoryMiB", "maxDiskMiB", "maxCreatesPerS", "maxTimeoutS")
    heads = ("team", "name", "sandboxes", "millicpu", "memory MiB", "disk MiB", "creates/s", "timeout s")
    table(heads, [(item["teamID"], item["name"], *(f"{item[name]:g}" for name in columns)) for item in found])
