"""The tables of a run: medians over its rounds, and the ratio to the best Debian peer in the same round."""

from statistics import median

# What each figure is called, how it is taken from one result, and whether less is better.
FIGURES = {
    "cpu": ("CPU of the proxy, µs per operation", lambda r: r["cpu_ns"] / r["operations"] / 1000, True),
    "rate": ("Throughput, operations a second", lambda r: r["operations"] / r["seconds"], False),
    "p50": ("Latency p50, µs", lambda r: r["p50_us"], True),
    "p99": ("Latency p99, µs", lambda r: r["p99_us"], True),
    "memory": ("Memory, PSS kB per session",
               lambda r: (r["pss_after_kib"] - r["pss_before_kib"]) / r["operations"], True),
    "pss": ("Memory of the whole proxy after the load, PSS MB", lambda r: r["pss_after_kib"] / 1024, True),
}

# These need no process to meter.
UNMETERED = {"rate", "p50", "p99"}


def tables(results, floors, workloads, peers, ours="ldaps-proxy"):
    """Markdown of all figures. `results[workload][peer]` is a list with one result, or None, per round; `floors` has the
    µs per cycle of the TLS library alone, for the workloads that have them."""
    parts = []
    for figure, (title, value, less_is_better) in FIGURES.items():
        rows = [row(results[name], workload, peers, ours, figure, value, less_is_better)
                for name, workload in workloads.items() if figure in workload.figures]
        if rows:
            head = ["workload", *(peer.name for peer in peers), f"{ours} ÷ best Debian peer (min–max)"]
            parts.append(table(title, head, rows))
    parts += variants(results, workloads, peers, ours)
    if floors:
        cpu = FIGURES["cpu"][1]
        costs = {name: present([cpu(r) if r else None for r in results[name].get(ours, [])]) for name in floors}
        rows = [[workloads[name].title, number(floor), number(median(costs[name]) - floor) if costs[name] else "–"]
                for name, floor in floors.items()]
        parts.append(table("Floor: CPU of the TLS library alone, µs per cycle",
                           ["workload", "floor", f"{ours} above it"], rows))
    return "\n\n".join(parts)


def table(title, head, rows):
    """One titled Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def row(by_peer, workload, peers, ours, figure, value, less_is_better):
    """One workload's medians and ratio."""
    metered = {peer.name: [value(r) if r else None for r in by_peer.get(peer.name, [])] for peer in peers}
    cells = [cell(metered[peer.name] if peer.program or figure in UNMETERED else []) for peer in peers]
    rivals = {peer.name: present(metered[peer.name]) for peer in peers if peer.debian and peer.tls}
    rivals = {name: median(values) for name, values in rivals.items() if values}
    best = (min if less_is_better else max)(rivals, key=rivals.get) if rivals else None
    ratio = f"{spread(metered.get(ours, []), metered[best])} {best}" if best else "–"
    return [workload.title, *cells, ratio]


def variants(results, workloads, peers, ours):
    """What the access log costs in CPU, other builds of ours, and what ours would be without any LDAP."""
    cpu = FIGURES["cpu"][1]
    others = [peer.name for peer in peers if not peer.debian and peer.name != ours]
    rows = []
    for name, by_peer in results.items():
        mine, *theirs = ([cpu(r) if r else None for r in by_peer.get(peer, [])] for peer in (ours, *others))
        ratios = [spread(values, mine) for values in theirs]
        if "cpu" in workloads[name].figures and set(ratios) != {"–"}:
            rows.append([workloads[name].title, *ratios])
    head = ["workload", *(f"{other} ÷ {ours}" for other in others)]
    return [table("Beside ours: CPU ratio (min–max)", head, rows)] if others and rows else []


def spread(mine, theirs):
    """The median ratio of the rounds both have, with the lowest and the highest."""
    ratios = [a / b for a, b in zip(mine, theirs) if a is not None and b]
    return f"**{median(ratios):.2f}** ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–"


def cell(values):
    if not values:
        return "–"
    values = present(values)
    return number(median(values)) if values else "failed"


def present(values):
    return [value for value in values if value is not None]


def number(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
