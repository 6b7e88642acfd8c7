"""What a microVM's monitor can reach: its jail. And what its end takes along: its own machine, and no other."""

import os
import signal
import stat
from pathlib import Path

import pytest

from firebrick.linux.process import process_ref
from firebrick.model.machine import ExitCause, RuntimeName
from firebrick.runtimes.base import MachineSpec
from tests.support.firecracker import JAIL
from tests.support.runtime_bench import RuntimeBench
from tests.support.wait import wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]
