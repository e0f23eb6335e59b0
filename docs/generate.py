"""Rewrite the parts of the documentation that the code already knows: `make docs`.

Owns the text between `<!-- generated: NAME -->` and `<!-- end -->` in README.md and docs/*.md; everything else is
written by hand. Each NAME is a function below. `tests/arch/test_docs.py` fails while a page says something else.
"""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

REPOSITORY = Path(__file__).resolve().parents[1]
REGION = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tree() -> str:
    """One line per package, in the words of its own docstring, top floor first."""
    floors = ["cli", "bench", "evals", "deploy", "app", "dashboard", "planner", "sim", "api", "gateway", "engine"]
    floors += ["sched", "executor", "spec", "kv", "grammar", "model", "quant", "lora", "sampling"]
    floors += ["ops", "text", "econ", "autoscale", "obs", "testing", "core"]
    rows = [
        (f"headrace/{name}/", summary(REPOSITORY / "headrace" / name / "__init__.py"))
        for name in floors
        if (REPOSITORY / "headrace" / name / "__init__.py").exists()
    ]
    rows += [
        ("csrc/", "C++20 kernels and the whole-step interpreter behind a plain C ABI."),
        ("tests/", "unit, property, parity, end-to-end and architecture tests."),
        ("docs/", "Reference pages, the glossary, design decisions, the log."),
        ("examples/", "Small programs that the tests run."),
    ]
    width = max(len(path) for path, _ in rows)
    return "```text\n" + "\n".join(f"{path:<{width}}  {text}" for path, text in rows) + "\n```\n"


