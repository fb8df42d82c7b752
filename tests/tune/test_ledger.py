from __future__ import annotations

from pathlib import Path

from raypref.tune.ledger import Ledger, Look, Record, Status


def record(number: int, status: Status = "finished", accuracy: float = 0.5) -> Record:
    looks = [Look(rung=2, steps=9, accuracy=accuracy, nll=0.6)] if status in ("finished", "stopped") else []
    return Record(number=number, values={"method.bases": number}, status=status, looks=looks, seconds=1.0)


def test_records_survive(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials.jsonl")
    found = [record(3), record(1, "diverged"), record(2, "stopped", 0.9)]
    for one in found:
        ledger.add(one)
    assert list(Ledger(tmp_path / "trials.jsonl").records.values()) == found


def test_a_line_cut_short_is_no_record_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    ledger = Ledger(path)
    for number in range(3):
        ledger.add(record(number))
    whole = path.read_bytes()
    start = whole.index(b'{"number": 2')
    for cut in range(start, len(whole) - 1):
        path.write_bytes(whole[:cut])
        again = Ledger(path)
        assert sorted(again.records) == [0, 1]
        again.add(record(2))
        assert list(Ledger(path).records.values()) == [record(0), record(1), record(2)]


def test_a_failed_trial_is_tried_again_and_its_last_record_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials.jsonl")
    for one in (record(0, "failed"), record(1, "diverged"), record(2, "stopped")):
        ledger.add(one)
    assert [one.number for one in ledger.over] == [1, 2]
    ledger.add(record(0))
    assert [one.number for one in Ledger(tmp_path / "trials.jsonl").over] == [1, 2, 0]


def test_the_best_is_finished_and_the_first_of_equals(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials.jsonl")
    assert ledger.best() is None
    for one in (record(5, accuracy=0.7), record(2, accuracy=0.7), record(1, "stopped", 0.9), record(0)):
        ledger.add(one)
    assert ledger.best() == record(2, accuracy=0.7)
