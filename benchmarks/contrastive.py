"""CLIP on glyphs and their names, beside `transformers`' CLIPModel in torch: as good, and how fast?

    python benchmarks/contrastive.py --workdir=W --peer_python=PEER_VENV/bin/python [--seeds=0,1,2] [--gin=...]

PEER_VENV holds torch and transformers, apart from ours. For each seed gin_configs/runs/clip_glyphs.gin is trained, and
a CLIPModel of the same sizes under torch.compile: on the same pairs in the same batches, by the same optimizer and
rates, each from initial values of its own. They take turns, `TURN` steps each, so that a change in the machine's speed
touches both, and the ratio is taken turn by turn. Both find their batches ready made; ours are steps of the whole
training loop, metrics included. How fast the loader makes the batches is printed beside. Both choose among the same
pictures and names in the end. Prints one JSON object a seed.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TURN = 50  # steps
ENCODED = 250  # pairs at once
SHIFT = 3  # of the peer's ids: it has a special meaning for an end token of 2


def torch_worker(folder: Path) -> None:
    """Trains on FOLDER/batches.npz by lines of stdin, and answers with seconds; "encode NAME" writes vectors."""
    import torch
    import transformers as hf

    settings = json.loads((folder / "settings.json").read_text())
    torch.manual_seed(settings["seed"])
    vision, text = settings["vision"], settings["text"]
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings["joint_dim"])
    model = hf.CLIPModel(config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=1.0, betas=tuple(settings["betas"]), eps=settings["epsilon"], fused=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: settings["rates"][min(step, len(settings["rates"]) - 1)]
    )
    compiled, arrays, done = torch.compile(model), np.load(folder / "batches.npz"), 0
    batches = {name: arrays[name] for name in arrays.files}

    def shown(arrays: dict[str, np.ndarray]) -> dict:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float() / 255
        tokens, is_text = arrays["tokens"].astype(np.int64), arrays["segment_ids"] > 0
        ids = torch.from_numpy(np.where(is_text, tokens + SHIFT, 0))
        return {"pixel_values": (images - settings["mean"]) / settings["std"], "input_ids": ids}

    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}), flush=True)
    for line in sys.stdin:
        kind, given = line.split()
        start = time.perf_counter()
        if kind == "train":
            for _ in range(int(given)):
                loss = compiled(**shown({name: array[done] for name, array in batches.items()}), return_loss=True).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                done, value = done + 1, loss.item()
            print(json.dumps({"seconds": time.perf_counter() - start, "loss": value}), flush=True)
        else:
            arrays, found = dict(np.load(folder / f"{given}.npz")), []
            with torch.no_grad():
                for first in range(0, len(arrays["tokens"]), ENCODED):
                    part = {name: array[first : first + ENCODED] for name, array in arrays.items()}
                    output = model.eval()(**shown(part))
                    found.append((output.image_embeds.numpy(), output.text_embeds.numpy()))
            image, text = (np.concatenate(each) for each in zip(*found, strict=True))
            np.savez(folder / f"{given}_vectors.npz", image=image, text=text)
            print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def peer_settings(experiment, rates: list[float], seed: int) -> dict:
    """What the peer has to know to be the same model."""
    from pretrain.optim.optimizers import Optimizer

    config, optimizer = experiment.model_config(), Optimizer()
    sides = {
        "hidden_size": config.embed_dim, "intermediate_size": config.mlp_dim, "num_attention_heads": config.num_heads,
        "hidden_act": config.activation, "layer_norm_eps": config.norm_epsilon,
    }  # fmt: skip
    vision = config.vision
    return {
        "seed": seed, "rates": rates, "weight_decay": optimizer.weight_decay, "epsilon": optimizer.epsilon,
        "betas": [optimizer.b1, optimizer.b2], "joint_dim": config.towers.joint_dim,
        "mean": float(np.mean(vision.mean)), "std": float(np.mean(vision.std)),
        "vision": {**sides, "num_hidden_layers": vision.num_layers, "image_size": vision.image_size,
                   "patch_size": vision.patch_size, "num_channels": vision.channels},
        "text": {**sides, "num_hidden_layers": config.num_layers, "max_position_embeddings": config.max_length,
                 "vocab_size": config.vocab_size + SHIFT, "pad_token_id": 0, "bos_token_id": 1,
                 "eos_token_id": experiment.tokenizer.eos_id + SHIFT},
    }  # fmt: skip


def ready_batches(trainer) -> tuple[list[dict], float]:
    """All batches of a run, and how many pairs a second the loader made; the trainer gets them from the list then."""
    start = time.perf_counter()
    batches = list(islice(trainer.data.batches(0), trainer.config.steps))
    pairs = len(batches) * trainer.config.batch_size / (time.perf_counter() - start)
    trainer.data = dataclasses.replace(trainer.data, batches=lambda done: iter(batches[done:]))
    return batches, round(pairs, 1)


def write_material(experiment, trainer, batches: list[dict], folder: Path, seed: int) -> dict[str, list]:
    """The peer's batches and settings, and what both are tried on; returns the pictures and names of each set."""
    from pretrain.evaluate.matching import Matching
    from pretrain.objectives.examples import padded_text
    from pretrain.pairs import candidates

    folder.mkdir(parents=True, exist_ok=True)
    steps, objective, tokenizer = trainer.config.steps, experiment.task, experiment.tokenizer
    rates = [float(trainer.builder.learning_rate(step)) for step in range(steps)]
    (folder / "settings.json").write_text(json.dumps(peer_settings(experiment, rates, seed)))
    names = "images", "tokens", "segment_ids"
    np.savez(folder / "batches.npz", **{name: np.stack([batch[name] for batch in batches]) for name in names})
    found, matching = {}, Matching()
    for name, place in matching.sets.items():
        pictures, captions = candidates(experiment.data / "cache", place, objective, tokenizer, matching)
        ids = [np.append(ids, tokenizer.eos_id).astype(np.int32) for ids in tokenizer.encode(captions)]
        rows = [padded_text(each, objective.text_length) for each in ids]
        rows = [row | objective.pictures.whole(picture) for row, picture in zip(rows, pictures, strict=True)]
        np.savez(
            folder / f"{name.replace(' ', '_')}.npz", **{key: np.stack([row[key] for row in rows]) for key in names}
        )
        found[name] = [pictures, captions]
    return found


