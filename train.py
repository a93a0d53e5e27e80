"""One run: `accelerate launch train.py compressor=te_fusion k=4`."""

from tefusion.cli import script

if __name__ == "__main__":
    script("train")
