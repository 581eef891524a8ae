"""What is known of the tasks that failed on a device, and what follows from it."""

from __future__ import annotations

import math

from asyncinfer.errors import InputError

__all__ = ("FIRST_PAUSE", "IN_A_ROW", "Record", "likely_worse")

#: share of its tasks that a device may fail by its own fault and be worth having: the rest of them
#: it does, and what it fails is run elsewhere, in batches
TOLERATED = 0.25
#: a device is distrusted once it is so probable that its share is larger
SURE = 0.99
#: failures without a result between them after which a device is held back: if nothing else is
#: known of it, the same is as probable then, should they prove its fault (see ``likely_worse``)
IN_A_ROW = 3
#: so many in a row, one of them proved, are its fault whatever it has done before: of a device that
#: fails a quarter, not one task in a thousand is the first of such a row
BROKEN = 5
#: results and faults that are remembered; with more, all counts are halved
WINDOW = 256
#: a device is believed that an input is bad once so many in a row of which it said so failed
#: elsewhere as well; after each that did not, twice as many are needed
CONFIRMED = 3
#: of those that are believed then, one in so many is looked at elsewhere nevertheless: those whose
#: multiple of the golden ratio has the smallest fractions, which are as many of any regular ones
LOOK_AGAIN, GOLDEN = 8, (math.sqrt(5) - 1) / 2
#: seconds until a device that is held back is given its first task on trial; each trial that fails
#: doubles the pause
FIRST_PAUSE = 0.1


def likely_worse(faults: int, results: int) -> float:
    """How probable it is that a device's share of faults is above ``TOLERATED``.

    That is what follows from ``faults`` and ``results`` if nothing was known before: a uniform
    prior, whose posterior is the distribution Beta(faults + 1, results + 1) (Bayes 1763; Gelman et
    al., Bayesian Data Analysis, 3rd ed., section 2.1). Its tail is a sum of binomial terms, since
    the k-th smallest of n uniform numbers has a Beta distribution. Three faults and no result give
    0.996.
    """
    n, p = faults + results + 1, TOLERATED
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(faults + 1))


class Record:
    """What is known of one device's failures.

    A failure is a *fault* of the device if the task had a result after all, and the task's *own*
    if it failed on another device too. Which of the two is known once the task has ended.
    """

    __slots__ = (
        "_believable",
        "_confirmed",
        "_lost_by",
        "_mixed",
        "_needed",
        "_refused",
        "_suspects",
        "answered",
        "distrusted",
        "faults",
        "in_a_row",
        "own",
        "pause",
        "results",
        "spotless",
        "total_faults",
        "trial_at",
        "uncleared",
        "well_in_a_row",
    )

    def __init__(self) -> None:
        #: whether it has brought a result
        self.answered = False
        #: whether its results need not be counted, as there is nothing against it
        self.spotless = False
        #: failures since its last result, but for those known to be the tasks' own
        self.in_a_row = 0
        #: results of the device, recent faults, failures that were the tasks' own, and failures
        #: that ended a task, so that nobody will ever know
        self.results = self.faults = self.own = self.uncleared = 0.0
        #: faults since it was added
        self.total_faults = 0
        #: by what it was lost last, and how many of the tasks have not worked elsewhere since
        self._lost_by: BaseException | None = None
        self._suspects = 0
        #: whether it is held back for what it has failed, until it is well again
        self.distrusted = False
        #: results in a row since it was distrusted
        self.well_in_a_row = 0
        #: inputs that it has called bad since its last result, and those before which were believed
        self._refused = self._believable = 0
        #: how many of them failed elsewhere as well, in a row, and how many that have to be
        self._confirmed, self._needed = 0, CONFIRMED
        #: whether the results to come are of a call that brought errors too
        self._mixed = False
        #: when it may be given its next task on trial, and the pause after one that fails
        self.trial_at = math.inf
        self.pause = FIRST_PAUSE

    @property
    def clean(self) -> bool:
        """Whether nothing speaks against it that does not speak against its tasks."""
        return self.in_a_row + self.uncleared + self.faults <= self.own

    @property
    def in_standing(self) -> bool:
        """Whether a failure on it is more likely the task's than its own."""
        return self.answered and self.clean

    @property
    def questionable(self) -> bool:
        """Whether it is held back while a device is up that is not."""
        return self.distrusted or self.in_a_row >= IN_A_ROW

    @property
    def worse(self) -> bool:
        """Whether its share of faults is above what is tolerated, as far as that can be known."""
        in_a_row = self.in_a_row >= BROKEN and self.faults > 0
        return in_a_row or likely_worse(round(self.faults), round(self.results)) >= SURE

    def result(self, tasks: int) -> None:
        """It has done ``tasks``."""
        self.answered = True
        self.in_a_row = self._refused = 0
        self.results += tasks
        self.well_in_a_row = 0 if self._mixed else self.well_in_a_row + tasks
        self._mixed = False
        self._fade()
        self.spotless = not (self.distrusted or self.faults or self.uncleared)

    def failure(self, done: int, *, mixed: bool = False) -> None:
        """A task, or a call of several, has failed on it; it has ``done`` so many so far.

        ``mixed`` says whether the same call brought results of other tasks.
        """
        self._count_again(done)
        self._mixed = mixed
        self.in_a_row += not mixed
        self.well_in_a_row = 0

    def refusal(self, done: int, *, mixed: bool) -> bool:
        """It calls an input bad, and has ``done`` so many so far; return whether that is believed.

        That is so while the last ones that were looked at elsewhere failed there too, and it does
        others: of several in a row that it calls bad only the first is believed.
        """
        believed = self._confirmed >= self._needed and (mixed or not self._refused)
        self._refused += 1
        if believed:
            self._believable += 1
            believed = self._believable * GOLDEN % 1 >= 1 / LOOK_AGAIN
        self._count_again(done)
        return believed

    def _count_again(self, done: int) -> None:
        """Count results from now on; it has ``done`` so many so far."""
        if self.spotless:
            self.results = max(self.results, min(WINDOW / 2, done))
        self.spotless = False

    def loss(self, cause: BaseException, tasks: int) -> None:
        """The device was lost by ``cause`` while it ran ``tasks``; one of them may be to blame."""
        self._lost_by, self._suspects = cause, tasks

    def fault(self, cause: BaseException) -> None:
        """A task that failed there by ``cause`` works elsewhere.

        If the device was lost by it, that proves its fault once all tasks have worked.
        """
        if cause is self._lost_by:
            self._suspects -= 1
            if self._suspects:
                return
        if isinstance(cause, InputError):
            self._confirmed, self._needed = 0, min(2 * self._needed, WINDOW)
        self.faults += 1
        self.total_faults += 1
        self.spotless = False
        self._fade()

    def own_fault(self, cause: BaseException | None = None) -> None:
        """What failed there, by ``cause``, fails elsewhere as well."""
        self.own += 1
        self._confirmed += isinstance(cause, InputError)
        self.uncleared = 0.0
        self.in_a_row = 0

    def _fade(self) -> None:
        while self.results + self.faults > WINDOW:
            self.results, self.faults = self.results / 2, _half(self.faults)
            self.own, self.uncleared = _half(self.own), _half(self.uncleared)

    def forgive(self) -> None:
        """It is well again."""
        self.distrusted = False
        self.faults = self.uncleared = 0.0
        self._needed = CONFIRMED
        self.pause = max(FIRST_PAUSE, self.pause / 2)


def _half(count: float) -> float:
    return count / 2 if count >= 1 else 0.0
