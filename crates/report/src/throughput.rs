//! Throughput over the number of generators, against what is possible: a chart of its own.

use crate::chart::{Axis, colour, draw};

/// Measurements that differ in their number of generators only.
#[derive(Clone, Debug, Default)]
pub struct ThroughputLine {
    /// What they have in common, for the legend.
    pub name: String,
    /// In the order of the generators.
    pub points: Vec<ThroughputPoint>,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThroughputPoint {
    /// How many generators there were.
    pub generators: usize,
    /// Rollouts a second, as measured.
    pub measured: f64,
    /// Rollouts a second that no schedule exceeds.
    pub ideal: f64,
}

/// Draws the lines, each with its ideal dashed, as an SVG file.
pub fn throughput(lines: &[ThroughputLine]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x = Axis::steps("generators", points().map(|point| point.generators as f64).chain([0.0]));
    let rates = points().flat_map(|point| [point.measured, point.ideal]).chain([0.0]);
    let y = Axis::around("rollouts a second (dashed: ideal)", rates);
    let svg = draw(&x, &y, |plot| {
        for (line, colour) in lines.iter().zip(colour::CYCLE.into_iter().cycle()) {
            let along = |rate: fn(&crate::ThroughputPoint) -> f64| -> Vec<(f64, f64)> {
                line.points.iter().map(|point| (point.generators as f64, rate(point))).collect()
            };
            plot.dashes(&along(|point| point.ideal), colour);
            plot.line(&along(|point| point.measured), colour);
            plot.dots(&along(|point| point.measured), colour);
        }
        let names = lines.iter().map(|line| line.name.as_str());
        plot.legend(&names.zip(colour::CYCLE.into_iter().cycle()).collect::<Vec<_>>());
    });
    // In a page the ground is the page's.
    svg.replacen('>', "><rect width=\"100%\" height=\"100%\" fill=\"white\"/>", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: &[(usize, f64, f64)]) -> ThroughputLine {
        let point = |&(generators, measured, ideal)| ThroughputPoint { generators, measured, ideal };
        ThroughputLine { name: name.to_owned(), points: points.iter().map(point).collect() }
    }

    #[test]
    fn every_line_is_drawn_and_named() {
        let svg = throughput(&[
            line("1 scorer, η = 1", &[(1, 90.0, 100.0), (2, 150.0, 200.0)]),
            line("2 scorers, η = 1 & <more>", &[(1, 95.0, 100.0)]),
        ]);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("1 scorer, η = 1") && svg.contains("&lt;more&gt;") && !svg.contains("<more>"), "{svg}");
    }

    #[test]
    fn nothing_measured_gives_an_empty_chart() {
        assert!(throughput(&[]).contains("</svg>"));
    }
}
