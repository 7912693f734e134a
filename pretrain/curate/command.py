"""What `pretrain curate` does once gin is configured: carries the recipe out, or tells what became of a document."""

import os
from collections.abc import Sequence
from typing import Any

from pretrain.core import config
from pretrain.core.console import say
from pretrain.curate import mixture
from pretrain.curate.recipe import Recipe, curate


def run_configured(
    output: os.PathLike | str,
    *,
    workers: int | None = None,
    against: str | None = None,
    engine: str = "local",
    beam_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Curates by the recipe that gin holds, and says how much was kept and how often each source will be seen.

    Args:
        output: folder of the corpus.
        workers: processes of the local engine; None for one a core.
        against: benchmark files to decontaminate against, beside what the recipe says.
        engine, beam_options: see `pretrain.curate.recipe.curate`.

    Returns:
        The datasheet.
    """
    recipe = Recipe() if against is None else Recipe().decontaminated(against)
    sheet = curate(recipe, output, workers=workers, config_text=config.text(), engine=engine, beam_options=beam_options)
    read, kept = sheet["total"]["read"]["documents"], sheet["total"]["kept"]["documents"]
    say(f"curate: {kept:,} of {read:,} documents kept")
    if len(sheet["mixture"]["shares"]) > 1 or recipe.mixture.tokens:
        shares = [mixture.Share(**share) for share in sheet["mixture"]["shares"]]
        for line in mixture.lines(shares):
            say(f"mixture: {line}")
    for warning in sheet["mixture"]["warnings"]:
        say(f"mixture: warning: {warning}")
    return sheet
