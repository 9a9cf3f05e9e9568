"""The ops: functions over tensors, each with a choice of backends.

Names and argument order are ``torch.nn.functional``'s where torch has the op, then ``backend=``.
"""

from genimg.ops.batch_norm_act import batch_norm_act
from genimg.ops.conv2d import conv2d
from genimg.ops.conv2d_avg_pool import conv2d_avg_pool
from genimg.ops.conv_stack import Activation, BatchNorm, ConvBlock, Direction, conv_stack
from genimg.ops.conv_transpose2d import conv_transpose2d
from genimg.ops.flops import register_formulas
from genimg.ops.leaky_relu import leaky_relu
from genimg.ops.reparam_kl import reparam_kl
from genimg.ops.upsample_conv2d import upsample_conv2d

__all__ = [
    "batch_norm_act",
    "conv2d",
    "conv2d_avg_pool",
    "conv_stack",
    "conv_transpose2d",
    "leaky_relu",
    "reparam_kl",
    "upsample_conv2d",
    "Activation",
    "BatchNorm",
    "ConvBlock",
    "Direction",
]

register_formulas()
