"""What a process says of itself."""

from __future__ import annotations

import subprocess
import sys

LOGS = """
import structlog
from agentshell.mesh import telemetry
from agentshell.mesh.config import TelemetryConfig

telemetry.setup(TelemetryConfig(log_format="json"), "test")
input()
for _ in range(2):
    structlog.get_logger().info("said to nobody")
print("went on")
"""


def test_whoever_logs_goes_on_when_nobody_reads_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOGS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        process.stderr.close()
        said, _ = process.communicate("\n")
    assert said == "went on\n"
