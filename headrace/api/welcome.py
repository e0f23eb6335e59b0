"""`GET /`: what a person sees who opens the server's address in a browser: what is served, and how it is asked.

Owns the page: static HTML without scripts, made from names that the caller may know anyway, every one escaped. Where
keys are configured it wants one, like every other path. Programs that do not ask for HTML get the facts as plain text.
"""

from __future__ import annotations

from html import escape

from starlette.datastructures import URL
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from headrace.api.served import RemoteModel, ServedModel
from headrace.api.visit import Visit

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2530; --soft:#5a6675; --line:#d8dee6; --paper:#fff; --link:#0b6e99 }
@media (prefers-color-scheme: dark) { :root { --ink:#e6ebf1; --soft:#9fb0c0; --line:#334150; --paper:#141a21;
  --link:#4fb3d9 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 46rem;
  margin: 2.5rem auto; padding: 0 1.25rem } h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
a { color: var(--link) } p, td, th { color: var(--soft) } td:first-child, th { color: var(--ink); font-weight: 600 }
table { border-collapse: collapse } td, th { padding: .25rem 2rem .25rem 0; text-align: left; vertical-align: top }
pre { border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem }
"""
_PLACES = (
    ("/v1/models", "models, as OpenAI's API lists them"),
    ("/health/ready", "whether requests are taken"),
    ("/health/progress", "what the engine is doing"),
    ("/metrics", "figures for Prometheus; headrace dashboards makes what shows them"),
    ("/version", "the version"),
    ("/openapi.json", "every endpoint with its fields, for programs that make clients"),
)


async def welcome(visit: Visit) -> Response:
    """Say what is served here and how it is asked."""
    state = visit.state
    caller = visit.caller
    models = [model for model in state.models if caller.models is None or model.name in caller.models]
    url = URL(scope=visit.scope)
    host = f"{url.scheme}://{url.netloc}"
    base = f"{host}/v1"
    if "text/html" not in visit.headers.get("accept", ""):
        names = ", ".join(model.name for model in models)
        return PlainTextResponse(f"Headrace {state.version} serves {names} at {base}\n")
    rows = "".join(
        f"<tr><td>{escape(model.name)}</td><td>{escape(_context(model.max_context))}</td></tr>" for model in models
    )
    places = "".join(f'<tr><td><a href="{path}">{path}</a></td><td>{escape(what)}</td></tr>' for path, what in _PLACES)
    asked = _command(base, models[0]) if models else ""
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>Headrace</title><style>{_STYLE}</style></head><body>'
        f"<h1>Headrace {escape(state.version)}</h1><p>OpenAI's clients take the base URL <b>{escape(base)}</b>, "
        f"Anthropic's <b>{escape(host)}</b>.</p><h2>Models</h2><table>{rows}</table>"
        f"<h2>Ask</h2><pre>{escape(asked)}</pre><h2>Look</h2><table>{places}</table></body></html>\n",
        headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
    )


def _context(max_context: int | None) -> str:
    return "" if max_context is None else f"prompt and answer of up to {max_context:,} tokens"


def _command(base: str, model: ServedModel | RemoteModel) -> str:
    """Return a command that the model can answer: one without a chat template continues texts."""
    if isinstance(model, RemoteModel) or model.template is not None:
        path, rest = "chat/completions", '"messages": [{"role": "user", "content": "Name the capital of France."}]'
    else:
        path, rest = "completions", '"prompt": "The capital of France is"'
    return (
        f"curl {base}/{path} \\\n  -H 'Content-Type: application/json' -d '{{\n"
        f'  "model": "{model.name}", "max_tokens": 64,\n  {rest}}}\''
    )
