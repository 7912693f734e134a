"""What some objectives are scored by beside their loss, for `Experiment.evaluate`: retrieval, word errors."""

from jax.sharding import Mesh

from pretrain.core.storage import Path
from pretrain.data.tokenizers import Tokenizer
from pretrain.models.functional import FunctionalModel, Params
from pretrain.objectives.base import Objective
from pretrain.objectives.contrastive import ImageText
from pretrain.objectives.transcription import Transcription
from pretrain.pairs import score_pairs
from pretrain.transcripts import score_transcripts

SCORES = {ImageText: score_pairs, Transcription: score_transcripts}


def own_scores(
    model: FunctionalModel, params: Params, objective: Objective, mesh: Mesh, data: Path, tokenizer: Tokenizer
) -> dict[str, float]:
    """Scores by name; none for most objectives."""
    for kind, score in SCORES.items():
        if isinstance(objective, kind):
            return score(model, params, objective, mesh, data, tokenizer)
    return {}
