"""SimSiam: a network, a projector and a predictor, trained to tell one view of an image from another.

Source: Chen and He, arXiv 2011.10566, section 3 and the baseline of section 4.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SimSiam(nn.Module):
    """A network with what its training without labels needs.

    One tensor of images [n, c, h, w] -> features [n, num_features]. Two views of the same images -> a loss for each
    image [n]: minus the cosine between the prediction from one view and the projection of the other, which is taken as
    it is, averaged over both directions. The views pass by themselves, so BatchNorm sees one at a time.

    Args:
        backbone: [n, c, h, w] -> [n, num_features].
        features: num_features.
        projector: width of the projector's three layers.
        predictor: width of the predictor's hidden layer.
    """

    def __init__(self, backbone: nn.Module, features: int, projector: int, predictor: int) -> None:
        super().__init__()
        self.backbone = backbone
        last = nn.Linear(projector, projector, bias=False), nn.BatchNorm1d(projector, affine=False)
        self.projector = nn.Sequential(*_layer(features, projector), *_layer(projector, projector), *last)
        self.predictor = nn.Sequential(*_layer(projector, predictor), nn.Linear(predictor, projector))

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        if other is None:
            return self.backbone(images)
        one, two = (self.projector(self.backbone(view)) for view in (images, other))
        there, back = (F.cosine_similarity(self.predictor(a), b.detach()) for a, b in ((one, two), (two, one)))
        return -(there + back) / 2


def simsiam(backbone: nn.Module, shape: tuple[int, int, int], projector: int, predictor: int) -> SimSiam:
    """Return the network for a backbone of images of a shape (channels, height, width)."""
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, *shape)).shape[1]
    return SimSiam(backbone.train(), features, projector, predictor)


def _layer(inputs: int, outputs: int) -> tuple[nn.Linear, nn.BatchNorm1d, nn.ReLU]:
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)
