"""The file beneath: one writer at a time among all processes, readers lent to threads, errors with a way out."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from index.errors import GalleryBusy, GalleryCorrupt, GalleryError, GalleryFull, GalleryReadOnly
from index.sqlite import (
    PAGE_BYTES,
    Reader,
    Readers,
    Stamp,
    WriteLock,
    connect,
    connect_as_it_is,
    connect_read_only,
    immediate,
    make_folder,
    named_errors,
    nobody_writes,
    of_os_error,
    reading,
)

REPOSITORY = Path(__file__).parents[1]
HOLDER = """if True:
    import sys, time
    from pathlib import Path
    from index.sqlite import WriteLock
    lock = WriteLock(Path(sys.argv[1]), 10)
    with lock.held():
        print("held", flush=True)
        sys.stdin.readline()
    print("let go", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "gallery.sqlite"
    with closing(connect(made, 1)) as connection:
        connection.execute("CREATE TABLE t (x)")
    return made


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock until it gets a line."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, bufsize=1, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_waited_for_and_no_longer_than_agreed(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    impatient = WriteLock(tmp_path / "lock", 0.05)
    started = time.monotonic()
    with (
        pytest.raises(GalleryBusy, match=r"others have been writing for 0\.05 s; try again") as busy,
        impatient.held(),
    ):
        pytest.fail("two hold it")
    assert 0.05 <= time.monotonic() - started < 2
    assert busy.value.status == 503
    with nobody_writes(tmp_path / "lock") as free:
        assert not free
    patient, got = WriteLock(tmp_path / "lock", 20), threading.Event()

    def wait() -> None:
        with patient.held():
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.05)
    print(file=holder.stdin)
    assert holder.stdout.readline() == "let go\n"
    thread.join(20)
    assert got.is_set()
    with impatient.held():
        pass
    impatient.close()
    patient.close()


def test_kill_9_of_its_holder_lets_go_of_the_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = WriteLock(tmp_path / "lock", 0.05)
    with pytest.raises(GalleryBusy), lock.held():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.held():
        pass
    with nobody_writes(tmp_path / "lock") as free:
        assert free
    lock.close()


def test_threads_of_one_process_hold_it_by_turns_and_wait_no_longer_than_agreed(tmp_path: Path) -> None:
    lock, inside, most = WriteLock(tmp_path / "lock", 20), [], []

    def work() -> None:
        for _ in range(10):
            with lock.held():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 50
    lock.close()

    impatient, refused = WriteLock(tmp_path / "lock", 0.05), []

    def try_it() -> None:
        try:
            with impatient.held():
                pass
        except GalleryBusy as error:
            refused.append(error)

    with impatient.held():
        threads = [threading.Thread(target=try_it, daemon=True) for _ in range(5)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2)
        assert time.monotonic() - started < 2  # side by side, not one after the other
    assert len(refused) == 5
    impatient.close()


def test_a_lock_is_let_go_after_an_error_and_closed_for_good(tmp_path: Path) -> None:
    lock, other = WriteLock(tmp_path / "lock", 1), WriteLock(tmp_path / "lock", 0.05)
    with pytest.raises(ZeroDivisionError), lock.held():
        raise ZeroDivisionError
    with other.held(), nobody_writes(tmp_path / "lock") as free:
        assert not free
    lock.close()
    lock.close()
    with pytest.raises(GalleryError, match="is closed; open it again"), lock.held():
        pytest.fail("it is closed")
    with other.held():
        pass
    other.close()


def test_while_somebody_sees_that_nobody_writes_nobody_does(tmp_path: Path) -> None:
    lock = WriteLock(tmp_path / "lock", 0.05)
    with nobody_writes(tmp_path / "lock") as first, nobody_writes(tmp_path / "lock") as second:
        assert first and second
        with pytest.raises(GalleryBusy), lock.held():
            pass
    with lock.held():
        pass
    lock.close()
    with nobody_writes(tmp_path / "nowhere") as free:
        assert not free  # it cannot be known


def test_a_lock_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="name another folder"):
        WriteLock(tmp_path / "nowhere" / "lock", 1)


