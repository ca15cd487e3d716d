"""Embeds one part of a long list, in a worker of Ray Data.

It stands in the package, not in a script, so that workers import it: what they
are sent is the path of a model and settings, never a network.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from speechbrain.utils.run_opts import RunOptions

from redimnet2_lobes.data.utterances import Utterance, paths_of
from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.inference.embedding_files import write_embeddings
from redimnet2_lobes.recipe.encoder import Encoder, load_encoder

ATTEMPTS = 5  # at a part whose worker is killed
ATTEMPTS_ENDING = ".attempts"  # of the file that counts them


class PartEmbedder:
    """Embeds the utterances of a part and writes a Parquet file of them.

    Arguments
    ---------
    folder
        Where ``part-000000000.parquet`` is to appear, which every machine sees.
        Before it, ``part-000000000.faults.json`` has what is wrong with those
        that cannot be used, as [name, reason, remedy, path].
    checkpoint, variant
        As for `load_encoder`, which is called once, at the first part.
    device, precision
        What the network computes on and in.
    settings
        seconds_per_batch, maximum_seconds and crops of `extract_embeddings`.

    Example
    -------
    >>> folder = str(getfixture("tmp_path"))
    >>> embedder = PartEmbedder(folder, folder, None, "cpu", "fp32", {})
    >>> part = {"start": [0], "utterances": ['[["a", "a.wav", null]]']}
    >>> made = embedder(part)
    >>> made["count"], made["error"][0].startswith(f"checkpoint: {folder}")
    ([1], True)
    """

    def __init__(
        self,
        folder: str,
        checkpoint: str,
        variant: str | None,
        device: str,
        precision: str,
        settings: dict[str, Any],
    ):
        self.folder = folder
        self.checkpoint, self.variant = checkpoint, variant
        self.run_opts = RunOptions(device=device, eval_precision=precision)
        self.settings = settings

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The network of this worker."""
        return load_encoder(self.checkpoint, self.variant, self.run_opts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Makes the part of a batch of one row.

        The row has ``start``, the number of its first utterance, and
        ``utterances``, a JSON list of [name, path, speaker]. What is returned
        has ``count``, how many these are, and ``error``, a line if the user
        erred: an exception would be tried again. So is a part whose worker is
        killed, by another worker; after some attempts that is an error too.
        """
        utterances = [
            Utterance(*row) for row in json.loads(batch["utterances"][0])
        ]
        error = ""
        path = part_file(self.folder, batch["start"][0])
        # Ray would go on for ever; how to limit that changes with its release.
        attempts = path.with_suffix(ATTEMPTS_ENDING)
        try:
            with open(attempts, "ab") as counter:
                counter.write(b".")
            if attempts.stat().st_size > ATTEMPTS:
                raise OSError(
                    f"a worker was killed {ATTEMPTS} times at {path}, perhaps "
                    "for want of memory; run the same command again, with "
                    "fewer --workers or a lower --seconds_per_batch"
                )
            self._make(path, utterances)
            attempts.unlink()
        except (ValueError, OSError) as caught:
            error = one_line(caught)
        return {"count": [len(utterances)], "error": [error]}

    def _make(self, path: Path, utterances: list[Utterance]) -> None:
        faults = {}
        # What `extract_embeddings` keeps is of no use once the part is there.
        with tempfile.TemporaryDirectory() as cache:
            embeddings = extract_embeddings(
                self.encoder.encode_batch,
                paths_of(utterances),
                cache,
                self.encoder.fingerprint,
                utterances_per_part=len(utterances),
                faults=faults,
                **self.settings,
            )
        described = [
            [name, fault.reason, fault.remedy, fault.path]
            for name, fault in faults.items()
        ]
        write_text(faults_file(path), json.dumps(described))
        speakers = [
            each.speaker for each in utterances if each.name not in faults
        ]
        write_embeddings(
            "parquet", [path], embeddings, speakers, self.encoder.space
        )


def part_file(folder: str | Path, start: int) -> Path:
    """The file of the part that begins with so many-th utterance, from 0.

    Example
    -------
    >>> part_file("parts", 512).name
    'part-000000512.parquet'
    """
    return Path(folder) / f"part-{start:09}.parquet"


def faults_file(part: Path) -> Path:
    """Beside the file of a part, that of its faults.

    Example
    -------
    >>> faults_file(part_file("parts", 512)).name
    'part-000000512.faults.json'
    """
    return part.with_suffix(".faults.json")
