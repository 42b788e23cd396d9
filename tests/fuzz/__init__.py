"""The fuzz lane: whatever can be sent, at the daemon as a process."""

import os

# gRPC's client tells standard error of each connection that the daemon ends.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
