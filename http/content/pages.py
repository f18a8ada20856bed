"""Draw the documentation page, without a script or anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--bg:light-dark(#f4f3ee,#0e1316);--card:light-dark(#fff,#161d21);
--sunk:light-dark(#f8f7f3,#12181b);--line:light-dark(#dddbd2,#283237);
--text:light-dark(#1d2427,#e4ebed);--quiet:light-dark(#566067,#9dabb2);
--accent:light-dark(#0b6f55,#4fd0a3);--get:light-dark(#1b5fbe,#74b4ff);
--post:light-dark(#0c7550,#57d29c);--put:light-dark(#835600,#e9bb57);
--delete:light-dark(#bd2a2a,#ff8a82)}
*{box-sizing:border-box}
body{margin:0;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
background:var(--bg);color:var(--text)}
a{color:var(--accent);text-underline-offset:2px}
code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
overflow-wrap:anywhere}
td:first-child code{white-space:nowrap}
pre{overflow:auto;padding:10px 12px;margin:6px 0 0;border:1px solid var(--line);border-radius:8px;
background:var(--sunk);max-height:420px;white-space:pre-wrap}
.page{display:grid;grid-template-columns:290px minmax(0,1fr);max-width:1320px;margin:0 auto}
nav{position:sticky;top:0;align-self:start;max-height:100vh;overflow:auto;font-size:.82rem;
padding:24px 6px 24px 24px}
nav b{display:block;margin:14px 0 3px;color:var(--quiet);font-weight:600}
nav a{display:flex;gap:7px;padding:2px 0;color:var(--text);text-decoration:none}
nav a:hover{color:var(--accent)}
nav .m{font-size:.7rem;flex:0 0 4.4em;padding-top:1px}
main{padding:24px;min-width:0}
h1{font-size:1.5rem;letter-spacing:-.01em;margin:0 0 10px}
h2{font-size:1.1rem;margin:30px 0 0}
section{background:var(--card);border:1px solid var(--line);border-radius:11px;padding:14px 17px;
margin:12px 0;scroll-margin-top:12px}
section:target{border-color:var(--accent)}
h3{margin:0;font-size:1rem;display:flex;flex-wrap:wrap;gap:4px 10px;align-items:baseline}
h3 code{font-size:.92rem}
h4{margin:14px 0 0;font-size:.86rem;color:var(--quiet)}
p{margin:6px 0 0}
.m{font-weight:700}
.GET{color:var(--get)}.POST{color:var(--post)}.PUT{color:var(--put)}.DELETE{color:var(--delete)}
.k{border:1px solid var(--line);border-radius:5px;padding:0 .45em;font-size:.78rem;font-weight:400;
color:var(--quiet)}
.q{color:var(--quiet)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
td,th{text-align:left;vertical-align:top;padding:4px 12px 4px 0;border-bottom:1px solid var(--line)}
th{font-size:.8rem;color:var(--quiet)}
summary{cursor:pointer;margin-top:10px;font-weight:600;font-size:.88rem}
:focus-visible{outline:2px solid var(--get);outline-offset:2px;border-radius:4px}
@media(max-width:800px){
.page{display:block}
nav{position:static;max-height:none;padding:16px 14px 0}
main{padding:14px}
table,tbody,tr,td{display:block}
thead{display:none}
td:first-child code{white-space:normal}
tr{padding:5px 0;border-bottom:1px solid var(--line)}
td{border:0;padding:0}
}
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
#: The page's Content-Security-Policy: this one style and nothing else.
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"

Json = Mapping[str, Any]


def docs_page(document: Json) -> str:
    """Write the OpenAPI document as a page to read."""
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    menu, parts = [], []
    for tag in document["tags"]:
        menu.append(f"<b>{escape(tag['name'])}</b>")
        parts.append(f"<h2>{escape(tag['name'])}</h2>")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    menu.append(_entry(path, method, operation))
                    parts.extend(_operation(document, path, method, operation))
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><div class="page"><nav aria-label="Operations"><a href="../../ui/">Dashboard</a>'
        f"{''.join(menu)}</nav>\n<main><h1>{escape(title)}</h1>{_paragraphs(info['description'])}"
        '<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1, with links from'
        ' each answer to what follows). What is marked <span class="k">key: …</span> needs an API'
        " key with that scope, as <code>X-API-Key: KEY</code> or"
        " <code>Authorization: Bearer KEY</code>.</p>"
        f"{''.join(parts)}</main></div></body></html>"
    )


def _entry(path: str, method: str, operation: Json) -> str:
    short = path.removeprefix("/api/v1") or path
    return (
        f'<a href="#{escape(operation["operationId"])}" title="{escape(operation["summary"])}">'
        f'<span class="m {method.upper()}">{method.upper()}</span>'
        f"<span>{escape(short)}</span></a>"
    )


def _operation(document: Json, path: str, method: str, operation: Json) -> Iterator[str]:
    scope = operation.get("x-scope")
    key = f' <span class="k">key: {escape(scope)}</span>' if scope else ""
    yield f'\n<section id="{escape(operation["operationId"])}">'
    yield (
        f'<h3><span class="m {method.upper()}">{method.upper()}</span>'
        f" <code>{escape(path)}</code>{key}</h3>"
        f"{_paragraphs(operation['summary'] + '.')}{_paragraphs(operation.get('description', ''))}"
    )
    rows = [_row(each["name"], each["in"], each) for each in operation.get("parameters", ())]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    rows += _fields(document, "", body.get("schema", {}), "body")
    if rows:
        yield _table("What it takes", ("Name", "Where", "Kind", ""), rows)
    yield from _examples("Body, for example", body)
    content = _answer_content(operation)
    yield from _examples("Answer, for example", content)
    fields = _fields(document, "", _data(document, content), None)
    if fields:
        table = _table("", ("Field of data", "Kind", ""), fields)
        yield f"<details><summary>What it answers</summary>{table}</details>"
    codes = [
        f"{status} <code>{escape(code)}</code>"
        for status, response in operation["responses"].items()
        for code in response.get("content", {}).get("application/json", {}).get("examples", {})
        if status[0] in "45" and code != "documented"
    ]
    if codes:
        yield f'<p class="q">Errors: {", ".join(codes)}</p>'
    links = [
        f'<a href="#{escape(name)}">{escape(link["description"])}</a>'
        for response in operation["responses"].values()
        for name, link in response.get("links", {}).items()
    ]
    if links:
        yield f'<p class="q">From here: {" · ".join(links)}</p>'
    yield "</section>"


def _examples(title: str, content: Json) -> Iterator[str]:
    for example in content.get("examples", {}).values():
        text = json.dumps(example["value"], indent=2, ensure_ascii=False)
        yield f'<h4>{title}</h4><pre tabindex="0">{escape(text)}</pre>'


def _answer_content(operation: Json) -> Json:
    for status in ("200", "201"):
        content = operation["responses"].get(status, {}).get("content", {})
        if "application/json" in content:
            found: Json = content["application/json"]
            return found
    return {}


def _resolved(document: Json, schema: Json) -> Json:
    """Return the schema behind a reference, and behind "this or null"."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for choice in schema.get("anyOf", ()):
        found = _resolved(document, choice)
        if found.get("type") == "object":
            return found
    return schema


