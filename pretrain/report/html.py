"""The report: one self-contained HTML page that tells what a run was made of, how it went and what came out.

No JavaScript, no network, no other files, and a content security policy that would stop either. It holds no dates, so
equal results give equal bytes. A part of the run that is not done yet is named as missing.
"""

import os

from pretrain.core.storage import Path, write_text
from pretrain.report import corpus_sections, health_sections, run_sections, scaling_section
from pretrain.report.markup import Markup, element, join
from pretrain.report.results import Results, read_results
from pretrain.report.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
SECTIONS = {
    "What went in": corpus_sections.sources,
    "What was dropped, and why": corpus_sections.dropped,
    "Tokens": corpus_sections.tokens,
    "Training": run_sections.training,
    "Where the time went": health_sections.goodput,
    "Events": health_sections.events,
    "Evaluation": run_sections.evaluation,
    "Samples": run_sections.samples,
    "Configuration": run_sections.configuration,
    "Environment": run_sections.environment,
}


def write_report(workdir: os.PathLike | str, config_text: str) -> Path:
    """Writes `report.html` from what `workdir` holds, and returns its path.

    Args:
        workdir: folder of the run, local or in an object store.
        config_text: the run's gin configuration.

    Raises:
        RunError: a file of the run is damaged.
    """
    workdir = Path(workdir)
    path = workdir / "report.html"
    write_text(path, page(read_results(workdir, config_text)))
    return path


def page(results: Results) -> str:
    """The whole page."""
    sections = {"Scaling law": scaling_section.law, **SECTIONS} if results.scaling else SECTIONS
    anchors = {title: f"part-{number}" for number, title in enumerate(sections, start=1)}
    links = (element("a", title, href=f"#{anchor}") for title, anchor in anchors.items())
    parts = (
        element("section", element("h2", title), join(sections[title](results)), id=anchor)
        for title, anchor in anchors.items()
    )
    policy = f"{POLICY}; img-src data:" if results.pictures else POLICY
    head = Markup(
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"{element('title', f'{results.name} · pretrain report')}<style>{STYLE}</style>"
    )
    body = element(
        "body",
        element("h1", results.name),
        element(
            "p", "Report of a pretraining run: from raw text to a trained, evaluated and sampled model.", class_="lead"
        ),
        run_sections.headline(results),
        element("nav", *links),
        element("main", *parts),
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'
