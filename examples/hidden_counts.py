"""Ranks of random networks with one hidden layer, by SVDs without rankmon, and their bounds."""

import numpy as np
from tqdm import tqdm

from hidden_networks import clear_rank, drawn
from rankmon import theory


def counted(seeds):
    """Return n K / p, rank H_o and its bounds by network, and how many have another rank H_f.

    The bounds are the group bound, and the smaller of Theorem 9's and n K. Networks whose singular
    values have no clear gap are left out.
    """
    rows, mismatches = [], 0
    for seed in tqdm(seeds, unit="network"):
        net = drawn(seed)
        exact = theory.rank_functional_hidden(net.X, net.slopes, net.residuals)
        mismatches += clear_rank(net.functional()) not in (None, exact)
        rank, given = clear_rank(net.jacobian()), {"loss": net.loss}
        bound = theory.rank_outer_group_bound(
            net.X, net.slopes, net.K, features=net.features, output_bias=net.output_bias, **given
        )
        (M, d), K = net.W.shape, net.K - (net.loss == "cross_entropy")
        r, active = int(np.linalg.matrix_rank(net.X)), int(np.any(net.slopes, axis=0).sum())
        of_units = theory.rank_outer_bound((d, M, net.K), r=r, active=active, **given)
        if rank is not None:
            of_units = min(of_units + K * net.output_bias, net.n * K)
            rows.append((net.n * net.K / net.p, rank, bound, of_units))
    return np.array(rows).T, mismatches
