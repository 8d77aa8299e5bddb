"""A network for timm whose layers see what belongs to no one example: it attends over the batch."""

from timm.models import register_model
from torch import nn


class MixesExamples(nn.Module):
    def __init__(self, num_classes=10, in_chans=1, **_):
        super().__init__()
        self.num_classes, self.num_features = num_classes, 8
        self.embed, self.norm, self.fc = nn.Conv2d(in_chans, 8, 3), nn.LayerNorm(8), nn.Linear(8, num_classes)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        x = self.embed(x).mean((2, 3))
        return self.fc(self.norm((x @ x.T).softmax(1) @ x))


@register_model
def mixes_examples(pretrained=False, **options):
    return MixesExamples(**options)
