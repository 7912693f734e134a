"""How well a trained pair of towers matches pictures and captions of the cache: retrieval both ways, by prompts.

Joins cache, tokenizer, model and objective for `Experiment.evaluate`.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from pretrain.core.batch import Batch
from pretrain.core.console import say
from pretrain.core.errors import check
from pretrain.core.storage import Path
from pretrain.data.cache import read_info
from pretrain.data.documents import stored_examples
from pretrain.data.tokenizers import Tokenizer
from pretrain.evaluate.matching import Matching, class_vectors, ranks, recall
from pretrain.models.functional import FunctionalModel, Params
from pretrain.objectives.contrastive import ImageText
from pretrain.objectives.examples import padded_text
from pretrain.sharding.placement import replicated
from pretrain.sharding.rules import use_mesh


class Encoders:
    """The two towers as functions of pictures and texts.

    Args:
        model, params: of architecture "two_towers".
        objective: says how pictures and texts are shown.
        mesh: of the parameters.
        tokenizer: of the captions.
        batch_size: how many are encoded at once.
    """

    def __init__(
        self,
        model: FunctionalModel,
        params: Params,
        objective: ImageText,
        mesh: Mesh,
        tokenizer: Tokenizer,
        batch_size: int,
    ):
        self._params, self._objective, self._mesh = params, objective, mesh
        self._tokenizer, self._batch_size = tokenizer, batch_size

        def of_images(params, batch):
            module = model.module(params)
            return module.encode_image(module.image.patches(batch))

        def of_texts(params, batch):
            return model.module(params).encode_text(batch["tokens"], batch["segment_ids"])

        self._of_images, self._of_texts = jax.jit(of_images), jax.jit(of_texts)

    def images(self, stored: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors [N, J] of pictures as they stand in records."""
        return self._encode(self._of_images, [self._objective.pictures.whole(each) for each in stored])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, J] of texts."""
        length, eos = self._objective.text_length, self._tokenizer.eos_id
        ids = [np.append(ids, eos).astype(np.int32) for ids in self._tokenizer.encode(list(texts))]
        return self._encode(self._of_texts, [padded_text(each, length) for each in ids])

    def _encode(self, function, examples: Sequence[Batch]) -> np.ndarray:
        found = []
        for start in range(0, len(examples), self._batch_size):
            some = examples[start : start + self._batch_size]
            full = [*some, *([some[0]] * (self._batch_size - len(some)))]  # one shape, hence one program
            batch = {name: np.stack([each[name] for each in full]) for name in full[0]}
            with use_mesh(self._mesh):
                vectors = function(self._params, jax.device_put(batch, replicated(self._mesh)))
            found.append(np.asarray(vectors)[: len(some)])
        return np.concatenate(found)


def score_pairs(
    model: FunctionalModel, params: Params, objective: ImageText, mesh: Mesh, data: Path, tokenizer: Tokenizer
) -> dict[str, float]:
    """Recall at 1, 5 and 10 and the median rank, both ways, of each set of `Matching`."""
    config, scores = Matching(), {}
    encoders = Encoders(model, params, objective, mesh, tokenizer, config.batch_size)
    sets = config.sets or {source: f"{source}/validation" for source in read_info(data / "cache")["sources"]}
    for name, place in sets.items():
        pictures, captions = candidates(data / "cache", place, objective, tokenizer, config)
        check(len(captions) > 1, f"Matching.sets: {place} holds {len(captions)} usable pairs with different captions")
        image_BJ, text_BJ = encoders.images(pictures), class_vectors(captions, config.templates, encoders.texts)
        own = np.arange(len(captions))
        name = name.replace(" ", "_")
        scores |= recall(ranks(image_BJ, text_BJ, own), f"{name}_to_text")
        scores |= recall(ranks(text_BJ, image_BJ, own), f"{name}_to_image")
        scores[f"{name}_candidates"] = float(len(captions))
        found = " / ".join(f"{100 * scores[f'{name}_to_text_r{rank}']:.1f}" for rank in (1, 5, 10))
        say(f"evaluate: {name}: the caption of a picture among {len(captions):,}: R@1/5/10 {found} %")
    return scores


def candidates(
    cache: Path, place: str, objective: ImageText, tokenizer: Tokenizer, config: Matching
) -> tuple[list[np.ndarray], list[str]]:
    """Pictures and captions of a source and split, one a caption, drawn at random; unusable ones are passed over."""
    source, _, split = place.partition("/")
    first: dict[str, np.ndarray] = {}
    for record in stored_examples(cache, source, split):
        caption = tokenizer.decode(record["tokens"][:-1])
        if caption not in first and _is_usable(record, objective):
            first[caption] = record["image"]
    captions = sorted(first)
    chosen = np.random.default_rng(config.seed).permutation(len(captions))[: config.candidates]
    captions = [captions[index] for index in sorted(chosen.tolist())]
    return [first[caption] for caption in captions], captions


def _is_usable(record: Batch, objective: ImageText) -> bool:
    try:
        objective.example(record, np.random.default_rng(0))
    except ValueError:
        return False
    return True
