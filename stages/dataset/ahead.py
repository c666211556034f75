"""Batches that a GPU makes beside the step that it is taking."""

from collections.abc import Callable, Iterator
from itertools import count

import torch

from stages.dataset.batch import Batch

# One that is trained on, and one that is being made.
SLOTS = 2


def make_ahead(
    batches: Iterator[Batch], finish: Callable[[Batch], Batch], stream: torch.cuda.Stream
) -> Iterator[Batch]:
    """What `finish` makes of batches of one size, ready on the current stream when it comes to them.

    Where Python runs ahead of the GPU, a batch is made on `stream` while the current one computes the step before it:
    augmentation moves bytes and convolutions multiply, so together they take less time than one after the other.

    Args:
        batches: made on the stream that is current when they are asked for.
        finish: takes and gives tensors on that stream.
        stream: where both happen. It must stay the same: what was allocated for one stream no other is given.

    Yields:
        Batches that hold until the next but one is asked for.
    """
    slots: list[Batch] = []
    read: dict[int, torch.cuda.Event] = {}  # by slot: when the current stream has done with it
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    for number in count():
        slot = number % SLOTS
        with torch.cuda.stream(stream):
            batch = next(batches, None)
            if batch is None:
                return
            made = finish(batch)
            if slot in read:
                stream.wait_event(read[slot])
                for kept, new in zip(slots[slot], made):
                    if kept is not None:
                        kept.copy_(new)
            else:
                slots.append(made)
        current = torch.cuda.current_stream(stream.device)
        current.wait_stream(stream)
        if slot not in read:
            for tensor in made:
                if tensor is not None:
                    tensor.record_stream(current)  # which may read it when this generator is gone
        yield slots[slot]
        read[slot] = torch.cuda.current_stream(stream.device).record_event()
