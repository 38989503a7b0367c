"""The tuning service by itself: after a restart, over time, after faults, without leaks.

It runs in the process of the tests, its training jobs as child processes as ever, with the S3 and
the logs of the running cloud.
"""

import dataclasses
import os
import threading
import time

import pytest
from harness import FINAL, until
from tuning_harness import RATE, levels, request, score, statuses

from local_cloud import DEFAULT_REGION
from local_cloud.aws import LocalAws
from local_cloud.disk import Disk
from local_cloud.errors import ServiceError
from local_cloud.instance import Instance
from local_cloud.store import Store
from local_cloud.training import Training
from local_cloud.tuning import Tuning

REGION = DEFAULT_REGION
KIND = "HyperParameterTuningJob"
ONE_RATE = {"ContinuousParameterRanges": [RATE]}


class RemoteAws(LocalAws):
    """Reads objects through the S3 API: here the server's memory is out of reach."""

    def _download_object(self, bucket, key, target):
        self.s3.download_file(bucket, key, str(target))


class Service:
    """A tuning service of `store`."""

    def __init__(self, cloud, folder, store):
        instance = dataclasses.replace(Instance(**cloud.server), work_folder=str(folder))
        self.cloud, self.store = cloud, store
        aws = RemoteAws(instance)
        self.training = Training(self.store, aws)
        self.tuning = Tuning(self.store, aws, self.training)

    def start(self, sent=None, **arguments):
        sent = sent or request(self.cloud, ranges=ONE_RATE, **arguments)
        self.call("Create", **sent)
        return sent[f"{KIND}Name"]

    def call(self, verb, **params):
        return self.tuning.operations[f"{verb}{KIND}"](params, REGION)

    def describe(self, name):
        return self.call("Describe", **{f"{KIND}Name": name})

    def wait(self, name):
        until(lambda: self.describe(name)[f"{KIND}Status"] in FINAL)
        until(lambda: name not in self.tuning.jobs)
        return self.describe(name)

    def trials(self, name, **params):
        operation = self.tuning.operations[f"ListTrainingJobsFor{KIND}"]
        return operation({f"{KIND}Name": name, **params}, REGION)["TrainingJobSummaries"]

    def restarted(self, folder):
        """A new service that knows only what the disk kept of this one."""
        service = Service(self.cloud, folder, Store(Disk(folder)))
        service.tuning.recover()
        return service


@pytest.fixture
def service(cloud, tmp_path):
    return Service(cloud, tmp_path, Store(Disk(tmp_path)))


def test_after_a_restart_a_finished_search_answers_as_before(service, tmp_path):
    name = service.start(jobs=2)
    before = service.wait(name), service.trials(name)
    restarted = service.restarted(tmp_path)
    assert (restarted.describe(name), restarted.trials(name)) == before
    with pytest.raises(ServiceError, match="status Completed") as refused:
        restarted.call("Stop", **{f"{KIND}Name": name})
    assert refused.value.code == "ValidationException"

    sent = request(service.cloud, ranges=ONE_RATE, script="print('score=1e9')", jobs=2)
    sent["WarmStartConfig"] = {
        "ParentHyperParameterTuningJobs": [{f"{KIND}Name": name}],
        "WarmStartType": "IdenticalDataAndAlgorithm",
    }
    child = restarted.wait(restarted.start(sent))
    assert child["OverallBestTrainingJob"]["TuningJobName"] == name

    restarted.call("Delete", **{f"{KIND}Name": name})
    with pytest.raises(ServiceError, match="can't find"):
        restarted.describe(name)
    assert restarted.store.all("TuningTrial") == [
        restarted.store.get("TuningTrial", trial["TrainingJobName"])
        for trial in restarted.trials(child[f"{KIND}Name"])
    ]


def test_after_a_restart_an_unfinished_search_has_failed_with_what_it_found(service, tmp_path):
    # The state that a server leaves that was killed between two trials.
    name = service.start(jobs=2)
    service.wait(name)
    service.store.edit(KIND, name, unfinished)
    restarted = service.restarted(tmp_path)
    description = restarted.describe(name)
    assert description[f"{KIND}Status"] == "Failed"
    assert description["FailureReason"].startswith("InternalServerError: the local cloud ended")
    assert description["TrainingJobStatusCounters"]["Completed"] == 2
    best = min(score(trial) for trial in restarted.trials(name))
    assert score(description["BestTrainingJob"]) == best
    restarted.call("Delete", **{f"{KIND}Name": name})


