"""The pod's plan as text for people: memory, FLOPs, collectives, time, and how arrays are laid out."""

from typing import Any

GIB = 2**30


def pod_table(result: dict[str, Any]) -> str:
    """A report of `ahead_of_time.compile_job`, or of the estimate by formula."""
    memory, budget = result["hbm_bytes"], result["budget"]
    mesh = " x ".join(f"{axis} {ways}" for axis, ways in result["mesh"].items() if ways > 1) or "one device"
    verdict = "fits" if result["fits"] else "DOES NOT FIT"
    lines = [
        f"{result['topology']}, {result['chips']:,} chips, mesh {mesh}, remat {result['remat']}, "
        f"{result['parameters']:,} parameters",
        "",
        *([f"estimate by formula: {result['estimate']}", ""] if "estimate" in result else []),
        "HBM, GiB a chip",
        "  " + ", ".join(f"{name} {memory[name] / GIB:.2f}" for name in PARTS if memory.get(name) is not None),
        f"  peak {memory['peak'] / GIB:.2f} of {memory['capacity'] / GIB:.1f}: {verdict}",
        *_buffers(result.get("buffers", [])),
        "",
        f"FLOPs a step: model {result['model_flops']:.4g}, hardware {result['hardware_flops']:.4g}",
        *(f"Pallas kernel {name}: {count} times" for name, count in result.get("kernels", {}).items()),
        *_collectives(result.get("collectives", [])),
        "",
        f"step {result['step_seconds']:.3f} s at the roofline, MFU {result['mfu']:.1%}, "
        f"{result['tokens_per_day']:.3g} tokens a day",
        f"{budget['tokens']:.3g} tokens: {budget['days']:.1f} days, {budget['chip_hours']:,.0f} chip-hours",
        *(f"  assumes {text}" for text in result.get("assumptions", [])),
    ]
    if "compile_seconds" in result:
        lines.append(f"lowered and compiled in {result['compile_seconds']:.0f} s, XLA's level {result['optimization']}")
    if result.get("changes"):
        lines += ["", "cheapest changes that would fit (by formula):"]
        lines += [
            f"  {c['bindings']}  peak about {c['peak'] / GIB:.1f} GiB, {c['slower']:+.0%} time"
            for c in result["changes"]
        ]
    return "\n".join(lines)


PARTS = ("arguments", "temporaries", "outputs", "aliased")


def _buffers(buffers: list[dict[str, Any]]) -> list[str]:
    if not buffers:
        return []
    rows = [
        f"  {b['bytes'] / GIB:7.3f}  {b['kind']:<9}  {b['shape']:<26}  {b['source'] or '-':<28}  {b['origin'][-60:]}"
        for b in buffers
    ]
    return ["largest buffers", *rows]


def _collectives(collectives: list[dict[str, Any]]) -> list[str]:
    if not collectives:
        return []
    rows = [
        f"  {c['kind']:<18} {c['axes']:<14} {c['size']:>5} chips  {c['count']:>6} times  {c['bytes'] / GIB:8.2f} GiB"
        f"  {c['sent_bytes'] / GIB:8.2f} GiB sent  {c['seconds'] * 1e3:8.1f} ms"
        for c in collectives
    ]
    return ["collectives of a step, for each chip", *rows]


def layout_table(rows: list[dict[str, Any]]) -> str:
    """Every array with its partition and its bytes on one device."""
    width = max(len(row["name"]) for row in rows)
    lines = []
    for row in rows:
        spec = ", ".join("-" if p is None else "+".join(p) if isinstance(p, list) else p for p in row["spec"])
        shape = f"{row['dtype']}{row['shape']}"
        lines.append(f"{row['kind']:<10} {row['name']:<{width}} {shape:<30} ({spec})  {row['bytes']:,} bytes")
    return "\n".join(lines)


def search_table(rows: list[dict[str, Any]]) -> str:
    """Candidates of a search, the best first."""
    lines = [f"{'mesh':<34} {'remat':<8} {'microbatches':>12} {'peak GiB':>9} {'step s':>8} {'MFU':>6}  how known"]
    for row in rows:
        mesh = " x ".join(f"{axis} {ways}" for axis, ways in row["mesh"].items() if ways > 1) or "one device"
        lines.append(
            f"{mesh:<34} {row['remat']:<8} {row['microbatches']:>12} {row['peak'] / GIB:>9.2f} "
            f"{row['step_seconds']:>8.3f} {row['mfu']:>6.1%}  {row['source']}"
        )
    return "\n".join(lines)
