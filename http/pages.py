"""The page the facade draws itself, without a script or anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--line:#8884}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
code,pre{font:13px/1.45 ui-monospace,monospace}
pre{overflow:auto;padding:.6rem;border:1px solid var(--line);border-radius:6px}
h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
section{margin:1.5rem 0}
h3{margin:.2rem 0}
.m{display:inline-block;min-width:4.2em;font-weight:700}
.k{border:1px solid var(--line);border-radius:4px;padding:0 .4em;font-size:.8em}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0;
border-bottom:1px solid var(--line)}
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
#: The page's Content-Security-Policy: this one style and nothing else.
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>"
    )


def docs_page(document: Mapping[str, Any]) -> str:
    """The OpenAPI document as a page to read."""
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])}</p>",
        '<p>For programs: <a href="openapi.json">openapi.json</a>. Endpoints marked'
        ' <span class="k">key</span> need an API key as <code>X-API-Key: KEY</code> or'
        " <code>Authorization: Bearer KEY</code>.</p>",
    ]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    parts.extend(_operation(path, method, operation))
    return _page(info["title"], "\n".join(parts))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    key = ' <span class="k">key</span>' if "x-scope" in operation else ""
    yield f'<section id="{escape(operation["operationId"])}">'
    yield (
        f'<h3><span class="m">{method.upper()}</span> <code>{escape(path)}</code>{key}</h3>'
        f"<p>{escape(operation['summary'])}. {escape(operation.get('description', ''))}</p>"
    )
    rows = [_row(each["name"], each) for each in operation.get("parameters", ())]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    required = body.get("schema", {}).get("required", ())
    for name, schema in body.get("schema", {}).get("properties", {}).items():
        facts = {"in": "body", "required": name in required, "schema": schema, **schema}
        rows.append(_row(name, facts))
    if rows:
        head = "<tr><th>Name</th><th>Where</th><th>Kind</th><th></th></tr>"
        yield f"<table>{head}{''.join(rows)}</table>"
    for what, content in (("Body", body), ("Answer", _answer_content(operation))):
        for example in content.get("examples", {}).values():
            text = json.dumps(example["value"], indent=2, ensure_ascii=False)
            yield f"<p>{what}</p><pre>{escape(text)}</pre>"
    yield "</section>"


def _answer_content(operation: Mapping[str, Any]) -> Mapping[str, Any]:
    for status in ("200", "201"):
        content = operation["responses"].get(status, {}).get("content", {})
        if "application/json" in content:
            found: Mapping[str, Any] = content["application/json"]
            return found
    return {}


def _row(name: str, parameter: Mapping[str, Any]) -> str:
    schema = parameter["schema"]
    kind = schema.get("type", "any")
    words = [kind if isinstance(kind, str) else " or ".join(kind)]
    if "enum" in schema:
        words.append("one of " + ", ".join(str(word) for word in schema["enum"]))
    if "default" in schema:
        words.append(f"default {json.dumps(schema['default'])}")
    if parameter.get("required"):
        words.append("required")
    cells = (name, parameter["in"], "; ".join(words), parameter.get("description", ""))
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"
