from __future__ import annotations

import base64
import json
import re
import socket
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import lookalike
from conftest import draw
from lookalike.errors import InputError, UsageError
from lookalike.server import listen, security
from lookalike.server.app import create_app

HOSTS = {"testserver"}


@pytest.fixture
def client(catalog: lookalike.Catalog):
    with TestClient(create_app(catalog, hosts=HOSTS), raise_server_exceptions=False) as made:
        yield made


def test_search_by_words_by_photo_and_by_like_in_every_form(tmp_path: Path, client: TestClient):
    photo = (tmp_path / "img" / "1.jpg").read_bytes()
    by_get = client.get("/api/search", params={"text": "red shirt", "where": "gender = 'Men'", "k": 3}).json()
    by_json = client.post("/api/search", json={"text": "red shirt", "where": "gender = 'Men'", "k": 3}).json()
    assert by_get["hits"] == by_json["hits"]
    assert by_get["total"] == 6
    assert set(by_get["hits"][0]) > {"id", "score", "photo", "title", "attributes", "photos", "why", "colours"}
    uploaded = client.post("/api/search", files={"image": ("a.jpg", photo)}, data={"k": 2}).json()
    encoded = client.post("/api/search", json={"image": base64.b64encode(photo).decode(), "k": 2}).json()
    assert uploaded["hits"] == encoded["hits"]
    assert uploaded["hits"][0]["id"] == "p01"
    assert [h["id"] for h in client.get("/api/search?like=p00&like=p04&k=1").json()["hits"]] == ["p08"]


def test_every_field_of_the_contract_is_understood(client: TestClient):
    fields = {"text": "red", "like": "p01", "not": {"text": "blue", "like": ["p05"]}, "where": "price > 1", "k": 5,
              "weights": {"text": 2}, "lexical": 0.3, "pure": True}  # fmt: skip
    answer = client.post("/api/search", json=fields)
    assert answer.status_code == 200
    form = {k: json.dumps(v) if isinstance(v, dict) else str(v) for k, v in fields.items()}
    assert client.post("/api/search", data=form).json()["hits"] == answer.json()["hits"]
    assert not {"p01", "p05"} & {h["id"] for h in answer.json()["hits"]}


def test_answers_carry_facets_and_never_a_path(tmp_path: Path, client: TestClient):
    for address in ("/api/search?text=red", "/api/products/p00", "/api/products", "/api/status", "/api/facets"):
        assert str(tmp_path) not in client.get(address).text
    facets = client.get("/api/search?text=red&where=colour='Red'").json()["facets"]
    assert {f["column"] for f in facets} >= {"colour", "gender", "price"}


def test_products_are_listed_by_a_filter_alone(client: TestClient):
    listed = client.get("/api/products", params={"where": "colour = 'Red'", "limit": 2}).json()["products"]
    assert [p["id"] for p in listed] == ["p00", "p04"]
    assert [p["id"] for p in client.get("/api/products?limit=3").json()["products"]] == ["p00", "p05", "p11"]


def test_photos_come_by_id_as_plain_jpeg(client: TestClient):
    product = client.get("/api/products/p00").json()
    assert len(product["photos"]) == 2
    photo = client.get(f"/api/photos/{product['photos'][0]}?width=32")
    assert photo.headers["content-type"] == "image/jpeg"
    assert photo.content[:2] == b"\xff\xd8"
    assert photo.headers["x-content-type-options"] == "nosniff"
    assert client.get("/api/photos/..%2f..%2fetc%2fpasswd").status_code == 404
    assert client.get(f"/api/photos/{product['photos'][0]}?width=99999").status_code == 422


