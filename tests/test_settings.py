"""The knobs of the server: what is meant where they are left alone, and how they travel to its processes."""

from pathlib import Path

import pytest

from handlers.settings import Settings, Source


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--port 0 --processes 3 --process 2",
        "--also dino=var/dino --also other --no-thumbnails --access-log --log json",
        "--images photos --thumbnails --threads 2 --idle-threads 1 --max-wait-ms 80",
        "--token-file secret --protect-reads --no-open",
        "--index milvus://localhost:19530 --ram 2GB --require-provider CPUExecutionProvider --grpc-port 0",
        "--gallery g --factory HNSW32,SQ8 --header-seconds 0.5 --body-seconds 2 --connections 7 --max-batch 8",
    ],
)
def test_a_process_that_is_started_with_the_arguments_of_settings_has_these_settings(line: str) -> None:
    settings = Settings.from_arguments(line.split())
    assert Settings.from_arguments(settings.arguments()) == settings


@pytest.mark.parametrize(
    ("flag", "values", "said"),
    [
        ("--header-seconds", ["0", "-1", "nan", "inf", "3601"], "not within 0.1 to 3600"),
        ("--body-seconds", ["0.05", "nan"], "not within 0.1 to 3600"),
        ("--batch-wait-ms", ["-0.1", "nan", "1001"], "not within 0 to 1000"),
        ("--batch-wait-ms", ["soon"], "invalid number value: 'soon'"),
    ],
)
def test_times_that_no_server_could_keep_are_refused(
    flag: str, values: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        with pytest.raises(SystemExit):
            Settings.from_arguments([f"{flag}={value}"])
        assert said in capsys.readouterr().err


def test_arguments_may_be_changed_on_the_way() -> None:
    settings = Settings.from_arguments(["--processes", "2", "--port", "0"])
    changed = Settings.from_arguments(settings.arguments(port=8081, process=2))
    assert (changed.port, changed.process, changed.processes) == (8081, 2, 2)


def test_cores_are_shared_out_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.settings.cores", lambda: 8)
    assert Settings(processes=3).workers == Settings(processes=3).cores_for_one == 2
    assert Settings(processes=20).workers == 1
    assert Settings(threads=5, idle_threads=3).workers == 5
    assert Settings(threads=5, idle_threads=3).cores_for_one == 3


def test_further_models_come_from_the_same_store_or_from_their_own() -> None:
    settings = Settings(model_store=Path("store"), name="first", also=("second", "third=var/third"))
    assert settings.sources == (
        Source("first", Path("store"), "first"),
        Source("second", Path("store"), "second"),
        Source("third", Path("var/third"), "encoder"),
    )


def test_thumbnails_are_kept_of_images_that_are_named_unless_they_are_not_wanted() -> None:
    assert not Settings().keeps_thumbnails
    assert Settings(images=Path("photos")).keeps_thumbnails
    assert not Settings(images=Path("photos"), thumbnails=False).keeps_thumbnails
    assert Settings(thumbnails=True).keeps_thumbnails


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("::1", "http://[::1]:8080"),
        ("akin.example", "http://akin.example:8080"),
    ],
)
def test_the_address_is_one_that_a_client_on_this_machine_can_open(host: str, url: str) -> None:
    assert Settings(host=host).url(8080) == url