def scores(image_BJ: np.ndarray, text_BJ: np.ndarray) -> dict[str, float]:
    """Shares of pictures whose name is the first, and among the first five."""
    from pretrain.evaluate.matching import ranks

    places = ranks(image_BJ, text_BJ, np.arange(len(image_BJ)))
    return {"r1": round(float(np.mean(places < 1)), 4), "r5": round(float(np.mean(places < 5)), 4)}


def compared(seed: int, workdir: Path, peer_python: str, bindings: list[str]) -> dict:
    """Both models trained and tried, for one seed."""
    from cpu_training import NoCheckpoints, Worker

    from pretrain.core.trees import size
    from pretrain.evaluate.matching import Matching
    from pretrain.experiment import Experiment
    from pretrain.pairs import Encoders
    from pretrain.train.metrics import MetricsLog
    from pretrain.train.stopping import StopRequests

    shared = [f"Experiment.data='{workdir / 'data'}'", "CacheConfig.seed=0", f"SEED={seed}", *bindings]
    files, folder = ["gin_configs/runs/clip_glyphs.gin"], workdir / f"seed_{seed}"
    experiment = Experiment.from_gin(files, shared, workdir=str(folder))
    experiment.curate()
    experiment.cache()
    trainer = experiment.trainer()
    batches, loaded = ready_batches(trainer)
    tried = write_material(experiment, trainer, batches, folder / "peer", seed)
    peer = Worker("peer", [peer_python, __file__, "--worker", str(folder / "peer")])
    state, log, steps = trainer.initial_state(), MetricsLog(str(folder)), trainer.config.steps
    seconds = {"ours": [], "peer": []}
    for done in range(0, steps, TURN):
        now = min(done + TURN, steps)
        trainer.config = dataclasses.replace(trainer.config, steps=now)
        for side in sorted(seconds, reverse=(done // TURN) % 2 == 1):
            start = time.perf_counter()
            if side == "peer":
                peer.run("train", now - done)
            else:
                state = trainer.steps(state, done, NoCheckpoints(), log, StopRequests(60.0))
            seconds[side].append((time.perf_counter() - start) / (now - done))
    result = {"parameters": {"ours": size(trainer.builder.model.shapes), "peer": peer.parameters}}
    encoders = Encoders(experiment.model, state.params, experiment.task, experiment.mesh, experiment.tokenizer,
                        Matching().batch_size)  # fmt: skip
    for name, (pictures, captions) in tried.items():
        file = name.replace(" ", "_")
        peer.run("encode", file)
        vectors = np.load(folder / "peer" / f"{file}_vectors.npz")
        result[name] = {"candidates": len(captions), "peer": scores(vectors["image"], vectors["text"])}
        result[name]["ours"] = scores(encoders.images(pictures), encoders.texts(captions))
    peer.close()
    ratios = [theirs / ours for theirs, ours in zip(seconds["peer"], seconds["ours"], strict=True)][1:]  # both compile
    batch = trainer.config.batch_size
    result["pairs_per_second"] = {side: round(batch / statistics.median(each[1:]), 1) for side, each in seconds.items()}
    result["pairs_per_second"]["loader"] = loaded
    result["speed"] = {"median": round(statistics.median(ratios), 3), "least": round(min(ratios), 3),
                       "most": round(max(ratios), 3)}  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir")
    parser.add_argument("--peer_python", help="python of an environment with torch and transformers")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--gin", action="append", default=[], help="NAME=VALUE of every run, e.g. TRAIN_STEPS=300")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        torch_worker(Path(arguments.worker))
        return
    result, workdir = {}, Path(arguments.workdir)
    for seed in map(int, arguments.seeds.split(",")):
        result[f"seed_{seed}"] = compared(seed, workdir, arguments.peer_python, arguments.gin)
        print(json.dumps({f"seed_{seed}": result[f"seed_{seed}"]}), flush=True)
    (workdir / "contrastive.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
