"""The table and the bar chart of `benchmark.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import FuncFormatter

from peers import PARTS, Network
from plotting import plt, save
from rankmon.report.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from rankmon.theory import number_of_parameters

PEERS = {
    "rankmon": ("rankmon, a probe of RankMonitor", GREEN),
    "floor": ("floor: eigvalsh alone, of rankmon's sizes", "#999999"),
    "JAX": ("JAX: jax.hessian, jacrev, matrix_rank", VERMILION),
    "PyTorch": ("PyTorch: torch.func, matrix_rank", BLUE),
    "curvlinops": ("curvlinops, matrix_rank; no H_f_fixed", PURPLE),
    "engine dense": ("rankmon, engine='dense': HVPs", ORANGE),
}
Results = Mapping[str, Mapping[str, Mapping]]


def title_of(network: Network) -> str:
    """Return a network's name, kind, widths and size."""
    widths, p = "-".join(map(str, network.dims)), number_of_parameters(network.dims)
    name = "" if network.name == widths else f"{network.name}: "
    return f"{name}{network.kind} {widths}, N = {network.n}, p = {p:,}"


def time_text(seconds: float) -> str:
    """Return seconds as text, with three digits, in ms or s."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def table_of(networks: Sequence[Network], results: Results) -> str:
    """Return the table, with a block of rows for each network."""
    lines = []
    for network in networks:
        found = results[network.name]
        own = found["rankmon"]
        repeats = len(own.get("all_seconds", ())) - own.get("warmups", 0)
        taken = f"; medians of {repeats} probes" if repeats else ""
        lines += ["", title_of(network) + taken]
        parts = "".join(f"{part:>10}" for part in PARTS)
        lines.append(f"  {'':44}{'time':>9}{'/rankmon':>10}{'peak MiB':>10}{parts}   weights")
        for way, row in found.items():
            if "absent" in row:
                lines.append(f"  {PEERS[way][0]:44}   {row['absent']}")
                continue
            ratio = f"{row['seconds'] / own['seconds']:.3g}" if "seconds" in own else "-"
            ranks = row["ranks"]
            counts = "".join(f"{ranks.get(part, '-'):>10}" for part in PARTS)
            weights = " ".join(str(rank) for name, rank in ranks.items() if name not in PARTS)
            start = f"  {PEERS[way][0]:44}{time_text(row['seconds']):>9}{ratio:>10}"
            lines.append(f"{start}{row['peak_bytes'] / 2**20:>10.0f}{counts}   {weights or '-'}")
            if way == "floor":
                lines[-1] = f"{start}{'':>10}  sizes {row['sizes']}"
    return "\n".join(lines[1:])


def save_bars(networks: Sequence[Network], results: Results, path: Path) -> None:
    """Draw seconds of each way on a logarithmic axis, grouped by network."""
    seconds = [r["seconds"] for f in results.values() for r in f.values() if "seconds" in r]
    left = min(seconds, default=1e-3) / 3
    count = sum(len(found) for found in results.values())
    figure, axes = plt.subplots(figsize=(10, 0.9 + 0.33 * count + 0.5 * len(networks)))
    ticks, height = {}, 0.0
    for network in networks:
        axes.text(left, height, title_of(network), va="center", weight="bold", fontsize=10)
        for way, row in results[network.name].items():
            height += 1
            label, color = PEERS[way]
            ticks[height] = label
            value = row.get("seconds", left)
            axes.barh(height, value - left, left=left, color=color, height=0.78)
            text = time_text(value) if "seconds" in row else row["absent"]
            axes.text(value * 1.08, height, text, va="center", fontsize=9.5)
        height += 1.6
    axes.set_xscale("log")
    axes.set_xlim(left, max(seconds, default=1.0) * 6)
    axes.set_ylim(height - 0.6, -0.8)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: time_text(value)))
    axes.set_xlabel("time to count all ranks once (shorter is better)")
    save(figure, path)
