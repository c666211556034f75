"""Packing keeps everything, and nothing but data."""

import random

import numpy as np
import torch

from stages.classifier.checkpoints import _random_state, _set_random_state
from stages.classifier.packing import pack, unpack


def test_what_is_packed_comes_back(tmp_path):
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    state = {
        "weights": {"a": weights, "b": torch.arange(5), "none": torch.empty(0, 3), "scalar": torch.tensor(7.0)},
        "turned": torch.randn(3, 4).T[:, ::2],
        0: [("text", 1, None, (torch.ones(2, dtype=torch.uint8),)), 2.5],
    }
    torch.save(pack(state).content, tmp_path / "state")
    back = unpack(torch.load(tmp_path / "state", weights_only=True))
    for name, tensor in state["weights"].items():
        assert torch.equal(back["weights"][name], tensor)
        assert back["weights"][name].dtype == tensor.dtype
    assert back["weights"]["a"].stride() == weights.stride()
    assert torch.equal(back["turned"], state["turned"])
    assert back[0][0][:3] == ("text", 1, None)
    assert back[0][0][3][0].tolist() == [1, 1]
    assert back[0][1] == 2.5


def test_what_is_packed_does_not_change_with_its_source():
    weights = torch.ones(3)
    packed = pack({"weights": weights})
    weights += 1
    assert unpack(packed.content)["weights"].tolist() == [1, 1, 1]


def test_random_numbers_go_on_from_where_they_were_packed():
    state = unpack(pack(_random_state(torch.device("cpu"))).content)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    _set_random_state(state, torch.device("cpu"))
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
