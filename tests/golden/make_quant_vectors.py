"""Write quant_formats.npz: random stored rows of each format and what the `gguf` package decodes them to.

Needs `pip install gguf`, which the tests do not. Run from the repository root:
    python tests/golden/make_quant_vectors.py
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

ROWS, WEIGHTS = 2, 512
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# byte offsets of the fp16 scales in a block: random ones would often be NaN
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(20240607)
    arrays = {}
    for name in TYPES:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        data = rng.integers(0, 256, (ROWS * WEIGHTS // block, size), dtype=np.uint8)
        for offset in SCALES.get(name, ()):
            scale = rng.normal(0, 0.1, (data.shape[0], 1)).astype("<f2")
            data[:, offset : offset + 2] = scale.view(np.uint8)
        if name in ("F32", "F16", "BF16"):
            floats = rng.normal(0, 1, data.shape[0]).astype("<f4")
            narrow = {"F32": floats, "F16": floats.astype("<f2"), "BF16": (floats.view("<u4") >> 16).astype("<u2")}
            data = narrow[name].view(np.uint8)
        data = data.reshape(ROWS, -1)
        source = {"F32": data.view("<f4"), "F16": data.view("<f2")}.get(name, data)
        arrays[f"{name}_data"] = data
        arrays[f"{name}_floats"] = gguf.dequantize(source, gguf.GGMLQuantizationType[name]).astype("<f4")
    np.savez_compressed(Path(__file__).parent / "quant_formats.npz", **arrays)


if __name__ == "__main__":
    main()
