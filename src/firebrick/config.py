"""One typed, frozen Config from one TOML file and the environment.

Every setting stands once in `Config` with its default, unit and help. The file is
`<data_dir>/firebrick.toml` (or `FIREBRICK_CONFIG`); the environment wins: `FIREBRICK_API_PORT=3100`.
Unknown keys are refused, so that a typing mistake cannot silently mean the default.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from firebrick.model.errors import Invalid

ENV_PREFIX = "FIREBRICK_"
NO_SETTINGS = frozenset({"FIREBRICK_CONFIG", "FIREBRICK_API_KEY", "FIREBRICK_ADMIN_TOKEN"})


def setting(default: Any, unit: str, help: str) -> Any:
    return field(default=default, metadata={"unit": unit, "help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. `firebrick config` prints them; docs/reference/settings.md is made from this table."""

    data_dir: Path = setting(Path("/var/lib/firebrick"), "path", "where everything that must survive is kept")
    host: str = setting("127.0.0.1", "address", "address that the API and the edge listen on")
    api_port: int = setting(3000, "port", "port of the REST API")
    edge_port: int = setting(3002, "port", "port of the edge: all traffic to sandboxes")
    tls_port: int = setting(0, "port", "port on which the edge speaks TLS; 0: none; `up --tls` takes 3443")
    tls_certificate: str = setting("", "path", "certificate chain of *.<domain>; empty: a local authority makes one")
    tls_key: str = setting("", "path", "its key")
    domain: str = setting(
        "", "name", "domain of sandbox host names, a port in it if it is not 443; empty: sandbox.localhost:<port>"
    )
    runtime: str = setting(
        "auto", "name", "auto, firecracker, gvisor, container or sim; auto takes the strongest that works here"
    )
    runsc_path: str = setting("", "path", "runsc binary; empty: the one installed by us, then PATH")
    oci_runtime_path: str = setting("", "path", "runc or crun binary; empty: found on PATH")
    firecracker_disk_mib_per_s: int = setting(
        0, "MiB/s", "most that a microVM reads and writes of each drive; 0: no limit"
    )
    firecracker_network_mib_per_s: int = setting(0, "MiB/s", "most that a microVM sends and receives; 0: no limit")
    firecracker_huge_pages: str = setting(
        "off", "name", "on: microVMs in 2 MiB pages that the host has reserved; pauses then keep memory in place only"
    )
    network_prefix: str = setting("10.111.0.0/16", "CIDR", "addresses of slots on this host; must be unused there")
    slot_count: int = setting(0, "count", "network slots made ahead; 0 sizes it to the machine")
    dns_servers: str = setting("8.8.8.8,1.1.1.1", "addresses", "name servers a sandbox is told, comma-separated")
    warm_count: int = setting(
        2, "count", "ready sandboxes kept of a hot template, more after a burst of creates; 0 turns the pool off"
    )
    warm_memory_mib: int = setting(512, "MiB", "most memory the warm pool may hold in all")
    start_concurrency: int = setting(4, "count", "machines started at the same time")
    template_memory_count: int = setting(
        8, "count", "kinds of microVMs that go on from the memory of one that booted, some 150 MiB each; 0: none"
    )
    patience: float = setting(
        1.0,
        "ratio",
        "how many times longer than usual probes, processes and machines may take; 10 in emulation",
    )
    default_millicpu: int = setting(2000, "millicpu", "CPU of a sandbox of the base template")
    default_memory_mib: int = setting(1024, "MiB", "memory of a sandbox of the base template")
    default_disk_mib: int = setting(10240, "MiB", "most a sandbox may write to its disk")
    max_disk_mib: int = setting(
        102_400, "MiB", "largest disk that may be asked for at a create (metadata firebrick.diskMiB)"
    )
    disk_clones: str = setting(
        "auto",
        "name",
        "how disks are cloned: auto, sparse, reflink (XFS, btrfs) or devmapper; auto takes devmapper where disk_pool "
        "is set, else reflink where the filesystem can, else sparse",
    )
    disk_pool: str = setting(
        "", "path", "block device for devmapper's pool, blank at first; empty: a file in the data directory"
    )
    default_process_count: int = setting(4096, "count", "most processes and threads in a sandbox")
    cpu_overcommit: float = setting(64.0, "ratio", "promised CPU over real CPU at most; idle sandboxes use none")
    memory_overcommit: float = setting(4.0, "ratio", "promised memory over real memory at most")
    max_sandboxes_per_team: int = setting(200, "count", "concurrent sandboxes of a new team")
    max_creates_per_s_per_team: float = setting(100.0, "1/s", "creates per second of a new team; 0: no limit")
    max_timeout_s: int = setting(86_400, "s", "longest timeout that may be asked for")
    grace_bin_s: int = setting(
        3600, "s", "how long the disk of a sandbox that its timeout ended can be recovered; 0 keeps none"
    )
    metrics_kept_s: int = setting(86_400, "s", "how long samples of use are kept; those of the last hour all")
    jwt_jwks_url: str = setting("", "URL", "public keys (JWKS) of an identity provider; empty: only tokens of ours")
    jwt_issuer: str = setting("", "name", "issuer (iss) that the provider's tokens must name")
    jwt_audience: str = setting("", "name", "audience (aud) that the provider's tokens must name")
    autopsy_hours: int = setting(48, "h", "how long it can be asked why a sandbox ended; at least 24")
    ended_logs_mib: int = setting(
        1024, "MiB", "most that logs of ended sandboxes take, kept as long as autopsies; above it the oldest go"
    )
    audit_days: int = setting(365, "d", "how long lines of the audit log are kept")
    longest_restart_delay_s: float = setting(
        5.0, "s", "longest wait before a process of ours that ends again and again is started again"
    )
    die_at_file_for_test_purposes_only: str = setting("", "path", "names a step at which to die; `firebrick drill`'s")
    log_level: str = setting("info", "level", "debug, info, warning or error")

    @property
    def sandbox_domain(self) -> str:
        """What follows `<port>-<id>.` in a sandbox's host name; may hold a port."""
        return self.domain or f"sandbox.localhost:{self.tls_port or self.edge_port}"

    @property
    def run_dir(self) -> Path:
        """Sockets and pid files: worthless after a reboot."""
        return self.data_dir / "run"

    @property
    def log_dir(self) -> Path:
        return self.data_dir / "log"

    @property
    def node_dir(self) -> Path:
        """The node agent's: machines, records, uppers, slots."""
        return self.data_dir / "node"

    @property
    def templates_dir(self) -> Path:
        """`<build_id>/rootfs.erofs` and `<build_id>/build.json`, written last."""
        return self.data_dir / "templates"

    @property
    def tools_dir(self) -> Path:
        """Binaries and images that we installed: runsc, the guest agent's image."""
        return self.data_dir / "tools"

    @property
    def firecracker_dir(self) -> Path:
        """What `firebrick setup firecracker` puts there."""
        return self.tools_dir / "firecracker"

    @property
    def node_socket(self) -> Path:
        return self.run_dir / "node.sock"

    @property
    def catalog_socket(self) -> Path:
        return self.run_dir / "catalog.sock"

    def patient_s(self, usual_s: float) -> float:
        """The deadline on this machine for what has `usual_s` on a usual one; seconds."""
        return usual_s * self.patience

    @property
    def database_url(self) -> str:
        return f"sqlite+aiosqlite:///{self.data_dir}/firebrick.db"

    @property
    def admin_token_file(self) -> Path:
        """The operator's token, for the admin endpoints. Mode 0600; made by the control plane at its first start."""
        return self.data_dir / "admin-token"

    @property
    def credentials_file(self) -> Path:
        """The first team's API key, for `firebrick env`. Mode 0600."""
        return self.data_dir / "credentials.json"


