"""All that the stages found, as Markdown."""

from pathlib import Path

from tools.dev.gpu.results import read_results
from tools.dev.gpu.stages import STAGES
from tools.dev.tables import markdown_table

SUMMARY = ("stage", "", "outcome", "seconds", "checks that hold", "goals met")


def render_report(out: Path) -> str:
    """The report of a folder: what each stage found, and last a table of the stages."""
    files = {name: read_results(path) for name in STAGES if (path := out / f"{name}.jsonl").is_file()}
    parts = [f"## {name}: {STAGES[name].title}\n\n{_stage(entries)}" for name, entries in files.items()]
    return "\n".join([*parts, f"## Summary\n\n{summarise_stages(files)}"])


def summarise_stages(files: dict[str, list[dict]]) -> str:
    """The table of the stages."""
    rows = []
    for name, entries in files.items():
        (end,) = [entry for entry in entries if entry["kind"] == "end"] or [{"outcome": "not ended", "seconds": 0.0}]
        counts = [_count(entries, "check", "good"), _count(entries, "goal", "met")]
        rows.append((name, STAGES[name].title, end["outcome"], f"{end['seconds']:.0f}", *counts))
    return markdown_table(SUMMARY, rows)


def _count(entries: list[dict], kind: str, key: str) -> str:
    found = [entry[key] for entry in entries if entry["kind"] == kind]
    return f"{sum(found)} of {len(found)}" if found else ""


def _stage(entries: list[dict]) -> str:
    parts = [f"{entry['text']}\n" for entry in entries if entry["kind"] == "note"]
    tables = {}
    for entry in entries:
        if entry["kind"] == "row":
            tables.setdefault(entry["table"], []).append(entry["cells"])
    for title, rows in tables.items():
        parts.append(f"**{title}**\n\n{markdown_table(tuple(rows[0]), [tuple(row.values()) for row in rows])}")
    found = [entry for entry in entries if entry["kind"] == "goal"]
    goals = [(e["what"], e["figure"], e["wanted"], "met" if e["met"] else "missed") for e in found]
    if goals:
        parts.append(markdown_table(("goal", "figure", "wanted", ""), goals))
    checks = [(e["what"], "holds" if e["good"] else "**fails**", e["said"]) for e in entries if e["kind"] == "check"]
    if checks:
        parts.append(markdown_table(("check", "", ""), checks))
    return "\n".join(parts)
