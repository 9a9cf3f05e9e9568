"""Layers: drop-in ones under torch's names, fused ones under their op's, and ``convert``."""

from genimg.nn.batch_norm import BatchNorm2d
from genimg.nn.conv import Conv2d, ConvTranspose2d
from genimg.nn.conv_stack import BatchNormAct2d, FusedSequential
from genimg.nn.convert import ConversionError, Report, convert, restore
from genimg.nn.leaky_relu import LeakyReLU
from genimg.nn.reparam_kl import ReparamKL

__all__ = [
    "BatchNorm2d",
    "BatchNormAct2d",
    "Conv2d",
    "ConvTranspose2d",
    "ConversionError",
    "FusedSequential",
    "LeakyReLU",
    "ReparamKL",
    "Report",
    "convert",
    "restore",
]
