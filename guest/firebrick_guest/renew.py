"""POST /firebrick/renew: this machine goes on from saved memory, in which others may go on as well.

The host asks with the token that is in that memory, before anything else here runs. Afterwards the machine has what no
other has: a control token, randomness, and the time of day. Whatever talked to the former machine is cut off; and where
another sandbox goes on, it must be told what it is by /init, as at first.
"""

import os
import struct
import time
from binascii import Error, a2b_base64
from fcntl import ioctl

from firebrick_guest.errors import ConnectError, HttpError
from firebrick_guest.http import Exchange
from firebrick_guest.init import nanoseconds, set_clock
from firebrick_guest.json_text import flag, load_json, text
from firebrick_guest.logs import EventLog
from firebrick_guest.quiet import Quiet
from firebrick_guest.settings import Settings

MAX_BODY_BYTES = 64 * 1024
MIN_ENTROPY_BYTES = 64
MAX_ENTROPY_BYTES = 512
# <linux/random.h>: mix bytes into the kernel's pool and count them; seed its generator anew from the pool, at once.
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207


class RenewRoute:
    def __init__(self, settings: Settings, quiet: Quiet, log: EventLog) -> None:
        self._settings = settings
        self._quiet = quiet
        self._log = log

    async def serve(self, exchange: Exchange) -> None:
        """Raises HttpError 400 (nonsense), 500 (the kernel takes no randomness); then nothing is changed."""
        raw = await exchange.read_all(MAX_BODY_BYTES)
        try:
            body = load_json(raw)
            told_at_ns = nanoseconds(text(body, "timestamp"))
            control_token = text(body, "controlToken")
            entropy = a2b_base64(text(body, "entropy").encode("ascii"), strict_mode=True)
            is_other = flag(body, "other", False)
        except (ConnectError, Error, ValueError) as exc:
            raise HttpError(400, f"the renewal makes no sense: {exc}") from exc
        if not control_token or not told_at_ns or not MIN_ENTROPY_BYTES <= len(entropy) <= MAX_ENTROPY_BYTES:
            raise HttpError(400, "a renewal needs a control token, the time and 64 to 512 bytes of entropy")
        is_random = self._add_randomness(entropy)
        set_clock(told_at_ns, self._log)
        settings = self._settings
        settings.control_token = control_token
        # The former host's clock is no measure for what comes now.
        settings.told_at_ns = 0
        if is_other:
            settings.forget()
        # What it told is told already; and to another sandbox it says nothing.
        self._log.forget()
        exchange.drop_others()
        exchange.answer_json(200, {"held": self._quiet.is_held, "randomness": is_random, "timeNs": time.time_ns()})

    def _add_randomness(self, entropy: bytes) -> bool:
        if os.getpid() != 1:
            # Then this is somebody's computer and no machine of ours.
            return False
        try:
            add_randomness(entropy)
        except OSError as exc:
            raise HttpError(500, f"the kernel takes no randomness: {exc.strerror}") from exc
        return True


def add_randomness(entropy: bytes) -> None:
    """From now on all that the kernel gives depends on it too. Raises OSError."""
    with open("/dev/random", "wb", buffering=0) as device:
        ioctl(device, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        ioctl(device, RNDRESEEDCRNG)
