"""Vocabulary: numbering, unknown ids, and the file that C++ reads too."""

import json
import struct

import numpy as np
import pyarrow as pa
import pytest

from hyenarec.data import Vocabulary


def test_numbers_follow_the_order_given_and_unknown_is_zero():
    vocabulary = Vocabulary([50, -7, 9])
    assert len(vocabulary) == 3
    encoded = vocabulary.encode(np.array([9, 50, 8, -7]))
    assert encoded.dtype == np.int32
    assert encoded.tolist() == [3, 1, 0, 2]


def test_strings_nulls_and_arrow_arrays():
    vocabulary = Vocabulary(["b", "å", ""])
    assert vocabulary.encode(["å", "x", "", "b"]).tolist() == [2, 0, 3, 1]
    assert vocabulary.encode(np.array(["b", "c"])).tolist() == [1, 0]
    chunked = pa.chunked_array([pa.array(["b", None]), pa.array(["å"])])
    assert vocabulary.encode(chunked).tolist() == [1, 0, 2]
    assert vocabulary.encode([]).tolist() == []


def test_decode_inverts_encode_in_any_shape():
    vocabulary = Vocabulary([50, -7, 9])
    assert vocabulary.decode([[3, 1], [2, 2]]).tolist() == [[9, 50], [-7, -7]]
    assert Vocabulary(["x", "y"]).decode([2, 1]).tolist() == ["y", "x"]
    assert vocabulary.decode([]).shape == (0,)


@pytest.mark.parametrize("ids", [[0], [4], [-1]])
def test_decode_rejects_numbers_outside_the_vocabulary(ids):
    with pytest.raises(ValueError, match=r"ids must lie in 1\.\.3"):
        Vocabulary([50, -7, 9]).decode(ids)


def test_bad_ids_are_rejected():
    with pytest.raises(ValueError, match="distinct, got 3 ids of which 2"):
        Vocabulary([1, 2, 1])
    with pytest.raises(ValueError, match="not be null, got 1"):
        Vocabulary(["a", None])
    with pytest.raises(ValueError, match="integers or strings, got double"):
        Vocabulary([1.5])
    with pytest.raises(ValueError, match="as the vocabulary's, got int64"):
        Vocabulary(["a"]).encode([1])


@pytest.mark.parametrize("ids", [[2**62, -3, 0], ["b", "", "å∂", "a" * 300], [], [7]])
def test_round_trip(tmp_path, ids):
    vocabulary = Vocabulary(ids)
    path = vocabulary.save(tmp_path)
    assert path == tmp_path / "vocabulary.safetensors"
    assert Vocabulary.load(path) == Vocabulary.load(tmp_path) == vocabulary
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.safetensors"]


def test_slices_are_saved_as_what_they_show(tmp_path):
    vocabulary = Vocabulary(pa.array(["aa", "b", "cc", "d"]).slice(1, 2))
    assert Vocabulary.load(vocabulary.save(tmp_path)).item_ids.tolist() == ["b", "cc"]


def _raw_tensors(path):
    """Read the file with nothing but its specification, as C++ does."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    return {
        k: (v["dtype"], data[slice(*v["data_offsets"])]) for k, v in header.items() if k != "__metadata__"
    }


def test_file_layout_of_integers(tmp_path):
    tensors = _raw_tensors(Vocabulary([5, -1]).save(tmp_path))
    assert tensors == {"item_ids": ("I64", struct.pack("<qq", 5, -1))}


def test_file_layout_of_strings(tmp_path):
    tensors = _raw_tensors(Vocabulary(["é", "", "ab"]).save(tmp_path))
    assert tensors["item_bytes"] == ("U8", "éab".encode())
    assert tensors["item_offsets"] == ("I64", struct.pack("<4q", 0, 2, 2, 4))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    Vocabulary([1]).save(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        Vocabulary([2]).save(tmp_path)
    assert Vocabulary.load(tmp_path) == Vocabulary([1])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_foreign_file_is_rejected(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weights": np.zeros(2)}, tmp_path / "vocabulary.safetensors")
    with pytest.raises(ValueError, match="must hold item_ids"):
        Vocabulary.load(tmp_path)
