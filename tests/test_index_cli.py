"""`akin index`, run as users run it."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import akin
from encoder.manifest import Manifest
from images.thumbnails import thumbnail
from index import verbs
from index.contents import content_digest
from index.gallery import Gallery
from index.store import FILE_NAME
from index.thumbnails import Thumbnails
from tests.brute_index import BruteIndex
from tests.pictures import encode, scene
from tests.tiny_encoder import write_tiny_encoder

MILVUS = "milvus://127.0.0.1:19530"


class Done(NamedTuple):
    exit_code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Standard output, as lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls `akin index` in a folder with a model and a folder of four pictures."""
    write_tiny_encoder(tmp_path / "model_store")
    write_pictures(tmp_path / "photos", "a.png", "b.png", "c.png", "d.png")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        try:
            exit_code = akin.main(["index", *arguments])
        except SystemExit as stop:  # argparse's way to refuse
            exit_code = int(str(stop.code))
        return Done(exit_code, *capsys.readouterr())

    return call


def write_pictures(folder: Path, *names: str, first: int = 0) -> None:
    folder.mkdir()
    for seed, name in enumerate(names, first):
        (folder / name).write_bytes(encode(scene(64, 48, seed), "PNG"))


def fill(folder: str, vectors: np.ndarray, labels: list[str | None]) -> None:
    """Rows v0, v1, ... with {"n": number} as metadata."""
    manifest = Manifest.read(Path("model_store"))
    with Gallery.open(Path(folder), manifest.model_digest, manifest.dimension) as gallery:
        ids = [f"v{number}" for number in range(len(labels))]
        gallery.add(ids, vectors, labels, [{"n": number} for number in range(len(labels))])


def fan() -> np.ndarray:
    """(5, 16): each row 10 degrees further from the first."""
    angles = np.radians(10 * np.arange(5))
    return np.stack([np.cos(angles), np.sin(angles), *np.zeros((14, 5))], axis=1)


def test_every_verb_has_a_function_and_help(run: Run) -> None:
    listed = run("--help").out
    names = ["add", "remove", "search", "stats", "verify", "rebuild", "backup", "restore", "export", "duplicates"]
    for name in names:
        assert f"\n    {name}" in listed
        assert "--gallery" in run(name, "--help").out


def test_several_sources_are_told_apart_by_their_names(run: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "more", "a.png", "e.png", first=10)
    done = run("add", "photos", "more/", "--gallery", "mine")
    assert [line.split(" in ")[0] for line in done.out.splitlines()] == [
        "photos: 4 images added",
        "more: 2 images added",
    ]
    found = run("search", "more/a.png", "-k", "1", "--gallery", "mine").lines
    assert found[0]["id"] == "more/a.png"
    assert "rows: 6\n" in run("stats", "--gallery", "mine").out


