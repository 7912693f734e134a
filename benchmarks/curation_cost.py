"""What curation of 1 TB, 10 TB and 1 PB of text costs on Dataflow and on machines of one's own, from a measured rate.

    python benchmarks/curation_cost.py --mb_per_cpu_second=2.0 --keyed_stages=3

The rate is what `curation_rates.py` prints for a recipe. Text is shuffled once to its shard and once more for each
keyed stage, compressed by lz4. Prices are assumptions, list prices in US dollars as known in 2026 without discounts:
change them by the flags. Storage of input and output, and traffic between regions, are not in it.
"""

import argparse

SIZES = {"1 TB": 1e12, "10 TB": 1e13, "1 PB": 1e15}
LZ4_RATIO = 0.41  # of the text of benchmarks/real_text.py
HOURS = 24  # in which the job is to be done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb_per_cpu_second", type=float, required=True)
    parser.add_argument("--keyed_stages", type=int, default=3)
    parser.add_argument("--cloud_core", type=float, default=0.5, help="of the measured core, what a vCPU does")
    parser.add_argument("--dataflow_vcpu_hour", type=float, default=0.056)
    parser.add_argument("--dataflow_gb_hour", type=float, default=0.003557)
    parser.add_argument("--gb_per_vcpu", type=float, default=4.0)
    parser.add_argument("--dataflow_shuffle_gb", type=float, default=0.011)
    parser.add_argument("--spot_vcpu_hour", type=float, default=0.012)
    arguments = parser.parse_args()
    print("| text | vCPU-hours | vCPUs for a day | shuffled | Dataflow | own spot machines (Flink, Spark) |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, size in SIZES.items():
        hours = size / 1e6 / (arguments.mb_per_cpu_second * arguments.cloud_core) / 3600
        shuffled = size / 1e9 * LZ4_RATIO * (1 + arguments.keyed_stages)
        vcpu_hour = arguments.dataflow_vcpu_hour + arguments.gb_per_vcpu * arguments.dataflow_gb_hour
        dataflow = hours * vcpu_hour + shuffled * arguments.dataflow_shuffle_gb
        spot = hours * arguments.spot_vcpu_hour
        numbers = f"{hours:,.0f} | {hours / HOURS:,.0f} | {shuffled:,.0f} GB | ${dataflow:,.0f} | ${spot:,.0f}"
        print(f"| {name} | {numbers} |")


if __name__ == "__main__":
    main()
