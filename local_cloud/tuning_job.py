"""One tuning job at work: it asks its search, starts training jobs and takes in their results."""

import contextlib
import math
import queue
import threading
import time
import uuid
from os import cpu_count

from local_cloud import trials
from local_cloud.errors import ServiceError
from local_cloud.jobs import MAX_REASON, begin_stopping
from local_cloud.stopping import MedianRule, Progress
from local_cloud.store import now
from local_cloud.trials import TUNING_KIND as KIND
from local_cloud.tuning_request import hyperband_resources, job_limit, read_definitions
from local_cloud.warm_start import earlier_results

ATTEMPTS = 5  # Training jobs without any result after which the service gives a search up.


class Lane:
    """One training job definition of a tuning job, and the search over its ranges."""

    def __init__(self, definition, search, median_rule):
        self.definition, self.search, self.median_rule = definition, search, median_rule

    def lags(self, trial):
        """Whether a trial should be stopped after the last value that it has reported."""
        if self.median_rule is not None:
            return self.median_rule.lags(trial.values)
        return self.search.lags(trial.proposal, trial.values[-1], len(trial.values))


class Trial:
    """One training job of a search, while it runs.

    Attributes:
        values: of the objective, in the order in which the training job has reported them.
        attempt: 1, or more where an earlier training job of the same proposal was retried.
    """

    def __init__(self, name, lane, proposal, attempt):
        self.name, self.lane, self.proposal, self.attempt = name, lane, proposal, attempt
        self.values = []
        self.lagging = False


