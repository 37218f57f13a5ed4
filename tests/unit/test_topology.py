"""What the configuration wires together."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from agentshell.log.log import Topic
from agentshell.mesh import config
from agentshell.topology.parts import topics

TEXT = """
[log]
partitions = 4
[log.topics."agent.turns"]
partitions = 16
retention_days = 90
[log.topics."agent.steps"]
partitions = 2
[log.topics."agent.steps.dlq"]
retention_days = 7
"""


def test_the_configuration_names_the_topics_there_are() -> None:
    assert tuple(topic.name for topic in topics(config.LogConfig())) == config.TOPICS


def test_a_topic_has_what_is_configured_for_it_and_else_what_all_have(tmp_path: Path) -> None:
    file = tmp_path / "agentshell.toml"
    file.write_text(TEXT)
    month = timedelta(days=30)
    assert list(topics(config.load(file, {}).log)) == [
        Topic("agent.turns", 16, timedelta(days=90)),
        Topic("agent.outputs", 16, month, "relaxed"),
        Topic("agent.steps", 2, month),
        Topic("agent.turns.dlq", 4),
        Topic("agent.steps.dlq", 4, timedelta(days=7)),
    ]
