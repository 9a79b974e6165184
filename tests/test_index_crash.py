"""Writers are killed with SIGKILL at any moment; what they had acknowledged must be there."""

import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np

from index.gallery import Gallery
from index.store import Store
from tests.gallery_writer import DIGEST, DIMENSION, Change, changes

REPOSITORY = Path(__file__).parents[1]
ROUNDS = 10

State = dict[str, tuple[str | None, bytes]]  # id -> label, vector


def after(state: State, change: Change) -> State:
    """What a gallery of ids, labels and vectors holds after one more change."""
    if change.vectors is None:
        return {name: row for name, row in state.items() if name not in change.ids}
    rows = zip(change.ids, change.vectors, strict=True)
    return state | {name: (change.label, vector.tobytes()) for name, vector in rows}


def on_disk(folder: Path) -> State:
    store = Store.open(folder, DIGEST, DIMENSION)
    rows = {row.id: (row.label, row.vector) for row in store.rows_since(0)}
    store.close()
    return {name: (label, vector.tobytes()) for name, (label, vector) in rows.items() if vector is not None}


def test_kill_9_during_writes_loses_nothing_acknowledged_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    seed = 7
    moments = random.Random(seed)
    series = changes(seed)
    state: State = {}
    done = 0
    for _ in range(ROUNDS):
        command = [sys.executable, "-m", "tests.gallery_writer", str(tmp_path), str(seed), str(done)]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as writer:
            acknowledged = [writer.stdout.readline()]
            time.sleep(moments.uniform(0, 0.15))
            writer.send_signal(signal.SIGKILL)
            acknowledged += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL
        count = len([line for line in acknowledged if line.endswith("\n")])
        for change in islice(series, count):
            state = after(state, change)
        done += count
        found = on_disk(tmp_path)
        if found != state:  # the change that was under way may have reached the disk, if so then whole
            state = after(state, next(series))
            done += 1
        assert found == state
    assert done > 2 * ROUNDS and len(state) > 100


def test_what_survived_a_crash_is_what_a_search_finds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gallery_writer", str(tmp_path), "3", "0"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as writer:
        for _ in range(30):
            writer.stdout.readline()
        writer.kill()
    rows = on_disk(tmp_path)
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
        assert gallery.count == len(rows)
        vectors = np.stack([np.frombuffer(vector, np.float32) for _, vector in rows.values()])
        found = [(hits[0].id, hits[0].label) for hits in gallery.search(vectors, 1)]
    assert found == [(name, label) for name, (label, _) in rows.items()]
