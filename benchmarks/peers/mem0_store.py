"""mem0's pgvector store, run by a Python that has `mem0ai` and `psycopg[binary,pool]`, and nothing of ours.

    PYTHON mem0_store.py DATABASE_URL VECTORS.npz SHARES NEAREST

Prints what each search took in seconds, and the numbers of the records that it found, by share.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import uuid
from typing import Any

import numpy as np
import psycopg


def main(url: str, file: str, shares: list[int], nearest: int) -> None:
    data: Any = np.load(file)
    pgvector: Any = importlib.import_module("mem0.vector_stores.pgvector")  # Not in our environment.
    store: Any = pgvector.PGVector(
        dbname="",
        collection_name="items",
        embedding_model_dims=data["vectors"].shape[1],
        user="",
        password="",
        host="",
        port=0,
        diskann=False,
        hnsw=True,
        connection_string=url,
    )
    with psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.commit()
        dimension = data["vectors"].shape[1]
        connection.execute(
            f"CREATE TABLE items (id uuid PRIMARY KEY, vector vector({dimension}), payload jsonb)".encode()
        )
        with connection.cursor().copy("COPY items FROM STDIN") as copy:
            for number, vector in enumerate(data["vectors"]):
                payload = {f"every_{share}": number % share == 0 for share in shares} | {"number": number}
                values = "[" + ",".join(f"{value:.5f}" for value in vector.tolist()) + "]"
                copy.write_row((uuid.UUID(int=number), values, json.dumps(payload)))
    store.create_col()  # Its indexes.
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE items")
    answers: dict[int, list[tuple[float, list[int]]]] = {share: [] for share in shares}
    for share, answer in answers.items():
        for query in data["queries"]:
            vector = query.astype(np.float32).tolist()
            filters = {f"every_{share}": True} if share > 1 else None
            began = time.perf_counter()
            found: list[Any] = store.search("", vector, nearest, filters)
            seconds = time.perf_counter() - began
            answer.append((seconds, [each.payload["number"] for each in found]))
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
