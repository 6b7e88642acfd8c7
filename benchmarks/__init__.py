"""Benchmarks: each prints figures and ratios to the bare tool from one run on one machine.

    ./dev bench create      python -m benchmarks.create [--runtime gvisor|container] [--json FILE]

They start an instance of their own (see tests/support/instance.py) and leave nothing behind.
"""