def load_config(environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
    """Read the file, then the environment, then `overrides` (None means not given).

    Raises:
        Invalid: unknown key, wrong type or a value that cannot work; names the key and where it came from.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    data_dir = Path(overrides.get("data_dir") or env.get("FIREBRICK_DATA_DIR") or Config().data_dir)
    path = Path(env.get("FIREBRICK_CONFIG") or data_dir / "firebrick.toml")
    if path.is_file():
        try:
            raw = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise Invalid(f"The settings file {path} is not valid TOML: {exc}. Mend or remove it.") from exc
        for key, value in raw.items():
            values[key] = _parse(key, value, str(path))
    for name, text in env.items():
        if name.startswith(ENV_PREFIX) and name not in NO_SETTINGS:
            key = name.removeprefix(ENV_PREFIX).lower()
            values[key] = _parse(key, text, name)
    values |= {key: _parse(key, value, "the command line") for key, value in overrides.items() if value is not None}
    config = replace(Config(), **values)
    _check(config)
    return config


def _parse(key: str, value: Any, source: str) -> Any:
    known = {item.name: item for item in fields(Config)}
    if key not in known:
        raise Invalid(f"Unknown setting '{key}' in {source}. Known: {', '.join(sorted(known))}.")
    default: Any = known[key].default
    try:
        if isinstance(default, Path):
            return Path(value).expanduser().absolute()
        if isinstance(value, bool):
            raise ValueError(value)
        return type(default)(value)
    except (TypeError, ValueError) as exc:
        wanted = type(default).__name__
        raise Invalid(f"Setting '{key}' in {source} must be a {wanted}, not {value!r}.") from exc


def _check(config: Config) -> None:
    for key in ("api_port", "edge_port"):
        if not 0 < getattr(config, key) < 65536:
            raise Invalid(f"Setting '{key}' must be a port from 1 to 65535, not {getattr(config, key)}.")
    if config.api_port == config.edge_port:
        raise Invalid(f"Settings 'api_port' and 'edge_port' are both {config.api_port}; give them different ports.")
    if config.tls_port in (config.api_port, config.edge_port) or not 0 <= config.tls_port < 65536:
        raise Invalid(f"Setting 'tls_port' must be a port of its own, or 0 for none, not {config.tls_port}.")
    if bool(config.tls_certificate) != bool(config.tls_key):
        raise Invalid("Settings 'tls_certificate' and 'tls_key' go together: give both, or neither.")
    if config.runtime not in ("auto", "firecracker", "gvisor", "container", "sim"):
        raise Invalid(f"Setting 'runtime' must be auto, firecracker, gvisor, container or sim, not '{config.runtime}'.")
    if config.disk_clones not in ("auto", "sparse", "reflink", "devmapper"):
        raise Invalid(f"Setting 'disk_clones' must be auto, sparse, reflink or devmapper, not '{config.disk_clones}'.")
    if config.firecracker_huge_pages not in ("off", "on"):
        raise Invalid(f"Setting 'firecracker_huge_pages' must be on or off, not '{config.firecracker_huge_pages}'.")
    if config.disk_pool and config.disk_clones not in ("auto", "devmapper"):
        raise Invalid(f"Setting 'disk_pool' is for devmapper; 'disk_clones' is '{config.disk_clones}'.")
    if config.patience <= 0:
        raise Invalid(f"Setting 'patience' must be more than 0, not {config.patience}.")
    if config.autopsy_hours < 24:
        raise Invalid(f"Setting 'autopsy_hours' must be at least 24, not {config.autopsy_hours}.")
    if config.ended_logs_mib < 1:
        raise Invalid(f"Setting 'ended_logs_mib' must be at least 1, not {config.ended_logs_mib}.")
    if config.jwt_jwks_url and not (config.jwt_issuer and config.jwt_audience):
        raise Invalid("Setting 'jwt_jwks_url' needs 'jwt_issuer' and 'jwt_audience' beside it.")
