"""Jobs of several processes without the seconds that each takes to import torch: a server that has done so forks them.

They find what torchrun would tell them in their environment, and write what they say into a file each.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_run import final_state, tiny_config, tiny_data
from torch import Tensor

from edm2.training import Trainer
from edm2.training.distributed.processes import joined_processes

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["jobs", "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard"])


class Job:
    """Processes that run `target(*words)`, each in its rank.

    Args:
        count: How many.
        folder: For what they say.
        target: A function of a module.
        words: Its arguments.
    """

    def __init__(self, count: int, folder: Path, target: Callable[..., None], *words: Any) -> None:
        start_server()
        folder.mkdir(parents=True, exist_ok=True)
        self.said = [folder / f"{rank}.log" for rank in range(count)]
        port = _free_port()
        self.processes = [
            SERVER.Process(target=_be, args=(rank, count, port, self.said[rank], target, words), daemon=True)
            for rank in range(count)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 300) -> list[int | None]:
        """Exit codes; those of signals are negative."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()  # what has not ended by now
        return codes

    def words(self, rank: int) -> str:
        """What a process has said."""
        return self.said[rank].read_text()


def start_server() -> None:
    """Where it looks for modules to import ahead, it knows from its environment only."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    multiprocessing.forkserver.ensure_running()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _be(rank: int, count: int, port: int, said: Path, target: Callable[..., None], words: tuple[Any, ...]) -> None:
    output = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    multiprocessing.current_process()._config["daemon"] = False  # else it could not have processes that read data,
    multiprocessing.set_start_method("fork", force=True)  # which are started as usual
    if count > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
    target(*words)


def train(changes: dict[str, Any], final: Path | None, kind: type[Trainer] = Trainer) -> None:
    """Run `tiny_config` with some changes; the first process leaves weights, moments and averages of the end."""
    with joined_processes() as processes:
        trainer = kind(tiny_config(**changes), dataset=tiny_data(), processes=processes)
        trainer.run()
        whole = dict(trainer.step.strategy.gathered(final_state(trainer)))
        if processes.is_first and final is not None:
            torch.save(whole, final)


def train_together(count: int, out: Path, **changes: Any) -> dict[str, Tensor]:
    """Weights, moments and averages at the end of such a run by `count` processes."""
    final = out.with_suffix(".pt")
    job = Job(count, out.with_suffix(".said"), train, {"out": str(out), **changes}, final)
    codes = job.wait()
    assert codes == [0] * count, [job.words(rank) for rank in range(count)]
    return torch.load(final, weights_only=True)
