"""`firebrick down`, `status` and `env`: the instance in the data directory."""

import asyncio
import json
import sys
from typing import Annotated

import typer

from firebrick.cli.client import TIMEOUT_S, Client
from firebrick.cli.console import err, fail, out, reports_errors, table
from firebrick.config import Config, load_config
from firebrick.model.errors import FirebrickError
from firebrick.supervisor import lifecycle
from firebrick.supervisor.roles import Health, statuses


@reports_errors
def down() -> None:
    """End every running sandbox and stop the instance's processes. Paused sandboxes, data, templates and logs stay."""
    config = load_config()
    ended = kill_all(config)
    asyncio.run(lifecycle.stop(config))
    out.print(f"Stopped. {ended} sandboxes ended." if ended else "Stopped.")


def kill_all(config: Config) -> int:
    """Kill every running sandbox through the API, so that each row tells who ended it; nothing if the API is down."""
    target = lifecycle.credentials(config)
    if target is None:
        return 0
    client = Client(target, timeout_s=config.patient_s(TIMEOUT_S))
    try:
        found = client.pages("/v2/sandboxes", {"state": "running"}, limit=100_000)
        for item in found:
            client.request("DELETE", f"/sandboxes/{item['sandboxID']}")
    except FirebrickError as exc:
        # The machines are ended all the same by the node's own tool; only their end reason is less exact.
        err.print(f"firebrick: not every sandbox could be ended through the API: {exc.message}", markup=False)
        return 0
    finally:
        client.close()
    return len(found)


@reports_errors
def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show the processes of this instance. Exit status 0 when all are healthy, 3 when it is down."""
    config = load_config()
    found = asyncio.run(statuses(config))
    target = lifecycle.credentials(config)
    if as_json:
        document = {
            "data_dir": str(config.data_dir),
            "api_url": target.api_url if target else None,
            "sandbox_url": target.sandbox_url if target else None,
            "processes": [{"role": item.role, "pid": item.pid, "health": item.health} for item in found],
        }
        print(json.dumps(document, indent=2))
    else:
        table(("role", "pid", "health"), [(item.role, item.pid or "-", item.health) for item in found])
        if target:
            out.print(f"API {target.api_url}, edge {target.sandbox_url}, data {config.data_dir}", markup=False)
    if all(item.health is Health.STOPPED for item in found):
        sys.exit(3)
    if any(item.health is not Health.HEALTHY for item in found):
        sys.exit(1)


@reports_errors
def env() -> None:
    """Print the lines that point E2B's clients here: eval "$(firebrick env)"."""
    config = load_config()
    target = lifecycle.credentials(config)
    if target is None:
        fail(f"No instance in {config.data_dir}. Start one with `firebrick up`.")
    pairs = " ".join(f"{key}={value}" for key, value in target.as_env().items())
    if target.domain:
        print("unset E2B_API_URL E2B_SANDBOX_URL")
    print(f"export {pairs}")
