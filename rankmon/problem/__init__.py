"""The problem that is measured: a network, a loss, a probe batch, and parameters as one vector."""

from rankmon.problem.problem import Problem

__all__ = ["Problem"]