def test_readers_are_lent_to_one_thread_at_a_time_and_used_again(file: Path) -> None:
    readers = Readers(file, 1)
    with readers.lent() as first:
        with readers.lent() as second:
            assert first is not second
        with readers.lent() as again:
            assert again is second
    used, together = [], threading.Barrier(4)

    def read() -> None:
        for _ in range(20):
            with readers.lent() as connection:
                used.append(id(connection))
                together.wait(10)
                connection.execute("SELECT * FROM t").fetchall()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(used) == 80 and len(set(used)) == 4
    readers.close()


def test_a_reader_cannot_write_and_sees_what_others_wrote(file: Path) -> None:
    readers = Readers(file, 1)
    with closing(connect(file, 1)) as writer, readers.lent() as reader:
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
        writer.execute("INSERT INTO t VALUES (1)")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
        with reading(reader):
            assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
            writer.execute("INSERT INTO t VALUES (2)")
            assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (2,)
    with pytest.raises(GalleryReadOnly, match="cannot be written"), readers.lent() as reader:
        reader.execute("INSERT INTO t VALUES (3)")
    readers.close()


def test_a_reader_comes_back_after_an_error_and_is_closed_where_the_others_were(file: Path) -> None:
    readers = Readers(file, 1)
    with pytest.raises(ZeroDivisionError), readers.lent() as failed:
        raise ZeroDivisionError
    with readers.lent() as lent:
        assert lent is failed
        readers.close()
        assert lent.execute("SELECT count(*) FROM t").fetchone() == (0,)  # until it comes back
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        lent.execute("SELECT 1")


def test_a_frozen_reader_is_dropped_once_somebody_has_written(file: Path) -> None:
    readers = Readers(file, 1)
    connection, _ = connect_as_it_is(file, 1)
    readers._idle.append(Reader(connection, Stamp.of(str(file))))
    with readers.lent() as frozen:
        assert frozen is connection
    with closing(connect(file, 1)) as writer:
        writer.execute("INSERT INTO t VALUES (1)")
        with readers.lent() as renewed:
            assert renewed is not frozen
            assert renewed.execute("SELECT count(*) FROM t").fetchone() == (1,)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        frozen.execute("SELECT 1")
    readers.close()


def test_a_stamp_changes_with_the_file_and_its_log(file: Path) -> None:
    assert Stamp.of(str(file.with_name("nowhere"))) == (0, 0, 0, 0, 0, 0)
    first = Stamp.of(str(file))
    assert first == Stamp.of(str(file)) and first.file and not first.log
    with closing(connect(file, 1)) as writer:
        writer.execute("INSERT INTO t VALUES (1)")
        second = Stamp.of(str(file))
        assert second.log and second != first
        writer.execute("INSERT INTO t VALUES (2)")
        assert Stamp.of(str(file)) != second


def test_a_connection_is_durable_and_has_large_pages(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "new.sqlite", 1)) as connection:
        connection.execute("CREATE TABLE t (x)")
        for pragma, value in (("page_size", PAGE_BYTES), ("journal_mode", "wal"), ("synchronous", 2)):
            assert connection.execute(f"PRAGMA {pragma}").fetchone() == (value,)
    with pytest.raises(sqlite3.OperationalError):
        connect_read_only(tmp_path / "nowhere.sqlite", 1)
    assert not (tmp_path / "nowhere.sqlite").exists()


def test_the_first_connection_waits_for_others_that_make_the_file_and_no_longer_than_agreed(tmp_path: Path) -> None:
    file = tmp_path / "gallery.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as first:
        first.execute("CREATE TABLE t (x)")
        first.execute("BEGIN IMMEDIATE")  # SQLite would not wait for this one
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            connect(file, 0.05)
        end = threading.Timer(0.15, first.execute, ["COMMIT"])
        end.start()
        try:
            with closing(connect(file, 20)) as second:
                assert second.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        finally:
            end.join()


@pytest.mark.parametrize("name", ["a b.sqlite", "ä?#%.sqlite", "100%25.sqlite", "a&mode=rwc.sqlite"])
def test_a_file_of_any_name_is_read(tmp_path: Path, name: str) -> None:
    with closing(connect(tmp_path / name, 1)) as writer:
        writer.execute("CREATE TABLE t (x)")
    with closing(connect_read_only(tmp_path / name, 1)) as reader:
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("INSERT INTO t VALUES (1)")
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()} == {name}


