"""A training step on a GPU waits for it in one place only.

Each look of the host at a value of a tensor on a GPU waits until all is done
that was queued before. On a CPU it costs nothing, but is the same call.
"""

import sys
from pathlib import Path

import pytest
import torch
import training_runs
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

TORCH = str(Path(torch.__file__).parent)
# These reach no operator of a CPU, whose memory is the host's. What is made of
# the host's values is copied to a GPU, which is waited for as well.
METHODS = {
    *("cpu", "numpy", "tolist", "item", "__array__", "__bool__", "__float__"),
    *("__int__", "__index__", "tensor", "as_tensor", "new_tensor"),
}
VALUE, SHAPE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
THE_ONE = ("brain.py:_read_sums", "tolist")


class Operators(TorchDispatchMode):
    """Calls ``note`` with each operator that gives the host a value."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        looks = VALUE in function.tags or SHAPE in function.tags
        if function is torch.ops.aten.index.Tensor:
            looks = any(
                i is not None and i.dtype == torch.bool for i in args[1]
            )
        if looks:
            self.note(str(function))
        return function(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Calls ``note`` with each method that gives the host a value."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = (resolve_name(function) or function.__name__).split(".")[-1]
        kwargs = kwargs or {}
        # Within torch, gradients are moved to where they are already.
        moves = (
            name == "to"
            and "cpu" in [*map(str, args[1:]), str(kwargs.get("device"))]
            and not kwargs.get("non_blocking")
            and not sys._getframe(1).f_code.co_filename.startswith(TORCH)
        )
        if moves or name in METHODS:
            self.note(name)
        return function(*args, **kwargs)


class HostReads:
    """While entered, ``found`` gets each look: who, and how.

    Who is the innermost function outside of torch.
    """

    def __init__(self):
        self.found = []
        self.paused = False

    def __enter__(self):
        self.modes = Operators(self.note), Methods(self.note)
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def note(self, how):
        frame = sys._getframe(1)
        while (
            frame.f_code.co_filename.startswith(TORCH)
            or frame.f_code.co_name == "__torch_dispatch__"
            or frame.f_code.co_name == "__torch_function__"
        ):
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        if not self.paused and path.name != "training_runs.py":
            self.found.append((f"{path.name}:{frame.f_code.co_name}", how))


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.to(device=torch.device("cpu")),
        lambda x: x.numpy(),
        lambda x: bool(x.all()),
        lambda x: float(x[0]),
        lambda x: range(x.long()[0]),
        lambda x: x[0] in [2.0],
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.masked_select(x > 0),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.tensor([x[0], 1]),
        lambda x: x.new_tensor([1, 2]),
        lambda x: max(x),
    ],
)
def test_looks_are_seen(look):
    reads = HostReads()
    with reads:
        look(torch.ones(3))
    assert reads.found


def test_computing_is_no_look():
    reads = HostReads()
    network = torch.nn.Linear(3, 2)
    with reads:
        x = torch.ones(4, 3).to("cpu", non_blocking=True).to(torch.float64)
        y = network(x.float()[:, torch.arange(3)]).where(x[:, :2] > 0, 0.0)
        y.sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        torch.full((), 3.0)
    assert not reads.found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return training_runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    "hparams, batch_size",
    [("demo_redimnet2_b0.yaml", 4), ("redimnet2_b0.yaml", 2)],
)
def test_a_step_looks_once(
    hparams, batch_size, corpus, noise_corpora, monkeypatch, tmp_path
):
    """At the sums of the batch before; from its arrival to the next one's.

    What the optimizer itself does is torch's.
    """
    reads, steps = HostReads(), []

    def watch_steps(watch):
        brain = watch.brain
        for pause, hook in (
            (True, brain.optimizer.register_step_pre_hook),
            (False, brain.optimizer.register_step_post_hook),
        ):
            hook(lambda *_, pause=pause: setattr(reads, "paused", pause))

        def noted(whole, *arguments):
            if whole == fit_batch:
                steps.append([])
            reads.found = steps[-1]
            with reads:
                return whole(*arguments)

        fit_batch = brain.fit_batch
        # What SpeechBrain calls for each batch.
        for name in (
            "fit_batch",
            "update_average",
            "_should_save_intra_epoch_ckpt",
        ):
            whole = getattr(brain, name)
            monkeypatch.setattr(
                brain, name, lambda *a, whole=whole: noted(whole, *a)
            )

    published = {
        "corpora": "null",
        "validation_trials": corpus / "veri_validation.txt",
        "test_trials": corpus / "veri_test2.txt",
        **noise_corpora,
    }
    training_runs.run(
        monkeypatch,
        training_runs.command_line(
            corpus,
            tmp_path,
            hparams=hparams,
            variant="b0",
            base_channels=12,
            out_channels=64,
            stages=training_runs.stages_of("redimnet2_b0.yaml"),
            batch_size=batch_size,
            number_of_epochs=1,
            ckpt_interval_minutes=30,
            **(published if hparams == "redimnet2_b0.yaml" else {}),
        ),
        watch_steps,
    )
    assert steps == [[]] + [[THE_ONE]] * (16 // batch_size - 1)
