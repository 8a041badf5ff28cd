"""Copies to a device on a stream of their own, in the order that CUDA needs; a stand-in notes what is asked for."""

from contextlib import contextmanager

import torch

from edm2.training.data.transfer import Transfer


class Recorder:
    """Stands for torch's streams and for a tensor."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stream = "the step's"

    def stream_of_its_own(self, device):
        return "its own"

    def current(self, device):
        return self

    @contextmanager
    def on(self, stream):
        self.stream = stream
        yield
        self.stream = "the step's"

    def wait_stream(self, stream) -> None:
        self.asked.append(f"{self.stream} waits for {stream}")

    def to(self, device, non_blocking: bool) -> "Recorder":
        self.asked.append(f"copied to {device} on {self.stream}{'' if non_blocking else ', waiting'}")
        return self

    def record_stream(self, stream) -> None:
        self.asked.append("used by the step's" if stream is self else "?")


def test_a_copy_runs_beside_the_step_and_its_users_wait_for_it(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "Stream", recorder.stream_of_its_own)
    monkeypatch.setattr(torch.cuda, "current_stream", recorder.current)
    monkeypatch.setattr(torch.cuda, "stream", recorder.on)
    assert Transfer(torch.device("cuda"))(recorder) is recorder
    assert recorder.asked == ["copied to cuda on its own", "the step's waits for its own", "used by the step's"]
    recorder.asked.clear()
    Transfer(torch.device("cuda"), own_stream=False)(recorder)
    assert recorder.asked == ["copied to cuda on the step's"]


def test_on_other_devices_there_is_one_stream():
    recorder = Recorder()
    Transfer(torch.device("mps"))(recorder)
    assert recorder.asked == ["copied to mps on the step's"]
    x = torch.ones(3)
    assert Transfer(torch.device("cpu"))(x) is x
