"""`python -m agentshell.cli` is `agentshell`."""

from agentshell.cli import main

main()
