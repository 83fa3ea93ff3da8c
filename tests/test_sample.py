"""The shard contract against tarfile and numpy."""

import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusmae.sample import TAR_END, ShardLayout, decode, encode, encode_info
from fusmae.sensors import BIGEARTHNET_ARRAYS, CLC_MAP, ArraySpec, Band

LAYOUT = ShardLayout((*BIGEARTHNET_ARRAYS, CLC_MAP))


def random_arrays(layout: ShardLayout, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {s.name: rng.integers(0, 9999, s.shape).astype(s.dtype) for s in layout.arrays}


def test_tarfile_and_numpy_read_back_what_encode_wrote():
    first, second = random_arrays(LAYOUT, 0), random_arrays(LAYOUT, 1)
    data = encode(LAYOUT, "a", first, {"x": 1}) + encode(LAYOUT, "b", second, {"y": "é"}) + TAR_END
    samples = decode(data)
    assert [s["__key__"] for s in samples] == ["a", "b"]
    assert [s["json"] for s in samples] == [{"x": 1}, {"y": "é"}]
    for sample, arrays in zip(samples, (first, second), strict=True):
        for name, array in arrays.items():
            assert sample[name].dtype == array.dtype
            np.testing.assert_array_equal(sample[name], array)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=4),
    dtype=st.sampled_from(["<f4", "<u2", "|u1"]),
    info=st.dictionaries(st.text(max_size=5), st.text(max_size=600), max_size=3),
)
def test_constant_offsets_point_at_every_arrays_pixels(shapes, dtype, info):
    layout = ShardLayout(
        tuple(
            ArraySpec(
                f"a{i}", "s", tuple(Band(f"B{b}", 10) for b in range(bands)), size, dtype, "", ""
            )
            for i, (bands, size) in enumerate(shapes)
        )
    )
    arrays = random_arrays(layout, 2)
    one = encode(layout, "k0", arrays, info)
    data = one + encode(layout, "k1", arrays, {}) + TAR_END
    for start in (0, len(one)):
        for name, offset in layout.offsets.items():
            pixels = arrays[name].tobytes()
            assert data[start + offset : start + offset + len(pixels)] == pixels
    text = encode_info(info)
    assert data[layout.json_offset : layout.json_offset + len(text)] == text
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getmembers()) == 2 * (len(shapes) + 1)


@given(st.text("aZ09_", min_size=1, max_size=88), st.integers(0, 2000), st.integers(0, 250))
def test_members_are_tarfiles_own_to_the_byte(key, letters, pixel):
    array = np.full((1, 3, 3), pixel, np.uint8)
    layout = ShardLayout((ArraySpec("a", "s", (Band("B", 10),), 3, "|u1", "", ""),))
    info = {"x": "y" * letters}
    npy, text = io.BytesIO(), json.dumps(info, separators=(",", ":")).encode()
    np.save(npy, array)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in ((f"{key}.a.npy", npy.getvalue()), (f"{key}.json", text)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    ours = encode(layout, key, {"a": array}, info)
    assert buffer.getvalue().startswith(ours + TAR_END)


def test_equal_input_gives_equal_bytes_without_clock_or_owner():
    arrays = random_arrays(LAYOUT, 0)
    first = encode(LAYOUT, "a", arrays, {"x": 1, "y": 2})
    assert first == encode(LAYOUT, "a", arrays, {"y": 2, "x": 1})
    with tarfile.open(fileobj=io.BytesIO(first + TAR_END)) as tar:
        member = tar.getmembers()[0]
    assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a"])
def test_a_key_that_webdataset_would_cut_is_refused(key):
    with pytest.raises(ValueError, match="sample key"):
        encode(LAYOUT, key, random_arrays(LAYOUT, 0), {})


def test_a_missing_or_misshapen_array_is_refused_by_name():
    arrays = random_arrays(LAYOUT, 0)
    with pytest.raises(ValueError, match="'s2_20m' is uint16"):
        encode(LAYOUT, "a", {**arrays, "s2_20m": arrays["s2_20m"][:3]}, {})
    with pytest.raises(ValueError, match="'s1' is float64"):
        encode(LAYOUT, "a", {**arrays, "s1": arrays["s1"].astype("f8")}, {})
    del arrays["s1"]
    with pytest.raises(ValueError, match="'s1' is missing"):
        encode(LAYOUT, "a", arrays, {})
