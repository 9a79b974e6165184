"""The index at a million rows, beside bare FAISS and two other libraries: recall, speed, memory, start-up.

    .venv-full/bin/pip install -r requirements/bench.txt        # usearch and hnswlib, if you want them beside it
    .venv-full/bin/python -m load_tests.bench_index --data data

Reads   STL-10 and unlabeled.npy in --data, embedded with the model in model_store/
Writes  var/bench-index.json, and Markdown to the terminal; what was built stays in --work and is used again

The million is made to match the statistics of the real embeddings (load_tests/synthetic.py), which is checked first.
Every engine is built and measured in a process of its own; queries are rows that no index holds, one a call, one
thread. `gallery.search` and the FAISS index within it are asked in alternation, with the same parameters.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from encoder.machine import cores
from encoder.manifest import Manifest
from encoder.session import Encoder
from images.sources import decoded, open_source
from images.spec import PreprocessSpec
from load_tests import machine
from load_tests.arguments import at_least_one
from load_tests.engines import ENGINES
from load_tests.synthetic import comparison, fit

K = 10
QUERIES = 1000
ADD_ROWS = 512  # a transaction
MOST_DIFFERENT = 0.10  # synthetic from real
EQUAL_RECALL = 0.95
ROUNDS = 5  # of the gallery and the index within it, in turn
GALLERY = "gallery"


@dataclass(frozen=True)
class Settings:
    """The knobs of the benchmark."""

    data: Path = Path("data")
    rows: int = 1_000_000
    work: Path = Path("var/bench-index")
    model_store: Path = Path("model_store")
    engines: tuple[str, ...] = (GALLERY, *ENGINES)
    threads: int = 2  # of builds, and cores that they keep to
    out: Path = Path("var/bench-index.json")

    @classmethod
    def from_arguments(cls, argv: Sequence[str] | None) -> tuple["Settings", str | None]:
        parser = argparse.ArgumentParser(prog="bench_index", description=__doc__.partition("\n")[0])
        add, shown = parser.add_argument, " (default: %(default)s)"
        add("--data", type=Path, default=cls.data, help="a folder with STL-10 and unlabeled.npy" + shown)
        add("--rows", type=at_least_one, default=cls.rows, help="of the large set" + shown)
        add("--work", type=Path, default=cls.work, help="where vectors and indexes are kept" + shown)
        add("--model-store", type=Path, default=cls.model_store, help="where the model lies" + shown)
        add("--engines", nargs="+", choices=cls.engines, default=cls.engines, help="which (default: all)")
        add(
            "--threads", type=at_least_one, default=cls.threads, help="of a build, and cores that it keeps to" + shown
        )
        add("--out", type=Path, default=cls.out, help="where the JSON goes" + shown)
        add("--child", help=argparse.SUPPRESS)  # the one engine and set that a process of its own measures
        chosen = vars(parser.parse_args(argv))
        child = chosen.pop("child")
        return cls(**(chosen | {"engines": tuple(chosen["engines"])})), child


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 where the synthetic vectors do not match."""
    settings, child = Settings.from_arguments(argv)
    if child is not None:
        engine, _, which = child.partition("@")
        print(json.dumps(_measured(settings, engine, which)))
        return 0
    settings.work.mkdir(parents=True, exist_ok=True)
    about = machine.describe(Path(sys.executable))
    real = _cached(settings.work / "real.npy", lambda: _embed(settings))
    table, worst = _prepare(settings, real)
    print(table, flush=True)
    if worst > MOST_DIFFERENT:
        print(
            f"the synthetic vectors differ by {worst:.0%} from the real ones; at most {MOST_DIFFERENT:.0%} is allowed"
        )
        return 1
    report: dict[str, Any] = {"about": about, "match": table, "worst_difference": worst}
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    for which in ("real", "large"):
        found: dict[str, Any] = {"rows": len(_rows(settings.work, which)), "engines": {}}
        report[which] = found
        for engine in settings.engines:
            measured = _in_a_process(settings, f"{engine}@{which}", argv)
            if measured is not None:
                found["engines"][engine] = measured
                settings.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"\n{found['rows']:,} rows ({which})\n\n{markdown(found['engines'])}", flush=True)
    return 0


