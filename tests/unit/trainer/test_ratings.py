"""Ratings of one's own need no code either; what is held out, ranked among and drawn is fixed by seeds; figures are the formulas'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lepton_trainer.train import loop, models, tasks
from lepton_trainer.train.config import parse
from lepton_trainer.train.data import ratings
from lepton_trainer.train.data.ratings import Encoder, Known
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.tasks.recommendation import RecommendationTask

USERS, ITEMS = 60, 40


def planted(seed: int = 1, users: int = USERS) -> list[tuple[str, str, float, int]]:
    """Users of one of two tastes rate a third of the items: those of their own taste high. (user, item, rating, time)"""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for time, item in enumerate(generator.permutation(ITEMS)[: ITEMS // 3]):
            liked = user % 2 == item % 2
            rows.append((f"u{user}", f"i{item}", float(np.clip(round((4.2 if liked else 2.0) + generator.normal(0, 0.4)), 1, 5)), time))
    return rows


def folder(base: Path, rows: list[tuple[str, str, float, int]] | None = None, sides: bool = True, users: int = USERS) -> Path:
    base.mkdir(exist_ok=True)
    lines = [f"{user},{item},{rating:g},{time}" for user, item, rating, time in rows or planted()]
    (base / "ratings.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *lines]))
    if sides:
        people = [f"u{user},{20 + user % USERS},{'mf'[user % 2]},{1000 + user}" for user in range(users)]
        (base / "users.csv").write_text("\n".join(["id,age,taste,zip", *people]))
        items = [f"i{item},Title {item},{'drama|war' if item % 2 else 'war'},same" for item in range(ITEMS)]
        (base / "items.csv").write_text("\n".join(["item_id,title,genre,store", *items]))
    return base


def task(path: Path, objective: str = "rating", kind: str = "dlrm", data: dict[str, Any] | None = None, **more: Any) -> RecommendationTask:
    settings = {"data": {"source": "csv", "path": str(path), **(data or {})}, "objective": objective, "model": {"kind": kind}, **more}
    built = tasks.build(parse({"recommendation": settings}))
    assert isinstance(built, RecommendationTask)
    return built


def test_columns_are_told_from_their_names_and_sides_from_their_files(tmp_path: Path) -> None:
    found = task(folder(tmp_path / "shop"))
    told = "\n".join(found.notes)
    assert f"{USERS * 13} rows of {USERS} users and {ITEMS} items" in told
    assert "user in 'user_id', item in 'item_id', rating in 'rating', time in 'timestamp'" in told
    assert "known of each user: age, taste, zip" in told and "known of each item: genre" in told
    assert [len(known) for known in found.data.encoder.known_of_items] == [2], "a title and a constant say nothing"
    assert not task(tmp_path / "shop", kind="factorization").data.encoder.known_of_users


def test_names_of_ones_own_are_written_and_a_file_may_stand_alone(tmp_path: Path) -> None:
    file = tmp_path / "plays.csv"
    file.write_text("\n".join(["who;song;plays", *(f"{user};{item};{rating}" for user, item, rating, _ in planted())]))
    found = task(file, data={"rating": "plays"})
    assert "user in 'who', item in 'song', rating in 'plays'" in found.notes[0]
    with pytest.raises(
        UserError, match=r"has no column of the rating: who, song, plays. Write its name in data.rating, or objective: rank"
    ):
        task(file)
    with pytest.raises(UserError, match=r"has no column 'play'. Write one of who, song, plays in data.rating"):
        task(file, data={"rating": "play"})
    assert "by place in the file" in "\n".join(task(file, objective="ranking").notes)


def test_bad_rows_are_counted_and_the_last_of_two_ratings_counts(tmp_path: Path) -> None:
    rows = [*planted(), ("u0", "i0", float("nan"), 1), ("", "i1", 3.0, 1), *[("u1", "i1", 1.0, 50)] * 2]
    base = folder(tmp_path / "shop", rows)
    with pytest.raises(UserError, match=r"2 of 784 rows are bad \(1 x no user or no item, 1 x no rating\)"):
        task(base, data={"maxBadFraction": 0.001})
    found = task(base)
    assert found.data.rejected["no rating"] == found.data.rejected["no user or no item"] == 1
    assert found.data.rejected["rated again later"] >= 1


def test_a_file_that_is_not_there_and_one_that_knows_nobody_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ratings.csv: there is no such file"):
        (tmp_path / "empty").mkdir()
        task(tmp_path / "empty")
    base = folder(tmp_path / "shop")
    (base / "users.csv").write_text("id,age\nx1,3\nx2,4\n")
    with pytest.raises(UserError, match=r"users.csv: column 'id' holds none of the users of the ratings"):
        task(base)


def test_recboles_files_are_movielens(tmp_path: Path) -> None:
    lines = [f"{user[1:]}\t{item[1:]}\t{rating}\t{time}" for user, item, rating, time in planted()]
    (tmp_path / "ml-100k.inter").write_text("\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *lines]))
    users = [f"{user}\t{20 + user}\tM" for user in range(USERS)]
    (tmp_path / "ml-100k.user").write_text("\n".join(["user_id:token\tage:token\tgender:token", *users]))
    items = [f"{item}\tFilm, the {item}\t{'Drama War' if item % 2 else 'War'}" for item in range(ITEMS)]
    (tmp_path / "ml-100k.item").write_text("\n".join(["item_id:token\tmovie_title:token_seq\tclass:token_seq", *items]))
    found = task(tmp_path, data={"source": "movielens"})
    assert [known.name for known in found.data.encoder.known_of_users] == ["age"]
    assert found.data.encoder.known_of_items == [Known("class", [], ["War", "Drama"])]


def test_the_last_item_of_each_user_is_ranked_among_items_that_it_never_took(tmp_path: Path) -> None:
    rows = planted()
    found = task(folder(tmp_path / "shop", rows), objective="ranking")
    encoder = found.data.encoder
    last = {user: item for user, item, _, _ in rows}
    taken: dict[str, set[str]] = {}
    for user, item, _, _ in rows:
        taken.setdefault(user, set()).add(item)
    assert found.test_size == USERS and found.data.held.shape[1] == 2 + ITEMS - 13
    for user, item, *others in found.data.held.tolist():
        name = encoder.users[user - 1]
        assert encoder.items[item - 1] == last[name]
        assert len(set(others)) == len(others) and not taken[name] & {encoder.items[other - 1] for other in others}
    again = task(tmp_path / "shop", objective="ranking", kind="factorization")
    assert np.array_equal(found.data.held, again.data.held), "all models are ranked among the same"
    assert not np.array_equal(task(tmp_path / "shop", objective="ranking", data={"splitSeed": 1}).data.held, found.data.held)


def test_too_few_items_to_rank_are_named(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", 3.0, item) for user in range(5) for item in range(12)]
    with pytest.raises(UserError, match="of 11 items a user took 11: there is nothing to rank"):
        task(folder(tmp_path / "shop", rows, sides=False), objective="ranking")


def test_negatives_are_drawn_by_seed_epoch_and_sample_alone_and_are_never_taken(tmp_path: Path) -> None:
    found = task(folder(tmp_path / "shop"), objective="ranking", negatives=7)
    epochs, indices = np.zeros(300, dtype=np.int64), np.arange(300)
    whole, targets = found.batch(epochs, indices)
    assert whole.shape == (300, 9) and not targets.any()
    assert torch.equal(found.batch(epochs[40:55], indices[40:55])[0], whole[40:55])
    assert not torch.equal(found.batch(epochs + 1, indices)[0], whole)
    train = {tuple(pair) for pair in found.data.train.tolist()}
    clashes = [(row[0], item) in train for row in whole.tolist() for item in row[2:]]
    assert sum(clashes) / len(clashes) < 0.02
    assert whole[:, 1:].min() >= 1 and whole[:, 1:].max() == ITEMS


@pytest.mark.parametrize("batch", [7, 1000])
def test_figures_are_the_formulas_whatever_the_batches(tmp_path: Path, batch: int) -> None:
    found = task(folder(tmp_path / "shop"), objective="ranking")
    scores = torch.randn(found.test_size, found.data.held.shape[1] - 1)
    scores[3, 5] = scores[3, 0]
    sums = torch.zeros(found.sums, dtype=torch.float64)
    for first in range(0, found.test_size, batch):
        sums += found.score(scores[first : first + batch], found.test_batch(first, min(first + batch, found.test_size))[1])
    place = (scores[:, 1:] >= scores[:, :1]).sum(dim=1).numpy()
    figures = found.metrics(sums.tolist())
    assert figures["hit_rate_at_10"] == pytest.approx((place < 10).mean())
    assert figures["ndcg_at_10"] == pytest.approx(np.where(place < 10, 1 / np.log2(place + 2), 0).mean())

    rated = task(tmp_path / "shop")
    guessed = torch.full((rated.test_size, 1), 9.0)
    sums = rated.score(guessed, rated.test_batch(0, rated.test_size)[1])
    error = 5.0 - np.array(rated.data.held_ratings, dtype=np.float64)
    figures = rated.metrics(sums.tolist())
    assert figures["rmse"] == pytest.approx(np.sqrt((error**2).mean())), "nobody rates above the highest rating"
    assert figures["mae"] == pytest.approx(np.abs(error).mean())


def test_users_and_items_without_training_rows_are_unknown_and_scored_by_the_rest(tmp_path: Path) -> None:
    found = task(folder(tmp_path / "shop", [*planted(), ("u1", "i99", 3.0, 99), ("new", "i1", 3.0, 1)]), objective="ranking")
    assert "i99" not in found.data.encoder.items and 0 in found.data.held[:, 1]
    assert any("as unknown ones" in note for note in found.notes)
    model = task(tmp_path / "shop", kind="factorization").model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[1:] += 1.0
        assert float(model(torch.tensor([[0, 0]]))) == pytest.approx(task(tmp_path / "shop", kind="factorization").data.encoder.mean)


def test_the_encoder_comes_back_from_json_and_makes_the_same_model(tmp_path: Path) -> None:
    found = task(folder(tmp_path / "shop"))
    document = json.loads(json.dumps(found.preprocessing))
    encoder = Encoder.from_json(document["encoder"])
    assert encoder == found.data.encoder
    users, items = encoder.encode(["u3", "nobody", 7], ["i2", "i2", None])
    assert (encoder.users[users[0] - 1], users[1], users[2], items[2]) == ("u3", 0, 0, 0)
    torch.manual_seed(0)
    first = found.model()
    second = models.build(json.loads(json.dumps(found.description)), document)
    second.load_state_dict(first.state_dict())
    rows = found.test_batch(0, 20)[0]
    assert torch.equal(first(rows), second(rows))


def test_what_is_known_is_cut_and_split() -> None:
    age = Known.fit("age", [str(year) for year in range(100)])
    assert age is not None and len(age) == 10
    assert age.places("-3") == [1] and age.places("99") == [10] and age.places("?") == age.places("old") == []
    genre = Known.fit("genre", ["war|drama", "war", "drama", "", "war"])
    assert genre is not None and genre.places("drama|war|love") == [2, 1]
    assert Known.fit("same", ["x", "x"]) is None and Known.fit("name", [f"n{index}" for index in range(99)]) is None


@pytest.mark.parametrize("kind", ["factorization", "dlrm"])
@pytest.mark.parametrize("objective", ["rating", "ranking"])
def test_planted_tastes_are_found(tmp_path: Path, kind: str, objective: str) -> None:
    settings = {
        "data": {
            "source": "csv",
            "path": str(
                folder(tmp_path / "shop", planted())
                if objective == "rating"
                else folder(tmp_path / "shop", [row for row in planted(users=300) if row[2] >= 3], users=300)
            ),
        },
        "objective": objective,
        "negatives": 8,
        "model": {"kind": kind, "factors": 8, "width": 16},
        "training": {"epochs": 40 if objective == "rating" else 15, "globalBatch": 64, "evaluateEverySteps": 10_000},
        "optimizer": {"learningRate": 0.02, "weightDecay": 0.1},
        "checkpoint": {"path": str(tmp_path / "run"), "everySteps": 10_000},
        "output": {"plots": False},
    }
    config = parse({"recommendation": settings})
    figures = loop.train(config).figures
    data = ratings.load(config.data, config.objective, kind == "dlrm")  # type: ignore[union-attr,arg-type]
    if objective == "rating":
        error = np.array(data.held_ratings) - data.encoder.mean
        assert figures["rmse"] < 0.8 * np.sqrt((error**2).mean())
    else:
        assert data.popularity is not None
        assert figures["hit_rate_at_10"] > data.popularity[0] + 0.1 and figures["ndcg_at_10"] > data.popularity[1] + 0.1
