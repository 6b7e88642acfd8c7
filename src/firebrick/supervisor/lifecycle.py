"""Start the supervisor, wait until all is well, stop everything: what `firebrick up` and `down` do."""

import asyncio
import json
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from firebrick.clock import Clock
from firebrick.config import Config
from firebrick.linux.process import ProcessRef, run, spawn_detached, wait_gone
from firebrick.model.errors import Forbidden, Unavailable
from firebrick.supervisor.certificates import TlsFiles, ensure_certificates, tls_files
from firebrick.supervisor.keeper import log_file
from firebrick.supervisor.roles import (
    SUPERVISOR,
    Role,
    is_healthy,
    reachable_host,
    role_argv,
    role_env,
    running,
)

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05
TLS_PORT_FILE = "tls_port"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client needs to reach this instance. `domain` is set when the edge speaks TLS: then it and the key are
    all that E2B's clients need, and trust in `files.ca`."""

    api_url: str
    sandbox_url: str
    api_key: str
    domain: str = ""
    files: TlsFiles | None = None

    def as_env(self) -> dict[str, str]:
        """The variables of `firebrick env`. In TLS the two URLs must not be set: they would win over the domain."""
        if self.domain:
            found = {"E2B_DOMAIN": self.domain, "E2B_API_KEY": self.api_key}
            if self.files is not None and self.files.bundle is not None:
                found |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(self.files.bundle))
                found["NODE_EXTRA_CA_CERTS"] = str(self.files.ca)
            return found
        return {
            "E2B_API_URL": self.api_url,
            "E2B_SANDBOX_URL": self.sandbox_url,
            "E2B_API_KEY": self.api_key,
        }


def ensure_api_key(config: Config) -> str:
    """The first team's key, minted once and kept in a file that only its owner reads.

    The control plane takes it into the store at its start; so a crash between the two loses nothing.
    Raises: Forbidden — the data directory is not this user's to write.
    """
    key = stored_api_key(config)
    if key:
        return key
    key = "e2b_" + secrets.token_hex(20)
    fresh = config.credentials_file.with_suffix(".new")
    try:
        fresh.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except PermissionError as exc:
        raise Forbidden(
            f"The data directory {config.data_dir} cannot be written by this user. Run it as root, as real runtimes "
            "need, or choose another directory with FIREBRICK_DATA_DIR."
        ) from exc
    with os.fdopen(descriptor, "w") as sink:
        json.dump({"api_key": key}, sink)
        sink.flush()
        os.fsync(sink.fileno())
    fresh.rename(config.credentials_file)
    return key


def stored_api_key(config: Config) -> str | None:
    try:
        return str(json.loads(config.credentials_file.read_text())["api_key"])
    except (OSError, ValueError, KeyError):
        return None


def credentials(config: Config) -> Credentials | None:
    """None when this data directory has never been brought up."""
    key = stored_api_key(config)
    if key is None:
        return None
    host = reachable_host(config.host)
    config = replace(config, tls_port=config.tls_port or _running_tls_port(config))
    return Credentials(
        api_url=f"http://{host}:{config.api_port}",
        sandbox_url=f"http://{host}:{config.edge_port}",
        api_key=key,
        domain=config.sandbox_domain if config.tls_port else "",
        files=tls_files(config) if config.tls_port else None,
    )


def _running_tls_port(config: Config) -> int:
    """The port that was given to `up` by option, so that `firebrick env` need not be told again; 0: none."""
    try:
        return int((config.run_dir / TLS_PORT_FILE).read_text())
    except (OSError, ValueError):
        return 0


async def start(config: Config, clock: Clock) -> None:
    """Start the supervisor unless it runs; return when every role is healthy.

    Raises: Unavailable — a role did not become healthy in time; names the role and its log.
    """
    for directory in (config.data_dir, config.run_dir, config.log_dir):
        directory.mkdir(parents=True, exist_ok=True)
    # Mapped root of a container must pass through to its disk; what is secret below has modes of its own.
    config.data_dir.chmod(0o711)
    if running(config, SUPERVISOR) is None:
        (config.run_dir / TLS_PORT_FILE).write_text(str(config.tls_port))
        if config.tls_port:
            # Here too, and not only in the edge: what is wrong with the files is told to who runs `up`.
            ensure_certificates(config, clock)
    keeper = running(config, SUPERVISOR) or spawn_detached(
        role_argv(SUPERVISOR), log=log_file(config, SUPERVISOR), env=role_env(config)
    )
    ready_timeout_s = config.patient_s(READY_TIMEOUT_S)
    deadline = clock.monotonic_s() + ready_timeout_s
    for role in Role:
        while not await is_healthy(config, role):
            if not keeper.is_alive():
                raise Unavailable(f"The supervisor ended at once. {_last_words(config, SUPERVISOR)}")
            if clock.monotonic_s() > deadline:
                raise Unavailable(
                    f"The {role} process did not become healthy within {ready_timeout_s:.0f} s. "
                    f"{_last_words(config, role)}"
                )
            await clock.sleep(config.patient_s(POLL_S))


def _last_words(config: Config, role: str) -> str:
    path = log_file(config, role)
    try:
        tail = path.read_text(errors="replace").splitlines()[-3:]
    except OSError:
        tail = []
    return f"Its log is {path}" + (", ending in:\n  " + "\n  ".join(tail) if tail else ".")


async def stop(config: Config) -> None:
    """Stop every process of this instance and end what it still runs. Idempotent.

    Effects: roles are terminated in order, also those whose supervisor was killed; then the node agent's own
    tool ends every machine and removes slots, mounts and uppers. Data (database, templates, logs) stays.
    """
    keeper = running(config, SUPERVISOR)
    if keeper is not None:
        await _end(keeper, config)
    for role in reversed(Role):
        ref = running(config, role)
        if ref is not None:
            await _end(ref, config)
    if config.node_dir.is_dir():
        timeout_s = config.patient_s(STOP_TIMEOUT_S * 2)
        await run([*role_argv(Role.NODE), "--end-all"], env=role_env(config), timeout_s=timeout_s)


async def _end(ref: ProcessRef, config: Config) -> None:
    ref.terminate()
    try:
        async with asyncio.timeout(config.patient_s(STOP_TIMEOUT_S)):
            await wait_gone(ref)
    except TimeoutError:
        ref.kill()
        await wait_gone(ref)


def runtimes_file(config: Config) -> Path:
    """The doctor's verdict, for the node agent: which runtimes work on this machine, strongest first."""
    return config.run_dir / "runtimes.json"
