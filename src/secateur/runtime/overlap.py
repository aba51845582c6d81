"""Work on a second stream of a CUDA device, beside what the first one runs."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Overlap:
    """One second stream for each device. On a device of another kind work runs at once where it is begun, and gives the same.

    As PyTorch's notes on CUDA streams ask (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-streams): the second stream waits
    for what is queued in front of the work, and whoever ends it for the work; a tensor that is used on another stream than it was made
    on is recorded there, so that its memory is not given away before.

    `streams`: torch.cuda, or what stands for it; `kind`: the devices that have them.
    """

    def __init__(self, streams: Any = torch.cuda, kind: str = "cuda") -> None:
        self.streams, self.kind = streams, kind
        self.seconds: dict[torch.device, Any] = {}

    def begin(
        self, work: Callable[[], Result], reads: Sequence[Tensor], made: Callable[[Result], Sequence[Tensor]]
    ) -> Callable[[], Result]:
        """Queue `work`, which reads `reads` and makes `made(result)`. Call what is returned where the result is needed.

        All of the tensors are on the device of the first.
        """
        device = reads[0].device
        if device.type != self.kind:
            result = work()
            return lambda: result
        if device not in self.seconds:
            self.seconds[device] = self.streams.Stream(device)
        second = self.seconds[device]
        second.wait_stream(self.streams.current_stream(device))
        with self.streams.stream(second):
            result = work()
            done = second.record_event()
        for tensor in reads:
            tensor.record_stream(second)

        def end() -> Result:
            current = self.streams.current_stream(device)
            current.wait_event(done)
            for tensor in made(result):
                tensor.record_stream(current)
            return result

        return end
