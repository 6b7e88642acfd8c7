"""Process entry: the supervisor of one machine's roles."""

import asyncio
import sys

from firebrick import log
from firebrick.clock import SystemClock
from firebrick.config import load_config
from firebrick.model.errors import FirebrickError
from firebrick.supervisor.keeper import Keeper


def main() -> int:
    config = load_config()
    log.configure(config.log_level, "supervisor")
    try:
        asyncio.run(Keeper(config, SystemClock()).run())
    except FirebrickError as exc:
        log.get_log("main").error("supervisor.refused", message=exc.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
