"""`pretrain words` on a run that trained word vectors through the command line."""

import json

import pytest
from tiny import ROOT, write_corpus

from pretrain.evaluate.word_vectors import load_word_vectors
from pretrain.main import main

RUN = ROOT / "gin_configs" / "runs" / "word2vec_quickstart.gin"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of word2vec, four steps long."""
    folder = tmp_path_factory.mktemp("words")
    corpus = write_corpus(folder / "corpus.jsonl")
    bindings = ["TRAIN_STEPS=4", "BATCH_SIZE=2", "SEQUENCE_LENGTH=64", "VOCAB_SIZE=400", "TokenizerConfig.min_count=1"]
    flags = [f"--gin_file={RUN}", f"--workdir={folder / 'run'}", f"--input={corpus}", "--workers=1"]
    assert main(["run", *flags, *(f"--gin.{binding}" for binding in bindings)]) == 0
    return folder / "run"


def test_neighbours_analogies_judgements_and_files(trained, tmp_path, capsys):
    files = [tmp_path / "vectors.txt", tmp_path / "vectors.bin"]
    assert main(["words", f"--workdir={trained}", f"--output={files[0]}"]) == 0
    vectors = load_word_vectors(files[0])
    a, b, c, d = vectors.words[:4]
    judged = tmp_path / "judged.tsv"
    judged.write_text(f"{a}\t{b}\t1\n{a}\t{c}\t2\n{a}\t{d}\t3\n")
    capsys.readouterr()
    flags = [f"--similar={a}", f"--analogy={a},{b},{c}", f"--judgements={judged}", f"--output={files[1]}", "--count=3"]
    assert main(["words", f"--workdir={trained}", *flags]) == 0
    similar, analogy, correlation = capsys.readouterr().out.splitlines()
    expected = ", ".join(f"{word} {cosine:.3f}" for word, cosine in vectors.most_similar([a], count=3))
    assert similar == f"{a}: {expected}"
    expected = ", ".join(f"{word} {cosine:.3f}" for word, cosine in vectors.analogy(a, b, c, count=3))
    assert analogy == f"{a},{b},{c}: {expected}"
    assert json.loads(correlation) == vectors.correlation(judged)
    assert (load_word_vectors(files[1]).vectors == vectors.vectors).all()
    assert not {"<pad>", "</s>", "<unk>", "<s>"} & set(vectors.words)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "give --similar"),
        (["--similar=xyzzy"], "no vector for 'xyzzy'"),
        (["--analogy=a,b"], "give three words"),
        (["--judgements=nowhere.tsv"], "nowhere.tsv"),
    ],
)
def test_mistakes(trained, capfd, flags, says):
    assert main(["words", f"--workdir={trained}", *flags]) == 2
    error = capfd.readouterr().err
    assert says in error and "Traceback" not in error


def test_a_run_of_another_kind_has_none(tiny_cache, tiny_run, capfd):
    assert main(["words", f"--workdir={tiny_run}", "--similar=the"]) == 2
    assert "holds no word vectors" in capfd.readouterr().err
