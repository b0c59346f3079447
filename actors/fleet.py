"""Which rollout replicas may serve: a state machine without Ray, clocks or waiting.

HEALTHY -missed a heartbeat-> SUSPECT -missed another-> DEAD -> RESTARTING -> STALE -weights of the target-> HEALTHY
Whatever was dead or missed an update serves again only after it has the newest weights. GONE is for good.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from raytune.errors import RolloutError


class State(StrEnum):
    """HEALTHY serves, once it is known to have the newest weights that any replica has told of. SUSPECT and STALE may
    finish what they have and get nothing new. The others have no work."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"
    GONE = "gone"


ALLOWED: dict[State, frozenset[State]] = {
    State.HEALTHY: frozenset({State.SUSPECT, State.DEAD, State.STALE}),
    State.SUSPECT: frozenset({State.HEALTHY, State.DEAD, State.STALE}),
    State.DEAD: frozenset({State.RESTARTING, State.GONE}),
    State.RESTARTING: frozenset({State.STALE, State.DEAD, State.GONE}),
    State.STALE: frozenset({State.HEALTHY, State.DEAD}),
    State.GONE: frozenset(),
}


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """When a replica is given up. Seconds.

    interval: between heartbeats. deadline: of a heartbeat. misses: so many in a row, and the replica is dead: with
    the defaults a frozen one is out after 8 s. restarts: so many failed ones in a row, and it is gone for good.

    Example: FleetPolicy(interval=0.2, deadline=0.5)
    """

    interval: float = 2.0
    deadline: float = 3.0
    misses: int = 2
    restarts: int = 4

    def backoff(self, failures: int) -> float:
        """Seconds to wait before the restart that follows `failures` failed ones."""
        return 0.0 if failures == 0 else min(2.0 ** (failures - 1), 60.0)


@dataclass(slots=True)
class Member:
    """What is known of one replica. load: answers that it draws now. served: answers since the start."""

    state: State = State.RESTARTING
    version: int = -1
    load: int = 0
    served: int = 0
    missed: int = 0
    failures: int = 0
    restarts: int = 0
    reason: str = "not started"


# Made by Fleet, read by monitors and tests.
@dataclass(frozen=True, slots=True)
class MemberView:
    """One line of a fleet's picture. Example: MemberView(0, State.HEALTHY, 4, 8, 120, 0, "")"""

    index: int
    state: State
    version: int
    load: int
    served: int
    restarts: int
    reason: str


