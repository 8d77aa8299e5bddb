"""What depends on where things run: kernels in C++ for processors, in Triton for GPUs, and what torch.compile can see.

The C++ kernels work on an example per thread, whose product is squared and added while it is in the cache. Torch's
operators share the work on one example between threads, which few positions do not fill, and each call from Python
costs as much as a small product. The kernels compute what the Python methods compute, on float32; where they cannot
be built or do not apply, those are used.

On accelerators layers are measured by the operators in `device`: kernels in Triton, or their plain twins.

Nothing outside this package asks for the type of a device, or whether torch.compile is at work (`where`).
"""

from clars.native.build import State
from clars.native.operators import NativeLayer, applies, kernel, load, loaded, most_workers, suspended

__all__ = ["NativeLayer", "State", "applies", "kernel", "load", "loaded", "most_workers", "suspended"]
