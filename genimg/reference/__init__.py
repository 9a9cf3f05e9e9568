"""What every op means, in plain PyTorch that can be differentiated any number of times.

``genimg.cases`` has the calls on which tests, benchmarks and ``genimg check`` try every backend.
"""

from genimg.reference.batch_norm_act import batch_norm_act
from genimg.reference.conv2d import conv2d
from genimg.reference.conv2d_avg_pool import conv2d_avg_pool
from genimg.reference.conv_stack import conv_stack
from genimg.reference.conv_transpose2d import conv_transpose2d
from genimg.reference.leaky_relu import leaky_relu
from genimg.reference.reparam_kl import reparam_kl
from genimg.reference.upsample_conv2d import upsample_conv2d

__all__ = [
    "batch_norm_act",
    "conv2d",
    "conv2d_avg_pool",
    "conv_stack",
    "conv_transpose2d",
    "leaky_relu",
    "reparam_kl",
    "upsample_conv2d",
]