class Fleet:
    """The replicas of a run, all of them RESTARTING at first.

    `target` is the version that was published: who has less is stale. `newest` is what some replica has already, in the
    moment before an update is published: the others may be taking it too, so they just get no work until that is known.
    """

    def __init__(self, size: int, policy: FleetPolicy | None = None, *, target: int = 0) -> None:
        self.policy = policy or FleetPolicy()
        self.members = [Member() for _ in range(size)]
        self.target = self.newest = target

    def state(self, index: int) -> State:
        return self.members[index].state

    def in_state(self, *states: State) -> list[int]:
        return [index for index, member in enumerate(self.members) if member.state in states]

    def pick(self, most: int = 1 << 30) -> int | None:
        """The healthy replica with the least to do, of equal ones that which has done least.

        None if all have `most` answers to draw already, or none is healthy and known to have the newest weights.
        """
        healthy = [index for index in self.in_state(State.HEALTHY) if self.members[index].version >= self.newest]
        free = [index for index in healthy if self.members[index].load < most]
        return min(free, key=lambda i: (self.members[i].load, self.members[i].served, i), default=None)

    def assign(self, index: int, answers: int) -> None:
        self.members[index].load += answers

    def release(self, index: int, answers: int, *, done: bool) -> None:
        """The answers are drawn (`done`) or will be drawn elsewhere."""
        member = self.members[index]
        member.load -= answers
        member.served += answers if done else 0

    def beat(self, index: int, version: int) -> None:
        """It answered. One that does not have the target's weights is stale."""
        self.newest = max(self.newest, version)
        member = self.members[index]
        member.missed, member.version = 0, version
        if member.state in (State.HEALTHY, State.SUSPECT):
            self._become(index, State.HEALTHY if version >= self.target else State.STALE, _behind(version, self.target))

    def alive(self, index: int) -> None:
        """It answered, and is busy with new weights."""
        self.members[index].missed = 0
        if self.state(index) is State.SUSPECT:
            self._become(index, State.HEALTHY, "")

    def doubt(self, index: int, reason: str) -> None:
        """A request failed for the replica's sake; its next heartbeat tells how it is."""
        if self.state(index) is State.HEALTHY:
            self._become(index, State.SUSPECT, reason)

    def miss(self, index: int, reason: str) -> None:
        """A heartbeat did not come back in time."""
        member = self.members[index]
        member.missed += 1
        if member.missed >= self.policy.misses:
            self.lose(index, reason)
        elif member.state is State.HEALTHY:
            self._become(index, State.SUSPECT, reason)

    def lose(self, index: int, reason: str) -> None:
        """It is dead for certain; its work must go elsewhere. Losing a dead one again changes nothing."""
        if self.state(index) in (State.DEAD, State.GONE):
            return
        if self.state(index) in (State.RESTARTING, State.STALE):
            self.members[index].failures += 1
        self._become(index, State.DEAD, reason)
        self.members[index].version = -1

    def restart(self, index: int) -> bool:
        """Begin a restart; False, and the replica is gone, after too many failed ones."""
        member = self.members[index]
        if member.failures > self.policy.restarts:
            self._become(index, State.GONE, f"{member.failures} restarts failed, at last: {member.reason}")
            return False
        member.restarts += 1
        self._become(index, State.RESTARTING, member.reason)
        return True

    def give_up(self, index: int, reason: str) -> None:
        """It cannot start, now or later."""
        self._become(index, State.GONE, reason)

    def restarted(self, index: int) -> None:
        """Its engine is there, with weights from disk."""
        self.members[index].missed = 0
        self._become(index, State.STALE, "waits for weights")

    def outdated(self, index: int, reason: str) -> None:
        """It missed an update. A dead or restarting one will get the weights anyway."""
        if self.state(index) in (State.HEALTHY, State.SUSPECT):
            self._become(index, State.STALE, reason)

    def refitted(self, index: int, version: int) -> None:
        """A stale replica has weights `version` now; it serves if these are the target's, else it stays stale."""
        self.newest = max(self.newest, version)
        member = self.members[index]
        member.version = version
        if version >= self.target and member.state is State.STALE:
            member.failures = 0
            self._become(index, State.HEALTHY, "")

    def advance(self, version: int, received: Collection[int]) -> None:
        """From now on `version` is the target; the replicas in `received` have it, all others are stale."""
        self.target, self.newest = version, max(self.newest, version)
        for index, member in enumerate(self.members):
            if index in received:
                member.version = version
            else:
                self.outdated(index, _behind(member.version, version))

    def view(self) -> list[MemberView]:
        return [
            MemberView(index, one.state, one.version, one.load, one.served, one.restarts, self._why(one))
            for index, one in enumerate(self.members)
        ]

    def picture(self) -> str:
        """All replicas in one line, for error messages."""
        return "; ".join(f"replica {v.index} {v.state}{f' ({v.reason})' if v.reason else ''}" for v in self.view())

    def _why(self, member: Member) -> str:
        """The reason for its state, or for getting no work in it."""
        return member.reason or (_behind(member.version, self.newest) if member.state is State.HEALTHY else "")

    def _become(self, index: int, state: State, reason: str) -> None:
        member = self.members[index]
        if state is not member.state and state not in ALLOWED[member.state]:
            raise RolloutError(f"replica {index} cannot become {state} while it is {member.state}")
        member.state, member.reason = state, reason


def _behind(version: int, target: int) -> str:
    return "" if version >= target else f"has weights {version}, not {target}"
