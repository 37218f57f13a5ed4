"""Agent Shell: a Protobuf-first gRPC service mesh for AI agents."""

import os

# Read by gRPC when it is first imported. We start programs by spawning them, and never fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
