"""A sweep laid out as the paper's (MotionBench, 2501.02955) tables and figures, ours beside the printed numbers."""

from tefusion.paper.report import write_paper

__all__ = ["write_paper"]
