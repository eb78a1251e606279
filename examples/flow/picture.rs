//! What is drawn: one way through the layers beside the solution, and errors over the length of a step.

use crate::{Outcome, TIME, solution};
use plotters::prelude::*;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

// From the palette of Okabe and Ito: told apart by colour-blind eyes; marks tell them apart in grey.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const VERMILION: RGBColor = RGBColor(213, 94, 0);
const INK: RGBColor = RGBColor(45, 45, 45);
const GRID: RGBColor = RGBColor(228, 228, 228);
const FONT: &str = "sans-serif";

/// Layers of the way that is drawn: few, so that one sees its steps.
const LAYERS: usize = 16;

type Points = Vec<(f64, f64)>;

/// Writes the picture and returns its path.
pub(crate) fn write(
    out: &Path,
    outcomes: &[Outcome],
    trajectory: impl Fn(usize) -> Result<[Points; 2], resblock::Error>,
) -> Result<PathBuf, Box<dyn Error>> {
    let [euler, heun] = trajectory(LAYERS)?;
    let exact: Points =
        (0..=400).map(|i| solution([1.0, 0.0], f64::from(TIME) * f64::from(i) / 400.0).into()).collect();
    let errors = |of: fn(&Outcome) -> f64| outcomes.iter().map(|o| (o.dt.log10(), of(o).log10())).collect::<Points>();
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (1040, 460)).into_drawing_area();
        root.fill(&WHITE)?;
        let areas = root.split_evenly((1, 2));

        let ways = [("Euler blocks", VERMILION, &euler), ("Heun steps", BLUE, &heun)];
        let title = format!("A point's way through {LAYERS} layers");
        let mut chart = ChartBuilder::on(&areas[0])
            .caption(title, (FONT, 17).into_font().color(&INK))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(48)
            .build_cartesian_2d(-1.5..1.5, -1.5..1.5)?;
        chart.configure_mesh().bold_line_style(GRID).light_line_style(TRANSPARENT).label_style((FONT, 14)).draw()?;
        let series = chart.draw_series(LineSeries::new(exact, INK.stroke_width(2)))?;
        series.label("solution").legend(|(x, y)| PathElement::new([(x, y), (x + 24, y)], INK.stroke_width(2)));
        for (label, colour, way) in ways {
            chart.draw_series(LineSeries::new(way.iter().copied(), colour))?;
            let marks = way.iter().map(|&point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(marks)?.label(label).legend(move |(x, y)| Circle::new((x + 12, y), 3, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft) // the way is below
            .label_font((FONT, 14))
            .border_style(GRID)
            .background_style(WHITE)
            .draw()?;

        let curves =
            [("Euler: first order", VERMILION, errors(|o| o.euler)), ("Heun: second order", BLUE, errors(|o| o.heun))];
        let all = || curves.iter().flat_map(|(.., points)| points.iter());
        let range = |of: fn(&(f64, f64)) -> f64| {
            let ends =
                all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
            ends.0.floor()..ends.1.ceil()
        };
        let mut chart = ChartBuilder::on(&areas[1])
            .caption("Largest error at the end", (FONT, 17).into_font().color(&INK))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(58)
            .build_cartesian_2d(range(|p| p.0), range(|p| p.1))?;
        let power = |p: &f64| if p.fract() == 0.0 { format!("1e{p}") } else { String::new() };
        chart
            .configure_mesh()
            .x_desc("Δt")
            .x_label_formatter(&power)
            .y_label_formatter(&power)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 14))
            .draw()?;
        for (label, colour, points) in &curves {
            let colour = *colour;
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            let marks = points.iter().map(|&point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(marks)?.label(*label).legend(move |(x, y)| Circle::new((x + 12, y), 3, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font((FONT, 14))
            .border_style(GRID)
            .background_style(WHITE)
            .draw()?;
        root.present()?;
    }
    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let path = out.join("flow.svg");
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}
