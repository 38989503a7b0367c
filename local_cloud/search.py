"""Search strategies: which hyperparameters the next training job tries.

`Bayesian` is Optuna's tree-structured Parzen estimator (Bergstra et al., "Algorithms for
Hyper-Parameter Optimization", NIPS 2011), where AWS uses Gaussian processes: the trials differ, the
contract does not. `Random` draws every value independently of all results. `Hyperband` (Li et al.,
JMLR 18, 2018) draws at random, too, and stops a trial when it is not among the best third of those
that got as far (asynchronously: Li et al., "A System for Massively Parallel Hyperparameter
Tuning", MLSys 2020). `Grid` goes through all combinations.
"""

import itertools
import math
import random
import warnings
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from local_cloud.ranges import combinations

REDUCTION = 3  # Hyperband's eta, by the paper's advice: the best third goes on.
COUNTABLE = 10_000  # Combinations up to which none is tried twice; of more, repeats are rare.
DRAWS = 20  # Of the sampler, before one of the untried combinations is taken at random.
MAX_SEED = 2**32  # Of NumPy's generators.

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass
class Proposal:
    """Hyperparameters to try: name to text, and what the strategy remembers them by."""

    tuned: dict
    trial: object = None


class GridSearch:
    """Every combination of categorical values once, the last hyperparameter changing fastest."""

    def __init__(self, ranges):
        names = [each.name for each in ranges]
        self._left = (dict(zip(names, row)) for row in itertools.product(*map(values_of, ranges)))

    def ask(self):
        """The next combination; None after the last."""
        tuned = next(self._left, None)
        return Proposal(tuned) if tuned is not None else None

    def tell(self, proposal, value):
        """Results do not change what a grid tries next."""

    def learn(self, texts, value):
        """Nor do results of earlier searches."""

    def lags(self, proposal, value, step):
        return False


class OptunaSearch:
    """A search by one of Optuna's samplers.

    Args:
        strategy: `Bayesian`, `Random` or `Hyperband`.
        ranges: the tuned hyperparameters.
        maximize: whether larger objectives are better.
        seed: the same seed proposes the same values. Those of `Bayesian` also depend on the results
            that have come in, thus with parallel training jobs on the order in which these end.
        jobs: how many training jobs the search may take.
        resources: (MinResource, MaxResource) of `Hyperband`.
    """

    def __init__(self, strategy, ranges, maximize, seed, jobs, resources=None):
        self.ranges = ranges
        self.space = {each.name: each.distribution for each in ranges}
        self.countable = combinations(ranges) <= COUNTABLE
        self.tried = set()
        self.max_resource = resources[1] if resources else math.inf
        seed = None if seed is None else seed % MAX_SEED
        self.random = random.Random(seed)  # noqa: S311 - it draws samples, not secrets.
        self.study = optuna.create_study(
            sampler=make_sampler(strategy, seed, jobs),
            pruner=optuna.pruners.HyperbandPruner(*resources, reduction_factor=REDUCTION)
            if resources
            else optuna.pruners.NopPruner(),
            direction="maximize" if maximize else "minimize",
            # Optuna assigns brackets by this name and the number of the trial.
            study_name="search",
        )

    def ask(self):
        """The next proposal; None when every combination has been tried."""
        for _ in range(DRAWS):
            proposal = self.draw()
            if proposal is not None:
                return proposal
        untried = self.untried()
        if not untried:
            return None
        self.study.enqueue_trial(self.random.choice(untried))
        return self.draw()

    def draw(self):
        """What the sampler proposes; None where that has been tried."""
        trial = self.study.ask(self.space)
        tuned = {each.name: each.text(trial.params[each.name]) for each in self.ranges}
        if self.countable and key_of(tuned) in self.tried:
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        self.tried.add(key_of(tuned))
        return Proposal(tuned, trial)

    def tell(self, proposal, value):
        """Take in the objective of a proposal; None where the training job gave none."""
        if value is None:
            self.study.tell(proposal.trial, state=TrialState.FAIL)
        else:
            self.study.tell(proposal.trial, value)

    def learn(self, texts, value):
        """Take in a result of an earlier search; one outside the present ranges teaches nothing."""
        params = {each.name: each.searched(texts.get(each.name, "")) for each in self.ranges}
        if None not in params.values():
            self.study.add_trial(
                optuna.trial.create_trial(params=params, distributions=self.space, value=value)
            )

    def lags(self, proposal, value, step):
        """Whether a trial should be stopped that reported `value` as its `step`-th, from 1.

        One that reports MaxResource values is about to end by itself, with its model saved; it is
        stopped when it goes on.
        """
        if step >= self.max_resource:
            return step > self.max_resource
        proposal.trial.report(value, step)
        return proposal.trial.should_prune()

    def untried(self):
        rows = itertools.product(*map(values_of, self.ranges))
        return [
            dict(zip(self.space, row)) for row in rows if tuple(map(str, row)) not in self.tried
        ]


def make_search(config, ranges, maximize, seed, jobs, resources):
    """The search of one training job definition by a tuning job's configuration."""
    strategy = config["Strategy"]
    if strategy == "Grid":
        return GridSearch(ranges)
    return OptunaSearch(strategy, ranges, maximize, seed, jobs, resources)


def make_sampler(strategy, seed, jobs):
    if strategy != "Bayesian":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            # A third of a short search to look around, Optuna's usual ten of a long one.
            n_startup_trials=min(10, max(2, jobs // 3)),
            multivariate=True,
            constant_liar=True,  # Parallel trials keep away from each other.
        )


def values_of(one_range):
    return one_range.values()


def key_of(tuned):
    return tuple(tuned.values())
