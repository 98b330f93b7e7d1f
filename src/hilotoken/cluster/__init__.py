"""A connection to a Ray cluster, or one on this machine for as long as it is needed."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported anywhere


@contextmanager
def connected(address: str, workers: int) -> Iterator[None]:
    """Connected to the cluster at that address; "local" is one of this process's own.

    A connection that is there already is used, and left.

    Raises:
        ValueError: no cluster answers there.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    try:
        if address == "local":
            ray.init(address="local", num_cpus=workers + 1, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster at {address!r}: start one with `ray start --head`, or say `local` "
            f"({' '.join(str(error).split())})"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
