"""The roles, their pid files and how to ask each whether it is well."""

import json
import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx

from firebrick.config import Config
from firebrick.linux.process import ProcessRef
from firebrick.model.errors import FirebrickError
from firebrick.rpc.node_client import GrpcNodeClient

HEALTH_TIMEOUT_S = 2.0


class Role(StrEnum):
    """In starting order; they stop in reverse, so that no client meets a half-stopped service."""

    NODE = "node"
    CONTROL = "control"
    EDGE = "edge"


SUPERVISOR = "supervisor"


class Health(StrEnum):
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """One process as `firebrick status` shows it. `pid` None: not running."""

    role: str
    pid: int | None
    health: Health


def role_argv(role: str) -> tuple[str, ...]:
    module = "supervise" if role == SUPERVISOR else role
    return (sys.executable, "-m", f"firebrick.main.{module}")


def role_env(config: Config) -> dict[str, str]:
    """What a role is started with: our environment plus the settings that the caller gave by option."""
    return os.environ | {
        "FIREBRICK_DATA_DIR": str(config.data_dir),
        "FIREBRICK_HOST": config.host,
        "FIREBRICK_API_PORT": str(config.api_port),
        "FIREBRICK_EDGE_PORT": str(config.edge_port),
        "FIREBRICK_TLS_PORT": str(config.tls_port),
        "FIREBRICK_RUNTIME": config.runtime,
    }


def pid_file(config: Config, role: str) -> Path:
    return config.run_dir / f"{role}.json"


def write_pid_file(config: Config, role: str, ref: ProcessRef) -> None:
    """Raises OSError: there is no room, and it is this role's first."""
    path = pid_file(config, role)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"pid": ref.pid, "start_ticks": ref.start_ticks})
    fresh = path.with_suffix(".new")
    try:
        fresh.write_text(text)
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        # On a full disk there is still the room of the file that an earlier process had: one write, within a block.
        with path.open("r+b", buffering=0) as file:
            file.truncate(file.write(text.encode()))


def running(config: Config, role: str) -> ProcessRef | None:
    """The living process of that role, or None. A reused pid is not mistaken for it."""
    try:
        ref = ProcessRef(**json.loads(pid_file(config, role).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return ref if ref.is_alive() else None


async def is_healthy(config: Config, role: Role) -> bool:
    """Ask the role itself, with a deadline."""
    if role is Role.NODE:
        client = GrpcNodeClient(f"unix:{config.node_socket}", patience=config.patience)
        try:
            await client.describe()
        except FirebrickError:
            return False
        finally:
            await client.close()
        return True
    url = health_url(config, role)
    timeout_s = config.patient_s(HEALTH_TIMEOUT_S)
    try:
        # No TLS is spoken here, and to read the certificates of all the world takes longer than the answer.
        async with httpx.AsyncClient(timeout=timeout_s, trust_env=False, verify=False) as client_http:
            return (await client_http.get(url)).is_success
    except httpx.HTTPError:
        return False


def health_url(config: Config, role: Role) -> str:
    host = reachable_host(config.host)
    if role is Role.CONTROL:
        return f"http://{host}:{config.api_port}/health"
    return f"http://{host}:{config.edge_port}/__firebrick/health"


def reachable_host(host: str) -> str:
    """The address a client on this machine uses for a server that listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


async def statuses(config: Config) -> tuple[ProcessStatus, ...]:
    """Every role with its pid and health, the supervisor last."""
    found: list[ProcessStatus] = []
    for role in Role:
        ref = running(config, role)
        if ref is None:
            found.append(ProcessStatus(role=role, pid=None, health=Health.STOPPED))
            continue
        health = Health.HEALTHY if await is_healthy(config, role) else Health.UNHEALTHY
        found.append(ProcessStatus(role=role, pid=ref.pid, health=health))
    keeper = running(config, SUPERVISOR)
    found.append(
        ProcessStatus(
            role=SUPERVISOR,
            pid=keeper.pid if keeper else None,
            health=Health.HEALTHY if keeper else Health.STOPPED,
        )
    )
    return tuple(found)
