"""What is read from wrk."""

import pytest

from load_tests import wrk
from load_tests.wrk import Load


def summary(requests: int = 300, refused: int = 0, broken: int = 0) -> str:
    """What wrk prints with our script, shortened."""
    return (
        "Running 2s test @ http://127.0.0.1:8080/predictions/encoder\n  1 threads and 1 connections\n"
        "  Latency Distribution\n     50%    1.23ms\n     99%    4.57ms\nRequests/sec:    150.00\n\n"
        f'summary {{"requests": {requests}, "duration_us": 2000000, "p50_us": 1234, "p99_us": 4567, '
        f'"refused": {refused}, "broken": {broken}}}\n'
    )


def test_the_summary_of_wrk_is_read_in_exact_numbers() -> None:
    assert wrk.parse(summary()) == Load(p50_ms=1.234, p99_ms=4.567, requests_per_s=150.0)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (summary(refused=3), "300 requests were answered, 3 of them with an error status"),
        (summary(broken=2), "2 connections failed or timed out"),
        (summary(requests=0), "0 requests were answered"),
        ("unable to connect to 127.0.0.1:1 Connection refused\n", "without a summary; it printed: unable to connect"),
    ],
)
def test_load_with_errors_is_no_result(output: str, words: str) -> None:
    with pytest.raises(wrk.LoadError, match=words):
        wrk.parse(output)