def _data(document: Json, content: Json) -> Json:
    schema = _resolved(document, content.get("schema", {}))
    data = schema.get("properties", {}).get("data")
    found = _resolved(document, schema if data is None else data)
    return _resolved(document, found["items"]) if found.get("type") == "array" else found


def _fields(document: Json, before: str, schema: Json, where: str | None) -> list[str]:
    rows = []
    for name, each in schema.get("properties", {}).items():
        inner = _resolved(document, each)
        needed = where is not None and name in schema.get("required", ())
        facts = {"required": needed, "description": inner.get("description", ""), **each}
        rows.append(_row(before + name, where, {**facts, "schema": inner}))
        if inner.get("properties"):
            rows += _fields(document, f"{before}{name}.", inner, where)
    return rows


def _table(title: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    above = f"<h4>{title}</h4>" if title else ""
    return f"{above}<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, where: str | None, parameter: Json) -> str:
    schema = parameter["schema"]
    kind = schema.get("type", "any")
    words = [kind if isinstance(kind, str) else " or ".join(kind)]
    if "enum" in schema:
        words.append("one of " + ", ".join(str(word) for word in schema["enum"]))
    if "default" in schema:
        words.append(f"default {json.dumps(schema['default'])}")
    if parameter.get("required"):
        words.append("required")
    cells = [f"<code>{escape(name)}</code>", f'<span class="q">{escape("; ".join(words))}</span>']
    if where is not None:
        cells.insert(1, f'<span class="q">{escape(where)}</span>')
    cells.append(_marked(str(parameter.get("description", ""))))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _marked(text: str) -> str:
    """Escape a text, and mark what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_marked(part)}</p>" for part in text.split("\n\n") if part.strip())
