"""A process of the default tier, which runs each call in a new interpreter in WebAssembly.

It reads the image, gives up all rights, says what it can still do, and then answers calls on its standard streams.
"""

from __future__ import annotations

import json
import signal
from typing import Any, Final

import wasmtime
from wasmtime import component

from agentshell.tool.sandbox import canary, engine, frame, lockdown
from agentshell.tool.sandbox.frame import Pipe

# In addition to the guest's memory: the interpreter of this process, and a result on its way through it.
_OWN_MEMORY_BYTES: Final = 256 * 1024 * 1024
_DESCRIPTORS: Final = 32
_NAP: Final = "import time\ndef nap(seconds: float) -> None:\n    time.sleep(seconds)"


def _nap(seconds: float) -> str:
    """Returns a call for the guest that does nothing for a while."""
    return json.dumps(
        {"files": {"nap.py": _NAP}, "module": "nap", "function": "nap", "arguments": {"seconds": seconds}}
    )


class _Ended(Exception):  # noqa: N818 - it is what happens
    """The host ends the call: it refused what the tool asked for."""


class _Image:
    """The interpreter's image, from which each call gets its instance."""

    def __init__(self, path: str, memory_bytes: int, pipe: Pipe) -> None:
        self._engine = engine.build()
        self._component = component.Component.deserialize_file(self._engine, path)
        self._memory_bytes = memory_bytes
        self._pipe = pipe
        self._linker = component.Linker(self._engine)
        self._linker.add_wasip2()
        with self._linker.root() as root:
            root.add_func("host-call", self._ask_host)

    def instance(self) -> tuple[wasmtime.Store, Any]:
        """Returns a new interpreter and its entry. It has no files, no environment, no streams and no network.

        It has already made a call of ours that does nothing, so that the memory that every call needs is in place.
        """
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=self._memory_bytes)
        store.set_wasi(wasmtime.WasiConfig())
        entry: Any = self._linker.instantiate(store, self._component).get_func(store, "invoke")
        entry(store, _nap(0))
        return store, entry

    def _ask_host(self, _store: object, name: str, arguments: str) -> component.Variant:
        self._pipe.send({"host": name, "arguments": arguments})
        answer = self._pipe.receive()
        match answer:
            case {"value": str(value)}:
                return component.Variant("ok", value)
            case {"error": str(message)}:
                return component.Variant("err", message)
            case _:
                raise _Ended


def _call(store: wasmtime.Store, entry: Any, request: dict[str, Any]) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])  # Its signal ends this process.
    try:
        said: str = entry(store, request["call"])
    except MemoryError:
        return {"failed": "memory"}
    except _Ended:
        return {"failed": "ended"}
    except wasmtime.WasmtimeError as error:
        return {"failed": "crashed", "message": str(error).strip().rpartition("\n")[2].strip()}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return frame.answer(said, request["output_bytes"])


def _begin_threads(store: wasmtime.Store, entry: Any) -> None:
    """Makes the runtime start the threads that it waits with, which need more system calls to start than to run."""
    entry(store, _nap(0.001))
    store.close()


def main(path: str, memory_bytes: int) -> None:
    """Serves calls until the host hangs up."""
    pipe = frame.own()
    image = _Image(path, memory_bytes, pipe)
    lockdown.limit(memory_bytes=memory_bytes + _OWN_MEMORY_BYTES, files=_DESCRIPTORS)
    lockdown.leave_files()
    _begin_threads(*image.instance())
    lockdown.leave_calls(lockdown.RUNTIME_CALLS, threads=True, new_code=False)
    pipe.send({"escapes": canary.escapes(new_code=False)})
    store, entry = image.instance()
    while request := pipe.receive():
        pipe.send(_call(store, entry, request))
        store.close()
        store, entry = image.instance()
