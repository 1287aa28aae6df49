"""The plan of a dataset: where and when each episode is recorded, and what is odd about it.

Real recordings are irregular, and code that reads them must cope. So fixed shares of the episodes
(`SHARES`, rounded to whole episodes) are odd on purpose, each in one way only. The plan is a pure
function of (episodes, tasks, seed) and is cheap: nothing is simulated here. `dataset.py` uses it,
and `record.py` carries out one `EpisodePlan`.
"""

from __future__ import annotations

import string
import time
from dataclasses import dataclass, replace

import numpy as np

NUM_LABS = 3
EPISODES_PER_SESSION = 4
MIN_SESSIONS = 8
FIRST_DAY_S = 1_672_531_200  # 2023-01-01 00:00 UTC
DAY_S = 86_400

SHARES = {
    "failure": 0.10,  # the expert errs on purpose; file_path says /failure/
    "short": 0.07,  # recording begins late: only the last 10 to 30 steps
    "no_language": 0.10,  # all three instructions are empty
    "one_word": 0.04,  # all three instructions have one word
    "non_ascii": 0.07,  # instructions in French
    "same_second": 0.04,  # another lab started a recording in the same second
}


@dataclass(frozen=True)
class EpisodePlan:
    """What to record.

    number:  the episode's unique number; with `seed` it determines all its random numbers
    session: one lab on one day; a lab keeps its table and walls, a session its light
    start_s: start of the recording, in seconds since 1970 UTC
    oddity:  a key of `SHARES`, or "" for an ordinary episode
    """

    seed: int
    number: int
    task: str
    session: int
    lab: str
    start_s: int
    oddity: str

    @property
    def folder(self) -> str:
        """The folder as DROID names it: `2023-07-07/Fri_Jul__7_09:42:23_2023`."""
        moment = time.gmtime(self.start_s)
        return f"{time.strftime('%Y-%m-%d', moment)}/{time.asctime(moment).replace(' ', '_')}"


def plan_episodes(
    num_episodes: int, tasks: list[str], seed: int, num_labs: int = NUM_LABS
) -> list[EpisodePlan]:
    """Plan a dataset, in the order of its records, with sessions mixed as in DROID.

    Sessions are assigned to labs in turn.
    """
    rng = np.random.default_rng([seed, 0])
    num_sessions = max(MIN_SESSIONS, num_episodes // EPISODES_PER_SESSION // 2 * 2)
    # Two sessions share a day, always in different labs, so that recordings can share a second.
    days = np.cumsum(rng.integers(1, 12, size=num_sessions // 2))
    plans = [
        EpisodePlan(
            seed=seed,
            number=number,
            task=tasks[number // num_sessions % len(tasks)],
            session=number % num_sessions,
            lab=_lab(number % num_sessions % num_labs),
            start_s=FIRST_DAY_S + DAY_S * int(days[number % num_sessions // 2]),
            oddity="",
        )
        for number in range(num_episodes)
    ]
    plans = _add_times(plans, num_sessions, rng)
    plans = _add_oddities(plans, rng)
    return [plans[number] for number in rng.permutation(num_episodes)]


def _lab(number: int) -> str:
    """SIMA, SIMB, ... SIMZ, SIMBA, ...: letters as digits, since DROID's labs are letters."""
    letters = string.ascii_uppercase
    name = letters[number % 26]
    while number := number // 26:
        name = letters[number % 26] + name
    return f"SIM{name}"


def _add_times(
    plans: list[EpisodePlan], num_sessions: int, rng: np.random.Generator
) -> list[EpisodePlan]:
    """Draw times: sessions start between 9 and 14 o'clock, episodes follow within minutes."""
    clock = rng.integers(9 * 3600, 14 * 3600, size=num_sessions)
    timed = []
    for plan in plans:
        timed.append(replace(plan, start_s=plan.start_s + int(clock[plan.session])))
        clock[plan.session] += rng.integers(40, 300)
    return timed


def _add_oddities(plans: list[EpisodePlan], rng: np.random.Generator) -> list[EpisodePlan]:
    plans = list(plans)
    order = rng.permutation(len(plans)).tolist()
    for oddity, share in SHARES.items():
        for _ in range(round(share * len(plans))):
            number = order.pop()
            plans[number] = replace(plans[number], oddity=oddity)
    for number, plan in enumerate(plans):
        if plan.oddity == "same_second":
            plans[number] = replace(plan, start_s=_partner(plans, plan).start_s)
    return plans


def _partner(plans: list[EpisodePlan], plan: EpisodePlan) -> EpisodePlan:
    """The episode whose start time `plan` takes: of the session of the same day, in another lab.

    An ordinary episode is preferred. A session has no second twice, since the paths would be equal.
    If no episode qualifies, as may happen among many thousands, this is `plan` itself.
    """
    taken = {other.start_s for other in plans if other.session == plan.session}
    others = [
        other
        for other in plans
        if other.session == plan.session ^ 1
        and other.oddity != "same_second"
        and other.start_s not in taken
    ]
    return min(others, key=lambda other: (other.oddity != "", other.number), default=plan)