def summary(path: Path) -> str:
    """The first sentence of a file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def settings() -> str:
    """Every setting: key, type, default, environment variable, meaning."""
    from headrace.core.settings import setting_fields

    rows = ["| key | type | default | environment | meaning |", "| --- | --- | --- | --- | --- |"]
    for leaf in setting_fields():
        env = "HEADRACE_" + leaf.key.replace(".", "__").upper()
        rows.append(f"| `{leaf.key}` | {spell(leaf.type)} | {value(leaf.default)} | `{env}` | {cell(leaf.help)} |")
    return "\n".join(rows) + "\n"


def upstreams() -> str:
    """Every field of an `[upstreams.NAME]` table."""
    from headrace.core.settings import UpstreamSettings, field_help

    helps = field_help(UpstreamSettings)
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for leaf in msgspec.structs.fields(UpstreamSettings):
        given = msgspec.NODEFAULT if leaf.required else leaf.default
        given = leaf.default_factory() if leaf.default_factory is not msgspec.NODEFAULT else given
        default = "must be given" if given is msgspec.NODEFAULT else value(given)
        rows.append(f"| `{leaf.name}` | {spell(leaf.type)} | {default} | {cell(helps[leaf.name])} |")
    return "\n".join(rows) + "\n"


def errors() -> str:
    """The error tree as clients meet it."""
    from headrace.core import errors as module

    rows = ["| error | code | HTTP status | retry helps | meaning |", "| --- | --- | --- | --- | --- |"]
    found = leaves(module.HeadraceError)
    for error in sorted(found, key=lambda e: (issubclass(e, module.ConfigError), e.http_status, e.__name__)):
        at_start = issubclass(error, module.ConfigError)
        status = "at start, exit code 2" if at_start else str(error.http_status)
        meaning = cell((error.__doc__ or "").split("\n\n")[0])
        retry = "yes" if error.retryable else "no"
        rows.append(f"| `{error.__name__}` | `{error.code}` | {status} | {retry} | {meaning} |")
    return "\n".join(rows) + "\n"


def leaves(error: type[Exception]) -> Iterator[type]:
    """Every class of the tree that has a code of its own."""
    if "code" in vars(error) and error.__subclasses__() == []:
        yield error
    for below in error.__subclasses__():
        yield from leaves(below)


def parameters() -> str:
    """Request fields by wire: served, accepted as labels, refused unless neutral."""
    from headrace.api import openai_types as wire

    chat = {f.name: f for f in msgspec.structs.fields(wire.ChatBody)}
    text = {f.name: f for f in msgspec.structs.fields(wire.CompletionBody)}
    rows = ["| field | chat | completions | type |", "| --- | --- | --- | --- |"]
    for name in dict.fromkeys([*chat, *text]):
        types = [fields[name].type for fields in (chat, text) if name in fields]
        served = dict.fromkeys(spell(t) for t in types if t is not object)
        marks = [mark(name, fields.get(name), wire) for fields in (chat, text)]
        rows.append(f"| `{name}` | {marks[0]} | {marks[1]} | {'; '.join(served)} |")
    return "\n".join(rows) + "\n"


def mark(name: str, field: msgspec.structs.FieldInfo | None, wire: object) -> str:
    """Say what happens to a field: served, a label, or refused unless it asks for nothing."""
    if field is None:
        return ""
    if field.type is not object:
        return "served"
    neutral = wire.NEUTRAL.get(name)  # type: ignore[attr-defined]
    if neutral is None:
        return "refused"
    if wire.ANY in neutral:  # type: ignore[attr-defined]
        return "accepted, not read"
    values = dict.fromkeys(f"`{msgspec.json.encode(v).decode()}`" for v in neutral)
    return f"refused, but for {', '.join(values)}"


def models() -> str:
    """Every model that is known by name."""
    rows = ["| name | what | file | licence | source |", "| --- | --- | --- | --- | --- |"]
    for name, entry in tomllib.loads((REPOSITORY / "headrace" / "model" / "catalogue.toml").read_text()).items():
        parts = entry.get("parts") or [entry["source"]]
        source = f"`{cell(parts[0])}`" + (f" and {len(parts) - 1} more parts" if len(parts) > 1 else "")
        terms = f"[{cell(entry['license'])}]({entry['license_url']})"
        rows.append(f"| `{name}` | {cell(entry['title'])} | {entry['size_bytes'] / 1e6:,.0f} MB | {terms} | {source} |")
    return "\n".join(rows) + "\n"


def metrics() -> str:
    """Every metric family, as a scrape shows it."""
    from headrace.obs import Metrics

    rows = ["| name | type | meaning |", "| --- | --- | --- |"]
    for family in Metrics().collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {cell(family.documentation)} |")
    return "\n".join(rows) + "\n"


def commands() -> str:
    """Every command of the command line with its arguments, group by group."""
    from headrace.cli.entry import build_parser

    parts = []
    for name, parser, about in leaf_parsers("headrace", build_parser()):
        shown = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
        usage = " ".join([name, *(spell_argument(a) for a in shown if not a.option_strings), "[FLAG …]"])
        parts.append(f"## `{name}`\n\n{sentence(about)}: `{usage}`\n")
        settings_shown = []
        rows = ["| argument | meaning |", "| --- | --- |"]
        for group in parser._action_groups:
            actions = [a for a in group._group_actions if a in shown]
            if group.title and group.title.endswith(" settings") and actions:
                settings_shown.append(f"{group.title}: " + ", ".join(f"`{a.option_strings[-1]}`" for a in actions))
                continue
            rows += [f"| `{cell(spell_argument(a))}` | {cell((a.help or '').replace('%%', '%'))} |" for a in actions]
        parts.append("\n".join(rows) + "\n")
        if settings_shown:
            parts.append(sentence("; ".join(settings_shown)) + ".\n")
    return "\n" + "\n".join(parts) + "\n"


def leaf_parsers(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Every command that can be run: its full name, its parser, what it is for."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, below in action.choices.items():
                full = f"{name} {word}"
                nested = list(leaf_parsers(full, below))
                yield from nested or [(full, below, helps.get(word, ""))]


def spell_argument(action: argparse.Action) -> str:
    """An argument as it is typed."""
    metavar = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return {"*": f"[{metavar} …]", "?": f"[{metavar}]"}.get(str(action.nargs), metavar)
    flag = action.option_strings[-1]
    return flag if action.nargs == 0 else f"{flag} {metavar}"


def spell(kind: object) -> str:
    """A type as a reader of the reference wants it: `int`, `"a" or "b"`, never a module path."""
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    text = re.sub(r"typing\.|headrace\.[a-z_.]+\.", "", text)
    text = re.sub(r"Annotated\[(.+?), msgspec\.Meta\((.*?)\)\]", r"\1", text)
    text = re.sub(r"Literal\[(.+?)\]", lambda hit: hit.group(1).replace("'", "").replace(", ", " or "), text)
    text = re.sub(r"Optional\[(.+)\]", r"\1", text).replace(" | None", "").replace(" | ", " or ")
    text = text.replace("tuple[str, ...]", "list[str]")
    while (flat := re.sub(r"list\[([^\[\]]+)\]", r"list of (\1)", text)) != text:
        text = flat
    return cell(re.sub(r"\((\w+)\)", r"\1", text))


def value(default: object) -> str:
    """A default as it would be written in the TOML file."""
    if default is None:
        return "none"
    if isinstance(default, tuple):
        default = list(default)
    return f"`{msgspec.json.encode(default).decode()}`"


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


REGIONS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "errors": errors,
    "metrics": metrics,
    "models": models,
    "parameters": parameters,
    "settings": settings,
    "tree": tree,
    "upstreams": upstreams,
}


def pages() -> list[Path]:
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def render(path: Path) -> str:
    """The page with every generated region as the code has it now. KeyError names an unknown region."""
    return REGION.sub(lambda hit: hit.group(1) + REGIONS[hit.group(2)]() + hit.group(3), path.read_text())


def main() -> None:
    for path in pages():
        text = render(path)
        if text != path.read_text():
            path.write_text(text)
            print(f"rewrote {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