def test_sources_of_one_name_are_refused_before_anything_is_added(run: Run, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_pictures(tmp_path / "old" / "photos", "a.png", first=10)
    done = run("add", "photos", "old/photos", "--gallery", "mine")
    assert done.exit_code == 1
    assert "two sources are called 'photos'" in done.err
    assert not (tmp_path / "mine").exists()


def test_add_names_copies_and_replaces_what_has_changed(run: Run, tmp_path: Path) -> None:
    run("add", "photos", "--gallery", "mine")
    (tmp_path / "photos" / "copy.png").write_bytes((tmp_path / "photos" / "a.png").read_bytes())
    (tmp_path / "photos" / "b.png").write_bytes(encode(scene(64, 48, 77), "PNG"))
    done = run("add", "photos", "--gallery", "mine")
    assert ", 1 replaced, 3 were already there, 1 copies of others skipped, 0 damaged" in done.out
    (best,) = run("search", "photos/b.png", "-k", "1", "--gallery", "mine").lines
    assert (best["id"], best["score"]) == ("b.png", pytest.approx(1, abs=1e-5))


def test_thumbnails_are_kept_on_request_and_go_with_their_row(run: Run, tmp_path: Path) -> None:
    run("add", "photos", "--gallery", "mine")
    assert not (tmp_path / "mine" / "thumbnails.sqlite").exists()
    run("add", "photos", "--gallery", "mine", "--thumbnails")
    data = (tmp_path / "photos" / "a.png").read_bytes()
    with Thumbnails.open(tmp_path / "mine") as thumbnails:
        assert thumbnails.get("a.png", content_digest(data)) == thumbnail(data)
        assert run("remove", "a.png", "--gallery", "mine").exit_code == 0
        assert list(thumbnails.contents(["a.png", "b.png"])) == ["b.png"]


def test_search_by_id_leaves_the_row_itself_out(run: Run) -> None:
    fill("mine", fan(), ["cat"] * 5)
    found = run("search", "--id", "v1", "-k", "3", "--gallery", "mine").lines
    assert [one["id"] for one in found] == ["v0", "v2", "v3"]
    assert found[0]["score"] == pytest.approx(np.cos(np.radians(10)), abs=1e-5)
    assert len(run("search", "--id", "v1", "-k", "9", "--gallery", "mine").lines) == 4


def test_search_by_an_id_that_is_not_there_says_so(run: Run) -> None:
    fill("mine", fan(), ["cat"] * 5)
    done = run("search", "--id", "v9", "--gallery", "mine")
    assert (done.exit_code, done.out) == (1, "")
    assert done.err.startswith("akin: no row has the id 'v9'")


def test_search_by_vector_filter_and_threshold(run: Run) -> None:
    fill("mine", fan(), ["cat", "dog", "cat", "dog", "cat"])
    np.save("first.npy", fan()[0])
    by_vector = ("search", "--vector", "first.npy", "--gallery", "mine")
    assert [one["id"] for one in run(*by_vector, "-k", "2").lines] == ["v0", "v1"]
    assert [one["id"] for one in run(*by_vector, "--filter", '{"label": "dog"}').lines] == ["v1", "v3"]
    assert [one["id"] for one in run(*by_vector, "--filter", '{"n": {"gte": 2}}', "-k", "2").lines] == ["v2", "v3"]
    assert [one["id"] for one in run(*by_vector, "--min-score", str(np.cos(np.radians(25)))).lines] == [
        "v0",
        "v1",
        "v2",
    ]
    assert run(*by_vector, "-k", "1").lines == [
        {"id": "v0", "score": pytest.approx(1), "label": "cat", "metadata": {"n": 0}}
    ]


def test_the_vote_is_the_last_line(run: Run) -> None:
    fill("mine", fan(), ["cat", "dog", "dog", None, None])
    *neighbors, last = run("search", "--id", "v0", "--vote", "--gallery", "mine").lines
    assert len(neighbors) == 4
    assert last == {"vote": [{"label": "dog", "share": 1.0}]}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        (["--filter", "{label: cat}", "--id", "v0"], 2, "is no JSON"),
        (["--filter", '["cat"]', "--id", "v0"], 2, "filter is ['cat'], not a JSON object"),
        (["--min-score", "2", "--id", "v0"], 2, "2 is no cosine similarity"),
        ([], 2, "required"),
        (["photos/a.png", "--id", "v0"], 2, "not allowed with"),
        (["--vector", "several.npy"], 1, "several.npy holds 2 vectors; give one at a time"),
        (["--vector", "short.npy"], 1, "send (N, 16)"),
        (["--vector", "photos/a.png"], 1, "photos/a.png is no .npy file of a vector"),
        (["model_store/encoder.json"], 1, "model_store/encoder.json: unsupported image format 'JSON'"),
        (["nowhere.jpg"], 1, "nowhere.jpg cannot be read: No such file or directory"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_in_a_line(
    run: Run, arguments: list[str], exit_code: int, reason: str
) -> None:
    fill("mine", fan(), ["cat"] * 5)
    np.save("several.npy", fan()[:2])
    np.save("short.npy", np.ones(3))
    done = run("search", *arguments, "--gallery", "mine")
    assert (done.exit_code, done.out) == (exit_code, "")
    assert reason in done.err
    assert "Traceback" not in done.err


def test_stats_say_how_it_is_searched_and_measure_recall_on_request(run: Run) -> None:
    fill("mine", fan(), ["cat"] * 5)
    lines = dict(line.split(": ", 1) for line in run("stats", "--gallery", "mine").out.splitlines())
    assert list(lines) == [
        *(
            "rows",
            "model",
            "dimension",
            "factory",
            "delta",
            "tombstones",
            "memory",
            "snapshot",
            "rebuilding",
            "recall",
        )
    ]
    assert (lines["rows"], lines["dimension"], lines["factory"]) == ("5", "16", "Flat")
    assert (lines["snapshot"], lines["rebuilding"]) == ("none", "no")
    assert lines["recall"] == "not measured; --recall does"
    measured = run("stats", "--gallery", "mine", "--recall").out
    assert "recall: 1.0000 at " in measured


def test_index_names_a_folder_as_gallery_does_and_not_both(run: Run) -> None:
    fill("mine", fan(), ["cat"] * 5)
    assert run("stats", "--index", "mine").out == run("stats", "--gallery", "mine").out
    assert run("stats", "--index", "mine", "--gallery", "mine").exit_code == 2


def test_ram_and_factory_reach_the_index(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fill("mine", fan(), ["cat"] * 5)
    opened: list[dict[str, Any]] = []
    open_index = verbs.open_index
    monkeypatch.setattr(verbs, "open_index", lambda *where, **how: opened.append(how) or open_index(*where, **how))
    assert run("stats", "--gallery", "mine", "--ram", "2GB", "--factory", "HNSW32,SQ8").exit_code == 0
    assert opened == [{"ram": 2 * 10**9, "factory": "HNSW32,SQ8"}]
    done = run("stats", "--gallery", "mine", "--ram", "much")
    assert done.exit_code == 2
    assert "'much' is no size: write 2GB, 512MiB or a number of bytes" in done.err


def test_a_milvus_address_opens_that_index(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    brute = BruteIndex("d" * 64, 16)
    brute.add(["x", "y", "z"], fan()[:3], ["cat", None, "cat"])
    asked: list[str] = []
    monkeypatch.setattr(verbs, "open_index", lambda where, *_, **__: asked.append(where) or brute)
    assert [one["id"] for one in run("search", "--id", "x", "--index", MILVUS).lines] == ["y", "z"]
    assert "rows: 3\n" in run("stats", "--index", MILVUS).out
    assert run("duplicates", "--min-score", "0.98", "--index", MILVUS).lines == [["x", "y", "z"]]
    assert "4 images added" in run("add", "photos", "--index", MILVUS).out
    assert run("remove", "x", "--index", MILVUS).out == "1 of 1 removed, 6 left\n"
    assert asked == [MILVUS] * 5
    assert not Path("var").exists()


@pytest.mark.parametrize(
    "arguments",
    [["verify"], ["rebuild"], ["backup", "a.bak"], ["restore", "a.bak"], ["add", "photos", "--thumbnails"]],
)
def test_what_works_on_files_refuses_milvus_with_the_way_out(run: Run, arguments: list[str]) -> None:
    done = run(*arguments, "--index", MILVUS)
    assert done.exit_code == 1
    assert done.err.startswith(f"akin: {MILVUS} is a server of Milvus")
    assert "akin index export --to FILE.npz" in done.err


@pytest.mark.parametrize("arguments", [["verify"], ["backup", "a.bak"]])
def test_what_works_on_files_makes_no_gallery(run: Run, arguments: list[str]) -> None:
    for where in ([], ["--gallery", "mistyped"]):
        done = run(*arguments, *where)
        assert done.exit_code == 1
        assert "no gallery at " in done.err
    assert not Path("var").exists() and not Path("mistyped").exists()


def test_verify_counts_what_is_sound_and_names_what_is_not(run: Run) -> None:
    fill("mine", fan(), ["cat"] * 5)
    assert run("verify", "--gallery", "mine").out == "all of mine is sound: 5 rows\n"
    with closing(sqlite3.connect(Path("mine") / FILE_NAME)) as connection:
        connection.execute("UPDATE rows SET label = 'cow' WHERE id IN ('v1', 'v3')")
        connection.commit()
    done = run("verify", "--gallery", "mine")
    assert done.exit_code == 1
    assert [line.split("(")[1].split(")")[0] for line in done.out.splitlines()] == ["id 'v1'", "id 'v3'"]


def test_rebuild_says_what_it_built(run: Run) -> None:
    fill("mine", fan(), ["cat"] * 5)
    assert run("rebuild", "--gallery", "mine").out.startswith("5 rows rebuilt as Flat in ")


def test_a_backup_brings_a_gallery_back(run: Run) -> None:
    fill("mine", fan(), ["cat"] * 5)
    assert run("backup", "a.bak", "--gallery", "mine").out.startswith("5 rows in a.bak")
    assert run("restore", "a.bak", "--gallery", "again").out == "5 rows restored in again\n"
    assert (
        run("search", "--id", "v0", "--gallery", "again").lines
        == run("search", "--id", "v0", "--gallery", "mine").lines
    )
    done = run("restore", "a.bak", "--gallery", "mine")
    assert done.exit_code == 1
    assert "is there already; move it away, or restore into another folder" in done.err


def test_a_restore_into_the_default_gallery_comes_before_the_seed(run: Run) -> None:
    fill("mine", fan(), ["cat"] * 5)
    run("backup", "a.bak", "--gallery", "mine")
    assert run("restore", "a.bak").out == "5 rows restored in var/gallery\n"
    assert "rows: 5\n" in run("stats").out


def test_duplicates_are_a_line_a_group(run: Run) -> None:
    copies = np.vstack([fan()[[0, 0, 4, 4, 4]], np.eye(16)[5:6]])
    fill("mine", copies, [None] * 6)
    assert run("duplicates", "--gallery", "mine").lines == [["v2", "v3", "v4"], ["v0", "v1"]]
    assert run("duplicates", "--gallery", "mine", "--min-score", "0.7").lines == [["v0", "v1", "v2", "v3", "v4"]]


def test_export_writes_a_file_or_another_index(run: Run) -> None:
    fill("mine", fan(), ["cat", None, "cat", "cat", "cat"])
    assert run("export", "--gallery", "mine", "--to", "rows.npz").out == "5 rows in rows.npz\n"
    assert run("export", "--gallery", "mine", "--to", "rows.ndjson").out == "5 rows in rows.ndjson\n"
    rows = [json.loads(line) for line in Path("rows.ndjson").read_text().splitlines()]
    assert [(row["id"], row["label"]) for row in rows][:2] == [("v0", "cat"), ("v1", None)]
    assert run("export", "--gallery", "mine", "--to", "moved").exit_code == 0
    assert (
        run("search", "--id", "v0", "--gallery", "moved").lines
        == run("search", "--id", "v0", "--gallery", "mine").lines
    )
    done = run("export", "--gallery", "mine", "--to", "rows.csv")
    assert done.exit_code == 1
    assert "name milvus://HOST:PORT, FILE.ndjson, FILE.npz or a folder" in done.err
