"""One pairing for several sites."""

import numpy as np

from models.criteria.hungarian_matcher import Pairs
from models.registry import PARTS


@PARTS.register
class UnionOfMatchings:
    """Pools the pairs of all layers of all matched sites, where the query in one place is the same one at every site.

    A query gets the target that it was paired with most often, of several the first, and so is drawn to one box all
    along (D-FINE, section 4.2: the matching union set); a target may have several queries.

    Args:
        losses: short names of the losses that compare the union's pairs instead of a site's own, and are divided by
            how many there are.
    """

    def __init__(self, losses: tuple[str, ...]):
        self.losses = tuple(losses)

    def __call__(self, matched: list[Pairs], device) -> Pairs:
        """Pairs of some sites -> those of one layer. Computed on the host."""
        found = np.concatenate([pairs.host.reshape(3, -1) for pairs in matched], 1)
        shape = tuple(found.max(1, initial=0) + 1)
        # One number for each pair, in the order of images, queries and targets; then most frequent first.
        found, counts = np.unique(np.ravel_multi_index(tuple(found), shape), return_counts=True)
        found = found[np.argsort(-counts, kind="stable")]
        _, first = np.unique(found // shape[2], return_index=True)
        image, query, target = np.unravel_index(found[first], shape)
        return Pairs.of(image, query[None], target[None], device)
