"""The OpenAPI document of the server's own routes, and a plain page of it."""

from __future__ import annotations

import html
import json
from typing import Any

ID = {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, {"type": "string"}]}
ENTRY = {
    "oneOf": [
        ID,
        {
            "type": "object",
            "required": ["item"],
            "properties": {"item": ID},
            "description": "`item`, and any of the columns that the contract declares",
        },
    ]
}
TIME = {"oneOf": [{"type": "integer"}, {"type": "string"}]}
EVENT = {
    "oneOf": [
        ID,
        {
            "type": "object",
            "required": ["item"],
            "properties": {"item": ID, "time": TIME},
            "description": "`item`; with `time`: any columns of the log, else those that the contract declares",
        },
    ]
}
ERROR = {
    "description": "What is wrong and what to do.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["code", "message"],
                        "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                    }
                },
            }
        }
    },
}
BUSY = ERROR | {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}}

REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["candidates"],
    "additionalProperties": False,
    "properties": {
        "id": {
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            "description": "of the request; default one of ours",
        },
        "user": {**ID, "description": "left out for an anonymous user"},
        "user_columns": {"type": "object", "description": "replace what the bundle knows of the user"},
        "time": {**TIME, "description": "of the request; default now"},
        "context": {"type": "object", "description": "columns of the moment"},
        "history": {
            "type": "array",
            "items": EVENT,
            "description": "what the user did: events with times, as the log has them, in any order; or, oldest first, "
            "ids and ready columns",
        },
        "candidates": {"type": "array", "items": ENTRY, "minItems": 1},
        "top_k": {"type": "integer", "minimum": 1, "description": "answer with so many of the best"},
    },
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["request_id", "model_version", "state", "ranked", "unknown", "missing", "took_ms"],
    "properties": {
        "request_id": {"type": "string"},
        "model_version": {"type": "string"},
        "variant": {"enum": ["champion", "challenger"], "description": "which model ranked; none did in a fallback"},
        "state": {"enum": ["ok", "fallback"], "description": "fallback: by popularity, without scores"},
        "ranked": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["item", "score"],
                "properties": {"item": ID, "score": {"type": ["number", "null"]}, "tasks": {"type": "object"}},
            },
        },
        "unknown": {"type": "object", "description": "ids that the model never saw, by part of the request"},
        "missing": {"type": "object", "description": "values that the model was trained on and the request lacks"},
        "unusual": {
            "type": "object",
            "description": "there where a model that compares candidates was trained on no request of so few or many: "
            "`candidates`, how many there are",
        },
        "took_ms": {"type": "object", "description": "milliseconds by stage: decode, encode, model, respond"},
    },
}
EVENTS: dict[str, Any] = {
    "type": "object",
    "required": ["events"],
    "additionalProperties": False,
    "properties": {
        "events": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["user", "item", "time"],
                "properties": {
                    "user": ID,
                    "item": ID,
                    "time": {
                        **TIME,
                        "description": "as the log has it: a whole number since 1970, or ISO 8601",
                    },
                },
                "description": "and raw columns of the log, those of the label among them",
            },
        }
    },
}
TAKEN: dict[str, Any] = {
    "type": "object",
    "required": ["taken", "refused", "repeated", "unlabelled"],
    "properties": {
        "taken": {"type": "integer", "description": "events that are sound"},
        "refused": {"type": "integer", "description": "events that are not"},
        "repeated": {"type": "integer", "description": "of those taken, how many were sent before: not counted again"},
        "unlabelled": {"type": "integer", "description": "of those taken, how many lack what the label is made of"},
        "reason": {"type": "string", "description": "why the first was refused"},
    },
}
ITEMS: dict[str, Any] = {
    "type": "object",
    "required": ["items"],
    "additionalProperties": False,
    "properties": {
        "items": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["item"],
                "additionalProperties": False,
                "properties": {
                    "item": ID,
                    "columns": {"type": "object", "description": "by the names of the contract's item columns"},
                    "vectors": {
                        "type": "object",
                        "additionalProperties": {"type": ["array", "null"], "items": {"type": "number"}},
                        "description": "by the names of the contract's embeddings, as their encoders made them",
                    },
                },
                "description": "replaces the item whole: what is left out is missing",
            },
        }
    },
}
UPSERTED: dict[str, Any] = {
    "type": "object",
    "required": ["model_version", "new", "changed", "upserted", "kept"],
    "properties": {
        "model_version": {"type": "string", "description": "that answers from now on"},
        "new": {"type": "integer", "description": "items that the version before did not know"},
        "changed": {"type": "integer", "description": "items that it knew"},
        "upserted": {"type": "integer", "description": "items since the export"},
        "kept": {"type": "boolean", "description": "whether a restart finds this version"},
    },
}
ROLLED_BACK: dict[str, Any] = {
    "type": "object",
    "required": ["model_version"],
    "properties": {"model_version": {"type": "string", "description": "that answers again"}},
}


