"""Laws of the report: complete in one file, faithful to what it was given, safe with any text."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from prefrl.errors import InvalidData, PrefrlError
from prefrl.evaluation.intervals import Estimate, paired_difference, success_interval
from prefrl.evaluation.plots import (
    Curve,
    _ranks,
    calibration_curve,
    colors_for,
    image_png,
    learning_curves,
    return_scatter,
    success_bars,
    weight_bars,
)
from prefrl.evaluation.report import Picture, Report, RewardModel, Table, Video, policy_row, write_report

VOID = {"meta", "link", "img"}
PNG, MP4 = b"\x89PNG picture", b"mp4 video"


class Page(HTMLParser):
    """Tags, attributes and text; complains about tags that do not close."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for found, attributes in self.tags if found == tag]


def rows(rng):
    bc, aligned = np.arange(20) < 8, np.arange(20) < 19
    ones = np.ones(20)
    return (
        policy_row("BC", success=bc, returns=-3 * ones, lengths=50 * ones, rng=rng),
        policy_row(
            "aligned", success=aligned, returns=ones, lengths=40 * ones, rng=rng, baseline=bc,
            note="on the learned reward", extra=(("Ends like expert", "95%"),),
        ),
    )  # fmt: skip


def full_report():
    picture = Picture(title="Success", png=PNG, alt="bars of success", caption="20 episodes")
    return Report(
        title="A run",
        summary=("It got better.",),
        policies=rows(np.random.default_rng(0)),
        baseline="BC",
        pictures=(picture,),
        reward_model=RewardModel(facts=(("held-out accuracy", "94%"),), pictures=(replace(picture, png=b"other"),)),
        videos=(Video(title="Side by side", mp4=MP4, alt="two arms press a button"),),
        sensitivity=(Table(title="Seeds", columns=("Seed", "BC"), rows=(("0", "40%"),)),),
        missing=("No video of the data.",),
        config="seed: 0\n",
        versions={"packages": {"torch": "2.13"}, "python": "3.11"},
    )


def page_of(report, tmp_path):
    write_report(tmp_path / "report.html", report)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    return Page(html), html


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    """Every src and href is inside the file; there is no script, import or url() in it."""
    page, html = page_of(full_report(), tmp_path)
    references = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(references) > 5
    assert all(value.startswith(("data:", "#")) for value in references)
    assert not page.all("script")
    assert not re.search(r"@import|url\(|https?://", html)
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'")


def test_pictures_and_videos_are_embedded_byte_for_byte(tmp_path):
    """What was given can be decoded from the page again."""
    page, _ = page_of(full_report(), tmp_path)
    images = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in page.all("img")]
    videos = [base64.b64decode(video["src"].removeprefix("data:video/mp4;base64,")) for video in page.all("video")]
    assert (images, videos) == ([PNG, b"other"], [MP4])


def test_the_headline_table_says_the_numbers(tmp_path):
    """Success with its interval, the difference to the baseline, return, length, notes and extra columns."""
    page, html = page_of(full_report(), tmp_path)
    aligned = full_report().policies[1]
    assert f"95% {100 * aligned.success.low:.0f} to 100%" in page.text
    assert f"+55 +{100 * aligned.versus.low:.0f} to +{100 * aligned.versus.high:.0f}" in page.text
    for text in (
        "−3 −3 to −3",
        "on the learned reward",
        "Ends like expert",
        "Against BC",
        "held-out accuracy",
    ):
        assert text in page.text
    assert 'style="width:95.0%"' in html


def test_rows_hold_the_statistics_of_their_episodes():
    """A row is success_interval, the mean return, the mean length and the paired difference, nothing else."""
    won, other = np.arange(30) < 21, np.arange(30) % 2 == 0
    row = policy_row(
        "x",
        success=won,
        returns=np.arange(30),
        lengths=[10] * 30,
        baseline=other,
        rng=np.random.default_rng(3),
    )
    rng = np.random.default_rng(3)
    assert row.versus == paired_difference(won, other, rng=rng)
    assert row.success == success_interval(won, rng=rng)
    assert (row.returns.value, row.length, row.episodes) == (14.5, 10.0, 30)


@pytest.mark.parametrize(
    "field", ["title", "summary", "config", "missing", "baseline", "alt", "note", "version", "cell"]
)
def test_any_text_is_shown_as_text(tmp_path, field):
    """Markup in any input is escaped: it appears as written and makes no element."""
    evil = "<script>alert('1')</script>\"&amp;"
    report = full_report()
    first, second = report.policies
    changed = {
        "title": replace(report, title=evil),
        "summary": replace(report, summary=(evil,)),
        "config": replace(report, config=evil),
        "missing": replace(report, missing=(evil,)),
        "baseline": replace(report, baseline=evil),
        "alt": replace(report, videos=(Video(title=evil, mp4=MP4, alt=evil, caption=evil),)),
        "note": replace(report, policies=(replace(first, name=evil, note=evil, extra=((evil, evil),)), second)),
        "version": replace(report, versions={evil: evil}),
        "cell": replace(report, sensitivity=(Table(title=evil, columns=(evil,), rows=((evil, evil),)),)),
    }[field]
    page, _ = page_of(changed, tmp_path)
    assert not page.all("script")
    assert evil in page.text


