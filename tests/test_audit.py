"""The audit of published runs: it agrees with what is so, and notices what is not."""

import json
import os

import pandas as pd
import pytest

from study import audit, data, network, training

SHORT = training.Run(sample=True, steps=3, evaluate_every=3)


@pytest.fixture(scope="module")
def row():
    return training.train(training.Run(**vars(SHORT) | network.METHODS["LN"])).row()


def results(tmp_path, row):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"runs": [row, row]}))
    return path


def test_a_published_run_is_read_back(tmp_path, row):
    ((run, read),) = audit.published(results(tmp_path, row))
    assert run == training.Run(**vars(SHORT) | network.METHODS["LN"])
    assert read == row


def test_a_run_published_before_an_option_existed_is_read_back_too(tmp_path, row):
    older = {name: value for name, value in row.items() if name != "test_at_end"}
    ((run, _),) = audit.published(results(tmp_path, older))
    assert run == training.Run(**vars(SHORT) | network.METHODS["LN"])


@pytest.mark.parametrize(
    ("change", "code", "verdict"),
    [
        ({}, 0, audit.SAME),
        ({"weights_hash": "0"}, 0, audit.CLOSE),
        ({"weights_hash": "0", "final_accuracy": 0.99}, 1, audit.OTHER),
        ({"weights_hash": "0", "final_accuracy": "nan", "evaluate_every": None}, 0, audit.CLOSE),
        ({"weights_hash": "0", "final_accuracy": "nan", "final_training_loss": 0.1}, 1, audit.OTHER),
    ],
)
def test_an_audit_tells_the_same_from_the_other(change, code, verdict, tmp_path, row, capsys):
    with pytest.raises(SystemExit) as left:
        audit.main([str(results(tmp_path, row | change)), "--jobs", "1"])
    assert left.value.code == code
    assert capsys.readouterr().out.rstrip().endswith(verdict)


@pytest.mark.parametrize("others", [0, 1])
def test_runs_whose_data_cannot_be_had_are_left_out_and_told_of(others, tmp_path, row, capsys, monkeypatch):
    def load(name, sample):
        if not sample:
            raise data.DataError("no network")

    path = tmp_path / "results.json"
    path.write_text(json.dumps({"runs": [row | {"dataset": "mnist", "sample": False}] + others * [row]}))
    monkeypatch.setattr(training, "load", load)
    asked, verdicts = [], pd.DataFrame({"verdict": []})
    monkeypatch.setattr(audit, "audit", lambda chosen, jobs: asked.extend(chosen) or verdicts)
    with pytest.raises(SystemExit) as left:
        audit.main([str(path)])
    told = capsys.readouterr().out
    assert told.startswith(
        f"1 of {1 + others} published runs are left out, for want of their data.\nno network"
    )
    assert [run.dataset for run, _ in asked] == others * ["fashion_mnist"]
    assert left.value.code == (0 if others else 3)


def test_an_audit_trains_here_whatever_cluster_is_named(row, monkeypatch):
    monkeypatch.setenv("NORMLIB_CLUSTER", "tcp://nowhere:1")
    ((run, read),) = [(training.Run(**vars(SHORT) | network.METHODS["LN"]), row)]
    assert list(audit.audit([(run, read)], jobs=1).verdict) == [audit.SAME]
    assert os.environ["NORMLIB_CLUSTER"] == "tcp://nowhere:1"


@pytest.mark.parametrize("count", ["0", "-1", "some"])
def test_no_number_of_runs_but_a_positive_one_is_taken(count, tmp_path, row, capsys):
    with pytest.raises(SystemExit) as left:
        audit.main([str(results(tmp_path, row)), f"--runs={count}"])
    assert left.value.code == 2
    assert f"Received: '{count}'" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["{}", "[1]", "no JSON", '{"runs": [{"options": "1"}]}'])
def test_an_audit_of_another_file_is_refused(written, tmp_path, capsys):
    (tmp_path / "other.json").write_text(written)
    with pytest.raises(SystemExit) as left:
        audit.main([str(tmp_path / "other.json")])
    assert left.value.code == 2
    assert "Expected a results.json. Received: " in capsys.readouterr().err


def test_no_negative_number_of_jobs_is_taken(tmp_path, row):
    with pytest.raises(SystemExit) as left:
        audit.main([str(results(tmp_path, row)), "--jobs=-1"])
    assert left.value.code == 2


def test_an_audit_of_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit) as left:
        audit.main([str(tmp_path / "none.json")])
    assert left.value.code == 2
