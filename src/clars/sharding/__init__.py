"""What knows that there is more than one process.

`layout` says where the elements of the layers are, and `gradients` what has become of their gradients; `fsdp` and
`zero` find it out for what torch and DeepSpeed cut. `state` puts weights and momentum together and takes them apart
again.
"""

from clars.sharding.state import gather_momentum, gather_weights, put_momentum

__all__ = ["gather_momentum", "gather_weights", "put_momentum"]