NAMED: dict[str, Any] = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": ["INT64", "FP32"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}},
        "data": {"type": "array", "description": "numbers, flat or nested; null is a missing one"},
        "parameters": {
            "type": "object",
            "description": "`binary_data_size`: so many bytes behind the JSON are the tensor, in place of `data`",
        },
    },
}
INFER: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": TENSOR, "description": "those that the metadata name"},
        "outputs": {"type": "array", "items": NAMED, "description": "default all"},
        "parameters": {"type": "object"},
    },
}
INFERRED: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "id": {"type": "string"},
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "outputs": {"type": "array", "items": TENSOR},
    },
}
TEXT_ERROR = {
    "description": "What is wrong and what to do.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}


def _post(summary: str, request: dict[str, Any] | None, answer: dict[str, Any], **others: Any) -> dict[str, Any]:
    """A route that takes JSON, or no body, and answers JSON."""
    body = {"requestBody": {"required": True, "content": _json(request)}} if request else {}
    responses = {"200": {"description": "done", "content": _json(answer)}, "503": BUSY}
    refused = dict.fromkeys(("400", "408", "413"), ERROR) if request else {"400": ERROR}
    return {"post": {"summary": summary, **body, "responses": responses | refused | others}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _get(summary: str, **answers: Any) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": answers}}


def _model(path: str) -> dict[str, Any]:
    """The Open Inference Protocol of the model below a path, with its parameters."""
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    given = {
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    }
    answers = {"200": {"description": "done"}, "404": TEXT_ERROR}
    infer = _post("Scores of encoded tensors; binary ones may follow the JSON", INFER, INFERRED)
    refused = dict.fromkeys(("400", "404", "408", "413", "503"), TEXT_ERROR)
    infer["post"]["responses"] |= refused | {"503": TEXT_ERROR | {"headers": BUSY["headers"]}}
    return {
        path: _get("Names, types and shapes of the model's inputs and outputs", **answers) | given,
        f"{path}/ready": _get("Whether the model takes requests", **answers, **{"503": {"description": "not now"}})
        | given,
        f"{path}/infer": infer | given,
    }


# Of routes that write: without the token they are refused, and a server without one does not have them.
WITH_TOKEN = {"401": ERROR, "404": {"description": "the server has no token, and so no routes that write"}}
DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "QuadRank", "version": "1", "description": "Ranks the candidates of one user by raw ids."},
    "paths": {
        "/v1/rank": _post("Candidates, best first", REQUEST, ANSWER),
        "/v1/events": _post(
            "What users did, for their pasts and for counters; needs the token", EVENTS, TAKEN, **WITH_TOKEN
        ),
        "/v1/items": _post(
            "New and changed items: a version that knows them answers from now on; needs the token",
            ITEMS,
            UPSERTED,
            **WITH_TOKEN,
        ),
        "/v1/rollback": _post("The version before answers again; needs the token", None, ROLLED_BACK, **WITH_TOKEN),
        "/v2": _get("The server's name and extensions", **{"200": {"description": "done"}}),
        "/v2/health/live": _get("Whether the server runs", **{"200": {"description": "it does"}}),
        "/v2/health/ready": _get(
            "Whether the server takes rankings",
            **{"200": {"description": "it does"}, "503": {"description": "it is about to stop"}},
        ),
        **_model("/v2/models/{name}"),
        **_model("/v2/models/{name}/versions/{version}"),
        "/metrics": _get("For Prometheus", **{"200": {"description": "exposition text"}}),
    },
}


def page(document: dict[str, Any]) -> str:
    """The document as HTML: each route with its request and answers; nothing is loaded from elsewhere."""
    parts = [f"<h1>{html.escape(document['info']['title'])}</h1><p>{html.escape(document['info']['description'])}</p>"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method == "parameters":
                continue
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation['summary'])}</p>")
            shown = {key: operation[key] for key in ("requestBody", "responses") if key in operation}
            parts.append(f"<pre>{html.escape(json.dumps(shown, indent=1))}</pre>")
    style = (
        "body{font-family:sans-serif;max-width:60em;margin:2em auto}pre{background:#f4f4f4;padding:1em;overflow:auto}"
    )
    return f"<!doctype html><meta charset=utf-8><title>QuadRank</title><style>{style}</style>{''.join(parts)}"
