"""The guest as a WebAssembly component: `runner` behind the interface of `sandbox.wit`.

What is not imported when the image is built does not exist when tools run, so `stdlib` imports everything.
"""

from __future__ import annotations

import gc

import escape  # noqa: F401 # pyright: ignore[reportUnusedImport] - for the image
import host
import runner
import stdlib  # noqa: F401 # pyright: ignore[reportUnusedImport] - for the image
import wit_world  # pyright: ignore[reportMissingImports] - generated from sandbox.wit when the image is built
from componentize_py_types import Err  # pyright: ignore - as above


def _host_call(name: str, arguments: str) -> str:
    try:
        return wit_world.host_call(name, arguments)  # pyright: ignore[reportUnknownVariableType] - as above
    except Err as error:  # pyright: ignore[reportUnknownVariableType] - as above
        raise host.HostError(error.value) from None  # pyright: ignore[reportUnknownArgumentType] - as above


class WitWorld(wit_world.WitWorld):  # pyright: ignore[reportUntypedBaseClass] - as above
    """What the component exports."""

    def invoke(self, request: str) -> str:
        """Runs a tool."""
        return runner.run(request, _host_call)


gc.freeze()  # Spares the image from garbage collections: each would touch, and so copy, all of it.