class TuningJob:
    """Runs the trials of one search, several at a time.

    Args:
        on_end: called when the tuning job's record says how it ended.
    """

    def __init__(self, store, training, name, region, on_end):
        self.store, self.training, self.name, self.region = store, training, name, region
        self.on_end = on_end
        record = store.get(KIND, name)
        self.arn = record[f"{KIND}Arn"]
        self.tags = store.tags(self.arn)
        self.config = record[f"{KIND}Config"]
        self.maximize = trials.is_maximized(record)
        self.progress = Progress(self.config.get("TuningJobCompletionCriteria", {}), self.maximize)
        definitions = read_definitions(record)
        limits = self.config["ResourceLimits"]
        self.limit = job_limit(self.config, definitions)
        self.parallel = min(limits["MaxParallelTrainingJobs"], self.limit)
        self.seconds = limits.get("MaxRuntimeInSeconds", math.inf)
        self.lanes = [self.make_lane(each, place) for place, each in enumerate(definitions)]
        self.running = {}
        self.retries = []
        self.entries = {}  # Summaries of the trials that have ended.
        self.proposed, self.started, self.told = 0, 0, 0
        self.ended = queue.Queue()
        self.stopping = threading.Event()
        self.lock = threading.Lock()  # A search that ends cannot begin to stop, nor the reverse.
        self.search_lock = threading.Lock()  # Trials report from threads of their own.
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    def make_lane(self, definition, place):
        """The search of one definition; each has random numbers of its own."""
        # Imported here: a quarter of the server's start would be Optuna, which most never use.
        from local_cloud.search import make_search

        resources = None
        if self.config["Strategy"] == "Hyperband":
            resources = hyperband_resources(self.config, definition)
        seed = self.config.get("RandomSeed")
        seed = None if seed is None else seed + place
        search = make_search(
            self.config, definition.ranges, self.maximize, seed, self.limit, resources
        )
        early = self.config["TrainingJobEarlyStoppingType"] == "Auto"
        return Lane(definition, search, MedianRule(self.maximize) if early else None)

    def start(self):
        self._thread.start()

    def stop(self):
        """Start no more trials and stop those that run.

        Raises:
            ServiceError: the tuning job has ended already.
        """
        with self.lock:
            begin_stopping(self.store, KIND, self.name)
            self.stopping.set()
        self.stop_trials()

    def stop_trials(self):
        for trial in list(self.running.values()):
            self.stop_trial(trial)

    def stop_trial(self, trial):
        with contextlib.suppress(ServiceError):  # It has ended already.
            self.training.stop({"TrainingJobName": trial.name}, self.region)

    def _run(self):
        try:
            reason = self.search()
        except Exception as error:  # A fault of ours must not leave the job in progress forever.
            reason = f"{trials.SERVICE_FAULT}: {type(error).__name__}: {error}"
            self.abandon()
        self.refresh()
        with self.lock:
            status = "Failed" if reason else "Completed"
            if self.stopping.is_set():
                status, reason = "Stopped", None
            fields = {f"{KIND}Status": status, "HyperParameterTuningEndTime": now()}
            if reason:
                fields["FailureReason"] = reason[:MAX_REASON]
            self.store.change(KIND, self.name, **fields)
        self.on_end()

    def search(self):
        """Ask, train and tell until the end; return why the search failed, or None."""
        until = time.monotonic() + self.seconds
        for texts, value in earlier_results(self.store, self.store.get(KIND, self.name)):
            self.lanes[0].search.learn(texts, value)
        while True:
            while self.has_room() and not self.is_over(until):
                if not self.start_next():
                    break
            if not self.running:
                return self.failure()
            self.take_in(self.next_ended(until))
            if self.is_over(until):
                self.stop_trials()

    def has_room(self):
        """Whether another training job may start beside those that run."""
        left = self.retries or self.proposed < self.limit
        return left and len(self.running) < self.parallel

    def is_over(self, until):
        """Whether the search starts nothing more, whatever its limit on training jobs."""
        return (
            self.stopping.is_set()
            or time.monotonic() > until
            or self.progress.is_enough()
            or self.is_hopeless()
        )

    def is_hopeless(self):
        """Whether so many trials gave nothing, and none a result, that more would not, too."""
        return self.told >= ATTEMPTS and not self.has_result()

    def has_result(self):
        return any(entry["ObjectiveStatus"] == "Succeeded" for entry in self.entries.values())

    def start_next(self):
        """Start a trial; False where the search has none left to propose."""
        if self.retries:
            failed = self.retries.pop()
            self.launch(failed.lane, failed.proposal, failed.attempt + 1)
            return True
        for offset in range(len(self.lanes)):
            lane = self.lanes[(self.proposed + offset) % len(self.lanes)]
            with self.search_lock:
                proposal = lane.search.ask()
            if proposal is not None:
                self.proposed += 1
                self.launch(lane, proposal, attempt=1)
                return True
        self.limit = self.proposed
        return False

    def launch(self, lane, proposal, attempt):
        """Start the training job of one proposal; its end puts it on the queue."""
        self.started += 1
        name = f"{self.name}-{self.started:03d}-{uuid.uuid4().hex[:8]}"
        trial = Trial(name, lane, proposal, attempt)
        request = {"TrainingJobName": name, **lane.definition.training_request(proposal.tuned)}
        if self.tags:
            request["Tags"] = self.tags
        cpus = max(1, (cpu_count() or 1) // self.parallel)

        def on_metric(metric, value):
            self.take_value(trial, metric, value)

        self.training.create(
            request, self.region, tuning_job_arn=self.arn, cpus=cpus, on_metric=on_metric
        )
        job = self.training.jobs.get(name)
        self.running[name] = trial

        def wait():
            if job is not None:
                job.join()
            self.ended.put(trial)

        threading.Thread(target=wait, daemon=True, name=name).start()
        if self.stopping.is_set():  # Since the loop looked; `stop` did not know this trial yet.
            self.stop_trial(trial)
        trials.add(self.store, self.name, name, proposal.tuned, lane.definition)
        self.refresh()

    def abandon(self):
        """Stop the trials that run and wait for their ends, without looking at their results."""
        self.stop_trials()
        while self.running:
            trial = self.ended.get()
            trials.keep(self.store, trial.name)
            del self.running[trial.name]

    def next_ended(self, until):
        """The next trial that ends; when the time is over, all that run are stopped."""
        if until < math.inf:
            with contextlib.suppress(queue.Empty):
                return self.ended.get(timeout=max(0, until - time.monotonic()))
            self.stop_trials()
        return self.ended.get()

    def take_value(self, trial, metric, value):
        """Take in a value that a running trial reports; stop the trial if it lags behind."""
        objective = trial.lane.definition.objective["MetricName"]
        if metric != objective or not math.isfinite(value) or trial.lagging:
            return
        with self.search_lock:
            trial.values.append(value)
            trial.lagging = trial.lane.lags(trial)
        if trial.lagging:
            self.stop_trial(trial)

    def take_in(self, trial):
        """Give the result of an ended trial to the search, or have the trial done again."""
        del self.running[trial.name]
        trials.keep(self.store, trial.name)
        entry = trials.summary(self.store, trial.name)
        self.entries[trial.name] = entry
        retried = trial.attempt < trial.lane.definition.attempts and trials.is_service_fault(entry)
        if retried:
            self.retries.append(trial)
        else:
            self.tell(trial, entry)
        self.refresh()

    def tell(self, trial, entry):
        """Let the search, the completion criteria and early stopping know a result."""
        self.told += 1
        value = trials.value_of(entry) if entry["ObjectiveStatus"] == "Succeeded" else None
        if value is not None:
            self.progress.add(value)
        with self.search_lock:
            trial.lane.search.tell(trial.proposal, value)
            if trial.lane.median_rule is not None and entry["TrainingJobStatus"] == "Completed":
                trial.lane.median_rule.add(trial.values)

    def failure(self):
        """Why a search that has ended found nothing; None where it found something."""
        if not self.entries or self.has_result():
            return None
        last = list(self.entries.values())[-1]
        if last["TrainingJobStatus"] == "Completed":
            metric = self.lanes[0].definition.objective["MetricName"]
            return (
                f"No objective metrics found after running {len(self.entries)} training jobs. "
                "Please ensure that the custom algorithm is emitting the objective metric "
                f"{metric!r} as defined by the regular expression provided."
            )
        return (
            f"No training job succeeded after {len(self.entries)} attempts. Please take a look at "
            "the training job failures to get more details. The last one: "
            + last.get("FailureReason", "see its log.")
        )

    def refresh(self):
        """Bring counters and best training job of the record up to date."""
        record = self.store.get(KIND, self.name)
        entries = [
            self.entries.get(name) or trials.summary(self.store, name)
            for name in record[trials.NAMES]
        ]
        fields = trials.overview_of(self.store, record, entries)
        self.store.change(
            KIND, self.name, TuningJobCompletionDetails=self.progress.details(), **fields
        )
