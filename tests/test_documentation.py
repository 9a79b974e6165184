"""The documentation of the API: whole, from here alone, and no burden to those who do not read it."""

import re
import subprocess
import sys

import httpx

from tests.server import ROOT
from tests.serving import assert_refused


def test_the_documentation_shows_the_paths_that_are_served_in_front_of_it(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    openai = {"/v1/embeddings", "/v1/models", "/v1/models/{name}"}
    index = {"/index", "/index/{id}", "/index/search", "/index/bulk", "/index/map", "/thumbnails/{id}"}
    pages = {"/", "/models", "/healthz", "/readyz", "/metrics"}
    of_models = {f"/models/{{name}}{path}" for path in index}
    predictions = {"/predictions/{name}", "/predictions/{name}/{version}"}
    model = {f"/v2/models/{{name}}{version}" for version in ("", "/versions/{version}")}
    oip = {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index"}
    oip |= {f"{path}{verb}" for path in model for verb in ("", "/ready", "/infer")}
    assert set(schema["paths"]) == predictions | pages | openai | index | of_models | oip
    documented = {entry["name"] for entry in schema["paths"]["/predictions/{name}"]["post"]["parameters"]}
    assert schema["info"]["version"] == client.get("/v2").json()["version"]
    assert documented == {"name", "k", "fields", "encoding", "akin-k", "akin-fields", "akin-encoding"}


def test_the_page_of_the_documentation_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs").text
    named = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert {name.rpartition(".")[2] for name in named} == {"js", "css", "png"}
    assert "http" not in "".join(named)
    for name in named:
        assert client.get(name).status_code == 200, name


def test_whoever_does_not_read_the_documentation_does_not_wait_for_fastapi() -> None:
    code = "import sys, handlers.native; sys.exit(bool({'fastapi', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_a_file_of_the_documentation_that_is_not_there_gets_the_error_of_all_others(client: httpx.Client) -> None:
    assert_refused(client.get("/static-offline-docs/nope.js"), 404, "GET /docs")
    assert_refused(client.post("/docs"), 405, "Method Not Allowed")
