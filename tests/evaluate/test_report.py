from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from raypref.config import EvaluateConfig
from raypref.errors import InputError, MismatchError
from raypref.evaluate.canvas import LABEL_GAP, PALETTE, looks, spread
from raypref.evaluate.landscape import map_users
from raypref.evaluate.protocol import evaluate
from raypref.evaluate.report import ReportMeta, write_report
from raypref.evaluate.result import Evaluation
from tests.evaluate.world import Tastes, World

CONFIG = EvaluateConfig(shots=(0, 2, 8), seeds=(0, 1), bootstrap=50)
META = ReportMeta(
    title="Tastes & <distastes>", data="A small population.", baseline="flat", versions={"raypref": "0"}
)


@pytest.fixture(scope="module")
def evaluations(world: World) -> dict[str, Evaluation]:
    models = {
        "flat": Tastes(personal=False, uncertain=False),
        "tastes": Tastes(),
        "blunt": Tastes(uncertain=False),
    }
    return {name: evaluate(model, world.items, world.tables, CONFIG) for name, model in models.items()}


@pytest.fixture(scope="module")
def report(
    world: World, evaluations: dict[str, Evaluation], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("report") / "report"
    maps = {"flat": None, "tastes $1$ (a/b)": map_users(Tastes(), world.items, world.tables)}
    write_report(directory, evaluations, maps, META)
    return directory


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    return (report / "report.html").read_text()


class Reader(HTMLParser):
    """Checks nesting, and collects ids and what elements point to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.pointers: list[str] = []
        self.labels: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []  # type: ignore[list-item]
        self.pointers += [
            values[name] or "" for name in ("src", "href", "xlink:href", "data") if name in values
        ]
        self.pointers += re.findall(r"url\((.*?)\)", " ".join(value or "" for value in values.values()))
        if values.get("role") == "img":
            self.labels.append(values["aria-label"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(page: str) -> None:
    reader = Reader(page)
    assert reader.open == []
    assert all(pointer.startswith(("#", "data:")) for pointer in reader.pointers)
    assert "http" not in page
    assert "@import" not in page
    assert len(reader.ids) == len(set(reader.ids))
    assert {pointer[1:] for pointer in reader.pointers if pointer.startswith("#")} <= set(reader.ids)


def test_the_page_holds_every_figure_with_its_words(report: Path, page: str) -> None:
    content = json.loads((report / "report.json").read_text())
    labels = Reader(page).labels
    assert labels == [figure["alt"] for figure in content["figures"]]
    assert all(len(label) > 40 for label in labels)
    assert page.count("<svg") == len(labels) == 11
    pdfs = {path.name: path.read_bytes()[:5] for path in (report / "figures").iterdir()}
    assert pdfs == {f"{figure['name']}.pdf": b"%PDF-" for figure in content["figures"]}


def test_the_page_holds_every_number(report: Path, page: str) -> None:
    content = json.loads((report / "report.json").read_text())
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1]) == content
    visible = html.unescape(page[: embedded.start()])
    for name, evaluation in content["evaluations"].items():
        for cell in evaluation["cells"]:
            shots = "all" if cell["shots"] is None else cell["shots"]
            row = visible[visible.index(f'<tr><th scope="row">{name}</th><td>{cell["cohort"]}') :]
            row = row[row.index(f"<td>{cell['cohort']}/{cell['setting']}/{shots}</td>") :]
            row = row[: row.index("</tr>")]
            numbers = [cell["accuracy_per_user"][part] for part in ("mean", "low", "high")]
            numbers += [cell[part] for part in ("accuracy_per_pair", "nll", "ece", "full_share")]
            assert all(f"{number:.3f}" in row for number in numbers)
            assert f"<td>{cell['users']}</td><td>{cell['comparisons']}</td>" in row
    assert len(content["differences"]) == 2 * 8
    words = " ".join(re.sub(r"<[^>]+>", " ", visible).split())
    for difference in content["differences"]:
        e = difference["accuracy"]
        assert f"{e['mean']:+.3f} [{e['low']:.3f}, {e['high']:.3f}]" in words


def test_the_page_says_what_vectors_are_worth(page: str, evaluations: dict[str, Evaluation]) -> None:
    section = html.unescape(page[page.index('<h2 id="latents">') : page.index('<h2 id="numbers">')])
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>(<th.*?)</tr>", section)]
    for (name, evaluation), (seen, unseen) in zip(
        evaluations.items(), zip(rows[1::2], rows[2::2], strict=True), strict=True
    ):
        for row, cohort, shots in ((seen, "seen", None), (unseen, "unseen", 8)):
            expected = [name, "seen", "users"] if cohort == "seen" else [name, "unseen,", "8"]
            cells = [evaluation.cell(cohort, setting, shots) for setting in ("warm", "cold")]  # type: ignore[arg-type]
            for cell in cells:
                assert cell is not None
                assert cell.latent_gain is not None
                gain = cell.latent_gain
                expected += [f"{gain.mean:+.3f}", f"[{gain.low:.3f},", f"{gain.high:.3f}]"]
            assert cells[0] is not None
            found = cells[0].collapse
            assert (found is None) == (name != "tastes")
            if found is None:
                expected += ["–", "–", "–"]
            else:
                expected += [str(found.active_units), "of", "3"]
                expected += [f"{found.kl:.3f}", f"{found.mutual_information:.3f}"]
            assert row == expected
    assert "+0.000 [0.000, 0.000]" in " ".join(rows[1])


def test_text_is_escaped(page: str) -> None:
    assert "<h1>Tastes &amp; &lt;distastes&gt;</h1>" in page


def test_a_closing_tag_in_a_text_does_not_end_the_numbers(
    evaluations: dict[str, Evaluation], tmp_path: Path
) -> None:
    meta = ReportMeta(title="</script><b>", data="")
    write_report(tmp_path / "report", {"flat": evaluations["flat"]}, {}, meta)
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("</script>") == 1
    assert Reader(page).open == []


def test_the_same_evaluations_give_the_same_bytes(
    report: Path, world: World, evaluations: dict[str, Evaluation], tmp_path: Path
) -> None:
    maps = {"flat": None, "tastes $1$ (a/b)": map_users(Tastes(), world.items, world.tables)}
    write_report(tmp_path / "report", evaluations, maps, META)
    for path in (path for path in report.rglob("*") if path.is_file()):
        assert (tmp_path / "report" / path.relative_to(report)).read_bytes() == path.read_bytes()


def test_an_impossible_report_leaves_the_old_one(evaluations: dict[str, Evaluation], tmp_path: Path) -> None:
    directory = tmp_path / "report"
    with pytest.raises(InputError, match="no evaluations"):
        write_report(directory, {}, {}, META)
    with pytest.raises(InputError, match="baseline"):
        write_report(directory, {"tastes": evaluations["tastes"]}, {}, META)
    other = evaluations["tastes"].model_copy(update={"fingerprint": "1" * 64})
    with pytest.raises(MismatchError):
        write_report(directory, {**evaluations, "tastes": other}, {}, META)
    assert list(tmp_path.iterdir()) == []


def test_labels_move_apart_and_no_further() -> None:
    wanted = [0.0, 1.0, 2.0, 50.0]
    placed = spread(wanted, LABEL_GAP)
    assert all(b - a >= LABEL_GAP - 1e-9 for a, b in pairwise(placed))
    assert placed[3] == 50.0
    assert sum(placed[:3]) == pytest.approx(3.0)
    assert spread([], LABEL_GAP) == []


def test_the_baseline_takes_no_colour_from_the_others() -> None:
    style = looks(["flat", "a", "b"], "flat")
    assert [style[name].colour for name in ("a", "b")] == list(PALETTE[:2])
    assert style["flat"].dashed
    assert not style["a"].dashed
