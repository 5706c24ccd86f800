"""The data sets: where they are looked for, how they are verified, what a user is told."""

import gzip
import hashlib

import numpy as np
import pytest

from study import data

FILES = {
    "train-images-idx3-ubyte": bytes(16) + bytes(range(256)) * 49,
    "train-labels-idx1-ubyte": bytes(8) + bytes(range(16)),
    "t10k-images-idx3-ubyte": bytes(16) + bytes(784 * 2),
    "t10k-labels-idx1-ubyte": bytes(8) + bytes([3, 4]),
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A tiny data set in Fashion-MNIST's place, and nowhere else to look."""
    known = {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in FILES.items()
    }
    monkeypatch.setitem(data.CONTENT, "fashion_mnist", known)
    monkeypatch.delenv("NORMLIB_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(
        data.keras.utils, "get_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    monkeypatch.setattr(data.shutil, "which", lambda _: None)
    return tmp_path


def write(folder, packed=False, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (FILES | changed).items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_is_read_packed_or_not(small, packed):
    found = data.load(folder=write(small / "mine", packed))
    assert found.x_train.shape == (16, 28, 28, 1)
    assert found.x_train.dtype == "float32"
    assert found.x_train.max() == 1.0
    np.testing.assert_array_equal(found.y_test, [3, 4])
    assert found.source == "the folder given"


def test_the_order_is_variable_then_cache_then_debian(small, monkeypatch):
    write(small / "debian", packed=True)
    assert "Debian" in data.load().source
    write(small / "keras" / "datasets" / "fashion-mnist", packed=True)
    assert data.load().source == "Keras's cache"
    monkeypatch.setenv("NORMLIB_DATA", str(write(small / "mine")))
    assert data.load().source == "the folder given"


def test_the_digest_does_not_depend_on_the_packing(small):
    assert (
        data.load(folder=write(small / "a", packed=True)).digest
        == data.load(folder=write(small / "b")).digest
    )


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda c: c[:-5], lambda c: c + bytes(10_000)],
    ids=["flipped bit", "truncated", "longer"],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_named_with_both_checksums(small, damage, packed):
    name = "train-labels-idx1-ubyte"
    folder = write(small / "mine", packed, **{name: damage(FILES[name])})
    with pytest.raises(
        data.DataError, match=rf"{name} is damaged.*Expected SHA-256 \w+. Received: \w+"
    ):
        data.load(folder=folder)


def test_a_damaged_archive_is_named(small):
    folder = write(small / "mine", packed=True)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(data.DataError, match=r"t10k-images-idx3-ubyte.gz is damaged"):
        data.load(folder=folder)


def test_no_more_is_unpacked_than_expected(small, monkeypatch):
    name = "train-labels-idx1-ubyte"
    folder = write(small / "mine", packed=True, **{name: bytes(50_000_000)})
    read = []
    original = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: read.append(size) or original(self, size)
    )
    with pytest.raises(data.DataError, match="damaged"):
        data.load(folder=folder)
    assert max(read) <= max(map(len, FILES.values())) + 1


def test_a_damaged_cache_is_passed_over_with_a_warning(small):
    name = "train-labels-idx1-ubyte"
    write(small / "keras" / "datasets" / "fashion-mnist", **{name: flipped(FILES[name])})
    write(small / "debian")
    with pytest.warns(UserWarning, match=r"Keras's cache is passed over.*damaged"):
        assert "Debian" in data.load().source


def test_nowhere_to_be_had_lists_the_remedies(small):
    with pytest.raises(
        data.DataError, match=r"cannot be had.*no network.*NORMLIB_DATA.*apt-get install"
    ):
        data.load()


def test_the_sample_takes_its_place_and_says_so(small):
    with pytest.warns(UserWarning, match="embedded sample takes the place"):
        assert data.load_or_sample().is_sample


def test_a_folder_without_the_files_is_an_error_not_a_fallback(small):
    with pytest.raises(data.DataError, match="the folder given does not hold"):
        data.load_or_sample(folder=small)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        data.DataError, match=r"fashion_mnist, mnist, cifar10. Received: 'imagenet'"
    ):
        data.load("imagenet")


def test_the_sample_is_balanced_and_verified(monkeypatch):
    sample = data.load(sample=True)
    assert (len(sample.x_train), len(sample.x_test)) == (5_000, 1_000)
    assert set(np.bincount(sample.y_train)) == {500}
    assert set(np.bincount(sample.y_test)) == {100}
    monkeypatch.setattr(data, "SAMPLE_SHA256", "0" * 64)
    with pytest.raises(data.DataError, match="damaged"):
        data.load(sample=True)


def test_the_sample_is_that_of_the_full_data(monkeypatch):
    monkeypatch.delenv("NORMLIB_DATA", raising=False)
    folder = data._keras_folder("fashion_mnist")
    if data._read_all("fashion_mnist", folder) is None:
        pytest.skip(
            "the full data are not in Keras's cache: the sample cannot be compared with them"
        )
    expected = data.sample_arrays(data.load())
    with np.load(data.SAMPLE) as sample:
        for name, array in expected.items():
            np.testing.assert_array_equal(sample[name], array)
