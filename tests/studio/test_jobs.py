import re

import pandas as pd
import pytest
from tiny_jobs import (
    put,
    start_endpoint,
    start_processing,
    start_training,
    start_tuning,
    tar_gz,
)

from studio import jobs
from studio.jobs import JobFailed, follow, follow_tuning

EVERYTHING = re.compile("")


@pytest.fixture
def second_of(capsys):
    """The second at which `follow` printed the line with these words."""
    printed = []

    def look(words):
        printed.append(capsys.readouterr().out)
        (second,) = re.findall(rf"^\[ *(\d+) s\] +{words}$", "".join(printed), re.MULTILINE)
        return int(second)

    return look


def test_log_lines_are_shown_when_they_are_printed(cloud, second_of):
    script = "echo epoch=1 first; echo chatter of a library; sleep 3; echo epoch=2 second"
    job = follow(cloud, start_training(cloud, "two-lines", script))
    assert job["TrainingJobStatus"] == "Completed"
    assert second_of("epoch=2 second") - second_of("epoch=1 first") >= 2
    assert second_of("Training") <= second_of("epoch=1 first")
    with pytest.raises(ValueError, match="not enough values"):
        second_of("chatter of a library")


def test_every_line_is_shown_once_if_asked_for(cloud, capsys):
    script = "for i in $(seq 2500); do echo line $i of many; done"
    follow(cloud, start_training(cloud, "many-lines", script), show=EVERYTHING)
    numbers = re.findall(r"line (\d+) of many", capsys.readouterr().out)
    assert numbers == [str(i + 1) for i in range(2500)]


def test_a_failed_job_raises_its_reason_after_its_lines(cloud, capsys):
    name = start_training(cloud, "fails", "echo error: no pictures in train; exit 3")
    with pytest.raises(JobFailed, match=rf"{name}: .*no pictures in train.*exit code: 3"):
        follow(cloud, name)
    assert "error: no pictures in train" in capsys.readouterr().out


def test_a_stopped_job_is_returned_as_such(cloud):
    name = start_training(cloud, "stopped", "sleep 60")
    cloud.client("sagemaker").stop_training_job(TrainingJobName=name)
    assert follow(cloud, name)["TrainingJobStatus"] == "Stopped"


def test_a_job_whose_time_is_up_is_no_success(cloud):
    limit = {"MaxRuntimeInSeconds": 1}
    name = start_training(cloud, "too-long", "sleep 60", StoppingCondition=limit)
    with pytest.raises(JobFailed, match=f"{name}: MaxRuntimeExceeded"):
        follow(cloud, name)


def test_a_processing_job_is_followed_the_same_way(cloud, capsys):
    name = start_processing(cloud, "processing", "echo accuracy=0.5")
    job = follow(cloud, name, kind="ProcessingJob")
    assert job["ProcessingJobStatus"] == "Completed"
    assert "accuracy=0.5" in capsys.readouterr().out


def test_a_search_is_followed_trial_by_trial(cloud, capsys):
    table = follow_tuning(cloud, start_tuning(cloud, "search", limit=1, trials=3))
    assert list(table["number"]) == [1, 2, 3]
    assert set(table["status"]) == {"Completed"}
    assert table["objective"].tolist() == pytest.approx(table["lr"].tolist())
    assert set(table["kind"]) <= {"a", "b"}
    assert (table["seconds"] > 0).all()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for row in table.to_dict("records"):
        words = rf"trial {row['number']}: completed, {row['objective']:.4f} \(lr .*, kind [ab]\)"
        assert sum(bool(re.search(words, line)) for line in lines) == 1


def test_a_search_whose_trials_all_fail_says_so(cloud, capsys):
    name = start_tuning(cloud, "diverges", limit=0, trials=1)
    with pytest.raises(JobFailed, match=name):
        follow_tuning(cloud, name)
    printed = capsys.readouterr().out
    assert "trial 1: failed (" in printed
    assert "nan" not in printed


def test_the_metrics_of_trials_become_columns(cloud):
    table = follow_tuning(cloud, start_tuning(cloud, "metrics", limit=1, trials=2))
    found = jobs.with_metrics(cloud, table)
    assert found["score"].tolist() == pytest.approx(table["objective"].tolist())
    assert list(found.columns) == [*table.columns, "score"]
    # A metric that is called as a column of the table.
    renamed = jobs.with_metrics(cloud, table.rename(columns={"lr": "score"}))
    assert renamed["score_metric"].tolist() == found["score"].tolist()


