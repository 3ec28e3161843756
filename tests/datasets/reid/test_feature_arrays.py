"""Features in the forms in which people save them: types, layouts, lists, and the files of old programs."""

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.sparse
import torch
from scipy.io import savemat

from datasets.reid.feature_files import FeatureFile, read_features
from passersby.errors import InputError

# Halves and whole numbers below 16, which all types of numbers hold without loss; some are 0, as in sparse arrays.
RANDOM = np.random.default_rng(0)
QUERY = RANDOM.integers(-8, 8, (4, 6)).astype(np.float32) / 2
GALLERY = RANDOM.integers(-8, 8, (9, 6)).astype(np.float32) / 2
IDENTITIES = {"q_pids": [1, 2, 3, 4], "g_pids": [1, 2, 3, 4, 0, -1, 1, 2, 3]}
CAMERAS = {"q_camids": [1, 1, 2, 2], "g_camids": [3, 3, 3, 4, 4, 4, 5, 5, 5]}


def content(**changes) -> dict:
    whole = {"qf": torch.from_numpy(QUERY), "gf": torch.from_numpy(GALLERY), **IDENTITIES, **CAMERAS}
    return {key: value for key, value in (whole | changes).items() if value is not None}


def saved(path: Path, values: object, **options) -> Path:
    torch.save(values, path, **options)
    return path


def check(read: FeatureFile) -> None:
    assert np.array_equal(read.query.features, QUERY)
    assert np.array_equal(read.gallery.features, GALLERY)
    assert read.query.features.dtype == np.float32
    assert read.query.identities.tolist() == IDENTITIES["q_pids"]
    assert read.gallery.identities.tolist() == IDENTITIES["g_pids"]
    assert (read.query.cameras.tolist(), read.gallery.cameras.tolist()) == tuple(CAMERAS.values())


def both(change) -> dict:
    """The content with `change` of both features, which are tensors."""
    return content(qf=change(torch.from_numpy(QUERY)), gf=change(torch.from_numpy(GALLERY)))


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor, 0.5, 0, torch.qint8)


FORMS = {
    **{str(kind)[6:]: (lambda tensor, kind=kind: tensor.to(kind)) for kind in (
        torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2
    )},
    "quantised": quantised,
    "requires grad": lambda tensor: tensor.clone().requires_grad_(),
    "a parameter": torch.nn.Parameter,
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse rows": lambda tensor: tensor.to_sparse_csr(),
    "sparse halves": lambda tensor: tensor.half().to_sparse(),
    "sparse that requires grad": lambda tensor: tensor.to_sparse().requires_grad_(),
    "a transposed view": lambda tensor: tensor.T.contiguous().T,
    "a part of a larger tensor": lambda tensor: torch.cat([tensor, tensor])[: len(tensor)],
    "lists of lists": torch.Tensor.tolist,
    "tuples of lists": lambda tensor: tuple(tensor.tolist()),
    "a list of tensors": list,
    "a list of batches": lambda tensor: list(tensor.split(3)),
    "a list of batches in bfloat16": lambda tensor: list(tensor.bfloat16().split(3)),
    "lists of tensors of no dimension": lambda tensor: [list(row) for row in tensor],
    "a list of rows as matrices": lambda tensor: list(tensor.split(1)),
    "NumPy": lambda tensor: tensor.numpy(),
    "NumPy, other byte order": lambda tensor: tensor.numpy().astype(">f4"),
    "NumPy, columns first": lambda tensor: np.asfortranarray(tensor.numpy()),
    "NumPy's halves": lambda tensor: tensor.numpy().astype(np.float16),
    "a list of NumPy's": lambda tensor: list(tensor.numpy()),
    "NumPy's objects": lambda tensor: tensor.numpy().astype(object),
    "NumPy's objects that are rows": lambda tensor: objects(list(tensor.numpy())),
    "lists of NumPy's numbers": lambda tensor: [list(row) for row in tensor.numpy()],
}  # fmt: skip


