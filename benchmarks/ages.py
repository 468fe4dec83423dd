"""Which results are older than the code that they measured, and the notes on pages that say so."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, measured

from slosched.lab.cells import ENGINE_MODULES, FLEET_MODULES, Contender
from slosched.lab.digests import code_digest

HEADLINE = "evidence.json"
"""The result that must be fresh."""
NOTE = re.compile(r"\n*<!-- begin older code -->.*?<!-- end older code -->\n*", re.DOTALL)
OLDER = (
    "The code behind these results has changed since, or they do not say which it was. "
    "It may give other figures now."
)
UNSAID = "it does not say which code it measures."


def pages() -> list[Path]:
    """Where figures may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def stale() -> list[str]:
    """Results that pages show and that are older than the code they measured, in sentences."""
    texts = {str(page.relative_to(ROOT)): _without_note(page.read_text()) for page in pages()}
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        where = [name for name, text in texts.items() if _shows(text, path.stem)]
        if not where:
            found.append(f"{path.name}: no page shows it.")
            continue
        for words in age(path):
            found.append(f"{path.name} ({', '.join(where)}): {words}")
    return found


def write_note(page: Path) -> None:
    """Say at the end of a page which of its results were measured with older code."""
    text = _without_note(page.read_text())
    shown = [path for path in sorted(RESULTS.glob("*.json")) if _shows(text, path.stem)]
    old = [path for path in shown if age(path)]
    lines = [
        "<!-- begin older code -->",
        "## Figures of older code",
        "",
        OLDER,
        "",
        *(f"- `{path.name}`: measured with older code at {_when(path)}." for path in old),
        "<!-- end older code -->",
    ]
    page.write_text(text.rstrip("\n") + "\n" + ("\n" + "\n".join(lines) + "\n" if old else ""))


def _without_note(text: str) -> str:
    return NOTE.sub("\n", text)


def _shows(page: str, result: str) -> bool:
    """Whether a page names a result's file or script; a script `soak.py` also makes `soak_vllm.json`."""
    parts = result.split("_")
    scripts = ["_".join(parts[: i + 1]) for i in range(len(parts))]
    named = any(re.search(rf"\b{script}\.py", page) for script in scripts)
    return named or re.search(rf"\b{result}\.(json|yaml)", page) is not None


def age(path: Path) -> list[str]:
    """What makes a result stale; nothing if it is fresh."""
    result = json.loads(path.read_text())
    if "policy_code" in result:
        fleets = FLEET_MODULES if result.get("config", {}).get("engines") else ()
        now = code_digest(*ENGINE_MODULES, *fleets)
        words = (
            [] if result["provenance"]["code"] == [now] else ["simulator or scenarios have changed since."]
        )
        for label, digest in result["policy_code"].items():
            if Contender.parse(label).key()["policy_code"] != digest:
                words.append(f"{label} has changed since.")
        return words
    made, now_made = result.get("measured"), measured(path.stem)
    if made is None:
        return [f"made at {_commit(result) or 'an unknown commit'}; {UNSAID}"]
    if now_made is not None and made["code"] != now_made["code"]:
        return [f"made at {made['commit']}; the code that it measures has changed since."]
    return []


def _when(path: Path) -> str:
    """The commit that a result names, else the one that brought it, with its day."""
    result = json.loads(path.read_text())
    made = result.get("measured")
    named = (made["commit"] if made else _commit(result)) or _git("%h", path)
    return f"{named} ({_git('%cs', path)})"


def _git(what: str, path: Path) -> str:
    """Of the commit that last changed a file."""
    asked = ["git", "-C", str(ROOT), "log", "-1", f"--format={what}", "--", str(path)]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def _commit(result: dict[str, Any]) -> str | None:
    """The commit that a result without a digest names."""
    named = result.get("provenance", result)
    found = named.get("commit") if isinstance(named, dict) else None
    return ", ".join(found) if isinstance(found, list) else found
