"""One embedding from those of pieces.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from typing import NamedTuple

import torch
from torch.nn.functional import normalize


class AveragedPieces(NamedTuple):
    """Sums over the pieces of a recording, which give its embedding.

    The directions of the pieces' embeddings are averaged, weighted by their
    samples. The average is multiplied by the mean length of the embeddings, so
    that it counts as much as others in an enrolment.

    Example
    -------
    >>> pieces = AveragedPieces().plus(torch.tensor([3.0, 0.0]), 100)
    >>> pieces.plus(torch.tensor([0.0, 3.0]), 300).embedding()
    tensor([0.7500, 2.2500])
    """

    directions: torch.Tensor = torch.zeros(())  # times samples, [embedding]
    lengths: torch.Tensor = torch.zeros(())  # times samples, []
    samples: int = 0
    pieces: int = 0

    def plus(self, embedding: torch.Tensor, samples: int) -> "AveragedPieces":
        """With one more piece, by its embedding [embedding]."""
        return AveragedPieces(
            self.directions + samples * normalize(embedding, dim=0),
            self.lengths + samples * embedding.norm(),
            self.samples + samples,
            self.pieces + 1,
        )

    def embedding(self) -> torch.Tensor:
        """The embedding [embedding] of all pieces; of none it is not finite."""
        return self.directions / self.samples * (self.lengths / self.samples)
