"""The validation that processes share: as one alone, and they end together."""

import dataclasses

import pytest
import soundfile
import torch
from torch import distributed

from redimnet2_lobes.data.trial_files import TrialList
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.training.brain import broadcast_buffers
from redimnet2_lobes.training.validation import equal_error_rate

SECONDS = 2.0  # of a batch
SPEAKERS = 4


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Of 16 utterances of 0.5 to 2 s, all pairs."""
    folder = tmp_path_factory.mktemp("utterances")
    generator = torch.Generator().manual_seed(0)
    paths = {}
    for number in range(16):
        samples = 8000 + 1600 * (7 * number % 16)
        noise = torch.randn(samples, generator=generator) / 9
        paths[f"{number}"] = str(folder / f"{number:02}.wav")
        soundfile.write(paths[f"{number}"], noise.numpy(), 16000)
    pairs = [
        (int(a % SPEAKERS == b % SPEAKERS), f"{a}", f"{b}")
        for a in range(16)
        for b in range(a)
    ]
    return TrialList("noise", pairs, {}, paths)


def network_of(rank):
    """B0, of whose BatchNorms each process has its own statistics."""
    torch.manual_seed(0)
    network = ReDimNet2.from_variant("b0")
    for number, module in enumerate(network.modules()):
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.manual_seed(1000 * rank + number)
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(rank)
    return network


def embedded_by(network, trials, seconds=0.8):
    """The equal error rate, and the batches that this process embedded."""
    batches = []

    def encode_batch(wavs, wav_lens):
        embeddings = network(wavs, wav_lens)
        batches.append((wavs, embeddings))
        return embeddings

    network.eval()
    rate = equal_error_rate(encode_batch, trials, seconds, SECONDS)
    return rate, batches


def message_of(rank, trials, message):
    """What a validation ends with; in the second process the network may."""

    def encode_batch(wavs, wav_lens):
        if message and rank == 1:
            raise ValueError(message)
        return wavs[:, None, :100]

    try:
        equal_error_rate(encode_batch, trials, 0.8, SECONDS)
    except ValueError as error:
        return str(error)


def process(rank, folder, trials, bad):
    """One of two, on its own statistics before those of the first."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2
    )
    network = network_of(rank)
    broadcast_buffers(network)
    found = {"state": network.state_dict()}
    found["rate"], found["batches"] = embedded_by(network, trials)
    found["messages"] = [
        message_of(rank, trials, "the network's are not finite"),
        message_of(rank, bad, None),
    ]
    torch.save(found, f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_validate_as_one_and_end_together(trials, tmp_path):
    network = network_of(0)
    rate, batches = embedded_by(network, trials)
    assert 0 < rate < 100 and len(batches) >= 6
    # Read by the second process alone: it is in the sixth batch.
    path = trials.paths["13"].replace("13.wav", "13_bad.wav")
    samples = torch.full((16000,), torch.nan)
    soundfile.write(path, samples.numpy(), 16000, subtype="FLOAT")
    bad = dataclasses.replace(trials, paths={**trials.paths, "13": path})
    torch.multiprocessing.spawn(process, (tmp_path, trials, bad), nprocs=2)

    found = [torch.load(tmp_path / f"{rank}") for rank in (0, 1)]
    for each in found:
        assert each["rate"] == rate
        for name, value in network.state_dict().items():
            assert torch.equal(each["state"][name], value), name
        assert each["messages"][0] == "the network's are not finite"
        assert each["messages"][1].startswith(f"{path}: not finite; ")
    # Every second batch, each as one process alone has it.
    for rank, each in enumerate(found):
        assert len(each["batches"]) == len(batches[rank::2])
        for ours, theirs in zip(each["batches"], batches[rank::2], strict=True):
            assert all(map(torch.equal, ours, theirs))
