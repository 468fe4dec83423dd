"""The folder a demonstration or a comparison leaves behind."""

from __future__ import annotations

from pathlib import Path

from slosched.core.errors import InputError
from slosched.core.writing import write_files
from slosched.lab.comparison import OURS, Comparison
from slosched.report.export import results_csv, results_json
from slosched.report.html import report_html
from slosched.report.plots import all_pngs, require_matplotlib
from slosched.report.trace import trace_bytes


def check_folder(folder: Path, *, pictures: bool = True) -> None:
    """Complain before a long computation, not after, if the report could not be written.

    Parameters
    ----------
    folder
        Where it is to go.
    pictures
        Whether there will be pictures, which need matplotlib.
    """
    if pictures:
        require_matplotlib()
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise InputError(f"out must be a folder, got the file {str(place)!r}.")
            return


def write_bundle(comparison: Comparison, folder: Path) -> list[Path]:
    """Write report.html, results.json, results.csv, the pictures and, if runs were kept, timeline.json.gz.

    Returns
    -------
    list of Path
        What was written, the report first.
    """
    pictures = all_pngs(comparison)
    files = {
        "report.html": report_html(comparison, pictures),
        "results.json": results_json(comparison),
        "results.csv": results_csv(comparison),
        **pictures,
    }
    if comparison.details:
        runs = {run.policy: run for run in comparison.details}
        shown = runs.get(OURS, comparison.details[0])
        files["timeline.json.gz"] = trace_bytes(shown, compress=True)
    write_files(folder, files)
    return [folder / name for name in files]
