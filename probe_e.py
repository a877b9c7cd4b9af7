import time

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter

t = time.time()
c = PEagleConfig(
    vocab_size=1000,
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    mask_token_id=3,
)
with FakeTensorMode() as m:
    d = PEagleDrafter(c)
    print(type(d.fc.weight), d.fc.weight.untyped_storage()._cdata, d.fc.weight.untyped_storage().nbytes())
    with torch.autocast("cpu", torch.bfloat16):
        x = d.fuse(torch.zeros(5, 1536))
        print(x.dtype)
        o = d(torch.zeros(5, 512), x, torch.arange(5), lambda i, q, k, v: q)
        print(o.dtype, o.shape)
with torch.device("meta"):
    d = PEagleDrafter(c)
    with torch.autocast("cpu", torch.bfloat16):
        x = d.fuse(torch.zeros(5, 1536))
        print("meta", x.dtype)
    try:
        with torch.autocast("cuda", torch.bfloat16):
            x = d.fuse(torch.zeros(5, 1536))
            print("meta", x.dtype)
    except Exception as e:
        print(e)
print(time.time() - t)