def unfinished(record):
    record[f"{KIND}Status"] = "InProgress"
    for field in ("HyperParameterTuningEndTime", "BestTrainingJob"):
        del record[field]


def test_a_search_ends_with_its_time_and_keeps_its_best(service):
    script = levels(0.5, 0.2) + "time.sleep(30 if number == 2 else 0)\n"
    sent = request(service.cloud, ranges=ONE_RATE, script=script, jobs=None, parallel=1)
    # The service takes 120 seconds and more; that is too long for a test.
    sent[f"{KIND}Config"]["ResourceLimits"]["MaxRuntimeInSeconds"] = 4
    began = time.monotonic()
    name = service.start(sent)
    description = service.wait(name)
    assert time.monotonic() - began < 20
    assert description[f"{KIND}Status"] == "Completed"
    assert statuses(service.trials(name)) == ["Completed", "Stopped"]
    assert score(description["BestTrainingJob"]) in (0.5, 0.2)


class FaultyStore(Store):
    """Fails the first change of each of the first training jobs, as a full disk might."""

    def __init__(self, disk, faults):
        super().__init__(disk)
        self.faults, self.met = faults, set()

    def edit(self, kind, name, function):
        if kind == "TrainingJob" and name not in self.met and len(self.met) < self.faults:
            self.met.add(name)
            raise RuntimeError("no answer")
        super().edit(kind, name, function)


@pytest.mark.parametrize(
    ("attempts", "faults", "status"),
    [
        pytest.param(6, 6, "Completed", id="overcome"),
        pytest.param(2, 3, "Failed", id="given-up"),
    ],
)
def test_faults_of_the_service_are_retried_as_often_as_asked(
    cloud, tmp_path, attempts, faults, status
):
    service = Service(cloud, tmp_path, FaultyStore(Disk(tmp_path), faults))
    sent = request(cloud, ranges=ONE_RATE, jobs=1, parallel=1)
    sent["TrainingJobDefinition"]["RetryStrategy"] = {"MaximumRetryAttempts": attempts}
    description = service.wait(service.start(sent))
    assert description[f"{KIND}Status"] == status
    counters = description["TrainingJobStatusCounters"]
    assert counters["RetryableError"] == faults
    assert counters["NonRetryableError"] == 0
    assert counters["Completed"] == attempts + 1 - faults
    found = service.trials(description[f"{KIND}Name"])
    assert len({trial["TunedHyperParameters"]["rate"] for trial in found}) == 1


def test_a_failed_script_is_not_retried(service):
    script = "raise SystemExit('always')"
    sent = request(service.cloud, ranges=ONE_RATE, script=script, jobs=1, parallel=1)
    sent["TrainingJobDefinition"]["RetryStrategy"] = {"MaximumRetryAttempts": 2}
    description = service.wait(service.start(sent))
    assert description["TrainingJobStatusCounters"]["NonRetryableError"] == 1


def test_finished_searches_leave_no_thread_and_no_file_open(service):
    service.wait(service.start(jobs=2))  # Opens the connections that later ones use again.
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        service.wait(service.start(jobs=3))
    until(lambda: threading.active_count() <= threads)
    # A few more connections may have been open at once; nine training jobs left none each.
    assert len(os.listdir("/proc/self/fd")) < files + 5
    assert service.tuning.jobs == {}


class FullStore(Store):
    """Refuses the second trial's record, as a full disk does."""

    def add(self, kind, name, record, tags=None):
        if kind == "TuningTrial" and self.all(kind):
            raise RuntimeError("no space left")
        super().add(kind, name, record, tags)


def test_a_fault_of_the_search_itself_ends_it_and_its_trials(cloud, tmp_path):
    service = Service(cloud, tmp_path, FullStore(Disk(tmp_path)))
    description = service.wait(service.start(script="import time; time.sleep(30)", jobs=2))
    assert description[f"{KIND}Status"] == "Failed"
    assert description["FailureReason"] == "InternalServerError: RuntimeError: no space left"
    assert statuses(service.store.all("TrainingJob")) == ["Stopped", "Stopped"]
    assert description["TrainingJobStatusCounters"]["InProgress"] == 0
