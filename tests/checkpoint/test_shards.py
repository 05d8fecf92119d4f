"""Reading what processes wrote of sharded tensors, without the processes."""

import torch

from accmt.checkpoint.shards import read_shards
from accmt.checkpoint.tensor_files import write_files
from accmt.files.json_io import as_json


def write(folder, rank, tensors, shape, offset):
    places = {name: {"shape": shape, "offset": offset} for name in tensors}
    list(write_files(folder, {f"shards-{rank}.safetensors": tensors, f"shards-{rank}.json": as_json(places)}))


def test_tied_weights_are_read_under_each_of_their_names(tmp_path):
    whole = torch.arange(6.0).reshape(3, 2)
    first, second = whole[:2].clone(), whole[2:].clone()
    write(tmp_path, 0, {"model.a": first, "model.b": first}, [3, 2], [0, 0])
    write(tmp_path, 1, {"model.a": second, "model.b": second}, [3, 2], [2, 0])
    shards = read_shards(tmp_path)
    stand_ins = shards.stand_ins("model.safetensors")
    assert sorted(stand_ins) == ["a", "b"]
    for stand_in in stand_ins.values():
        assert torch.equal(shards.alike(stand_in, torch.empty(3, 2)), whole)
