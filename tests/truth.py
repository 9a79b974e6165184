"""What a gallery must hold after a series of changes, and whether it does: by its rows, by searches, by `verify`."""

import json
import time
from pathlib import Path

import numpy as np

from index.gallery import Gallery
from index.store import Store
from index.vectors import unit_rows
from index.verify import verify
from tests.gallery_writer import DIGEST, DIMENSION, Change, content_of, metadata_of

CODE_ERROR = (
    0.03  # by which a score may differ where a vector is searched by its 8-bit code; more in one of a hundred
)

DEADLINE_S = 60

State = dict[str, tuple[bytes, str | None, str, bytes | None]]  # id -> vector, label, metadata as JSON, content


def after(state: State, change: Change) -> State:
    """What a gallery of this state holds after one more change."""
    if change.vectors is None:
        return {name: row for name, row in state.items() if name not in change.ids}
    # Scaling what has unit length already may change its last bit, once in some ten thousand rows.
    rows = enumerate(zip(change.ids, unit_rows(change.vectors, DIMENSION), strict=True))
    return state | {
        name: (vector.tobytes(), change.label, json.dumps(metadata_of(change, place)), content_of(change, place))
        for place, (name, vector) in rows
    }


def on_disk(folder: Path) -> State:
    """Every live row."""
    store = Store.open(folder, DIGEST, DIMENSION)
    found = {
        row.id: (row.vector.tobytes(), row.label, row.metadata or "{}", row.content)
        for rows in store.scan()
        for row in rows
        if row.vector is not None
    }
    store.close()
    return found


def settle(gallery: Gallery) -> None:
    """Wait until nothing is built beside any more."""
    deadline = time.monotonic() + DEADLINE_S
    while gallery.stats()["rebuilding"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_sound(folder: Path) -> None:
    assert verify(folder, DIGEST, DIMENSION) == []


def assert_serves(gallery: Gallery, state: State, seed: int = 0) -> None:
    """Every row and no other is found, with its own label, metadata and score, where as many are asked for; where few
    are, the most similar ones."""
    assert gallery.count == len(state)
    random = np.random.default_rng(seed)
    names = sorted(state)
    vectors = np.array([np.frombuffer(state[name][0], np.float32) for name in names]).reshape(-1, DIMENSION)
    queries = random.standard_normal((4, DIMENSION)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for query, hits in zip(queries, gallery.search(queries, len(names) + 3), strict=True):
        true = dict(zip(names, (vectors @ query).tolist(), strict=True))
        assert sorted(hit.id for hit in hits) == names
        scores = np.array([hit.score for hit in hits])
        assert (np.diff(scores) <= 0).all()
        errors = np.abs(scores - [true[hit.id] for hit in hits])
        assert len(names) == 0 or (np.quantile(errors, 0.99) < CODE_ERROR and errors.max() < 0.3)
        for hit in hits:
            _, label, document, _ = state[hit.id]
            assert (hit.label, hit.metadata) == (label, json.loads(document))
    some = random.permutation(len(names))[:32]
    found = gallery.search(vectors[some], 10)
    assert [len(hits) for hits in found] == [min(10, len(names))] * len(some)
    assert [hits[0].id for hits in found] == [names[place] for place in some]
    hit_rates = [
        len({hit.id for hit in hits} & {names[other] for other in np.argsort(-(vectors @ vectors[place]))[:10]})
        / len(hits)
        for place, hits in zip(some, found, strict=True)
    ]
    assert len(names) == 0 or np.mean(hit_rates) > 0.9
