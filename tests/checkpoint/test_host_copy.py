"""Copies of what is to be written."""

import torch

from accmt.checkpoint.host_copy import Staging


def test_a_copy_does_not_change_with_what_it_was_made_of():
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True]), "empty": torch.zeros(0, 3)}
    staging = Staging()
    copies = staging.copy({"model": weights, "trainer.json": "{}"})
    staging.wait()
    expected = {name: value.clone() for name, value in weights.items()}
    weights["a"].zero_()
    assert copies["trainer.json"] == "{}"
    assert copies["model"].keys() == expected.keys()
    assert all(torch.equal(copies["model"][name], value) for name, value in expected.items())


def test_tied_weights_stay_tied_and_views_do_not_take_their_whole():
    whole = torch.randn(1000)
    copies = Staging().copy(
        {"model": {"one": whole[:10], "same": whole[:10], "other": whole[10:20], "step": whole[::2]}}
    )
    assert copies["model"]["one"] is copies["model"]["same"]
    assert copies["model"]["other"] is not copies["model"]["one"]
    assert copies["model"]["other"].untyped_storage().nbytes() == 40
    assert torch.equal(copies["model"]["step"], whole[::2])


def test_memory_is_used_again_where_it_fits():
    staging = Staging()
    first = staging.copy({"model": {"a": torch.ones(3), "b": torch.ones(3), "gone": torch.ones(1)}})["model"]
    kept = first["a"].data_ptr()
    second = staging.copy({"model": {"a": torch.full((3,), 2.0), "b": torch.ones(4)}})["model"]
    assert second["a"].data_ptr() == kept
    assert second["a"].tolist() == [2.0] * 3
    assert second["b"].shape == (4,)
    assert "gone" not in second


def test_conjugates_and_negatives_are_written_out():
    value = torch.tensor([1 + 2j])
    copies = Staging().copy({"model": {"conj": value.conj(), "imaginary": value.conj().imag}})["model"]
    assert copies["conj"].tolist() == [1 - 2j]
    assert not copies["conj"].is_conj()
    assert copies["imaginary"].tolist() == [-2.0]
    assert not copies["imaginary"].is_neg()
