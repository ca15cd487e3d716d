"""SpeechBrain's speaker verification, with the model's own operating point.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from speechbrain.inference import speaker
from speechbrain.utils.data_utils import split_path
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    FetchSource,
    LocalStrategy,
    fetch,
    guess_source,
)

from redimnet2_lobes.data.audio import AudioError, load_waveform
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.settings import require_number
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.pretrained.loading import (
    ModelPretrainer,
    fault_of_hyperparams,
    find_model,
)
from redimnet2_lobes.pretrained.savedir import HYPERPARAMS_FILE, Savedir
from redimnet2_lobes.scoring.operating_point import (
    OperatingPoint,
    operating_point_of,
)

DEFAULT = OperatingPoint(0.25, "SpeechBrain's default, not made for this model")
WEB = ("http:", "https:")


class SpeakerRecognition(speaker.SpeakerRecognition):
    """SpeechBrain's `SpeakerRecognition`, for what people hand to it.

    It decides by ``operating_point``, a value and where it is from: what
    ``redimnet2 calibrate`` has left in the model folder, or else that of the
    EER in its results.json, or else SpeechBrain's 0.25. Files and folders may
    be `pathlib.Path`, and an `AudioError` names the file that cannot be used.
    Files of this machine are read where they are; SpeechBrain, given a
    ``savedir``, takes a second file of the same name for the first.

    Example
    -------
    >>> from redimnet2_lobes import LogMel, ReDimNet2
    >>> from redimnet2_lobes.pretrained.model_folder import write_model_folder
    >>> from speechbrain.dataio import audio_io
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> folder = getfixture("tmp_path")
    >>> write_model_folder(folder, ReDimNet2(LogMel(), 4, stages), "A test")
    >>> audio_io.save(folder / "a.wav", torch.rand(1, 16000) - 0.5, 16000)
    >>> model = SpeakerRecognition.from_hparams(source=folder)
    >>> model.operating_point.value
    0.25
    >>> score, same = model.verify_files(folder / "a.wav", folder / "a.wav")
    >>> same
    tensor([True])
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.operating_point = DEFAULT
        pretrainer = getattr(self.hparams, "pretrainer", None)
        if isinstance(pretrainer, ModelPretrainer) and pretrainer.origin:
            model, config = pretrainer.origin
            kept = operating_point_of(
                model,
                embedding_space(self.mods),
                revision=config.revision,
                token=config.token,
                cache_dir=config.huggingface_cache_dir,
                local_files_only=not config.allow_network,
            )
            if kept.value is not None:
                self.operating_point = kept

    @classmethod
    def from_hparams(
        cls,
        source: str | os.PathLike | FetchSource,
        hparams_file: str = HYPERPARAMS_FILE,
        savedir: str | os.PathLike | None = None,
        local_strategy: LocalStrategy = LocalStrategy.SYMLINK,
        fetch_config: FetchConfig | None = None,
        **options: Any,
    ) -> "SpeakerRecognition":
        """Loads a model, as SpeechBrain's `from_hparams` does.

        Arguments
        ---------
        source
            A model folder, the output folder of a training, a hub name
            ``user/name``, or what else SpeechBrain takes.
        hparams_file
        savedir
            Where SpeechBrain keeps the files. A ValueError says that it holds
            another model.
        local_strategy, fetch_config, **options
            As for SpeechBrain; ``run_opts={"device": "cuda"}`` is one.
        """
        config = fetch_config or FetchConfig()
        if not isinstance(source, FetchSource):
            source = os.fspath(source)
            if hparams_file == HYPERPARAMS_FILE and not source.startswith(WEB):
                source = find_model(source)
                # SpeechBrain would run a file that it cannot use.
                if os.path.isdir(source) and (
                    fault := fault_of_hyperparams(source)
                ):
                    raise ValueError(f"{source}: {fault}")
        kept = None
        if savedir is not None:
            savedir = os.fspath(savedir)
            found = FetchSource(*guess_source(source))
            kept = Savedir(Path(savedir), found, local_strategy, config)
            # Models of other kinds would not check it.
            kept.check_unread(hparams_file)
        model = super().from_hparams(
            source,
            hparams_file,
            savedir=savedir,
            local_strategy=local_strategy,
            fetch_config=config,
            **options,
        )
        pretrainer = getattr(
            getattr(model, "hparams", None), "pretrainer", None
        )
        if kept and pretrainer and not isinstance(pretrainer, ModelPretrainer):
            kept.check_loaded(pretrainer.paths)
        return model

    def load_audio(
        self,
        path: str | os.PathLike | FetchSource,
        savedir: str | os.PathLike | None = None,
    ) -> torch.Tensor:
        """Reads an audio file at the model's sampling rate [samples].

        Arguments
        ---------
        path
            A file of any format that libsndfile knows, a web address, or
            ``user/name/file`` for a file of the hub.
        savedir
            Where a file that is not of this machine is kept; None for nowhere
            but in the cache of the hub.

        Raises
        ------
        AudioError
            If there is no such file, or it cannot be used; it names the file.
        """
        source = _audio_source(path)
        name = os.fspath(source.path)
        rate = self.audio_normalizer.sample_rate
        if source.FetchFrom is FetchFrom.LOCAL:
            return load_waveform(name, rate).to(self.device)
        is_web = source.FetchFrom is FetchFrom.URI
        with tempfile.TemporaryDirectory() as folder:
            try:
                place, file = split_path(source)
                # Of the files of one name the last is wanted, not the first.
                found = fetch(
                    file,
                    place,
                    savedir=savedir or (folder if is_web else None),
                    fetch_config=FetchConfig(overwrite=True),
                )
            except Exception as error:
                raise AudioError(
                    "missing",
                    "it is no file of this machine, and cannot be fetched "
                    f"({one_line(error)[:300]}); check the path",
                    name,
                ) from error
            try:
                return load_waveform(found, rate).to(self.device)
            except AudioError as error:
                raise AudioError(error.reason, error.remedy, name) from None

    def verify_files(
        self,
        path_x: str | os.PathLike | FetchSource,
        path_y: str | os.PathLike | FetchSource,
        threshold: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Says whether two recordings are of the same speaker.

        Arguments
        ---------
        path_x, path_y, **options
            As for ``load_audio``.
        threshold
            The cosine above which they are, from -1 to 1; None for that of
            ``operating_point``.

        Returns
        -------
        score
            The cosine of the embeddings [1].
        decision
            Whether it is above the threshold [1].
        """
        wavs_x, wavs_y = (
            self.load_audio(path, **options).unsqueeze(0)
            for path in (path_x, path_y)
        )
        score, decision = self.verify_batch(wavs_x, wavs_y, threshold=threshold)
        return score[0], decision[0]

    def verify_batch(
        self,
        wavs1: torch.Tensor,
        wavs2: torch.Tensor,
        wav1_lens: torch.Tensor | None = None,
        wav2_lens: torch.Tensor | None = None,
        threshold: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Says which pairs of utterances are of the same speaker.

        Arguments
        ---------
        wavs1, wavs2
            Waveforms at 16 kHz [batch, time].
        wav1_lens, wav2_lens
            Their lengths, relative to ``time`` [batch]; None where none is
            padded.
        threshold
            As for ``verify_files``.

        Returns
        -------
        score
            The cosines of the embeddings [batch, 1].
        decision
            Whether they are above the threshold [batch, 1].
        """
        if threshold is None:
            threshold = self.operating_point.value
        else:
            threshold = float(threshold)
            require_number("threshold", threshold, -1, 1)
        return super().verify_batch(
            wavs1, wavs2, wav1_lens, wav2_lens, threshold
        )


def _audio_source(path: str | os.PathLike | FetchSource) -> FetchSource:
    """Where an audio file is: what can be a file of this machine, is one."""
    if isinstance(path, FetchSource):
        return path
    path = os.fspath(path)
    if path.startswith(WEB):
        return FetchSource(FetchFrom.URI, path)
    name, _, file = path.rpartition("/")
    if file and name.count("/") == 1 and not os.path.isdir(name):
        try:
            validate_repo_id(name)
            return FetchSource(FetchFrom.HUGGING_FACE, path)
        except HFValidationError:
            pass
    return FetchSource(FetchFrom.LOCAL, path)
