"""Waiting for all ranks of a trainer group: what they answer, or why they cannot."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.trainer import died
from raytune.errors import RaytuneError, TrainError
from raytune.log import get_logger

log = get_logger(__name__)

# When one rank fails, its peers fail a moment later; waiting a little lets the cause be named instead of an effect.
_GRACE = 3.0
# A node that vanished is declared dead by Ray's health checks long after its peers have lost their connection to it.
_NODE_GRACE = 90.0
_LATE = "Look at the node's load, or raise ddp_timeout."


def results_of(
    refs: list[Any], what: str, *, timeout: float, nodes: Sequence[str] = (), lost: type[TrainError] = TrainError
) -> list[Any]:
    """Results of all ranks, in their order.

    Args: refs: one a rank. nodes: where each rank is, if that is known. lost: raised for a rank that died or did not
    answer in `timeout` seconds.
    Raises: our own error that a rank met, `lost`, or TrainError for any other failure; the cause, not its effects.
    """
    deadline = time.monotonic() + timeout
    pending = list(refs)
    while pending:
        done, pending = ray.wait(pending, timeout=max(deadline - time.monotonic(), 0.0))
        if not done:
            late = ", ".join(str(refs.index(ref)) for ref in pending)
            raise lost(f"rank {late} did not finish within {timeout:g} s: {what}", fix=_LATE)
        try:
            ray.get(done, timeout=_GRACE)
        except GetTimeoutError:
            raise lost(f"a result did not arrive within {_GRACE:g} s: {what}") from None
        except RayError as error:
            log.debug("%s", error)
            raise _first_cause(refs, what, error, nodes, lost) from error
    return ray.get(refs, timeout=_GRACE * 20)


def _first_cause(
    refs: list[Any], what: str, first: BaseException, nodes: Sequence[str], lost: type[TrainError]
) -> RaytuneError:
    """Of all failing ranks, the one that died or met bad input rather than one that lost its peer."""
    failures = _failures(refs, _GRACE)
    cut_off = bool(failures) and all(map(_lost_its_peer, failures.values()))
    if cut_off and len(failures) < len(refs) and lost is not TrainError:
        silent = ", ".join(str(rank) for rank in range(len(refs)) if rank not in failures)
        log.info("%s failed: rank %s is not to be reached; waiting up to %g s to hear of it", what, silent, _NODE_GRACE)
        failures = _failures(refs, _NODE_GRACE)
    for error in failures.values():
        if isinstance(error, RayTaskError) and isinstance(error.cause, RaytuneError):
            return error.cause
    dead = {rank: error for rank, error in failures.items() if not isinstance(error, RayTaskError)}
    rank, error = next(iter((dead or failures or {0: first}).items()))
    node = nodes[rank if len(refs) > 1 else 0] if nodes else None
    return died(rank, what, error, node=node, kind=lost if dead or cut_off else TrainError)


def _failures(refs: list[Any], seconds: float) -> dict[int, BaseException]:
    """What has failed by rank, when all have ended or after so many seconds."""
    ray.wait(refs, num_returns=len(refs), timeout=seconds)
    return {rank: error for rank, ref in enumerate(refs) if (error := _failure_of(ref)) is not None}


def _lost_its_peer(error: BaseException) -> bool:
    """Whether a rank's own error is that it could not reach another one: gloo and NCCL have no type for it alone."""
    from torch.distributed import DistError

    cause = error.cause if isinstance(error, RayTaskError) else None
    return isinstance(cause, DistError) or (isinstance(cause, RuntimeError) and "gloo" in str(cause))


def _failure_of(ref: Any) -> BaseException | None:
    """The exception behind a reference that is ready; None when it holds a value or is not ready."""
    ready, _ = ray.wait([ref], timeout=0)
    if not ready:
        return None
    try:
        ray.get(ready, timeout=_GRACE)
    except GetTimeoutError:
        return None
    except RayError as error:
        return error
    return None
