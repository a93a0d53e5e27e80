"""Many runs, one table: `accelerate launch sweep.py k=2,4,8,16`."""

from tefusion.cli import script

if __name__ == "__main__":
    script("sweep")
