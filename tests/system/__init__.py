"""The system lane: the daemon as a process, against real libvirtds with real guests."""

import os

import pytest

# As the daemon does, before gRPC is there: no fork handlers, no chatter.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# What these assert for the tests is told like the tests' own assertions.
pytest.register_assert_rewrite("tests.system.history", "tests.system.vms")