def objects(values: list) -> np.ndarray:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("form", FORMS)
def test_features_of_every_form_are_read(tmp_path, form, old):
    if old and form.startswith("float8"):
        pytest.skip("PyTorch before 1.6 had no float8")
    check(read_features(saved(tmp_path / "f.pt", both(FORMS[form]), _use_new_zipfile_serialization=not old)))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    "change",
    [np.array, torch.tensor, tuple, lambda ids: np.array(ids, object), lambda ids: list(torch.tensor(ids)),
     lambda ids: list(torch.tensor(ids).split(2)), lambda ids: [np.array(ids[:1]), np.array(ids[1:])],
     lambda ids: list(np.array(ids)), lambda ids: np.array(ids)[:, None], lambda ids: torch.tensor(ids).float(),
     lambda ids: np.array(ids, np.int16), lambda ids: torch.tensor(ids, dtype=torch.bfloat16)],
)  # fmt: skip
def test_identities_and_cameras_of_every_form_are_read(tmp_path, change, old):
    numbers = {key: change(values) for key, values in (IDENTITIES | CAMERAS).items()}
    check(read_features(saved(tmp_path / "f.pt", content(**numbers), _use_new_zipfile_serialization=not old)))


def test_a_safetensors_is_read(tmp_path):
    tensors = {key: torch.as_tensor(value) for key, value in content().items()}
    safetensors.torch.save_file(tensors, tmp_path / "f.safetensors")
    check(read_features(tmp_path / "f.safetensors"))
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "network.safetensors")
    with pytest.raises(InputError, match="there is no qf and no gf in it .found: weight"):
        read_features(tmp_path / "network.safetensors")


