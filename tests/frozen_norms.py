"""A network whose BatchNorms keep their statistics in training, for tests."""

import torch

from redimnet2_lobes.models.redimnet2 import ReDimNet2


class FrozenNorms(ReDimNet2):
    """So that losses do not depend on how a global batch is divided."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self
