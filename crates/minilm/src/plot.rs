//! The picture of the loss curves.

use crate::finetune::Curve;
use plotters::prelude::*;
use std::path::Path;

/// Losses over steps, each the mean of some, one line for each run.
pub(crate) fn losses(curves: &[Curve], to: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    const WINDOW: usize = 5;
    let smooth = |curve: &Curve| -> Vec<(f32, f32)> {
        let means = curve.losses.windows(WINDOW).map(|some| some.iter().sum::<f32>() / WINDOW as f32);
        means.enumerate().map(|(at, mean)| ((at + WINDOW) as f32, mean)).collect()
    };
    let lines: Vec<_> = curves.iter().map(|curve| (&curve.name, smooth(curve))).collect();
    let points = || lines.iter().flat_map(|(_, line)| line);
    let steps = points().fold(1.0, |most: f32, (step, _)| most.max(*step));
    let highest = points().fold(0.1, |most: f32, (_, loss)| most.max(*loss));
    let root = SVGBackend::new(to, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("MiniLM learns what WordNet's definitions are of", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0f32..steps, 0f32..highest * 1.05)?;
    let (x, y) = ("step", format!("training loss, mean of {WINDOW} steps"));
    chart.configure_mesh().x_desc(x).y_desc(y).light_line_style(WHITE).draw()?;
    let mut names: Vec<&String> = lines.iter().map(|(name, _)| *name).collect();
    names.sort();
    names.dedup();
    for (at, name) in names.into_iter().enumerate() {
        // Curves that lie on each other: the first wide, the next narrow on top of it.
        let kinds = [(RGBColor(150, 200, 235), 7), (RGBColor(213, 94, 0), 2), (RGBColor(0, 0, 0), 1)];
        let (color, width) = kinds[at % kinds.len()];
        for (run, (_, line)) in lines.iter().filter(|(other, _)| *other == name).enumerate() {
            let drawn = chart.draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(width)))?;
            if run == 0 {
                drawn
                    .label(name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(width)));
            }
        }
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}