REFUSED = {
    "on the device meta": (both(lambda tensor: tensor.to("meta")), "qf lies on the device 'meta', so its values"),
    "complex": (both(lambda tensor: tensor.to(torch.complex64)), "qf is complex64 .4, 6.: features are numbers"),
    "two truths": (both(lambda tensor: tensor > 0), "qf is bool .4, 6.: features are numbers"),
    "nested": (both(lambda tensor: torch.nested.nested_tensor(list(tensor))), "qf is a nested tensor: save an ord"),
    "one number": (content(qf=torch.tensor(1.0)), r"qf is float32 \(\): features are numbers"),
    "text": (content(qf=["a", "b", "c", "d"]), "qf is <U1 .4,.: features are numbers"),
    "nothing": (content(qf=None), "there is no qf in it"),
    "a dict": (content(qf={"a": 1}), r"qf is object \(\): features are numbers"),
    "None": (content(qf=[None] * 4), "qf is object .4,.: features are numbers"),
    "an empty list": (content(qf=[]), r"qf is float64 \(0,\): features are numbers"),
    "rows of different lengths": (content(qf=[[1.0, 2.0], [1.0]] * 2), "qf cannot be read .*inhomogeneous"),
    "unlike things": (content(qf=[torch.ones(2), torch.ones(2, 2)]), "qf is a list of unlike things: save one array"),
    "batches of different widths": (content(qf=[torch.ones(2, 3), torch.ones(2, 4)]), "qf cannot be read"),
    "a tensor of another length": (content(qf=torch.ones(5, 6)), "5 query features, but 4 identities"),
    "identities with halves": (content(q_pids=[1, 2, 3, 4.5]), "query identities are not whole numbers"),
    "identities that are no numbers": (content(q_pids=[float("nan")] * 4), "query identities are not whole"),
    "identities without end": (content(q_pids=[float("inf")] * 4), "query identities are not whole numbers"),
    "identities as texts": (content(q_pids=["0001"] * 4), "query identities are not whole numbers .<U4."),
    "cameras as texts": (content(q_camids=["c1"] * 4), "query cameras are not whole numbers .<U2."),
    "a huge number": (content(q_pids=[2**70] * 4), "query identities are not whole numbers .object."),
    "repeated by a stride of 0": (content(qf=torch.ones(1).expand(4, 10**6)), "qf has 16,000,000 bytes, more than"),
    "a list": ([1, 2], "the .pt holds a list: save a dict of tensors"),
    "a tensor": (torch.ones(2), "the .pt holds a Tensor: save a dict of tensors"),
    "dates": (content(qf=np.array(["2020-01-01"] * 4, "M8[D]")), "holds more than arrays and numbers.*'M8'"),
    "records": (content(qf=np.zeros(4, [("a", "f4")])), "holds more than arrays and numbers.*'V4'"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_clear_meaning_is_one_line(tmp_path, name):
    values, line = REFUSED[name]
    with pytest.raises(InputError, match=f"features .*f.pt: .*{line}") as caught:
        read_features(saved(tmp_path / "f.pt", values))
    assert "\n" not in str(caught.value)


def test_a_list_of_lists_without_end_is_one_line(tmp_path):
    def key(name: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(name)) + name

    pickled = b"\x80\x02}(" + key(b"qf") + b"]" * 50_000 + b"a" * 49_999  # written by hand: pickle gives up itself
    pickled += b"".join(key(name) + b"]" for name in (b"gf", b"q_pids", b"g_pids")) + b"u."
    with zipfile.ZipFile(tmp_path / "f.pt", "w") as archive:
        archive.writestr("f/data.pkl", pickled)
        archive.writestr("f/version", "3\n")
    with pytest.raises(InputError, match="features .*f.pt: "):
        read_features(tmp_path / "f.pt")


# ---- Files that lie.


def test_a_sparse_tensor_with_indices_outside_is_refused(tmp_path):
    size, values = torch.Size([4, 6]), torch.ones(1)
    bad = torch.sparse_coo_tensor(torch.tensor([[10**9], [0]]), values, size, check_invariants=False)
    with pytest.raises(InputError, match="f.pt"):
        read_features(saved(tmp_path / "f.pt", content(qf=bad)))


def test_a_sparse_tensor_of_a_huge_shape_is_refused(tmp_path):
    huge = torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (10**6, 10**6))
    with pytest.raises(InputError, match=r"qf is a sparse matrix \(1000000, 1000000\), too large"):
        read_features(saved(tmp_path / "f.pt", content(qf=huge)))


class Lie:
    """Pickles as a call of `name` with these arguments, and a state."""

    def __init__(self, call, *arguments, state=None):
        self.call, self.arguments, self.state = call, arguments, state

    def __reduce__(self):
        return self.call, self.arguments, self.state


def test_numpy_s_constructors_are_not_handed_what_a_file_says(tmp_path):
    from numpy._core.multiarray import _reconstruct, scalar

    number, thing = np.dtype("f4"), np.dtype("O")
    lies = {
        "too few bytes": Lie(_reconstruct, np.ndarray, (0,), b"b", state=(1, (4, 6), number, False, b"1234")),
        "a negative shape": Lie(_reconstruct, np.ndarray, (0,), b"b", state=(1, (-4, -6), number, False, b"")),
        "pointers": Lie(_reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), thing, False, b"\1" * 8)),
        "too few objects": Lie(_reconstruct, np.ndarray, (0,), b"b", state=(1, (4, 6), thing, False, [1.0])),
        "no state": Lie(_reconstruct, np.ndarray, (0,), b"b"),
        "a short state": Lie(_reconstruct, np.ndarray, (0,), b"b", state=(1, (4, 6))),
        "a scalar of objects": Lie(scalar, thing, b"\1" * 8),
        "another type": Lie(np.dtype, "S4", False, True),
        "a type of types": Lie(np.dtype, [("a", "O")], False, True),
        "a memory of its own": Lie(np.ndarray, (10**12,)),
    }
    for name, lie in lies.items():
        path = saved(tmp_path / f"{name}.pt", content(qf=lie))
        with pytest.raises(InputError, match=f"features .*{name}.pt: "):
            read_features(path)


