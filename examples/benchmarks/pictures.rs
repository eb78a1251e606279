//! The pictures: fractions of the peak beside the others', and a roofline.

use crate::race::{Kind, OURS, Race, kinds};
use crate::tables::readable;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

// From the palette of Okabe and Ito, told apart by colour-blind eyes; shapes tell them apart in grey.
const OUR_COLOUR: RGBColor = RGBColor(213, 94, 0);
const THEIR_COLOUR: RGBColor = RGBColor(0, 114, 178);
const INK: RGBColor = RGBColor(45, 45, 45);
const GRID: RGBColor = RGBColor(228, 228, 228);
const FONT: &str = "sans-serif";

pub(crate) fn write(race: &Race, folder: &Path) -> Result<(), Box<dyn Error>> {
    for kind in kinds().filter(|k| k.act == "relu") {
        fractions(race, kind, &folder.join(format!("benchmarks-{}-{}.svg", kind.mode, kind.threads)))?;
    }
    roofline(race, &folder.join("benchmarks-roofline.svg"))
}

/// Every library's fraction of the peak, case by case: ours a diamond, the others dots.
fn fractions(race: &Race, kind: Kind, path: &Path) -> Result<(), Box<dyn Error>> {
    let peak = race.number(&format!("peak_{}", kind.threads))?;
    let area = SVGBackend::new(path, (900, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mode = if kind.mode == "fwd" { "Forward" } else { "Training step" };
    let threads = if kind.threads == 1 { "one thread" } else { "two threads" };
    let count = race.cases.len();
    let mut chart = ChartBuilder::on(&area)
        .caption(
            format!("{mode}, ReLU, {threads}: % of the FMA peak (diamonds: resblock; dots: the others)"),
            (FONT, 16, &INK),
        )
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(170)
        .build_cartesian_2d(0.0..100.0, -0.5..count as f64 - 0.5)?;
    // The first case at the top.
    let label = |y: &f64| race.cases.iter().rev().nth(y.round() as usize).map_or(String::new(), |c| readable(c));
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .x_labels(11)
        .y_labels(count)
        .y_label_formatter(&label)
        .label_style((FONT, 12, &INK))
        .draw()?;
    let points = |ours: bool| {
        race.cases.iter().rev().enumerate().flat_map(move |(i, case)| {
            let rows = race.of(case, kind).filter(move |r| (r.peer == OURS) == ours);
            rows.map(move |r| (100.0 * r.gflops / peak, i as f64))
        })
    };
    chart.draw_series(points(false).map(|p| Circle::new(p, 3, THEIR_COLOUR.mix(0.6).filled())))?;
    chart.draw_series(points(true).map(|p| EmptyElement::at(p) + diamond()))?;
    area.present()?;
    Ok(())
}

fn diamond() -> Polygon<(i32, i32)> {
    Polygon::new(vec![(0, -6), (5, 0), (0, 6), (-5, 0)], OUR_COLOUR.filled())
}

/// Our one-thread rows under the roof: operations for each byte that a call must move, against operations a second.
fn roofline(race: &Race, path: &Path) -> Result<(), Box<dyn Error>> {
    let (peak, stream) = (race.number("peak_1")?, race.number("stream")?);
    let area = SVGBackend::new(path, (900, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Roofline, one thread: ReLU, forward (diamonds) and training step (dots)", (FONT, 16, &INK))
        .margin(10)
        .x_label_area_size(45)
        .y_label_area_size(60)
        .build_cartesian_2d((0.2f64..2000.0).log_scale(), (5.0f64..400.0).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .x_desc("floating-point operations for each byte of weights, gradients, inputs and outputs")
        .y_desc("Gflop/s")
        .label_style((FONT, 12, &INK))
        .draw()?;
    let roof = (0..=80).map(|i| 0.2 * 10f64.powf(f64::from(i) / 20.0));
    chart.draw_series(LineSeries::new(roof.map(|x| (x, (x * stream).min(peak))), INK.stroke_width(2)))?;
    let points = |mode: &'static str| {
        let kind = Kind { mode, act: "relu", threads: 1 };
        race.cases.iter().filter_map(move |case| {
            let ours = race.of(case, kind).find(|r| r.peer == OURS)?;
            Some((intensity(case, mode)?, ours.gflops))
        })
    };
    chart.draw_series(points("train").map(|p| Circle::new(p, 4, THEIR_COLOUR.filled())))?;
    chart.draw_series(points("fwd").map(|p| EmptyElement::at(p) + diamond()))?;
    area.present()?;
    Ok(())
}

/// Operations for each byte that must be moved. Forward reads weights and x and writes y; a training step reads the weights twice
/// and x and dy, and writes the gradients, y and dx.
fn intensity(case: &str, mode: &str) -> Option<f64> {
    let (shape, depth) = case.split_once("_L").unwrap_or((case, "1"));
    let mut sizes = shape.split('x').map(|s| s.parse::<f64>().ok());
    let (b, d, h) = (sizes.next()??, sizes.next()??, sizes.next()??);
    let depth: f64 = depth.parse().ok()?;
    let (weights, rows) = (2.0 * d * h * depth, b * d);
    let flops = 2.0 * b * weights;
    Some(match mode {
        "fwd" => flops / (4.0 * (weights + 2.0 * rows)),
        _ => 3.0 * flops / (4.0 * (3.0 * weights + 4.0 * rows)),
    })
}