def test_what_a_job_leaves_in_s3_while_it_runs_is_waited_for(cloud):
    config = {"S3Uri": cloud.s3_uri("checkpoints-live"), "LocalPath": "/opt/ml/checkpoints"}
    script = "sleep 1; echo 1 > /opt/ml/checkpoints/first; echo half-way; sleep 30"
    name = start_training(cloud, "saves", script, CheckpointConfig=config)
    keys = jobs.wait_for_objects(cloud, config["S3Uri"], name)
    assert [key.rpartition("/")[2] for key in keys] == ["first"]
    assert jobs.log_lines(cloud, name) == ["half-way"]
    cloud.client("sagemaker").stop_training_job(TrainingJobName=name)
    job = follow(cloud, name)
    table = jobs.phases(job)
    assert table["phase"].tolist()[:3] == ["Starting", "Downloading", "Training"]
    assert table.set_index("phase")["seconds"]["Training"] >= 1


def test_a_job_that_ends_without_leaving_anything_is_not_waited_for(cloud):
    name = start_training(cloud, "saves-nothing", "true")
    with pytest.raises(JobFailed, match="left nothing"):
        jobs.wait_for_objects(cloud, cloud.s3_uri("nothing"), name)


def test_an_endpoint_that_cannot_start_raises_its_reason(cloud):
    name = start_endpoint(cloud, "broken", put(cloud, "broken.tar.gz", b"this is no archive"))
    with pytest.raises(JobFailed, match=rf"{name}: .+"):
        jobs.wait_for_endpoint(cloud, name)


@pytest.mark.parametrize("last", ["InService", "UpdateRollbackFailed", "OutOfService"])
def test_an_update_that_was_rolled_back_or_ended_otherwise_is_no_success(last):
    """What only AWS does: the statuses of an endpoint there, one after the other."""
    statuses = iter(["Updating", "RollingBack", last])

    class Cloud:
        is_local = True

        def client(self, service):
            return self

        def describe_endpoint(self, EndpointName):
            return {"EndpointStatus": next(statuses)}

    with pytest.raises(JobFailed, match=f"mine: {last} after its update was rolled back"):
        jobs.wait_for_endpoint(Cloud(), "mine")


def test_an_archive_is_read_without_being_unpacked(cloud):
    package = {"code/vision/a.py": b"1", "code/vision/b/c.py": b"12"}
    files = {"model.json": b"{}", "code/inference.py": b"pass\n", **package}
    uri = put(cloud, "model.tar.gz", tar_gz(files))
    assert jobs.list_archive(cloud, uri) == [
        ("model.json", 2),
        ("code/inference.py", 5),
        ("code/vision/ (2 files)", 3),
    ]
    assert jobs.read_from_archive(cloud, uri, "code/inference.py") == b"pass\n"
    with pytest.raises(KeyError, match=r"weights\.pth"):
        jobs.read_from_archive(cloud, uri, "weights.pth")


def test_a_folder_of_s3_is_downloaded_as_it_is(cloud, tmp_path):
    put(cloud, "report/evaluation.json", b"{}")
    put(cloud, "report/pictures/matrix.png", b"png")
    folder = jobs.download(cloud, cloud.s3_uri("report"), tmp_path)
    assert (folder / "evaluation.json").read_bytes() == b"{}"
    assert (folder / "pictures" / "matrix.png").read_bytes() == b"png"


def test_the_history_is_the_table_that_the_job_wrote(cloud):
    write = "printf 'epoch,valid_accuracy\\n1,0.5\\n2,0.75\\n' > /opt/ml/output/data/history.csv"
    job = follow(cloud, start_training(cloud, "history", write))
    expected = pd.DataFrame({"epoch": [1, 2], "valid_accuracy": [0.5, 0.75]})
    pd.testing.assert_frame_equal(jobs.history(cloud, job), expected)


def test_the_staged_source_is_what_a_job_needs_and_nothing_else(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "left-over.py").write_text("")
    assert jobs.stage_source(folder) == str(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"train_model.py", "hpo.py", "evaluate.py", "inference.py", "vision"} <= names
    others = names - set(jobs.SOURCE)
    assert others
    assert all(re.fullmatch(r"requirements(-\w+)?\.txt", name) for name in others)
    everything = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    assert [path for path in everything if "__pycache__" in path or "/." in path] == []
    assert "vision/training.py" in everything
