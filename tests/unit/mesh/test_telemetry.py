"""What a process reports about itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_is_logged_is_redacted_the_traceback_too(log_format: str) -> None:
    program = f"""
import structlog
from agentshell.mesh import telemetry
from agentshell.mesh.config import TelemetryConfig

telemetry.setup(TelemetryConfig(log_format="{log_format}"), "test")
try:
    raise ValueError("ann@example.org paid with 4111111111111111")
except ValueError:
    structlog.get_logger().exception("it failed for bob@example.org", what=["sk-abcdefghijklmnopqrst"])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert [done.stderr.count(kind) for kind in ("[email]", "[card]", "[secret]", "ValueError")] == [2, 1, 1, 1]
    assert not any(secret in done.stderr for secret in ("example.org", "4111", "abcdefghijklmnop"))
