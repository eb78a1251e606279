//! What is drawn: curves over epochs, and gradient norms over depth.

use crate::{Kind, Options, Probe, Run};
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

// From the palette of Okabe and Ito: told apart by colour-blind eyes; dashes tell them apart in grey.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const VERMILION: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const INK: RGBColor = RGBColor(45, 45, 45);
const GRID: RGBColor = RGBColor(228, 228, 228);
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

struct Curve {
    label: String,
    colour: RGBColor,
    /// Length of dashes; 0 for a solid line.
    dash: i32,
    points: Vec<(f64, f64)>,
}

struct Panel {
    title: String,
    x_label: &'static str,
    y_axis: Axis,
    legend: SeriesLabelPosition,
    curves: Vec<Curve>,
}

#[derive(Clone, Copy, PartialEq)]
enum Axis {
    /// 0 to 100 %.
    Percent,
    /// Powers of ten; values that have no logarithm are left out.
    Log,
}

/// Writes the pictures of the first seed's nets and returns their paths.
pub(crate) fn write(options: &Options, runs: &[Run], probes: &[Probe]) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let runs: Vec<&Run> = runs.iter().filter(|run| run.seed == options.seed).collect();
    let size = format!("{} blocks, width {}", options.depth, options.width);
    let curves = |value: fn(&crate::train::Epoch) -> f64| {
        let of = |run: &&Run| {
            let epochs = run.outcome.epochs.iter().enumerate();
            curve_of(run.kind, epochs.map(|(i, epoch)| ((i + 1) as f64, value(epoch))).collect())
        };
        runs.iter().map(of).collect()
    };
    let training = [
        Panel {
            title: format!("Training loss ({size})"),
            x_label: "epoch",
            y_axis: Axis::Log,
            legend: SeriesLabelPosition::LowerLeft,
            curves: curves(|epoch| epoch.train_loss),
        },
        Panel {
            title: "Held-out accuracy".into(),
            x_label: "epoch",
            y_axis: Axis::Percent,
            legend: SeriesLabelPosition::LowerRight,
            curves: curves(|epoch| 100.0 * epoch.held_out_accuracy),
        },
    ];
    let over_depth = |norms: &[f64]| -> Vec<(f64, f64)> {
        (1..=options.depth).zip(norms).map(|(block, &norm)| (block.into(), norm)).collect()
    };
    let mut flows: Vec<Curve> = Vec::new();
    for run in &runs {
        let scale = if run.kind == Kind::Plain { options.plain_scale } else { options.residual_scale() };
        let curve = curve_of(run.kind, over_depth(run.outcome.flow_before.norms()));
        flows.push(Curve { label: format!("{}, W2 × {scale:.2} (the one to be trained)", run.kind), ..curve });
    }
    for (probe, (colour, dash)) in probes.iter().zip([(GREEN, 4), (PURPLE, 2)]) {
        let points = over_depth(probe.flow.norms());
        flows.push(Curve { label: format!("plain, W2 × {:.2} ({})", probe.scale, probe.label), colour, dash, points });
    }
    let gradients = Panel {
        title: format!("Gradient norm at the entrance of each block, before training ({size})"),
        x_label: "block",
        y_axis: Axis::Log,
        legend: SeriesLabelPosition::LowerRight,
        curves: flows,
    };

    let pictures: [(&str, (u32, u32), &[Panel]); 2] =
        [("digits-training.svg", (1040, 420), &training), ("digits-gradients.svg", (860, 480), &[gradients])];
    let mut paths = Vec::new();
    for (name, size, panels) in pictures {
        let path = options.out.join(name);
        fs::write(&path, svg(size, panels)?).map_err(|e| format!("{}: {e}", path.display()))?;
        paths.push(path);
    }
    Ok(paths)
}

fn curve_of(kind: Kind, points: Vec<(f64, f64)>) -> Curve {
    match kind {
        Kind::Residual => Curve { label: "residual".into(), colour: BLUE, dash: 0, points },
        Kind::Plain => Curve { label: "plain".into(), colour: VERMILION, dash: 8, points },
    }
}

/// Panels side by side.
fn svg(size: (u32, u32), panels: &[Panel]) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (panel, area) in panels.iter().zip(root.split_evenly((1, panels.len()))) {
            draw(panel, &area)?;
        }
        root.present()?;
    }
    Ok(text)
}

fn draw(panel: &Panel, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let log = panel.y_axis == Axis::Log;
    let on_axis = |&(x, y): &(f64, f64)| Some((x, if log { y.log10() } else { y })).filter(|(_, y)| y.is_finite());
    let shown = |curve: &Curve| curve.points.iter().filter_map(on_axis).collect::<Vec<_>>();
    let all: Vec<(f64, f64)> = panel.curves.iter().flat_map(shown).collect();
    let right = all.iter().map(|p| p.0).fold(2.0, f64::max);
    let (bottom, top) = if log {
        let low = all.iter().map(|p| p.1).fold(f64::INFINITY, f64::min).floor();
        let high = all.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max).ceil();
        if low < high { (low, high) } else { (-1.0, 1.0) } // nothing to show, or one value
    } else {
        (0.0, 100.0)
    };
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 17).into_font().color(&INK))
        .margin(12)
        .margin_right(20)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d(1.0..right, bottom..top)?;
    let label = (FONT, 14).into_font().color(&INK);
    chart
        .configure_mesh()
        .x_desc(panel.x_label)
        .x_labels(10)
        .y_labels(10)
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x}") } else { String::new() })
        .y_label_formatter(&|y| match panel.y_axis {
            Axis::Percent => format!("{y} %"),
            Axis::Log if y.fract() == 0.0 => format!("10{}", superscript(*y)),
            Axis::Log => String::new(),
        })
        .label_style(label.clone())
        .axis_desc_style(label.clone())
        .axis_style(INK.mix(0.5))
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for curve in &panel.curves {
        let (points, style, dash) = (shown(curve), curve.colour.stroke_width(2), curve.dash);
        let series = if dash == 0 {
            chart.draw_series(LineSeries::new(points, style))?
        } else {
            chart.draw_series(DashedLineSeries::new(points, dash, dash.min(5), style))?
        };
        series.label(&curve.label).legend(move |(x, y)| {
            let ends = [(x, y), (x + 28, y)];
            if dash == 0 {
                PathElement::new(ends, style).into_dyn()
            } else {
                DashedPathElement::new(ends, dash, dash.min(5), style).into_dyn()
            }
        });
    }
    chart
        .configure_series_labels()
        .position(panel.legend.clone())
        .legend_area_size(36)
        .margin(12)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font(label)
        .draw()?;
    Ok(())
}

/// 10 to the power of a whole number, without its 10.
fn superscript(power: f64) -> String {
    let raised = |c: char| match c.to_digit(10) {
        Some(digit) => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][digit as usize],
        None => '⁻',
    };
    format!("{power:.0}").chars().map(raised).collect()
}
