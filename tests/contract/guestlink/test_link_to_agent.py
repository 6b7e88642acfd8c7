"""Our link and the real guest agent agree on the control routes."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firebrick.guestlink.base import GuestInit, GuestRenewal, GuestSilent
from firebrick.guestlink.http import HttpGuestLink
from firebrick.model.ids import SandboxId, TemplateId

GUEST = Path(__file__).parents[3] / "guest"
TOKEN = "control-token"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "firebrick_guest.main",
        env=os.environ | {
            "PYTHONPATH": str(GUEST),
            "FIREBRICK_CONTROL_TOKEN": TOKEN,
            "FIREBRICK_AGENT_HOST": "127.0.0.1",
            "FIREBRICK_AGENT_PORT": "0",
        },
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    said = re.search(rb"port (\d+)", await process.stdout.readline())
    assert said
    yield int(said[1])
    process.terminate()
    await process.wait()


def settings(now: datetime) -> GuestInit:
    return GuestInit(
        sandbox_id=SandboxId("i1"),
        template_id=TemplateId("base"),
        timestamp=now,
        # Its own, so that the test changes nothing of the machine it runs on.
        hostname="",
        env={"A": "b"},
        metadata={"k": "v"},
        access_token="secret",
    )


async def test_the_agent_takes_its_settings_and_tells_its_log(port: int) -> None:
    """Ready, init, repeated init and the log, each answer understood; the log is paged by number."""
    link = HttpGuestLink("127.0.0.1", TOKEN, port=port)
    await link.wait_ready(timeout_s=10)
    now = datetime.now(UTC)
    await link.init(settings(now))
    await link.init(settings(now))
    entries, following = await link.logs(0, timeout_s=5)
    assert "settings taken" in [entry.message for entry in entries]
    assert await link.logs(following, timeout_s=5) == ((), following)
    link.close()


async def test_a_wrong_control_token_is_refused(port: int) -> None:
    """Whoever reaches the port cannot take the sandbox over."""
    link = HttpGuestLink("127.0.0.1", "wrong", port=port)
    await link.wait_ready(timeout_s=10)
    with pytest.raises(GuestSilent, match="refused"):
        await link.init(settings(datetime.now(UTC)))
    link.close()


async def test_hold_and_renewal_are_understood(port: int) -> None:
    """The agent takes both; outside of a machine it has no kernel to give randomness to, and the link takes that for no
    renewal. The former token opens nothing afterwards, the new one does."""
    link = HttpGuestLink("127.0.0.1", TOKEN, port=port)
    await link.wait_ready(timeout_s=10)
    await link.hold(for_s=30, timeout_s=10)
    renewal = GuestRenewal(
        control_token="new", timestamp=datetime.now(UTC), entropy=os.urandom(64), is_other=True
    )  # fmt: skip
    with pytest.raises(GuestSilent, match="randomness"):
        await link.renew(renewal, timeout_s=10)
    with pytest.raises(GuestSilent, match="401"):
        await link.renew(renewal, timeout_s=10)
    renewed = HttpGuestLink("127.0.0.1", "new", port=port)
    await renewed.init(settings(datetime.now(UTC)))
    renewed.close()
