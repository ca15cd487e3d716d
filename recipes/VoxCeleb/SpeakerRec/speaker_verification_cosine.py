#!/usr/bin/env python3
"""Recipe for speaker verification by the cosine similarity of embeddings.

To run it:

> python speaker_verification_cosine.py hparams/verification_redimnet2.yaml \
    --data_folder /path/to/VoxCeleb1 --checkpoint /path/to/model

With a cohort_list the scores are normalized as well, with calibration_trials
they become log-likelihood ratios. <output_folder> holds results.json,
results.md and results.txt, and for each list of trials a folder with DET
curves, and of each back-end the scores, their histogram and the worst trials.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from verification import Verification

from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.scoring.backends import CosineBackend


def main(arguments):
    """Embeds, scores and reports.

    Arguments
    ---------
    arguments : list of str
        The command line without the script's name.
    """
    verification = Verification(arguments)
    mean = None
    of_mean = verification.read_utterances("mean_list")
    if of_mean:
        mean = verification.embed_utterances(of_mean).vectors.mean(dim=0)
    verification.evaluate({"cosine": CosineBackend(mean)})


if __name__ == "__main__":
    main_with_one_line_errors(main)