def at_equal_recall(curve: Sequence[dict[str, float]], recall: float = EQUAL_RECALL) -> float | None:
    """Queries a second where the curve, by rising effort, reaches `recall`: between two points, or at the first one
    where that is above it already. None where no effort reaches it."""
    for place, point in enumerate(curve):
        if point["recall"] >= recall:
            if place == 0:
                return point["qps"]
            before = curve[place - 1]
            share = (recall - before["recall"]) / (point["recall"] - before["recall"])
            return before["qps"] ** (1 - share) * point["qps"] ** share
    return None


def recall_of(found: Sequence[Sequence[int]], true: np.ndarray) -> float:
    """Which part of the true neighbours was found. true: (Q, K) row numbers."""
    shared = sum(len(set(map(int, some)) & set(map(int, row))) for some, row in zip(found, true, strict=True))
    return shared / true.size


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """A table: an engine a line."""
    lines = [
        "| | recall@10 | queries/s | p50 ms | queries/s at 0.95 | build s | bytes a vector | start s | memory MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        point = found["usual"]
        equal = at_equal_recall(found["curve"])
        cells = [
            f"{point['recall']:.3f}",
            f"{point['qps']:,.0f}",
            f"{point['p50_ms']:.2f}",
            f"{equal:,.0f}" if equal else "–",
            f"{found['build_s']:,.0f}",
            f"{found['bytes_a_vector']:,.0f}",
            f"{found['start_s']:.1f}",
            f"{found['memory_mb']:,.0f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _prepare(settings: Settings, real: np.ndarray) -> tuple[str, float]:
    """Write both sets, their queries and the truth; the comparison of their statistics."""
    work = settings.work
    shuffled = np.random.default_rng(0).permutation(len(real))
    held_out, kept = shuffled[:QUERIES], shuffled[QUERIES:]
    _cached(work / "real-queries.npy", lambda: real[held_out])
    _cached(work / "real-rows.npy", lambda: real[kept])
    if not (work / "large.npy").exists():
        fitted = fit(real)
        np.save(work / "large-queries.npy", fitted.vectors(QUERIES, seed=2))
        _save(work / "large.npy", fitted.vectors(settings.rows, seed=1))
    large = np.load(work / "large.npy", mmap_mode="r")
    table, worst = comparison(real, np.ascontiguousarray(large[: len(real)]))
    for which in ("real", "large"):
        rows = _rows(work, which)
        queries = np.load(work / f"{which}-queries.npy")
        _cached(
            work / f"{which}-truth.npy",
            lambda rows=rows, queries=queries: faiss.knn(
                queries, np.asarray(rows), K, metric=faiss.METRIC_INNER_PRODUCT
            )[1],
        )
    return table, worst


def _rows(work: Path, which: str) -> np.ndarray:
    return np.load(work / ("large.npy" if which == "large" else "real-rows.npy"), mmap_mode="r")


def _measured(settings: Settings, engine: str, which: str) -> dict[str, Any]:
    """In a process of its own: build where that was not done, load, ask."""
    work = settings.work
    queries, true = np.load(work / f"{which}-queries.npy"), np.load(work / f"{which}-truth.npy")
    if engine == GALLERY:
        return _measured_gallery(settings, which, queries, true)
    chosen = ENGINES[engine]
    rows = _rows(work, which)
    file = work / f"{which}-{engine.replace(' ', '-')}.index"
    timing = file.with_suffix(".json")
    if not timing.exists():
        _alone(settings.threads, "build_one", engine, which, str(work), settings.threads)
    before = _memory_mb()
    started = time.perf_counter()
    search = chosen.load(file, rows, K)
    search(queries[0], chosen.efforts[0])
    start_s = time.perf_counter() - started
    curve = [
        _asked(lambda query, effort=effort: search(query, effort), queries, true) | {"effort": effort}
        for effort in chosen.efforts
    ]
    return {
        **json.loads(timing.read_text()),
        "start_s": start_s,
        "bytes_a_vector": file.stat().st_size / len(rows),
        "memory_mb": _memory_mb() - before,
        "usual": min(curve, key=lambda point: abs(point["effort"] - 64)),
        "curve": curve,
    }


def build_one(engine: str, which: str, work: str, threads: int) -> None:
    """Build an engine's index into its file, and write down how long that took."""
    file = Path(work) / f"{which}-{engine.replace(' ', '-')}.index"
    started = time.perf_counter()
    ENGINES[engine].build(_rows(Path(work), which), file, threads)
    file.with_suffix(".json").write_text(json.dumps({"build_s": time.perf_counter() - started, "threads": threads}))


def _measured_gallery(settings: Settings, which: str, queries: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """The gallery from the outside, and the index within it."""
    from index import base
    from index.gallery import Gallery

    manifest = Manifest.read(settings.model_store)
    folder = settings.work / f"{which}-gallery"
    rows = _rows(settings.work, which)
    notes = folder / "bench.json"
    if not notes.exists():
        _alone(settings.threads, "fill_gallery", which, str(settings.work), str(settings.model_store))
    before = _memory_mb()
    started = time.perf_counter()
    gallery = Gallery.open(folder, manifest.model_digest, manifest.dimension)
    gallery.search(queries[:1], K)
    start_s = time.perf_counter() - started
    memory = _memory_mb() - before

    usual = base.EF_SEARCH
    numbers = {f"photos/{row:09d}.jpg": row for row in range(len(rows))}

    def through(query: np.ndarray) -> list[int]:
        return [numbers[one.id] for one in gallery.search(query[None], K)[0]]

    curve = []
    for effort in ENGINES["HNSW32,SQ8"].efforts:
        base.EF_SEARCH = effort
        curve.append(_asked(through, queries, true) | {"effort": effort})
    base.EF_SEARCH = usual
    bare, layered = [], []
    inner = gallery._current().base
    if inner is not None:
        faiss.omp_set_num_threads(1)
        parameters = faiss.SearchParametersHNSW(efSearch=usual)
        for _ in range(ROUNDS):
            bare.append(
                _asked(lambda query: inner.index.search(query[None], K, params=parameters)[1][0], queries, None)
            )
            layered.append(_asked(lambda query: gallery.search(query[None], K), queries, None))
    stats = gallery.stats(measure_recall=True)
    gallery.close()
    ratios = sorted(one["p50_ms"] / other["p50_ms"] for one, other in zip(layered, bare, strict=True))
    return {
        **json.loads(notes.read_text()),
        "start_s": start_s,
        "bytes_a_vector": (stats["memory_bytes"] or 0) / len(rows),
        "memory_mb": memory,
        "process_mb": _memory_mb(),
        "factory": stats["factory"],
        "recall_on_the_spot": stats["recall"],
        "layer_ratio": ratios[len(ratios) // 2] if ratios else None,
        "layer_ratios": ratios,
        "usual": min(curve, key=lambda point: abs(point["effort"] - usual)),
        "curve": curve,
    }


def _alone(threads: int, function: str, *arguments: object) -> None:
    """Call a function of this file in a process of its own: what it leaves in memory is not what serving takes.

    It keeps to `threads` cores, from before it imports what counts them.
    """
    keep = f"import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{threads}])"
    code = f"{keep}; from load_tests import bench_index; bench_index.{function}(*{arguments!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def fill_gallery(which: str, work: str, model_store: str) -> None:
    """Add all rows durably, build, and build once more beside what serves: times and the most memory that took."""
    from index.gallery import Gallery

    manifest = Manifest.read(Path(model_store))
    folder, rows = Path(work) / f"{which}-gallery", _rows(Path(work), which)
    gallery = Gallery.open(folder, manifest.model_digest, manifest.dimension)
    started = time.perf_counter()
    for start in range(0, len(rows), ADD_ROWS):
        some = np.ascontiguousarray(rows[start : start + ADD_ROWS])
        names = [f"photos/{row:09d}.jpg" for row in range(start, start + len(some))]
        gallery.add(names, some, [f"class {row % 10}" for row in range(start, start + len(some))])
    add_s = time.perf_counter() - started
    started = time.perf_counter()
    gallery.rebuild()
    build_s = time.perf_counter() - started
    with _watched() as memory:
        gallery.rebuild()
    gallery.close()
    notes = {
        "durable_adds_a_second": len(rows) / add_s,
        "build_s": build_s,
        "threads": cores(),  # a build takes all that this process may use
        "memory_rebuilding_mb": max(memory),
    }
    (folder / "bench.json").write_text(json.dumps(notes))


def _asked(
    search: Callable[[np.ndarray], Sequence[int]], queries: np.ndarray, true: np.ndarray | None
) -> dict[str, float]:
    """One query a call."""
    found, seconds = [], []
    for query in queries:
        started = time.perf_counter()
        answer = search(query)
        seconds.append(time.perf_counter() - started)
        found.append(answer)
    times = np.array(seconds)
    point = {
        "qps": float(len(times) / times.sum()),
        "p50_ms": float(np.percentile(times, 50) * 1e3),
        "p99_ms": float(np.percentile(times, 99) * 1e3),
    }
    return point if true is None else {"recall": recall_of(found, true), **point}


def _in_a_process(settings: Settings, child: str, argv: Sequence[str] | None) -> dict[str, Any] | None:
    """What the engine's process found; None, with a line that says so, where its library is not installed."""
    command = [
        sys.executable,
        "-m",
        "load_tests.bench_index",
        *(sys.argv[1:] if argv is None else argv),
        "--child",
        child,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "ModuleNotFoundError: No module named 'usearch" in done.stderr or "No module named 'hnswlib" in done.stderr:
        print(f"{child} is left out: it is not installed; pip install -r requirements/bench.txt", flush=True)
        return None
    raise SystemExit(f"{child} failed:\n{done.stderr}")


def _embed(settings: Settings) -> np.ndarray:
    """(N, D) float32: unlabeled.npy, then STL-10's train and test splits."""
    encoder = Encoder.load(settings.model_store)
    spec: PreprocessSpec = encoder.manifest.preprocess
    vectors: list[np.ndarray] = []
    with ThreadPoolExecutor(settings.threads) as pool:
        for path, split in (
            (settings.data / "unlabeled.npy", None),
            (settings.data, "train"),
            (settings.data, "test"),
        ):
            images = [image.pixels for image in decoded(open_source(path, split), spec, lambda name, error: None)]
            batches = [np.stack(images[start : start + 32]) for start in range(0, len(images), 32)]
            vectors += pool.map(lambda batch: encoder.embed(batch).vectors, batches)
    return np.concatenate(vectors)


def _cached(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    if not file.exists():
        _save(file, make())
    return np.load(file)


def _save(file: Path, array: np.ndarray) -> None:
    """Whole or not there."""
    part = file.with_name(file.name + ".part.npy")
    np.save(part, array)
    part.replace(file)


@contextmanager
def _watched() -> Iterator[list[float]]:
    """The memory of this process, in MB, taken ten times a second while the block runs."""
    taken, done = [_memory_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            taken.append(_memory_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield taken
    finally:
        done.set()
        watcher.join()


def _memory_mb() -> float:
    """Resident memory that is this process's own: without mapped files, which the system may drop."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return (int(lines["VmRSS"].split()[0]) - int(lines["RssFile"].split()[0])) / 1024


if __name__ == "__main__":
    sys.exit(main())
