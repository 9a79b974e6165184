"""The index on a Milvus server, or a cluster of them: the same face, the same rules, another engine.

    akin serve --index milvus://host:19530
    akin serve --index 'milvus://host:19530?consistency=session'     # faster, see `MilvusGallery`
    akin serve --index milvus://./vectors.db                         # Milvus Lite: one file, for trying it out

Each model has a collection of its own, `akin_` and the first 12 digits of its digest, so vectors of two models never
meet. What a row may be is decided here (index/incoming.py), before Milvus sees it.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
from grpc import RpcError
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from index import milvus_filters
from index.draw import drawn_ids
from index.errors import GalleryAway, GalleryError, RowRefused, WrongModel
from index.face import Neighbor, Record, Stats
from index.filters import Filter
from index.flat import best_first
from index.incoming import MAX_ID_BYTES, MAX_LABEL_BYTES, checked
from index.vectors import unit_rows

SCHEME = "milvus://"
CONSISTENCIES = ("strong", "session", "bounded")
MOST_NEIGHBORS = 16_384  # what Milvus answers with
MOST_QUERIES = 1_000  # a call; Milvus takes 16,384, and each brings its neighbours' metadata
PREPARING_S = 120.0  # that making or loading a collection may take, once
SLICE_BYTES = 16 << 20  # a message; gRPC takes 64 MB
GRAPH = {"M": 32, "efConstruction": 100}
EF_SEARCH = 64
CONTENT_DIGITS = 64
FIELDS = ["id", "vector", "label", "metadata", "content"]

AWAY = 2  # failed to connect, or the server says that it is unavailable; 1 is anything that goes wrong in pymilvus
AWAY_WORDS = ("deadline", "unavailable", "timeout", "retry run out", "connect", "not ready", "not loaded")

# It logs every failed call with its traceback; here each becomes an error of the index.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)


class MilvusGallery:
    """A collection of Milvus, `index.face.Index`. All methods may be called from any thread.

    Reads are strongly consistent: a search waits until the server has seen all that was written before, which takes
    up to its time tick (200 ms by default). `session` sees the writes of this process at once and those of others a
    little later; `bounded` sees any a few seconds later. An `add` of more than 500 rows goes in several messages:
    each is whole or not there, and an error leaves those before it. Adding them again is safe.
    """

    def __init__(
        self, client: MilvusClient, address: str, model_digest: str, dimension: int, timeout_s: float
    ) -> None:
        self.model_digest = model_digest
        self.dimension = dimension
        self._client = client
        self._address = address
        self._collection = f"akin_{model_digest[:12]}"
        self._timeout_s = timeout_s
        self._lite = not address.startswith("http")
        self._consistency = "Strong"

    @classmethod
    def open(cls, address: str, model_digest: str, dimension: int, timeout_s: float = 10.0) -> Self:
        """Open the collection of this model at `milvus://host:port`, or make it; `milvus://FILE.db` is Milvus Lite.

        Every call ends within about `timeout_s` seconds, with `GalleryAway` where the server did not answer; opening
        may take longer where the server makes or loads the collection.
        """
        where, _, query = address.removeprefix(SCHEME).partition("?")
        consistency = parse_qs(query).get("consistency", ["strong"])[-1]
        on_disk = where.endswith(".db")
        if not (on_disk or _is_host(where)) or consistency not in CONSISTENCIES:
            raise RowRefused(
                f"{address!r} is no address: write milvus://host:19530, milvus://FILE.db, and behind either "
                f"?consistency={'|'.join(CONSISTENCIES)} if you like"
            )
        if on_disk:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            uri = where
        else:
            uri = f"http://{where}"
        with _named_errors(address, timeout_s):
            client = MilvusClient(uri, timeout=timeout_s)
        gallery = cls(client, uri, model_digest, dimension, timeout_s)
        gallery._consistency = consistency.capitalize()
        try:
            gallery._prepare()
        except BaseException:
            client.close()
            raise
        return gallery

    @property
    def count(self) -> int:
        """Number of rows."""
        return self._count("")

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        contents: Sequence[bytes | None] | None = None,
    ) -> None:
        """Insert rows, or replace those whose id is there; acknowledged by the server when this returns."""
        rows = checked(ids, vectors, labels, metadata, contents, self.dimension)
        entities = [
            {
                "id": name,
                "vector": vector,
                "label": label or "",
                "metadata": json.loads(document) if document else {},
                "content": content.hex() if content else "",
            }
            for name, vector, label, document, content in zip(*rows, strict=True)
        ]
        sizes = [len(document or "") + 8 * self.dimension for document in rows.documents]
        for some in milvus_filters.slices(entities, sizes, SLICE_BYTES):
            with self._errors():
                self._client.upsert(self._collection, some, timeout=self._timeout_s)

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the rows of `ids`. Returns how many of them there were."""
        there = [row["id"] for row in self._rows_of("id", list(dict.fromkeys(ids)), ["id"])]
        # Not `ids=`: pymilvus writes them into an expression without escaping.
        for expression in milvus_filters.among("id", there):
            with self._errors():
                self._client.delete(self._collection, filter=expression, timeout=self._timeout_s)
        return len(there)

    def get(self, ids: Sequence[str]) -> list[Record | None]:
        """The rows of `ids`, in their order; None where there is none."""
        rows = {row["id"]: row for row in self._rows_of("id", list(dict.fromkeys(ids)), FIELDS)}
        return [_record(rows[name]) if name in rows else None for name in ids]

    def known_contents(self, contents: Sequence[bytes]) -> dict[bytes, str]:
        """Of these digests those that a row has, each with the id of one such row."""
        asked = {content.hex(): content for content in contents if content}
        known: dict[bytes, str] = {}
        while True:
            rows = self._rows_of("content", list(asked), ["id", "content"])
            known |= {asked.pop(row["content"]): row["id"] for row in rows if row["content"] in asked}
            if len(rows) < MOST_NEIGHBORS:  # else copies of some may have left no room for others
                return known

    def records(self, batch: int = 1000) -> Iterator[list[Record]]:
        """Every row, by id."""
        for names in self._pages(batch):
            if rows := [record for record in self.get(names) if record is not None]:
                yield rows

    def sample(self, most: int) -> list[Record]:
        """At most `most` rows, drawn by their ids, all of which are read."""
        ids = drawn_ids((id for page in self._pages(MOST_NEIGHBORS) for id in page), most)
        return [record for record in self.get(ids) if record is not None]

    def search(
        self, vectors: np.ndarray, k: int, where: Filter | None = None, min_score: float | None = None
    ) -> list[list[Neighbor]]:
        """Return the most similar rows of each query, best first, equal scores ordered by id."""
        if k < 0:
            raise RowRefused(f"k is {k}; ask for 0 or more neighbours")
        queries = unit_rows(vectors, self.dimension)
        rows = self.count if k > MOST_NEIGHBORS else k
        if min(k, rows) > MOST_NEIGHBORS:
            raise RowRefused(f"k is {k}; Milvus answers with at most {MOST_NEIGHBORS} neighbours")
        k = min(k, rows)
        if k == 0 or not len(queries):
            return [[] for _ in queries]
        expression = milvus_filters.expression(where, self._lite)
        return [
            [one for one in self._complete(query, k, where, found) if min_score is None or one.score >= min_score]
            for some in np.split(queries, range(MOST_QUERIES, len(queries), MOST_QUERIES))
            for query, found in zip(some, self._search(some, k + 1, expression), strict=True)
        ]

    def stats(self, measure_recall: bool = False) -> Stats:
        """What is held. Recall cannot be measured: the exact search to compare with is the server's secret too."""
        return Stats(
            rows=self.count,
            delta=0,
            tombstones=0,
            factory="Milvus Lite FLAT" if self._lite else "Milvus HNSW",
            memory_bytes=None,
            snapshot=None,
            rebuilding=False,
            recall=None,
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _prepare(self) -> None:
        """Make the collection where it is missing; refuse one of another model."""
        with self._errors():
            if not self._client.has_collection(self._collection, timeout=self._timeout_s):
                self._create()
            described = self._client.describe_collection(self._collection, timeout=self._timeout_s)
            self._client.load_collection(self._collection, timeout=PREPARING_S)
        digest = described.get("description") or self.model_digest  # Lite does not keep it
        (dimension,) = (field["params"]["dim"] for field in described["fields"] if field["name"] == "vector")
        if digest != self.model_digest or int(dimension) != self.dimension:
            raise WrongModel(
                f"collection {self._collection} at {self._address} holds vectors of model {digest[:12]} and of "
                f"dimension {dimension}, this encoder is {self.model_digest[:12]} and gives {self.dimension}"
            )

    def _create(self) -> None:
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=self.model_digest)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dimension)
        schema.add_field("label", DataType.VARCHAR, max_length=MAX_LABEL_BYTES)
        schema.add_field("metadata", DataType.JSON)
        schema.add_field("content", DataType.VARCHAR, max_length=CONTENT_DIGITS)
        parameters = self._client.prepare_index_params()
        kind: dict[str, Any] = {"index_type": "FLAT"} if self._lite else {"index_type": "HNSW", "params": GRAPH}
        parameters.add_index("vector", metric_type="IP", **kind)
        self._client.create_collection(
            self._collection,
            schema=schema,
            index_params=parameters,
            consistency_level="Strong",
            timeout=PREPARING_S,
        )

    def _complete(self, query: np.ndarray, k: int, where: Filter | None, found: list[Neighbor]) -> list[Neighbor]:
        """The k best that match, or all of them, from what a search for some more has found.

        The engines tell types apart less well than we do (to Milvus Lite true is 1) and do not order equal scores, so
        what comes back is compared with the filter once more, and more is asked for where that may change the answer.
        """
        expression = milvus_filters.expression(where, self._lite)
        fetch = k + 1
        while True:
            fitting = best_first([one for one in found if where is None or where.matches(one.label, one.metadata)])
            if len(fitting) >= k and fitting[k - 1].score > min(one.score for one in found):
                break
            rows = self._count(expression)
            if len(found) >= min(rows, MOST_NEIGHBORS):
                break
            if fetch >= rows:  # a graph does not reach every row
                fitting = best_first(self._compared(query, where, expression))
                break
            fetch = min(rows, 4 * fetch)
            (found,) = self._search(query[None], fetch, expression)
        return fitting[:k]

    def _search(self, queries: np.ndarray, k: int, expression: str) -> list[list[Neighbor]]:
        k = min(k, MOST_NEIGHBORS)
        with self._errors():
            answers = self._client.search(
                self._collection,
                queries.tolist(),
                filter=expression,
                limit=k,
                output_fields=["label", "metadata"],
                search_params={"metric_type": "IP", "params": {} if self._lite else {"ef": max(EF_SEARCH, 2 * k)}},
                consistency_level=self._consistency,
                timeout=self._timeout_s,
            )
        return [list(map(_neighbor, hits)) for hits in answers]

    def _compared(self, query: np.ndarray, where: Filter | None, expression: str) -> list[Neighbor]:
        """Every row that matches, compared here."""
        records = [
            row
            for page in self._pages(milvus_filters.SLICE_ROWS, expression)
            for row in self.get(page)
            if row is not None
        ]
        return [
            Neighbor(row.id, min(float(query @ row.vector), 1.0), row.label, row.metadata)
            for row in records
            if where is None or where.matches(row.label, row.metadata)
        ]

    def _rows_of(self, field: str, values: Sequence[str], fields: list[str]) -> list[dict[str, Any]]:
        return [
            row
            for expression in milvus_filters.among(field, values)
            for row in self._query(expression, fields, MOST_NEIGHBORS)
        ]

    def _pages(self, size: int, expression: str = "") -> Iterator[list[str]]:
        """The ids of the rows that match, in order."""
        condition = f" and ({expression})" if expression else ""
        if self._lite:  # does not order what it answers, and gives all at once
            names = sorted(row["id"] for row in self._query(f'id >= ""{condition}', ["id"], None))
            yield from (names[start : start + size] for start in range(0, len(names), size))
            return
        last = milvus_filters.quoted("")
        while page := sorted(row["id"] for row in self._query(f"id > {last}{condition}", ["id"], size)):
            yield page
            last = milvus_filters.quoted(page[-1])

    def _count(self, expression: str) -> int:
        return int(self._query(expression, ["count(*)"], None)[0]["count(*)"])

    def _query(self, expression: str, fields: list[str], limit: int | None) -> list[dict[str, Any]]:
        options = {} if limit is None else {"limit": limit}
        with self._errors():
            return list(
                self._client.query(
                    self._collection,
                    filter=expression,
                    output_fields=fields,
                    consistency_level=self._consistency,
                    timeout=self._timeout_s,
                    **options,
                )
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with _named_errors(self._address, self._timeout_s):
            yield


@contextmanager
def _named_errors(address: str, timeout_s: float) -> Iterator[None]:
    """Say what an error of Milvus means for an index."""
    try:
        yield
    except MilvusException as error:
        reason = str(error.message)[:200]
        if error.code == AWAY or any(word in str(error.message).lower() for word in AWAY_WORDS):
            raise GalleryAway(
                f"Milvus at {address} did not answer within {timeout_s:g} s ({reason}); send again in a while"
            ) from error
        raise GalleryError(f"Milvus at {address} failed: {reason}") from error
    except (OSError, RpcError) as error:
        reason = error.code().name if isinstance(error, RpcError) else str(error)
        raise GalleryAway(f"Milvus at {address} cannot be reached ({reason}); send again in a while") from error


def _is_host(where: str) -> bool:
    """Whether it reads host or host:port."""
    try:
        parts = urlsplit(f"//{where}")
        return bool(parts.hostname) and parts.port != 0  # a port that is none raises
    except ValueError:
        return False


def _neighbor(hit: Mapping[str, Any]) -> Neighbor:
    entity = hit["entity"]
    return Neighbor(hit["id"], min(hit["distance"], 1.0), entity["label"] or None, entity["metadata"])


def _record(row: Mapping[str, Any]) -> Record:
    content = bytes.fromhex(row["content"]) if row["content"] else None
    return Record(row["id"], np.asarray(row["vector"], np.float32), row["label"] or None, row["metadata"], content)
