"""A Model Context Protocol server on its standard streams, with the standard library alone, that also misbehaves.

It reports its environment variables and the cancelled requests, so that tests can see them.
"""

import json
import os
import sys
import time
from typing import Any

OBJECT: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
NUMBERS: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
SUM: dict[str, Any] = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
TOOLS: list[dict[str, Any]] = [
    {"name": "add", "description": "Adds.", "inputSchema": NUMBERS, "outputSchema": SUM},
    {"name": "lie", "description": "Says what it says it does not.", "inputSchema": OBJECT, "outputSchema": SUM},
    *(
        {"name": name, "description": f"Will {name}.", "inputSchema": OBJECT}
        for name in ("variables", "cancelled", "fail", "flood", "endless", "hang", "die", "deaf", "pid")
    ),
    {
        "name": "broken",
        "description": "Its schema is none.",
        "inputSchema": {**OBJECT, "properties": {"x": {"type": "objekt"}}},
    },
]
cancelled: list[Any] = []


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(said: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}], "isError": is_error}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Returns a tool's answer; None: it never answers."""
    match name:
        case "add":
            return {**text(""), "structuredContent": {"sum": arguments["a"] + arguments["b"]}}
        case "lie":
            return {**text(""), "structuredContent": {"sum": "many"}}
        case "variables":
            return text(" ".join(sorted(os.environ.keys() - {"LC_CTYPE"})))
        case "cancelled":
            return text(str(len(cancelled)))
        case "fail":
            return text("no such issue", is_error=True)
        case "flood":
            return text("x" * 600_000)
        case "endless":
            while True:
                sys.stdout.write("x" * 65536)
        case "die":
            sys.exit(3)
        case "deaf":
            time.sleep(3600)
            return None
        case "pid":
            return text(str(os.getpid()))
        case _:
            return None


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        match asked.get("method"):
            case "initialize":
                version = asked["params"]["protocolVersion"]
                said = {"name": "program", "version": "1"}
                result: dict[str, Any] | None = {
                    "protocolVersion": version,
                    "capabilities": {"tools": {}},
                    "serverInfo": said,
                }
            case "tools/list":
                result = {"tools": TOOLS}
            case "tools/call":
                token = asked["params"].get("_meta", {}).get("progressToken")
                said = {"progressToken": token, "progress": 1, "message": f"asked to {asked['params']['name']}"}
                say({"method": "notifications/progress", "params": said})
                result = call(asked["params"]["name"], asked["params"].get("arguments", {}))
            case "notifications/cancelled":
                cancelled.append(asked["params"]["requestId"])
                continue
            case _ if "id" in asked:
                say({"id": asked["id"], "error": {"code": -32601, "message": "no such method"}})
                continue
            case _:
                continue
        if result is not None:
            say({"id": asked["id"], "result": result})


if __name__ == "__main__":
    main()
