"""Tests of android_bench.device."""

import pytest

from android_bench.device import open_device
from android_bench.errors import InputError
from android_bench.host import HostDevice


def test_open_device_host():
    with open_device("host") as device:
        assert isinstance(device, HostDevice)
        assert device.name == "host"


@pytest.mark.parametrize("spec", ["toaster", "adb", "adb:1234", "", "HOST"])
def test_unknown_kind_names_the_kinds_that_exist(spec):
    with pytest.raises(InputError, match=f"unknown device '{spec}'; give --device=host"):
        open_device(spec)


def test_host_takes_no_target():
    with pytest.raises(InputError, match="'host:x' does not exist; give --device=host"):
        open_device("host:x")


def test_leaving_the_block_closes_also_after_an_error(fake_device):
    device = fake_device()
    with pytest.raises(KeyboardInterrupt), device:
        raise KeyboardInterrupt
    assert device.closed == 1
