import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_samples import realistic

from edgekit.report import html
from edgekit.report.charts import scale
from edgekit.report.markup import Markup, el
from edgekit.report.report import Report, SourceInfo

EVIL = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>&' </title></style>"


class Page(HTMLParser):
    """Checks that every element is closed in order; collects elements, attributes and text."""

    VOID = {"meta", "br", "input", "link", "col", "img"}

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)

    @property
    def text(self):
        return "".join(self.texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("html")


@pytest.fixture(scope="module")
def report(folder):
    return realistic(folder)


@pytest.fixture(scope="module")
def page(report, folder):
    return html.render(report, folder)


def test_the_page_is_well_formed_and_whole(page):
    parsed = Page(page)
    for heading in (
        "What ships", "Worth knowing", "Gate", "Accuracy, size and speed", "Every bundle", "Latency", "Stages",
        "Sensitivity of layers", "Classes before and after", "What runs in int8", "Environment",
    ):  # fmt: skip
        assert heading in parsed.text
    assert parsed.elements[0] == ("html", {"lang": "en"})
    assert parsed.count("h1") == 1
    assert sum("hist" in (a.get("class") or "") for _, a in parsed.elements) == 9
    assert sum(a.get("class") == "chart" for _, a in parsed.elements) == 6 + 9, "and a course for each timing"


def test_the_course_of_a_timing_stands_beside_heat_clocks_and_rails(report, folder):
    looks = [
        {
            "time_s": 100.0 + second, "temperature_c": {"cpu-thermal": 50.0 + second, "gpu-thermal": None},
            "cpu_mhz": [1500.0, 1400.0 - second], "gpu_mhz": 624.75, "rails_w": {"VDD_IN": 7.0, "<VDD>": 2.0 + second},
        }
        for second in range(5)
    ]  # fmt: skip
    looks.append({"time_s": 105.0, "temperature_c": None, "cpu_mhz": None, "gpu_mhz": None, "rails_w": None})
    first = report.results[2]
    device = first.device.model_copy(update={"state": {"timed_s": [100.0, 105.0], "during": looks}})
    told = {"device": device, "energy_j": 0.0031, "energy_net_j": 0.0022, "energy_meter": "INA3221: VDD_IN"}
    changed = first.model_copy(update=told)
    results = tuple(changed if r is first else r for r in report.results)
    page = html.render(report.model_copy(update={"results": results}), folder)
    name = "ONNX Runtime quantized int8 on x86-64"
    for label in (f"Latency over time of {name}", f"hottest zone while {name} was timed", f"GPU while {name} was timed",
                  f"fastest core while {name} was timed", f"power of each rail while {name} was timed"):  # fmt: skip
        assert f"<title>{label}</title>" in page
    text = Page(page).text
    assert "VDD_IN: 7" in page and "<VDD>" in text and "<VDD>" not in page
    assert "Energy" in text and "3.10 mJ" in text and "2.20 mJ net" in text and "INA3221: VDD_IN" in text


def test_without_a_meter_the_reason_stands_below(report, folder):
    results = tuple(r.model_copy(update={"energy_reason": "no meter"}) for r in report.results)
    text = Page(html.render(report.model_copy(update={"results": results}), folder)).text
    assert "energy on local" in text and "not known: no meter" in text


def test_every_chart_has_a_name_for_readers(page):
    for svg in re.findall(r"<svg[^>]*>(?:<title>[^<]+</title>)?", page):
        assert 'aria-hidden="true"' in svg or "<title>" in svg


def test_nothing_is_loaded_from_anywhere(page):
    policy = next(a["content"] for _, a in Page(page).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    for tag, attributes in Page(page).elements:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base")
        assert not attributes.keys() & {"src", "href", "srcset", "action", "onclick", "onload"}


def test_coordinates_are_all_finite(page):
    assert not re.search(r"\b(nan|inf)\b", page)


def test_both_colour_schemes_define_the_same_names(page):
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", page)
    names = [set(re.findall(r"(--[\w-]+):", block)) for block in blocks]
    assert len(names) == 3
    assert names[0] == names[1] == names[2]


def evil_report(report):
    text = report.model_dump(mode="json")

    def spoil(value, key=None):
        if isinstance(value, dict):
            keys = ("config", "environment", "float_reasons", "versions", "details")
            return {(EVIL if key in keys else k): spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v, key) for v in value]
        free = ("target", "backend", "device", "name", "reason", "clause", "notes", "warnings", "ships_reason",
                "created", "edgekit", "measured_on", "fingerprint", "backends", "invalid")  # fmt: skip
        return EVIL if isinstance(value, str) and (key in free or key not in KEEP) else value

    return Report.model_validate(spoil(text))


KEEP = {
    "kind",
    "severity",
    "role",
    "precision",
    "status",
    "verdict",
    "vs",
    "statistic",
    "samples_file",
    "predictions_file",
    "bundle",
}


def test_hostile_names_stay_text(report):
    page = html.render(evil_report(report))
    parsed = Page(page)
    assert parsed.count("script") == 1
    assert parsed.count("img") == 0
    assert "<script>alert" not in page
    assert EVIL in parsed.text


def test_a_report_of_almost_nothing_renders():
    bare = Report(edgekit="0", created="now", source=SourceInfo(name="net", size_bytes=10))
    parsed = Page(html.render(bare))
    assert "net" in parsed.text
    assert parsed.count("section") == 0


def test_constant_latencies_render(report):
    samples = {r.key: np.full(50, 0.001) for r in report.results if r.latency_s}
    assert not re.search(r"\b(nan|inf)\b", html.render(report, samples=samples))


def test_a_note_of_many_builds_is_said_once(report):
    results = tuple(r.model_copy(update={"notes": ("placement is as planned",)}) for r in report.results)
    text = Page(html.render(report.model_copy(update={"results": results}))).text
    assert text.count("placement is as planned") == 1
    assert text.index("What runs in int8") < text.index("placement is as planned") < text.index("Environment")
    assert "ONNX Runtime on x86-64, OpenVINO on x86-64, LiteRT on x86-64, ONNX Runtime on raspberry-pi-5" in text


def test_layers_are_drawn_in_the_graphs_order_and_listed_by_sensitivity(page, report):
    parsed = Page(page)
    rows = [r for r in report.stages[-1].sensitivity if r.variant == "affine"]
    drawn = re.findall(r"<title>(\d+)\. (\S+) \((\w+)\): ([\d.]+) dB alone", page)[: len(rows)]
    wanted = [(str(i), row.layer, row.op, f"{row.snr_db:.1f}") for i, row in enumerate(rows, 1)]
    assert drawn == wanted
    table = page[page.index("Layers by sensitivity, affine grid") :]
    worst = sorted(rows, key=lambda row: row.snr_db)
    listed = re.findall(r'<th scope="row">(/features/\S+)</th>', table)[:20]
    assert listed == [row.layer for row in worst[:20]]
    assert "The 20 most sensitive of 60 layers" in parsed.text
    assert parsed.text.count("kept in float") >= 2


def test_the_height_of_a_bar_is_its_error(page, report):
    """Heights against each other, as the axis says: the same number of pixels for every decibel."""
    rows = [r for r in report.stages[-1].sensitivity if r.variant == "affine"]
    chart = page[page.index('aria-label="Error of each layer alone, affine grid') :]
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" class="fill"', chart)[: len(rows)]]
    slopes = [(heights[0] - h) / (r.snr_db - rows[0].snr_db) for h, r in zip(heights[1:], rows[1:], strict=True)]
    assert np.allclose(slopes, slopes[0], rtol=1e-2)
    assert slopes[0] > 0


def test_no_sensitivity_no_section(report):
    stages = tuple(stage.model_copy(update={"sensitivity": ()}) for stage in report.stages)
    assert "Sensitivity of layers" not in html.render(report.model_copy(update={"stages": stages}))


def test_many_classes_show_those_that_changed_most(report):
    def spread(result, change):
        first = result.per_class[0]
        rows = [first.model_copy(update={"name": f"class {i}", "f1": 0.9 - change * i / 1000}) for i in range(300)]
        return result.model_copy(update={"per_class": tuple(rows)})

    results = tuple(spread(r, r.role != "reference") if r.per_class else r for r in report.results)
    text = Page(html.render(report.model_copy(update={"results": results}))).text
    assert "The 40 of 300 classes whose F1 changed most" in text
    assert "class 299" in text
    assert "class 200" not in text


def test_elements_escape_text_and_attributes():
    assert el("a", "<", Markup("<b>"), None, 3, class_='"', hidden=True, title=None) == (
        '<a class="&quot;" hidden>&lt;<b>3</a>'
    )


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ([1, 2], False, [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]),
        ([0.001, 0.1], True, [0.001, 0.003, 0.01, 0.03, 0.1]),
        ([5, 5], False, [4.8, 4.9, 5.0, 5.1, 5.2]),
    ],
)
def test_scales_cover_their_values_with_round_ticks(values, log, ticks):
    across = scale(values)
    assert across.log == log
    assert all(0 < across.at(v) < 1 for v in values)
    assert across.ticks() == pytest.approx(ticks)