def test_a_transaction_that_fails_is_rolled_back_and_the_next_one_works(file: Path) -> None:
    with closing(connect(file, 1)) as connection:
        with pytest.raises(ZeroDivisionError), immediate(connection):
            connection.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError
        assert not connection.in_transaction
        with immediate(connection):
            connection.execute("INSERT INTO t VALUES (2)")
        assert connection.execute("SELECT x FROM t").fetchall() == [(2,)]
        with pytest.raises(ZeroDivisionError), reading(connection):
            raise ZeroDivisionError
        assert not connection.in_transaction


def test_damaged_text_is_read_so_that_its_checksum_can_name_the_row(file: Path) -> None:
    with closing(connect(file, 1)) as connection:
        connection.execute("INSERT INTO t VALUES (CAST(x'61ff62' AS TEXT))")
        assert connection.execute("SELECT x FROM t").fetchone() == ("a\ufffdb",)


def error_of(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (sqlite3.SQLITE_BUSY, GalleryBusy, "another process has been writing for 7 s; try again"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, GalleryBusy, "another process has been writing"),
        (sqlite3.SQLITE_LOCKED, GalleryBusy, "another process has been writing"),
        (sqlite3.SQLITE_CORRUPT, GalleryCorrupt, r"is damaged \(as SQLite says it\); restore it from a copy"),
        (sqlite3.SQLITE_CORRUPT_INDEX, GalleryCorrupt, "is damaged"),
        (sqlite3.SQLITE_NOTADB, GalleryCorrupt, "is damaged"),
        (sqlite3.SQLITE_FULL, GalleryFull, "the disk is full; free some space and try again"),
        (sqlite3.SQLITE_IOERR_WRITE, GalleryFull, "cannot be written.*look at the disk, its free space"),
        (sqlite3.SQLITE_IOERR_FSYNC, GalleryFull, "cannot be written"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, GalleryFull, "cannot be written"),
        (sqlite3.SQLITE_IOERR_READ, GalleryError, "cannot be read.*look at the disk"),
        (sqlite3.SQLITE_READONLY, GalleryReadOnly, "cannot be written.*give this user the right to"),
        (sqlite3.SQLITE_READONLY_DBMOVED, GalleryReadOnly, "cannot be written"),
        (sqlite3.SQLITE_CANTOPEN, GalleryReadOnly, "cannot be written"),
        (sqlite3.SQLITE_ERROR, GalleryError, "as SQLite says it"),
    ],
)
def test_an_error_of_sqlite_is_named_with_the_way_out(code: int, kind: type[GalleryError], message: str) -> None:
    with (
        pytest.raises(GalleryError, match=rf"gallery\.sqlite.*{message}") as named,
        named_errors(Path("gallery.sqlite"), 7),
    ):
        raise error_of(code)
    assert type(named.value) is kind
    assert isinstance(named.value.__cause__, sqlite3.OperationalError)


def test_a_message_that_quotes_damaged_text_is_damage_too_and_other_errors_are_their_own() -> None:
    with pytest.raises(GalleryCorrupt, match="is damaged"), named_errors(Path("gallery.sqlite"), 7):
        b"\xff".decode()
    with pytest.raises(ZeroDivisionError), named_errors(Path("gallery.sqlite"), 7):
        raise ZeroDivisionError
    with pytest.raises(GalleryBusy, match="inside"), named_errors(Path("gallery.sqlite"), 7):
        raise GalleryBusy("inside")


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, GalleryFull, "cannot be written, the disk is full .*; free some space"),
        (errno.EDQUOT, GalleryFull, "cannot be written, the disk is full"),
        (errno.EFBIG, GalleryFull, "cannot be written, the disk is full"),
        (errno.EACCES, GalleryReadOnly, "cannot be written .Permission denied.; give this user the right"),
        (errno.EROFS, GalleryReadOnly, "cannot be written"),
        (errno.ENOTDIR, GalleryError, "cannot hold a gallery .Not a directory.; name another folder"),
        (errno.EIO, GalleryError, "cannot hold a gallery"),
    ],
)
def test_an_error_of_the_system_is_named_with_the_way_out(
    number: int, kind: type[GalleryError], message: str
) -> None:
    error = of_os_error(OSError(number, os.strerror(number)), Path("here"))
    assert type(error) is kind
    with pytest.raises(GalleryError, match=f"here {message}"):
        raise error


def test_a_new_folder_is_synced_by_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("index.sqlite.sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
