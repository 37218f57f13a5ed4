"""A process that splits one document, within limits of its own: `python -m ...worker MEDIA_TYPE LIMIT`.

It reads the document from standard input, and writes its blocks to standard output, each as a line of JSON. The last
line says how it ended: `null`, or what is wrong with the document.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings

from agentshell.memory.documents import formats
from agentshell.memory.documents.block import MalformedDocument

MAX_MEMORY_BYTES = 1024 * 1024 * 1024
MAX_PROCESSOR_SECONDS = 60


def main() -> None:
    """Reads a document and writes its blocks."""
    import resource  # Imported only here, because only POSIX systems have it.

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_PROCESSOR_SECONDS, MAX_PROCESSOR_SECONDS))
    logging.disable()  # A parser's remarks on a document belong in no log.
    warnings.simplefilter("ignore")
    _, media_type, limit = sys.argv
    problem: str | None = None
    try:
        for block in formats.blocks(formats.MEDIA_TYPES[media_type], sys.stdin.buffer.read(), int(limit)):
            sys.stdout.write(json.dumps([block.text, block.level, block.position]) + "\n")
    except MalformedDocument as error:
        problem = str(error)
    sys.stdout.write(json.dumps(problem) + "\n")


if __name__ == "__main__":
    main()
