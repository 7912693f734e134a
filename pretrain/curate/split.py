"""Train/validation split by a hash of the document's group: stable when documents are added, moved or re-sharded."""

import xxhash

TRAIN = "train"
VALIDATION = "validation"


def split_of(group: str, validation_fraction: float) -> str:
    """ "validation" for about `validation_fraction` of all groups, "train" for the others.

    Documents that share text (a module and its docstrings, pages of one site) share a group, so that nothing that is
    trained on comes back in validation. A larger fraction only moves documents from train to validation.
    """
    position = xxhash.xxh3_64_intdigest(f"split\n{group}".encode()) / 2**64
    return VALIDATION if position < validation_fraction else TRAIN