@pytest.mark.parametrize(
    ("address", "status", "detail"),
    [
        ("/api/search", 400, "nothing to search for"),
        ("/api/search?text=red&k=0", 422, "k: input should be greater than or equal to 1"),
        ("/api/search?text=red&where=colur='x'", 400, "did you mean 'colour'"),
        ("/api/search?text=red&where=price<", 400, "price<"),
        ("/api/search?text=red&weights=x", 400, "weights is not JSON"),
        ("/api/search?text=red&text=blue", 400, "text is given twice"),
        ("/api/search?text=red&color=x", 422, "color: extra inputs are not permitted"),
        ("/api/search?colour=red", 400, "colour is 'red'; it is written #rrggbb"),
        ("/api/search?like=nope", 404, "no product 'nope'"),
        ("/api/products/nope", 404, "no product"),
        ("/api/photos/nope", 404, "no photo"),
        ("/api/nothing", 404, "Not Found"),
    ],
)
def test_errors_are_problem_documents(client: TestClient, address: str, status: int, detail: str):
    answer = client.get(address)
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == body["status"] == status
    assert detail.lower() in body["detail"].lower()
    assert set(body) == {"type", "title", "status", "detail", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]


def test_bad_bodies_are_refused_by_name(client: TestClient):
    def post(**sent: object) -> tuple[int, str]:
        answer = client.post("/api/search", **sent)  # type: ignore[arg-type]
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code, answer.json()["detail"]

    assert post(files={"image": ("a.jpg", b"not a photo")})[0] == 422
    assert post(files={"image": ("a.jpg", b"")})[0] == 422
    assert "base64" in post(json={"image": "###"})[1]
    assert "JSON" in post(content=b"{", headers={"content-type": "application/json"})[1]
    assert post(content=b"x", headers={"content-type": "text/plain"})[0] == 415
    assert "object" in post(json=[1])[1]


