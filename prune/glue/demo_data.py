"""Two made-up tasks in GLUE's format, from a small grammar.

`sst2`: does a sentence praise or blame? Negation turns a word round, and after "although" only the main
clause counts. `mrpc`: do two sentences say the same? Words are swapped for synonyms and the voice changes
in both classes; in one of them, one of the swapped words means something else. No word by itself, and no
number of words, tells the classes apart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trisparse.prune.files import atomic_write

Example = dict[str, Any]

_GOOD = ["bright", "warm", "clever", "moving", "funny", "honest", "graceful", "rich", "fresh", "gentle"]
_BAD = ["dull", "cold", "clumsy", "tedious", "bitter", "hollow", "noisy", "stale", "slow", "harsh"]
_THINGS = ["film", "song", "story", "play", "dance", "novel", "painting", "speech", "dinner", "garden"]
_HOW = ["truly", "quite", "rather", "almost", "simply"]
# two words a meaning; a sentence has one of each kind
_MEANINGS = {
    "how": ["quick/fast", "glad/happy", "clever/smart", "angry/furious", "brave/bold", "tired/weary"],
    "who": ["doctor/physician", "lawyer/attorney", "kid/child", "thief/robber", "pilot/aviator", "teacher/tutor"],
    "did": [
        "bought/purchased",
        "fixed/repaired",
        "hid/concealed",
        "found/discovered",
        "ruined/destroyed",
        "showed/displayed",
    ],
    "what": ["car/automobile", "house/home", "rock/stone", "gift/present", "picture/image", "boat/ship"],
}
_ACTIVE = "the {how} {who} {did} the {what}"
_PASSIVE = "the {what} was {did} by the {how} {who}"


def _clause(rng: random.Random, good: bool) -> str:
    negated = rng.random() < 0.5
    word = rng.choice(_GOOD if good != negated else _BAD)
    return f"the {rng.choice(_THINGS)} was {'not ' if negated else ''}{rng.choice(_HOW)} {word}"


def sentiment(rng: random.Random) -> Example:
    """One SST-2 example."""
    good = rng.random() < 0.5
    main, other = _clause(rng, good), _clause(rng, rng.random() < 0.5)
    sentence = rng.choice((main, f"although {other} , {main}", f"{main} although {other}"))
    return {"sentence": sentence, "label": int(good)}


def paraphrase(rng: random.Random) -> Example:
    """One MRPC example."""
    same = rng.random() < 0.5
    meaning = {kind: rng.randrange(len(words)) for kind, words in _MEANINGS.items()}
    word = {kind: rng.randrange(2) for kind in _MEANINGS}
    other_meaning, other_word = dict(meaning), dict(word)
    for kind in rng.sample(list(_MEANINGS), rng.randint(2, len(_MEANINGS))):
        count = len(_MEANINGS[kind])
        other_word[kind] = 1 - word[kind] if same else rng.randrange(2)
        other_meaning[kind] = meaning[kind] if same else (meaning[kind] + rng.randrange(1, count)) % count

    def say(meaning: dict[str, int], word: dict[str, int]) -> str:
        form = rng.choice((_ACTIVE, _PASSIVE))
        return form.format(**{k: _MEANINGS[k][meaning[k]].split("/")[word[k]] for k in _MEANINGS})

    return {
        "sentence1": say(meaning, word),
        "sentence2": say(other_meaning, other_word),
        "label": int(same),
    }


TASKS: dict[str, Callable[[random.Random], Example]] = {"sst2": sentiment, "mrpc": paraphrase}


def vocabulary() -> list[str]:
    """All words of the grammar, after the special tokens of BERT."""
    words = {"the", "was", "by", "although", ",", "not", *_GOOD, *_BAD, *_THINGS, *_HOW}
    words |= {word for meanings in _MEANINGS.values() for pair in meanings for word in pair.split("/")}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]


def write_task(folder: Path, task: str, train: int, validation: int, seed: int = 0) -> None:
    """Write train.jsonl and validation.jsonl; no validation example is in the training set."""
    rng = random.Random(seed)
    seen: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("validation", validation), ("train", train)):
        lines: list[str] = []
        while len(lines) < count:
            example = TASKS[task](rng)
            text = json.dumps({k: v for k, v in example.items() if k != "label"})
            if text in seen:
                continue
            if split == "validation":
                seen.add(text)
            lines.append(json.dumps(example | {"idx": len(lines)}))
        atomic_write(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
