"""The page made from a report: self-contained, escaped, complete, and the same numbers as the JSON."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.stages.small_run import small_config, write_checkpoint, write_pairs
from zscmr_ray.errors import DataError
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.evaluate import run_evaluate
from zscmr_ray.stages.report import add_served_queries, plain_values, render_page, render_report
from zscmr_ray.stages.report.charts import class_bars, precision_recall_panels
from zscmr_ray.stages.report.pictures import centre_crop, heat_map, shrink_picture
from zscmr_ray.stages.report.tables import number, text_summary
from zscmr_ray.storage import Store

VOID = frozenset({"meta", "img", "br", "line"})


class Page(HTMLParser):
    """Reads a page: unclosed tags, references out of it, pictures and their alternative texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.pictures: list[tuple[bytes, str]] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        for name in ("src", "href"):
            if name in values and not values[name].startswith(("data:image/jpeg;base64,", "#")):
                self.outside.append(values[name])
        if tag == "img":
            self.pictures.append((base64.b64decode(values["src"].split(",")[1]), values["alt"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = small_config(str(tmp_path_factory.mktemp("run")))
    write_pairs(config)
    write_checkpoint(config)
    run_evaluate(config)
    return stage_store(config, "evaluate")


def documents(run: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    return copy.deepcopy(run.read_json("report.json")), copy.deepcopy(run.read_json("examples.json"))


def jpeg(colour: str = "red", size: tuple[int, int] = (400, 300)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_page_stands_alone_and_is_well_formed(run: Store) -> None:
    text = run.read_bytes("report.html").decode()
    page = Page(text)
    assert page.open == []
    assert page.outside == []
    assert not page.tags & {"script", "link", "iframe"}
    assert "url(" not in text and "@import" not in text
    assert page.pictures and all(alt for _, alt in page.pictures)
    for data, _ in page.pictures:
        with Image.open(io.BytesIO(data)) as picture:
            assert max(picture.size) <= 168
    assert len(text) < 5_000_000


def test_every_map_of_the_report_is_on_the_page_with_chance_and_interval(run: Store) -> None:
    report, _ = documents(run)
    text = run.read_bytes("report.html").decode()
    for method in report["methods"]:
        for numbers in method["classes"].values():
            for part in ("average", "image_to_text", "text_to_image"):
                low, high = numbers[part]["interval"]
                cell = f"<b>{number(numbers[part]['map'])}</b> <small>{number(low)}–{number(high)}</small>"
                assert f"{cell}<small>chance {number(numbers[part]['chance'])}</small>" in text


def test_texts_from_the_data_are_escaped(run: Store) -> None:
    report, examples = documents(run)
    text = render_page(report, examples)
    assert "<b>one</b>" not in text
    assert "&lt;b&gt;one&lt;/b&gt;" in text
    served = [{"query": "<script>x</script>", "picture": None, "expected_labels": [], "results": []}]
    assert "<script>" not in render_page(report, examples, served=served)


def test_hits_are_framed_by_whether_they_are_right(run: Store) -> None:
    _, examples = documents(run)
    text = run.read_bytes("report.html").decode()
    results = [hit for group in examples["groups"] for query in group["queries"] for hit in query["results"]]
    assert text.count('class="hit right"') == sum(hit["right"] for hit in results)
    assert text.count('class="hit wrong"') == sum(not hit["right"] for hit in results)
    for group in examples["groups"]:
        for query in group["queries"]:
            assert all(hit["right"] == (hit["labels"] == query["labels"]) for hit in query["results"])
            scores = [hit["score"] for hit in query["results"]]
            assert scores == sorted(scores, reverse=True)


def test_served_queries_are_added_and_replaced(run: Store) -> None:
    before = run.read_bytes("report.html")
    numbers = run.read_bytes("report.json")
    hits = [
        {"id": "a#1", "score": 0.5, "caption": "a cat", "labels": ["kind a"], "thumbnail_jpeg": jpeg()},
        {"id": "b", "score": 0.25, "caption": None, "labels": [], "thumbnail_jpeg": None},
    ]
    uri = add_served_queries(run, [{"query": "cats & dogs", "results": hits}])
    assert uri.endswith("report.html")
    text = run.read_bytes("report.html").decode()
    assert "cats &amp; dogs" in text and "Asked of the running service" in text
    add_served_queries(run, [{"query_image": jpeg("blue"), "results": hits, "expected_labels": ["kind a"]}])
    text = run.read_bytes("report.html").decode()
    assert "cats &amp; dogs" not in text
    assert len(Page(text).pictures) == len(Page(before.decode()).pictures) + 2
    assert text.count('class="hit right"') == before.decode().count('class="hit right"') + 1
    assert run.read_bytes("report.json") == numbers
    run.delete("served.json")
    render_report(run)
    assert run.read_bytes("report.html") == before


def test_undefined_numbers_are_dashes(run: Store) -> None:
    report, examples = documents(run)
    for method in report["methods"]:
        for condition in method["classes"].values():
            condition["average"] = {"map": None, "interval": [None, None], "chance": None}
            for part in ("image_to_text", "text_to_image"):
                condition[part]["precision_at_recall"] = [None] * 21
    text = render_page(report, examples)
    assert "<b>–</b> <small>–</small><small>chance –</small>" in text
    assert precision_recall_panels(report)[0]["lines"][0]["points"] == ""
    assert "| – (–) |" in text_summary(report)


def test_without_examples_and_without_baselines_the_page_still_renders(run: Store) -> None:
    report, _ = documents(run)
    report["methods"] = [method for method in report["methods"] if method["key"] == "both"]
    report["not_run"] = [{"name": "CCA", "reason": "too few pairs"}]
    text = render_page(report, {"chosen": "", "groups": [], "heat_maps": []})
    assert "too few pairs" in text
    assert Page(text).open == []
    bars = class_bars(report)
    assert bars is not None and not bars["has_baseline"]
    assert all(bar["baseline"] is None for bar in bars["rows"])


def test_a_missing_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        render_report(Store(tmp_path))


def test_bars_are_the_mean_of_both_directions_best_first(run: Store) -> None:
    report, _ = documents(run)
    found = class_bars(report)
    assert found is not None
    bars = found["rows"]
    assert max(bar["percent"] for bar in bars) <= 100
    both = next(method for method in report["methods"] if method["key"] == "both")["classes"]["U|U"]
    for bar in bars:
        values = [both[part]["per_class"][bar["name"]] for part in ("image_to_text", "text_to_image")]
        assert bar["value"] == pytest.approx(np.mean(values))
    assert [bar["value"] for bar in bars] == sorted((bar["value"] for bar in bars), reverse=True)


def test_heat_map_brightens_the_selected_region_and_dims_the_rest() -> None:
    weights = np.zeros(9, np.float32)
    weights[2] = 3.0  # the upper right tile
    seen, weighted = heat_map(jpeg("gray"), weights, crop_fraction=0.8, side_px=90)
    with Image.open(io.BytesIO(seen)) as one, Image.open(io.BytesIO(weighted)) as other:
        assert one.size == other.size == (90, 90)
        before, after = np.asarray(one, float), np.asarray(other, float)
    assert after[15, 75].sum() > before[15, 75].sum() + 30
    assert after[75, 15].sum() < before[75, 15].sum() - 30
    flat = heat_map(jpeg("gray"), np.zeros(4, np.float32), crop_fraction=1.0)
    assert len(flat) == 2


def test_crop_and_shrink_geometry() -> None:
    picture = Image.new("RGB", (400, 200))
    assert centre_crop(picture, crop_fraction=0.5).size == (100, 100)
    with Image.open(io.BytesIO(shrink_picture(jpeg(size=(400, 200)), side_px=100))) as small:
        assert small.size == (100, 50)


def test_plain_values_are_json() -> None:
    found = plain_values({"a": (float("inf"), float("nan"), 1), "b": [{"c": "d"}]})
    assert json.loads(json.dumps(found, allow_nan=False)) == {"a": [None, None, 1], "b": [{"c": "d"}]}


def test_colours_of_the_style_are_defined_for_light_and_dark() -> None:
    style = (Path(__file__).parents[2] / "zscmr_ray/stages/report/style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.S)
    names = set(re.findall(r"(--[\w]+):", light))
    assert names == set(re.findall(r"(--[\w]+):", dark))
    assert set(re.findall(r"var\((--\w+)\)", style)) <= names