def test_a_body_over_the_limit_is_refused_with_and_without_a_length(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(security, "MAX_BODY", 1000)
    assert client.post("/api/search", files={"image": ("a.jpg", b"x" * 2000)}).status_code == 413
    chunks = (b"x" * 500 for _ in range(10))
    answer = client.post("/api/search", content=chunks, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_key_is_wanted_of_the_interface_when_there_is_one(catalog: lookalike.Catalog):
    with TestClient(create_app(catalog, "secret")) as client:
        assert client.get("/api/status").status_code == 401
        assert client.get("/api/status", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/api/status", headers={"authorization": "Bearer secret"}).status_code == 200
        assert client.get("/api/status", headers={"x-api-key": "secret"}).status_code == 200
        client.cookies.set("lookalike_key", "secret")
        assert client.get("/api/status").status_code == 200
        assert client.get("/healthz").status_code == 200


def test_other_hosts_are_not_answered(catalog: lookalike.Catalog):
    with TestClient(create_app(catalog), base_url="http://localhost:8000") as client:
        assert client.get("/api/status").status_code == 200
        assert client.get("/api/status", headers={"host": "evil.example"}).status_code == 400
        assert client.get("/api/status", headers={"host": "[::1]:8000"}).status_code == 200


def test_the_page_and_its_parts_are_served_under_a_strict_policy(client: TestClient):
    page = client.get("/")
    assert "lookalike-search" in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy and "*" not in policy
    assert not re.search(r"<script(?! type=\"module\" src=)|<style|\sstyle=|\son\w+=", page.text)  # nothing inline
    for part in ("lookalike-search.js", "style.css"):
        assert client.get(f"/web/{part}").status_code == 200
        assert f"/web/{part}" in page.text
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text


def test_status_health_and_description(client: TestClient):
    status = client.get("/api/status").json()
    assert status["encoder"] == {"name": "fake", "id": "fake-1", "dim": 64, "text": True}
    assert {"name": "price", "kind": "number", "role": "price"} in status["columns"]
    assert (status["products"], status["photos"], status["drawn"]) == (12, 13, False)
    assert client.get("/readyz").json() == {"status": "ok"}
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/search", "/api/products/{identity}", "/api/photos/{photo_id}", "/api/facets", "/api/status"} <= set(
        paths
    )


def test_a_newer_version_is_swapped_in_while_serving(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    import time

    monkeypatch.setattr("lookalike.server.app.POLL_SECONDS", 0.05)
    with TestClient(create_app(catalog, hosts=HOSTS)) as client:
        draw(tmp_path / "more" / "new.jpg", "red", "bag", 2)
        lookalike.open(catalog.store.directory).index(tmp_path / "more")
        deadline = time.monotonic() + 5
        while client.get("/api/status").json()["products"] != 13 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/api/products/new").status_code == 200


def test_searches_run_beside_one_another(catalog: lookalike.Catalog, client: TestClient):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda n: client.get(f"/api/search?text=red&k={n % 9 + 1}").status_code, range(64)))
    assert codes == [200] * 64


def test_where_it_listens():
    with listen("127.0.0.1", 0, "") as bound:
        port = bound.getsockname()[1]
        assert bound.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on: 40 ms an answer
        with (
            pytest.raises(InputError, match=rf"port {port} on 127.0.0.1 is in use.*--port {port + 1}"),
            listen("127.0.0.1", port, ""),
        ):
            pass
    with pytest.raises(UsageError, match="LOOKALIKE_API_KEY"), listen("0.0.0.0", 0, ""):
        pass
    with listen("0.0.0.0", 0, "secret"):
        pass
    with pytest.raises(UsageError, match="no such address"), listen("no such host", 0, ""):
        pass


def test_head_is_answered_as_get_without_a_body(client: TestClient):
    for address in ("/", "/healthz", "/api/search?text=red", "/web/style.css"):
        head, get = client.head(address), client.get(address)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/api/products/nope").status_code == 404


def test_hostile_bodies_are_refused_and_the_server_goes_on(client: TestClient):
    def post(**sent: object) -> tuple[int, str]:
        answer = client.post("/api/search", **sent)  # type: ignore[arg-type]
        return answer.status_code, answer.json()["detail"]

    deep = b"[" * 100_000
    assert post(content=deep, headers={"content-type": "application/json"})[0] == 400
    assert post(data={"text": "red", "not": "[" * 100_000})[0] == 400
    assert post(json={"image": "é"}) == (400, "image is not base64; send the photo's bytes encoded so, or as multipart")
    assert post(content=b'{"text": "\\ud800"}', headers={"content-type": "application/json"})[0] == 400
    assert post(json={"like": ["p01"] * 101}) == (400, "like has 101 values; at most 100 are read")
    assert post(json={"text": "red", "not": {"text": ["x" * 10_001]}})[0] == 400
    assert post(json={"text": "red", "weights": {"text": 1e300}})[0] == 400
    assert post(json={"text": "red", "k": 0})[0] == 422  # as by address
    status, detail = post(files={"photo": ("a.jpg", b"x")})
    assert (status, detail) == (400, "a file in the field 'photo'; a photo goes into the field image")
    empty = '--b\r\ncontent-disposition: form-data; name="image"; filename=""\r\n\r\n\r\n'
    empty += '--b\r\ncontent-disposition: form-data; name="text"\r\n\r\nred\r\n--b--\r\n'
    answer = client.post("/api/search", content=empty, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 200  # a form whose photo was left empty


@pytest.mark.slow
def test_an_index_that_fell_behind_is_made_beside_the_server(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lookalike.server.app.POLL_SECONDS", 0.05)
    monkeypatch.setattr("lookalike.segment.SAVED_FROM", 5)
    monkeypatch.setenv("LOOKALIKE_INDEX", "lsh")
    with TestClient(create_app(catalog, hosts=HOSTS)) as client:
        kinds = []
        for _ in range(600):
            assert client.get("/api/search?text=red").status_code == 200
            kinds.append(client.get("/api/status").json()["index"]["kind"])
            if kinds[-1] == "lsh":
                break
            time.sleep(0.05)
        assert (kinds[0], kinds[-1]) == ("exact", "lsh")
        hits = client.get("/api/search?text=red+shirt&k=12").json()["hits"]
    assert [h["id"] for h in hits] == [h.id for h in catalog.search("red shirt", k=12)]
    assert not catalog.behind()


def test_the_old_version_answers_while_the_new_one_cannot_be_read(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("lookalike.server.app.POLL_SECONDS", 0.02)
    with TestClient(create_app(catalog, hosts=HOSTS)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(type(catalog), "snapshot", lambda *a, **k: (_ for _ in ()).throw(MemoryError("too large")))
            time.sleep(0.2)
        assert [r.getMessage() for r in caplog.records if "too large" in r.getMessage()]
        catalog.remove("p01")
        deadline = time.monotonic() + 5
        while client.get("/api/status").json()["products"] != 11 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert client.get("/api/products/p01").status_code == 404
