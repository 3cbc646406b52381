"""Train torchvision's ResNet with softmax regression as its head, on handwritten digits.

    python examples/resnet_head.py

The digits are part of scikit-learn; after 100 steps the test accuracy is 0.96. Use your own net and
data instead: any classifier that ends in an ``nn.Linear`` works, pretrained or not. Wrap it in DDP,
FSDP or torch.compile after its head was replaced.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torchvision.models import resnet18
from torchvision.transforms.v2.functional import resize

from softmax_torch.heads import replace_head

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16  # (1797, 1, 8, 8), in [0, 1]
images = resize(images, [16, 16]).expand(-1, 3, -1, -1).to(device)  # a ResNet takes three channels
labels = torch.from_numpy(digits.target).to(device)
train, test = torch.randperm(len(labels), device=device).split([1437, 360])

model = resnet18(weights=None)  # or weights="DEFAULT", trained on ImageNet
head = replace_head(model, num_classes=10)
model.to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(1, steps + 1):
    batch = train[torch.randint(len(train), (32,), device=device)]
    loss = head.loss_of(model, images[batch], labels[batch], label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == 1 or step % 10 == 0:
        print(f"step {step}  loss {loss.item():.3f}")

model.eval()
with torch.no_grad():
    logits = model(images[test])  # the net is called as before
print(f"accuracy {(logits.argmax(1) == labels[test]).double().mean():.3f}")
