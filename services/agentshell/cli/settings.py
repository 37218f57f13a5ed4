"""`agentshell config`: prints every configuration key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from agentshell.cli import mesh
from agentshell.cli.ending import ending
from agentshell.cli.options import ConfigFile, DataDir

if TYPE_CHECKING:
    from pydantic import BaseModel

_PASSWORD = re.compile(r"(?<=:)[^:@/]+(?=@)")


def settings(config_file: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Print every configuration key: its default, its value here, and what it means."""
    with ending():
        from rich.table import Table

        from agentshell.cli.render import console
        from agentshell.mesh.config import Config

        config = mesh.load_config(config_file, data_dir)
        table = Table("key", "default", "value", "meaning", box=None, pad_edge=False, header_style="bold")
        for key, default, value, meaning in _rows(Config(), config):
            changed = "" if value == default else _shown(value)
            table.add_row(key, _shown(default), changed, meaning, style="bold" if changed else "")
        console().print(table)


def _rows(defaults: BaseModel, values: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    from pydantic import BaseModel

    for name, field in type(values).model_fields.items():
        default, value = getattr(defaults, name), getattr(values, name)
        if isinstance(value, BaseModel):
            yield from _rows(default, value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", default, value, field.description or ""


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - whatever is in it
    return _PASSWORD.sub("***", str(value)) if value not in (None, {}) else ""
