"""The test bed's own tests: guests do what they say, and libvirt says what we think it says."""

import pytest

from tests.system.domains import Guests
from tests.system.recorder import Recorder

pytestmark = pytest.mark.timeout(60)

STARTED = ["RESUMED/UNPAUSED", "STARTED/BOOTED"]


def test_a_well_behaved_guest_powers_off_at_the_button(guest: Guests, recorder: Recorder) -> None:
    vm = guest()
    vm.domain.shutdown()
    assert recorder.until(vm.uuid, "STOPPED/SHUTDOWN") == [
        "DEFINED/ADDED", *STARTED, "SHUTDOWN/GUEST", "STOPPED/SHUTDOWN",
    ]  # fmt: skip
