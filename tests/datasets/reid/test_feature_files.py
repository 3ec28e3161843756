"""Files of features of three tools, damaged ones, and one that would run something."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import savemat

from datasets.reid.feature_files import FeatureSet, read_features, write_features
from passersby.errors import InputError


def arrays(count: int, seed: int, least: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    features = random.standard_normal((count, 6), dtype=np.float32)
    return features, random.integers(least, 5, count), random.integers(1, 7, count)


QUERY, GALLERY, MULTI = arrays(4, 0), arrays(9, 1, -1), arrays(7, 2)


def same(found: FeatureSet, expected: tuple) -> bool:
    assert (found.features.dtype, found.identities.dtype, found.cameras.dtype) == (np.float32, np.int64, np.int64)
    return all(
        np.array_equal(a, b) for a, b in zip((found.features, found.identities, found.cameras), expected, strict=True)
    )


def test_our_own_file_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.reid.feature_files.ROWS", 4)  # more than one piece
    sets = {
        "query": FeatureSet(*QUERY, tuple(f"q{i}.jpg" for i in range(4))),
        "gallery": FeatureSet(*GALLERY, tuple(f"g{i}.jpg" for i in range(9))),
        "multi-query": FeatureSet(MULTI[0], MULTI[1], np.full(7, -1), tuple("abcdefg")),
    }
    write_features(tmp_path / "features.parquet", sets, {"network": {"sha256": "12"}})
    found = read_features(tmp_path / "features.parquet")
    assert same(found.query, QUERY)
    assert same(found.gallery, GALLERY)
    assert same(found.multi_query, (MULTI[0], MULTI[1], np.full(7, -1)))
    assert found.gallery.names == sets["gallery"].names
    assert (found.gallery.has_cameras, found.multi_query.has_cameras) == (True, False)
    assert (found.kind, found.record) == ("passersby", {"network": {"sha256": "12"}})
    table = pq.read_table(tmp_path / "features.parquet")  # what any other reader sees
    assert table.column_names == ["split", "name", "identity", "camera", "feature"]
    assert table["camera"].null_count == 7
    assert table["feature"][0].as_py() == QUERY[0][0].tolist()


def test_junk_is_taken_out():
    kept = FeatureSet(*GALLERY, tuple("abcdefghi")).without_junk()
    places = np.flatnonzero(GALLERY[1] != -1)
    assert 0 < len(places) < 9
    assert same(kept, tuple(column[places] for column in GALLERY))
    assert kept.names == tuple("abcdefghi"[place] for place in places)


def layumi(folder: Path, **more) -> Path:
    """As layumi's test.py writes: features [N, D], labels and cameras as lists, which become [1, N]."""
    content = {"gallery_f": GALLERY[0], "gallery_label": GALLERY[1].tolist(), "gallery_cam": GALLERY[2].tolist()}
    content |= {"query_f": QUERY[0], "query_label": QUERY[1].tolist(), "query_cam": QUERY[2].tolist()}
    savemat(folder / "pytorch_result.mat", content | more)
    return folder / "pytorch_result.mat"


def test_layumis_result_with_multi_query_inside_or_beside(tmp_path):
    found = read_features(layumi(tmp_path))
    assert same(found.query, QUERY)
    assert same(found.gallery, GALLERY)
    assert (found.kind, found.multi_query, found.query.names) == ("layumi", None, ())
    multi = {"mquery_f": MULTI[0], "mquery_label": MULTI[1].tolist(), "mquery_cam": MULTI[2].tolist()}
    assert same(read_features(layumi(tmp_path, **multi)).multi_query, MULTI)
    layumi(tmp_path)
    savemat(tmp_path / "multi_query.mat", multi)
    assert same(read_features(tmp_path / "pytorch_result.mat").multi_query, MULTI)


@pytest.mark.parametrize("kind", ["npz", "tensors", "numpy", "lists"])
def test_torchreids_arrays(tmp_path, kind):
    path = tmp_path / f"features.{'npz' if kind == 'npz' else 'pt'}"
    content = {"qf": QUERY[0], "q_pids": QUERY[1], "q_camids": QUERY[2]}
    content |= {"gf": GALLERY[0], "g_pids": GALLERY[1], "g_camids": GALLERY[2]}
    if kind == "npz":
        np.savez(path, **content)
    else:
        convert = {"tensors": torch.as_tensor, "numpy": np.asarray, "lists": np.ndarray.tolist}[kind]
        features = {key: torch.as_tensor(content[key]) for key in ("qf", "gf")}  # torchreid keeps these as tensors
        torch.save({key: convert(value) for key, value in content.items()} | features, path)
    found = read_features(path)
    assert same(found.query, QUERY)
    assert same(found.gallery, GALLERY)
    assert found.kind == "torchreid"


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"qf": torch.ones(2, 2), "gf": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(InputError, match="bomb.pt: the .pt holds more than arrays and numbers"):
        read_features(tmp_path / "bomb.pt")
    np.savez(tmp_path / "bomb.npz", qf=np.ones((2, 2)), gf=np.array([Bomb()], object))
    with pytest.raises(InputError, match="bomb.npz: the .npz cannot be read"):
        read_features(tmp_path / "bomb.npz")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="bomb.pkl: a plain pickle, whose code could do anything, is not read: Pa"):
        read_features(tmp_path / "bomb.pkl")
    assert not (tmp_path / "ran").exists()


