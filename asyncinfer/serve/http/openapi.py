"""The HTTP paths as an OpenAPI document."""

from __future__ import annotations

from typing import Any

from asyncinfer.serve.core import Core
from asyncinfer.serve.tensors import DATATYPES

__all__ = ("openapi",)

_OBJECT = {"type": "object"}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "data": {"type": "array", "items": {}},
        "parameters": _OBJECT,
    },
}
_REQUESTED = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "parameters": _OBJECT},
}
_INFERENCE = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _OBJECT,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _REQUESTED},
    },
}
_REFUSALS = (400, 401, 404, 405, 413, 429, 500, 503, 504)


def openapi(core: Core) -> dict[str, Any]:
    """The document; schemathesis and generators of clients read it."""
    paths: dict[str, Any] = {
        "/v2": {"get": _answers("Metadata of the server")},
        "/v2/health/live": {"get": _answers("The process answers")},
        "/v2/health/ready": {"get": _answers("Requests are admitted")},
        "/v2/models/stats": {"get": _answers("Statistics of all models")},
        "/v2/repository/index": {"post": _answers("All models")},
        "/metrics": {"get": _answers("Metrics for Prometheus", "text/plain")},
    }
    for path, names in (
        ("/v2/models/{model}", ["model"]),
        ("/v2/models/{model}/versions/{version}", ["model", "version"]),
    ):
        shared = {"parameters": [_parameter(name, core) for name in names]}
        body = {"required": True, "content": {"application/json": {"schema": _INFERENCE}}}
        paths |= {
            path: {**shared, "get": _answers("Metadata of the model")},
            f"{path}/ready": {**shared, "get": _answers("A device of the model answers")},
            f"{path}/config": {**shared, "get": _answers("The model as Triton configures one")},
            f"{path}/stats": {**shared, "get": _answers("Statistics of the model")},
            f"{path}/infer": {**shared, "post": _answers("Infer a batch") | {"requestBody": body}},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "asyncinfer: Open Inference Protocol v2", "version": core.version},
        "paths": paths,
    }


def _parameter(name: str, core: Core) -> dict[str, Any]:
    examples = list(core.models) if name == "model" else ["1"]
    schema = {"type": "string", "examples": examples}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _answers(summary: str, media: str = "application/json") -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": summary, "content": {media: {}}}}
    error = {"description": "Refused", "content": {"application/json": {"schema": _ERROR}}}
    return {"summary": summary, "responses": answers | {str(code): error for code in _REFUSALS}}
