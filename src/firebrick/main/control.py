"""Process entry: the control plane of one machine, with the REST API and the embedded catalog."""

import asyncio
import signal
import sys
from contextlib import AsyncExitStack

import uvicorn
import uvloop

from firebrick import log
from firebrick.api.app import create_app
from firebrick.builder.template_store import list_builds
from firebrick.catalog.embedded import EmbeddedCatalogServer
from firebrick.clock import Clock, SystemClock
from firebrick.config import Config, load_config
from firebrick.control.failpoint import arm
from firebrick.control.plane import open_control_plane
from firebrick.model.errors import FirebrickError, Unavailable
from firebrick.model.ids import NodeId
from firebrick.rpc.node_client import GrpcNodeClient
from firebrick.supervisor.lifecycle import ensure_api_key

NODE_ID_TIMEOUT_S = 30.0
POLL_S = 0.05
GRACEFUL_S = 5


class ApiServer(uvicorn.Server):
    """uvicorn without its signal handling: the process has one, and it is ours."""

    def install_signal_handlers(self) -> None:
        return


async def run(config: Config, clock: Clock) -> None:
    """Serve until SIGTERM or SIGINT, then end in order: API, reconcilers, catalog, node client."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        node_id = await wait_node_id(config, clock)
        node = GrpcNodeClient(f"unix:{config.node_socket}", patience=config.patience)
        stack.push_async_callback(node.close)
        catalog = EmbeddedCatalogServer(config.catalog_socket, patience=config.patience)
        await catalog.start()
        stack.push_async_callback(catalog.close)
        control = await stack.enter_async_context(
            open_control_plane(config, catalog=catalog, node_clients={node_id: node}, clock=clock)
        )
        await control.ensure_default_team(ensure_api_key(config))
        for build in reversed(list_builds(config.templates_dir)):
            await control.templates.ensure_shipped(alias=build.alias, build_id=build.build_id, limits=build.limits)
        await serve(config, create_app(control), stopping)


async def serve(config: Config, app: object, stopping: asyncio.Event) -> None:
    server = ApiServer(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            host=config.host,
            port=config.api_port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACEFUL_S,
        )
    )
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve())
        waiting = tasks.create_task(stopping.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        waiting.cancel()


async def wait_node_id(config: Config, clock: Clock) -> NodeId:
    """The id that this machine's node agent gave itself at its first start; it need not run now.

    Raises: Unavailable — it has never started.
    """
    path = config.node_dir / "node_id"
    deadline = clock.monotonic_s() + config.patient_s(NODE_ID_TIMEOUT_S)
    while not (path.exists() and path.read_text().strip()):
        if clock.monotonic_s() > deadline:
            raise Unavailable(f"The node agent of this machine has never started: {path} is missing.")
        await clock.sleep(POLL_S)
    return NodeId(path.read_text().strip())


def main() -> int:
    config = load_config()
    arm(config.die_at_file_for_test_purposes_only)
    log.configure(config.log_level, "control")
    try:
        uvloop.run(run(config, SystemClock()))
    except FirebrickError as exc:
        log.get_log("main").error("control.refused", message=exc.message, detail=exc.detail)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
