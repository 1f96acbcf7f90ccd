"""`python -m frozen_diffusion.cli`: training and benchmarks without a user interface."""
from .modules.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