def test_names_of_an_older_numpy_are_known(tmp_path):
    values = content(qf=QUERY, gf=GALLERY, q_camids=[np.int64(camera) for camera in CAMERAS["q_camids"]])
    with zipfile.ZipFile(saved(tmp_path / "new.pt", values)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "old.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"cnumpy.core.multiarray\n" in (tmp_path / "old.pt").read_bytes()
    check(read_features(tmp_path / "old.pt"))


# ---- Other files.


def layumi(**changes) -> dict:
    values = {"query_f": QUERY, "gallery_f": GALLERY}
    for split, letter in (("query", "q"), ("gallery", "g")):
        values |= {f"{split}_label": IDENTITIES[f"{letter}_pids"], f"{split}_cam": CAMERAS[f"{letter}_camids"]}
    return values | changes


MAT_FORMS = {
    "doubles": lambda array: array.astype(np.float64),
    "sparse": lambda array: scipy.sparse.csc_matrix(array.astype(np.float64)),
    "whole numbers": lambda array: (array * 2).astype(np.int8),
    "a cell of rows": lambda array: objects(list(array)),
    "a cell of numbers": lambda array: array.astype(object),
}


@pytest.mark.parametrize(("version", "packed"), [("4", False), ("5", False), ("5", True)])
@pytest.mark.parametrize("form", MAT_FORMS)
def test_mat_files_of_versions_4_and_5(tmp_path, version, packed, form):
    if version == "4" and "cell" in form:
        pytest.skip("version 4 has no cells")
    change = MAT_FORMS[form]
    content = layumi(query_f=change(QUERY), gallery_f=change(GALLERY))
    savemat(tmp_path / "f.mat", content, format=version, do_compression=packed)
    found = read_features(tmp_path / "f.mat")
    factor = 2 if form == "whole numbers" else 1
    assert np.array_equal(found.query.features, QUERY * factor)
    assert np.array_equal(found.gallery.features, GALLERY * factor)
    assert found.gallery.identities.tolist() == IDENTITIES["g_pids"]
    assert found.query.cameras.tolist() == CAMERAS["q_camids"]


@pytest.mark.parametrize(("version", "packed"), [("4", False), ("5", False), ("5", True)])
def test_mat_files_that_are_cut_are_one_line(tmp_path, version, packed):
    savemat(tmp_path / "f.mat", layumi(), format=version, do_compression=packed)
    whole = (tmp_path / "f.mat").read_bytes()
    for length in range(0, len(whole) - 200, 37):
        (tmp_path / "g.mat").write_bytes(whole[:length])
        with pytest.raises(InputError, match="features .*g.mat: ") as caught:
            read_features(tmp_path / "g.mat")
        assert "\n" not in str(caught.value)


def test_mat_files_with_damaged_compression_are_one_line(tmp_path):
    savemat(tmp_path / "f.mat", layumi(), do_compression=True)
    whole = (tmp_path / "f.mat").read_bytes()
    for place in range(150, 200, 7):
        (tmp_path / "g.mat").write_bytes(whole[:place] + bytes([whole[place] ^ 85]) + whole[place + 1 :])
        with pytest.raises(InputError, match="g.mat: (the MAT-file is damaged|there is no query)"):
            read_features(tmp_path / "g.mat")


def test_mat_4_of_the_other_byte_order(tmp_path):
    def array(name: str, values) -> bytes:
        matrix = np.atleast_2d(np.asarray(values, ">f8"))
        header = struct.pack(">5i", 1000, *matrix.shape, 0, len(name) + 1)
        return header + name.encode() + b"\0" + matrix.tobytes(order="F")

    (tmp_path / "f.mat").write_bytes(b"".join(array(name, values) for name, values in layumi().items()))
    assert np.array_equal(read_features(tmp_path / "f.mat").query.features, QUERY)


def legacy_tar(path: Path) -> Path:
    """The members of the files that PyTorch wrote in its first year."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps({"protocol_version": 1000}, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_forms_that_are_not_read_are_one_line_with_the_way_out(tmp_path):
    np.save(tmp_path / "one.npy", QUERY)
    (tmp_path / "seven.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    (tmp_path / "matlab.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(600))
    (tmp_path / "text.csv").write_text("1,2,3\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "page.pt").write_text("<html>sign in</html>")
    whole = zipfile.ZipFile(saved(tmp_path / "whole.pt", content()))
    with whole, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    np.savez(tmp_path / "objects.npz", **content(qf=QUERY, gf=GALLERY, q_pids=np.array([1, 2, "3", None], object)))
    lines = {
        legacy_tar(tmp_path / "tar.pt").name: "a tar archive, also the form of PyTorch's very first files: .*anew",
        "one.npy": "a numpy array: Parquet, a MAT-file of layumi's test.py, and .npz, .pt",
        "seven.mat": "an HDF5 file, also that of MATLAB's version 7.3: save it in another form: Parquet",
        "matlab.mat": "a MAT-file of version 7.3 .HDF5., which is not read: .*'-v7'",
        "text.csv": "a file that starts with b'1,2,3.n': Parquet",
        "empty.pt": "a file that starts with b'': Parquet",
        "page.pt": "an HTML or XML page: did the download fail",
        "packed.pt": "a compressed archive: PyTorch's .pt files are not compressed",
        "objects.npz": "the .npz cannot be read .q_pids: Python objects, a pickle whose code could do anything",
    }
    for name, line in lines.items():
        with pytest.raises(InputError, match=f"features .*{name}: {line}"):
            read_features(tmp_path / name)