def npz(path: Path, **changes) -> Path:
    content = {"qf": QUERY[0], "q_pids": QUERY[1], "q_camids": QUERY[2]}
    content |= {"gf": GALLERY[0], "g_pids": GALLERY[1], "g_camids": GALLERY[2]}
    np.savez(path, **{key: value for key, value in (content | changes).items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gf": None}, "there is no gf in it .found: g_camids, g_pids"),
        ({"q_pids": None}, "there is no q_pids in it"),
        ({"q_pids": np.array(["a", "b", "c", "d"])}, "query identities are not whole numbers .<U1."),
        ({"g_pids": GALLERY[1][:-1]}, "9 gallery features, but 8 identities"),
        ({"q_camids": np.array([1.5, 1, 1, 1])}, "query cameras are not whole numbers"),
        ({"qf": QUERY[0].ravel()}, "qf is float32 .24,.: features are numbers"),
    ],
)
def test_incomplete_files_are_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=f"features .*f.npz: .*{message}"):
        read_features(npz(tmp_path / "f.npz", **changes))


def test_cameras_may_be_missing(tmp_path):
    found = read_features(npz(tmp_path / "f.npz", q_camids=None, g_camids=None))
    assert not found.query.has_cameras
    assert not found.gallery.has_cameras


def test_damaged_files_are_one_line(tmp_path):
    with pytest.raises(InputError, match="gone.mat: No such file"):
        read_features(tmp_path / "gone.mat")
    content = layumi(tmp_path).read_bytes()
    for length in (130, 200, 400):
        (tmp_path / "cut.mat").write_bytes(content[:length])
        with pytest.raises(InputError, match="cut.mat"):
            read_features(tmp_path / "cut.mat")
    (tmp_path / "seven.mat").write_bytes(b"MATLAB 7.3 MAT-file, made by a test".ljust(124) + b"\0\2IM" + bytes(600))
    with pytest.raises(InputError, match="seven.mat: .*(7.3|damaged)"):
        read_features(tmp_path / "seven.mat")
    (tmp_path / "cut.npz").write_bytes(npz(tmp_path / "f.npz").read_bytes()[:300])
    with pytest.raises(InputError, match="cut.npz: the file is damaged"):
        read_features(tmp_path / "cut.npz")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(InputError, match="cut.parquet: cannot be read"):
        read_features(tmp_path / "cut.parquet")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="other.npz: there is no qf and no gf in it"):
        read_features(tmp_path / "other.npz")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="list.pt: the .pt holds a list"):
        read_features(tmp_path / "list.pt")


def test_a_table_of_another_tool_is_checked(tmp_path):
    table = {"split": ["query", "gallery"], "name": ["a", "b"], "identity": [1, 1], "camera": [1, None]}
    pq.write_table(pa.table({**table, "feature": [[1.0, 2.0], [3.0, 4.0]]}), tmp_path / "t.parquet")
    found = read_features(tmp_path / "t.parquet")
    assert found.gallery.features.tolist() == [[3.0, 4.0]]
    assert found.gallery.cameras.tolist() == [-1]
    columns = {name: values for name, values in table.items() if name != "camera"}
    pq.write_table(pa.table({**columns, "feature": [[1.0, 2.0], [3.0, 4.0]]}), tmp_path / "t.parquet")
    assert not read_features(tmp_path / "t.parquet").query.has_cameras
    two = {name: values * 2 for name, values in table.items()}
    for changes, message in (
        ({**two, "feature": [[1.0], [1.0], [1.0, 2.0], [1.0]]}, "query features have lengths"),
        ({**two, "feature": [[1.0]] * 4}, "names of the query are not unique"),
        ({**table, "split": ["query", "train"], "feature": [[1.0]] * 2}, "a split 'train'"),
        ({**table, "split": ["query"] * 2, "name": ["a", "b"], "feature": [[1.0]] * 2}, "there is no gallery"),
        (table, "there is no feature in it"),
    ):
        pq.write_table(pa.table(changes), tmp_path / "bad.parquet")
        with pytest.raises(InputError, match=message):
            read_features(tmp_path / "bad.parquet")


@pytest.mark.parametrize("record", ["{", "[1]", '{"network": 3}'])
def test_a_record_that_is_not_ours_is_one_line(tmp_path, record):
    table = pa.table({"split": ["query", "gallery"], "name": ["a", "b"], "identity": [1, 1], "feature": [[1.0], [1.0]]})
    pq.write_table(table.replace_schema_metadata({"passersby_features": record}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="t.parquet: its record is n"):
        read_features(tmp_path / "t.parquet")
