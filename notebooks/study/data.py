"""The data sets: find, download, verify, decode.

Looked for by order: a folder the user names (or the environment variable NORMLIB_DATA), Keras's cache, Debian's place;
then Keras's address, then Debian's package. Whatever the source, the decompressed content must have the known SHA-256.
`python -m study.data` makes the embedded sample anew from the full data.
"""

import dataclasses
import gzip
import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import warnings

import keras
import numpy as np

IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Bytes and SHA-256 of the decompressed content.
CONTENT = {
    "fashion_mnist": {
        IDX[0]: (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        IDX[1]: (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        IDX[2]: (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        IDX[3]: (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    },
    "mnist": {
        IDX[0]: (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        IDX[1]: (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        IDX[2]: (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        IDX[3]: (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    },
    "cifar10": {
        "cifar-10-python.tar.gz": (
            170_498_071,
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        )
    },
}
MNIST_NPZ = (
    "mnist.npz",
    11_490_434,
    "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcb2cc48468fc17b673ae",
)
ADDRESS = {
    "fashion_mnist": "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "mnist": "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
# Where Keras's cache keeps them, below its folder of data sets.
CACHED = {"fashion_mnist": "fashion-mnist", "mnist": "mnist", "cifar10": ""}
DEBIAN_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
SAMPLE = pathlib.Path(__file__).parent / "sample" / "fashion_mnist.npz"
SAMPLE_SHA256 = "a33987ad95652af14ceb5c8b5a24f42d39c19179458f1427983dfe7fb53d4cce"
SAMPLE_SIZES = (5_000, 1_000)


class DataError(RuntimeError):
    """The data cannot be had, or are damaged: the message says where was looked and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels.

    Attributes:
        name: of the data set.
        x_train, x_test: float32 [n, height, width, channels], from 0 to 1.
        y_train, y_test: int64 [n], the class.
        source: where the data came from, in words.
        is_sample: whether this is the embedded sample.
        digest: SHA-256 over the content of all files.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    source: str
    is_sample: bool
    digest: str


def load(name="fashion_mnist", folder=None, sample=False):
    """Load a data set.

    Args:
        name: "fashion_mnist" (default), "mnist" or "cifar10".
        folder: where the user keeps the files; nothing else is looked at then. Default None: NORMLIB_DATA, if it is
            set and holds this data set, else the other places.
        sample: whether to load the embedded sample of Fashion-MNIST instead (5,000 + 1,000 images, balanced).

    Returns:
        A Dataset.

    Raises:
        DataError: an unknown name, a missing or a damaged file.
    """
    if name not in CONTENT:
        raise DataError(f"Expected a data set among {', '.join(CONTENT)}. Received: {name!r}")
    if sample:
        return _load_sample(name)
    folder = folder or os.environ.get("NORMLIB_DATA")
    if folder:
        files = _read_all(name, pathlib.Path(folder).expanduser())
        if files is None:
            raise DataError(
                _help(name, f"the folder given does not hold all of {', '.join(CONTENT[name])}")
            )
        return _decode(name, files, "the folder given")
    cache = _keras_folder(name)
    for place, source in (
        (cache, "Keras's cache"),
        (DEBIAN_FOLDER, f"Debian's package {DEBIAN_PACKAGE}"),
    ):
        if place == DEBIAN_FOLDER and name != "fashion_mnist":
            continue
        try:
            files = _read_all(name, place)
        except DataError as error:
            warnings.warn(f"{source} is passed over: {error}", stacklevel=2)
            continue
        if files is not None:
            return _decode(name, files, source)
    source = _fetch(name, cache)
    return _decode(name, _read_all(name, cache), source)


def load_or_sample(name="fashion_mnist", folder=None):
    """Load a data set; where Fashion-MNIST cannot be had, its embedded sample, with a warning."""
    try:
        return load(name, folder)
    except DataError as error:
        if name != "fashion_mnist" or folder or os.environ.get("NORMLIB_DATA"):
            raise
        warnings.warn(
            f"The embedded sample takes the place of the full data. {error}", stacklevel=2
        )
        return load(name, sample=True)


# --- reading ------------------------------------------------------------------------------------------------------


def _read_all(name, folder):
    """Every file's verified content, by name; None if one is missing."""
    files = {}
    for file, (size, sha256) in CONTENT[name].items():
        content = _read(folder / file, size)
        if content is None:
            return _read_npz(folder) if name == "mnist" else None
        _verify(file, content, sha256)
        files[file] = content
    return files


def _read(path, size):
    """A file's decompressed content, or None. At most one byte more than expected is read."""
    for candidate, opener in ((path, open), (path.with_name(path.name + ".gz"), gzip.open)):
        if candidate.is_file():
            try:
                with opener(candidate, "rb") as file:
                    return file.read(size + 1)
            except (OSError, EOFError) as error:
                raise DataError(
                    f"{candidate.name} is damaged ({error}); delete it, or get it anew"
                ) from error
    return None


def _verify(file, content, expected):
    received = hashlib.sha256(content).hexdigest()
    if received != expected:
        raise DataError(
            f"{file} is damaged; delete it, or get it anew. Expected SHA-256 {expected}. Received: {received}"
        )


def _read_npz(folder):
    """MNIST from Keras's own archive, as if from the four files."""
    file, size, sha256 = MNIST_NPZ
    for path in (folder / file, folder.parent / file):
        content = _read(path, size)
        if content is not None:
            _verify(file, content, sha256)
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return {
                    IDX[0]: bytes(16) + arrays["x_train"].tobytes(),
                    IDX[1]: bytes(8) + arrays["y_train"].tobytes(),
                    IDX[2]: bytes(16) + arrays["x_test"].tobytes(),
                    IDX[3]: bytes(8) + arrays["y_test"].tobytes(),
                }
    return None


def _decode(name, files, source):
    if name == "cifar10":
        arrays = _decode_cifar(files["cifar-10-python.tar.gz"])
    else:
        arrays = [
            np.frombuffer(files[file], "uint8", offset=16).reshape(-1, 28, 28, 1)
            if "images" in file
            else np.frombuffer(files[file], "uint8", offset=8)
            for file in IDX
        ]
    # The digest of the known content, so that it does not depend on how the files were packed.
    digest = hashlib.sha256(
        "".join(sha256 for _, sha256 in CONTENT[name].values()).encode()
    ).hexdigest()
    return _dataset(name, arrays, source, is_sample=False, digest=digest)


def _dataset(name, arrays, source, is_sample, digest):
    x_train, y_train, x_test, y_test = arrays
    x_train, x_test = (x.astype("float32") / np.float32(255) for x in (x_train, x_test))
    y_train, y_test = (y.astype("int64") for y in (y_train, y_test))
    return Dataset(name, x_train, y_train, x_test, y_test, source, is_sample, digest)


def _decode_cifar(archive):
    """The arrays in CIFAR-10's archive. Its pickles are opened only because its checksum is known."""
    import pickle

    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    batches = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar.getmembers():
            parts = pathlib.PurePosixPath(member.name).parts
            if ".." in parts or member.name.startswith("/"):
                raise DataError(f"The archive has a path outside of it. Received: {member.name!r}")
            if member.isfile() and parts[-1] in names:
                batches[parts[-1]] = pickle.loads(tar.extractfile(member).read(), encoding="bytes")
    images = [batches[n][b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for n in names]
    labels = [np.array(batches[n][b"labels"], "uint8") for n in names]
    return np.concatenate(images[:5]), np.concatenate(labels[:5]), images[5], labels[5]


# --- getting ------------------------------------------------------------------------------------------------------


def _keras_folder(name):
    home = pathlib.Path(os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras")
    return home / "datasets" / CACHED[name]


def _fetch(name, cache):
    """Put the files into Keras's cache, from Keras's address or, failing that, from Debian's package."""
    try:
        files = [MNIST_NPZ[0]] if name == "mnist" else [f for f in CONTENT[name]]
        for file in files:
            packed = file if "." in file else f"{file}.gz"
            keras.utils.get_file(
                packed,
                ADDRESS[name] + packed,
                cache_dir=cache.parent if CACHED[name] else cache,
                cache_subdir=CACHED[name],
            )
        return "Keras's address"
    except Exception as error:  # get_file raises whatever its transport raised
        reason = f"Keras's address cannot be reached ({str(error)[:200]})"
    if name == "fashion_mnist" and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        try:
            _fetch_from_debian(cache)
            return f"Debian's package {DEBIAN_PACKAGE}"
        except (subprocess.SubprocessError, OSError) as error:
            reason += f"; Debian's package cannot be had ({error})"
    raise DataError(_help(name, reason))


def _fetch_from_debian(cache):
    """Download and unpack Debian's package, without root, and keep its files in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        run = {"cwd": folder, "check": True, "capture_output": True, "timeout": 300}
        try:
            subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], **run)
        except subprocess.CalledProcessError:  # the lists of packages may be missing
            subprocess.run(["apt-get", "update"], **run)
            subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], **run)
        (package,) = pathlib.Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package.name, "unpacked"], **run)
        unpacked = pathlib.Path(folder, "unpacked", *DEBIAN_FOLDER.parts[1:])
        cache.mkdir(parents=True, exist_ok=True)
        for file in sorted(unpacked.iterdir()):
            if file.name.removesuffix(".gz") in IDX:
                # Under a temporary name first: another process may be doing the same.
                with tempfile.NamedTemporaryFile(dir=cache, delete=False) as copy:
                    copy.write(file.read_bytes())
                os.replace(copy.name, cache / file.name)


def _help(name, reason):
    remedies = [
        "name a folder that holds the files, packed or not, with --data-dir or the environment variable NORMLIB_DATA",
        f"let this machine reach {ADDRESS[name]}",
    ]
    if name == "fashion_mnist":
        remedies += [
            f"apt-get install {DEBIAN_PACKAGE}",
            "use the embedded sample: --profile smoke",
        ]
    return f"{name} cannot be had: {reason}. Remedies: {'; or '.join(remedies)}."


# --- the embedded sample ------------------------------------------------------------------------------------------


def _load_sample(name):
    if name != "fashion_mnist":
        raise DataError(
            f"Expected 'fashion_mnist': there is no sample of another data set. Received: {name!r}"
        )
    content = SAMPLE.read_bytes()
    _verify(SAMPLE.name, content, SAMPLE_SHA256)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        parts = [arrays[part] for part in ("x_train", "y_train", "x_test", "y_test")]
    return _dataset(name, parts, "the embedded sample", is_sample=True, digest=SAMPLE_SHA256)


def sample_arrays(full):
    """The sample of a full Dataset: the first images of each class, in their original order, as uint8."""
    parts = []
    for x, y, size in zip(
        (full.x_train, full.x_test), (full.y_train, full.y_test), SAMPLE_SIZES, strict=True
    ):
        rows = np.sort(np.concatenate([np.flatnonzero(y == c)[: size // 10] for c in range(10)]))
        parts += [np.rint(x[rows] * 255).astype("uint8"), y[rows].astype("uint8")]
    return dict(zip(("x_train", "y_train", "x_test", "y_test"), parts, strict=True))


if __name__ == "__main__":
    SAMPLE.parent.mkdir(exist_ok=True)
    np.savez_compressed(SAMPLE, **sample_arrays(load()))
    print(
        f"{SAMPLE.name}: {SAMPLE.stat().st_size:,} bytes, SHA-256 {hashlib.sha256(SAMPLE.read_bytes()).hexdigest()}"
    )
