"""The report of a sweep shows its law, its predictions and its pictures; other reports have no such part."""

import base64
import copy
import json
import re

import pytest

from pretrain.core.errors import RunError
from pretrain.report.html import page, write_report
from pretrain.report.results import Results
from pretrain.report.scaling_section import law

NAMES = ("E", "A", "B", "alpha", "beta", "N_opt_exponent", "D_opt_exponent")
FIT = {
    **dict(zip(NAMES, (1.8, 480.0, 2000.0, 0.35, 0.36, 0.507, 0.493), strict=True)),
    "points": 20,
    "mean_abs_log_residual": 0.0031,
    "intervals": {name: [0.125 + index, 7.25 + index] for index, name in enumerate(NAMES)},
    "projection": dict.fromkeys(NAMES, 3.75),
    "isoflop": {"N_opt_exponent": 0.55, "D_opt_exponent": 0.45},
    "held_out": [{"params": 3e5, "tokens": 9e6, "loss": 3.125, "predicted": 3.0625, "relative_error": -0.02}],
}
PNG = b"\x89PNG\r\n\x1a\n a picture"


def text(results: Results) -> str:
    return re.sub(r"<[^>]+>", " ", "".join(law(results)))


def test_a_fit_is_shown_with_intervals_other_methods_and_predictions():
    shown = text(Results("sweep", scaling=FIT))
    for piece in ("20 runs", "0.31 %", "2.125 to 9.250", "480", "3.75", "0.55", "3.062", "-2.00 %", "9 M"):
        assert piece in shown, piece
    assert "No parabolas" not in shown


def test_what_is_missing_is_said_or_left_out():
    fit = copy.deepcopy(FIT) | {"isoflop": {"missing": "train <larger> models"}, "intervals": {}, "held_out": []}
    shown = "".join(law(Results("sweep", scaling=fit)))
    assert "No parabolas: train &lt;larger&gt; models" in shown
    assert "held-out" not in shown and "<img" not in shown


def test_pictures_are_inside_the_page(tmp_path):
    (tmp_path / "fit.json").write_text(json.dumps(FIT))
    (tmp_path / "isoflop.png").write_bytes(PNG)
    (tmp_path / "holiday.png").write_bytes(PNG)
    html = write_report(tmp_path, "").read_text()
    sources = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]*)"', html)
    assert [base64.b64decode(source) for source in sources] == [PNG]  # the sweep's, and no other file's
    assert "img-src data:" in html and "Scaling law" in html


def test_other_reports_have_no_such_part(tmp_path):
    assert "Scaling law" not in page(Results("run"))
    (tmp_path / "fit.json").write_text("{")
    with pytest.raises(RunError, match=r"fit\.json"):
        write_report(tmp_path, "")
