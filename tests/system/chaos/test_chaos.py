"""A short run; `make chaos MINUTES=30 SEED=7` is a long one."""

import os
import sys

import pytest

from tests.system.chaos.__main__ import table
from tests.system.chaos.run import Run
from tests.system.libvirtd import PrivateLibvirtd

SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.mark.timeout(240)  # a loaded machine; half a minute if it is not
def test_what_clients_saw_is_the_journal_and_the_journal_is_what_libvirt_says(
    libvirtd: PrivateLibvirtd,
) -> None:
    with Run(SEED, cache=libvirtd.cache) as run:
        run.round(7, burst=False, libvirtd_troubled=True)
        run.round(7, burst=True, libvirtd_troubled=False)
    sys.stdout.write(f"seed {SEED}\n{table(run.counts)}")
    # that there was something to check; how much depends on the machine
    assert run.counts["act kill daemon"] > 0
    assert run.counts["transitions"] > 0
    assert run.counts["resumes"] > 0
