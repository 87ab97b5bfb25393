"""Contract tests for parts, ours and other people's: subclass one, name your part, and pytest checks its promises.

```python
from edgekit.testing import BackendContract

class TestMyRuntime(BackendContract):
    backend = MyRuntime()
```
"""

from __future__ import annotations

from edgekit.testing.backend import BackendContract
from edgekit.testing.device import DeviceContract
from edgekit.testing.stage import StageContract
from edgekit.testing.subjects import Lent, bundled, host, small_data, small_network, unsupported_network

__all__ = (
    "BackendContract",
    "DeviceContract",
    "Lent",
    "StageContract",
    "bundled",
    "host",
    "small_data",
    "small_network",
    "unsupported_network",
)
