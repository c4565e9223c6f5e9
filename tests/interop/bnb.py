#!/usr/bin/env python3
"""Has transformers and bitsandbytes quantize a model's folder, scales of blocks and all; needs the Python that loaders.py prints.

    bnb.py FOLDER OUT nf4|fp4
"""
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def main():
    folder, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.bfloat16).save_pretrained(out)
    for path in folder.glob("tokenizer*"):
        shutil.copy(path, out)


if __name__ == "__main__":
    main()
