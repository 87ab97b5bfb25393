"""Our devices keep the contract that edgekit.testing ships."""

from edgekit.devices.local import Local
from edgekit.testing import DeviceContract


class TestLocal(DeviceContract):
    device = Local()
