"""When to stop: a training job early, or the whole search.

https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-early-stopping.html
https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-progress.html
"""

from statistics import fmean, median

from local_cloud.store import now

SIGNIFICANT = 0.01  # Of the best objective: what the service calls an improvement.
PATIENCE = 10  # Training jobs without improvement before a search can have converged.


class MedianRule:
    """Early stopping `Auto`, as AWS describes it.

    After each epoch, that is, each reported value of the objective: a training job is stopped when
    its value is worse than the median of the running averages, up to the same epoch, of the
    training jobs that completed before. (The median stopping rule of Golovin et al., "Google
    Vizier", KDD 2017.)
    """

    def __init__(self, maximize):
        self.maximize = maximize
        self.completed = []

    def add(self, values):
        """Take in all values that a completed training job reported."""
        self.completed.append(list(values))

    def lags(self, values):
        """Whether the training job that has reported `values` so far should be stopped."""
        epoch = len(values)
        averages = [fmean(past[:epoch]) for past in self.completed if len(past) >= epoch]
        if not averages:
            return False
        return better(median(averages), values[-1], self.maximize)


class Progress:
    """How the best objective develops, and whether a completion criterion is met.

    Args:
        criteria: the request's `TuningJobCompletionCriteria`.
        maximize: whether larger objectives are better.
    """

    def __init__(self, criteria, maximize):
        self.target = criteria.get("TargetObjectiveMetricValue")
        patience = criteria.get("BestObjectiveNotImproving", {})
        self.patience = patience.get("MaxNumberOfTrainingJobsNotImproving")
        convergence = criteria.get("ConvergenceDetected", {})
        self.ends_converged = convergence.get("CompleteOnConvergence") == "Enabled"
        self.maximize = maximize
        self.best = None
        self.count = 0
        self.not_improving = 0
        self.converged_at = None

    def add(self, value):
        """Take in the objective of a training job that ended."""
        self.count += 1
        self.not_improving = 0 if self.improves(value) else self.not_improving + 1
        if self.best is None or better(value, self.best, self.maximize):
            self.best = value
        # AWS does not say how it detects convergence. Here: neither the last ten training jobs nor
        # the last half of all has improved the objective by 1%.
        stale = self.not_improving >= max(PATIENCE, self.count / 2)
        if stale and self.converged_at is None:
            self.converged_at = now()

    def improves(self, value):
        """Whether `value` is at least 1% better than the best so far."""
        if self.best is None:
            return True
        gain = value - self.best if self.maximize else self.best - value
        return gain > 0 and gain >= SIGNIFICANT * abs(self.best)

    def is_enough(self):
        """Whether a completion criterion is met."""
        if self.best is None:
            return False
        if self.target is not None and not better(self.target, self.best, self.maximize):
            return True
        if self.patience is not None and self.not_improving >= self.patience:
            return True
        return self.ends_converged and self.converged_at is not None

    def details(self):
        """`TuningJobCompletionDetails` of the description."""
        details = {"NumberOfTrainingJobsObjectiveNotImproving": self.not_improving}
        if self.converged_at is not None:
            details["ConvergenceDetectedTime"] = self.converged_at
        return details


def better(first, second, maximize):
    return first > second if maximize else first < second