def test_missing_parts_are_said_in_words(tmp_path):
    """A run without reward model, videos and plots gives a page that says so."""
    report = Report(title="Empty", policies=(), config="", versions={}, missing=("No GL backend draws.",))
    page, _ = page_of(report, tmp_path)
    for text in (
        "No GL backend draws.",
        "No videos were made.",
        "learned no reward model",
        "No policy was evaluated",
    ):
        assert text in page.text
    assert "Sensitivity" not in page.text


def test_the_page_is_accessible(tmp_path):
    """Language, viewport, words for every picture and video, headers with a scope, links that lead on."""
    page, _ = page_of(full_report(), tmp_path)
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(video["aria-label"] for video in page.all("video"))
    assert all(header["scope"] in ("row", "col") for header in page.all("th"))
    ids = {section["id"] for section in page.all("section")}
    assert {link["href"].removeprefix("#") for link in page.all("a")} == ids


def test_equal_reports_are_equal_files(tmp_path):
    """No clock and no chance in the page."""
    assert page_of(full_report(), tmp_path)[1] == page_of(full_report(), tmp_path)[1]


def test_unwritable_folder_is_a_clear_error(tmp_path):
    """A file where the folder should be: the error names the target."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefrlError, match=r"report\.html"):
        write_report(tmp_path / "file" / "report.html", full_report())


def pictures():
    estimates = [Estimate(0.4, 0.2, 0.6), Estimate(1.0, 0.83, 1.0)]
    curves = [
        Curve("BC", [0, 10, 20], [0, 0.4, 0.4]),
        Curve("aligned", [0, 10, 20], [0, 0.5, 1], [0, 0.4, 0.8], [0, 0.6, 1]),
    ]
    t = np.linspace(-3, 3, 30)
    return {
        "bars": success_bars(["BC", "aligned"], estimates),
        "curves": learning_curves(curves, title="Success", xlabel="updates", ylabel="", percent=True),
        "factors": learning_curves(curves[1:], title="", xlabel="", ylabel="", logarithmic=True),
        "weights": weight_bars(
            ["step", "goal"],
            {"a": [-1.0, 50.0], "b": [0.0, -70.0]},
            title="",
            note="",
            colors={"a": "#111", "b": "#222"},
        ),
        "scatter": return_scatter(t, t**3, groups=["a"] * 10 + ["b"] * 20),
        "constant": return_scatter(t, np.zeros(30)),
        "calibration": calibration_curve([0.1, 0.9], [0.0, 1.0], [3, 5]),
    }


def test_plots_are_pngs_and_the_same_every_time():
    """Equal data give equal bytes: real, not-blank pictures of a readable size."""
    first, second = pictures(), pictures()
    for name, png in first.items():
        assert png == second[name]
        with Image.open(BytesIO(png)) as image:
            assert image.format == "PNG"
            assert min(image.size) >= 250
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_frames_become_the_same_picture():
    """A frame as PNG has its pixels."""
    frame = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    with Image.open(BytesIO(image_png(frame))) as image:
        assert np.array_equal(np.asarray(image), frame)
    with pytest.raises(InvalidData, match="uint8"):
        image_png(frame / 255)


def test_plots_leave_no_state():
    """Matplotlib's settings are as they were, and pyplot holds no figure."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    pictures()
    assert dict(matplotlib.rcParams) == before


def test_colors_follow_the_policy_not_its_place():
    """A shared mapping gives a policy one color in all pictures; eight names get eight colors."""
    names = [f"policy {i}" for i in range(8)]
    assert len(set(colors_for(names).values())) == 8
    one = [Estimate(0.5, 0.4, 0.6)]
    assert success_bars(["a"], one, colors={"a": "#009E73"}) != success_bars(["a"], one)


def test_ranks_are_scipys():
    """Average ranks, as in Spearman's correlation."""
    values = np.random.default_rng(0).integers(0, 6, 40).astype(float)
    assert np.array_equal(_ranks(values) + 1, scipy.stats.rankdata(values))


def test_plots_refuse_nan():
    """A NaN would be a silent gap in a line."""
    with pytest.raises(InvalidData, match="'loss'"):
        learning_curves([Curve("loss", [0, 1], [1.0, np.nan])], title="", xlabel="", ylabel="")
    with pytest.raises(InvalidData, match="'mine'"):
        weight_bars(["step"], {"mine": [np.nan]}, title="", note="", colors={"mine": "#111"})
    with pytest.raises(InvalidData, match="learned returns"):
        return_scatter(np.zeros(2), np.array([0.0, np.inf]))
