"""The description at /openapi.json: what the routes alone do not say of answers, errors, keys and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lookalike.server import schemas
from lookalike.server.security import needed

ABOUT = """Visual search for fashion catalogues: by photo, by words, or by both.

Errors are problem documents (RFC 9457). Every answer has an `X-Request-Id`. Where the server has API keys, each call under
`/api/` wants one; writing wants one always, of scope `write`."""

REFUSALS = {
    400: "Asked in a way that cannot be answered; `detail` names the field.",
    401: "An API key is wanted, or is not known.",
    403: "The key may not do this, or a page of another site asked.",
    404: "Not there.",
    409: "Not in this state.",
    413: "Too many bytes or pixels.",
    415: "Another content type is wanted.",
    422: "A field, or a photo, cannot be used.",
    429: "Over the rate limit; see Retry-After.",
    503: "Overloaded, starting, or the catalog is being written; see Retry-After.",
}
SEARCHES: dict[str, Any] = {
    "words": {"summary": "Words", "value": {"text": "navy polo", "k": 12}},
    "filter": {
        "summary": "Words, within a filter",
        "value": {"text": "navy polo", "where": "gender = 'Men' and price < 50"},
    },
    "like": {"summary": "Like a product, but in red", "value": {"like": "p01", "text": "red", "k": 24}},
    "not": {"summary": "Not like this", "value": {"text": "dress", "not": {"text": "flowers", "like": ["p07"]}}},
}
ANSWERS: dict[str, type[BaseModel]] = {
    "/api/search": schemas.SearchAnswer,
    "/api/tag": schemas.TagAnswer,
    "/api/duplicates": schemas.DuplicatesAnswer,
}
"""Of routes whose answers are not checked again on their way out, for speed."""

PUTS: dict[str, Any] = {
    "/api/products": {
        "products": [
            {
                "id": "p05",
                "title": "Red dress",
                "attributes": {"colour": "Red", "price": 49},
                "photos": ["https://shop.example/red-dress.jpg"],
            }
        ]
    },
    "/api/products/{identity}": {"title": "Red dress", "attributes": {"colour": "Red", "price": 44}},
}


def describe(app: FastAPI) -> None:
    """Have ``app`` describe itself so; made once, when it is first asked for."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _whole(
                get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _whole(description: dict[str, Any]) -> dict[str, Any]:
    parts = description.setdefault("components", {})
    known = parts.setdefault("schemas", {})
    named: list[type[BaseModel]] = [schemas.Problem, schemas.ProductsPut, schemas.ProductFields, *ANSWERS.values()]
    _, made = models_json_schema([(m, "validation") for m in named], ref_template="#/components/schemas/{model}")
    for name, schema in made["$defs"].items():
        known.setdefault(name, schema)
    for name in ("HTTPValidationError", "ValidationError"):  # ours are problem documents
        known.pop(name, None)
    parts["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "lookalike keys add NAME --scope search|write"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            _operation(path, method.upper(), operation)
    return description


def _operation(path: str, method: str, operation: dict[str, Any]) -> None:
    answers = operation.setdefault("responses", {})
    answers.pop("422", None)
    scope = needed(method, path)
    operation["tags"] = [{"search": "Search", "write": "Catalog work"}.get(scope, "Server")]
    codes = []
    if scope:
        codes += [401, 403]
        # An empty requirement: without any key, on this machine alone, searching is open.
        operation["security"] = [{"bearer": []}, {"header": []}, *([] if scope == "write" else [{}])]
    if path.startswith("/api/"):
        codes += [400, 404, 422, 429, 503]
    if path in ("/api/index", "/api/feedback"):
        codes += [409]
    if path == "/readyz":
        codes += [503]
    if "requestBody" in operation:
        codes += [408, 413, 415]
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for code in sorted(set(codes)):
        answers[str(code)] = {"description": REFUSALS.get(code, "Too slow."), "content": problem}
    if path in ANSWERS:
        schema = {"$ref": f"#/components/schemas/{ANSWERS[path].__name__}"}
        answers["200"]["content"] = {"application/json": {"schema": schema}}
    contents = operation.get("requestBody", {}).get("content", {})
    if path == "/api/search" and contents:
        contents["application/json"]["examples"] = SEARCHES
    form = contents.get("multipart/form-data")
    if form and "image" in form["schema"].get("properties", {}):  # the same fields, but the photo is a file
        fields = {**form["schema"]["properties"], "image": {"type": "string", "format": "binary"}}
        form["schema"] = {**form["schema"], "properties": fields}
    if method == "PUT" and path in PUTS:
        contents["application/json"]["example"] = PUTS[path]
        if form:
            form["schema"] = {
                "type": "object",
                "properties": {
                    "title": {"type": "string"},
                    "attributes": {
                        "type": "string",
                        "description": "A JSON object.",
                        "examples": ['{"colour": "Red"}'],
                    },
                    "photo": {"type": "array", "items": {"type": "string", "format": "binary"}},
                },
            }
