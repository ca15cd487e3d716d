#!/usr/bin/env python3
"""Recipe for speaker verification by PLDA.

To run it:

> python speaker_verification_plda.py hparams/verification_plda_redimnet2.yaml \
    --data_folder /path/to/VoxCeleb1 --checkpoint /path/to/model \
    --train_list /path/to/train.csv --list_folder /path/to/VoxCeleb2

LDA and PLDA are SpeechBrain's, trained on the embeddings of train_list and kept
in <output_folder>/plda.npz, which a later run may take as plda_file. Results as
of speaker_verification_cosine.py, with the cosine's beside them.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from verification import Verification

from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.settings import check_at_least, check_types
from redimnet2_lobes.scoring.backends import CosineBackend
from redimnet2_lobes.scoring.plda import PldaBackend, train_plda


def main(arguments):
    """Embeds, trains, scores and reports.

    Arguments
    ---------
    arguments : list of str
        The command line without the script's name.

    Raises
    ------
    ValueError
        If a value is wrong, or there is neither a training list nor a trained
        PLDA.
    """
    verification = Verification(arguments)
    hparams = verification.hparams
    check_types(hparams, plda_iterations=int)
    check_at_least(hparams, plda_iterations=1)
    for key in ("lda_dimension", "plda_rank"):
        if hparams[key] is not None:
            check_types(hparams, **{key: int})
    if (hparams["train_list"] is None) == (hparams["plda_file"] is None):
        raise ValueError(
            "train_list: give either one to train PLDA on, or plda_file, the "
            "plda.npz of an earlier run"
        )
    if hparams["plda_file"] is not None:
        plda = PldaBackend.load(hparams["plda_file"])
    else:
        plda = train(verification)
    verification.evaluate({"cosine": CosineBackend(), "PLDA": plda})


def train(verification):
    """Trains PLDA on the training list, and saves it.

    Arguments
    ---------
    verification : Verification
        The run.

    Returns
    -------
    PldaBackend
        The trained back-end.
    """
    hparams = verification.hparams
    utterances = verification.read_utterances("train_list", with_speakers=True)
    plda = train_plda(
        verification.embed_utterances(utterances).vectors,
        [utterance.speaker for utterance in utterances],
        hparams["lda_dimension"],
        hparams["plda_rank"],
        hparams["plda_iterations"],
    )
    plda.save(verification.output_folder / "plda.npz")
    return plda


if __name__ == "__main__":
    main_with_one_line_errors(main)
